// The engines that programs registered, and opening a package with one of them.

#include "boundary.h"
#include "ctx_runtime/session.h"

#include <map>
#include <mutex>

namespace ctx::runtime
{

namespace
{

struct Registry
{
    std::mutex mutex;
    std::map<std::string, EngineFactory> factories;
};

Registry& registry()
{
    static Registry all;
    return all;
}

EngineFactory factoryOf(std::string const& name)
{
    Registry& all = registry();
    std::lock_guard const lock{all.mutex};
    auto const found = all.factories.find(name);
    if (found != all.factories.end())
    {
        return found->second;
    }
    std::string known;
    for (auto const& [registered, factory] : all.factories)
    {
        known += (known.empty() ? "" : ", ") + registered;
    }
    throw Failure{StatusCode::kINVALID_ARGUMENT,
        "engine " + name + " is unknown: " + (known.empty() ? "none is registered" : "use " + known)};
}

} // namespace

Status registerEngine(std::string const& name, EngineFactory factory) noexcept
{
    return guarded<Status>(
        [&]() -> Status
        {
            if (name.empty() || factory == nullptr)
            {
                return {StatusCode::kINVALID_ARGUMENT, "an engine needs a name and a factory: give both"};
            }
            Registry& all = registry();
            std::lock_guard const lock{all.mutex};
            all.factories[name] = std::move(factory);
            return {};
        });
}

Result<std::unique_ptr<Session>> openSession(std::string const& directory, SessionOptions const& options) noexcept
{
    return guarded<Result<std::unique_ptr<Session>>>(
        [&]
        {
            EngineFactory const factory = factoryOf(options.engine);
            Package package = valueOf(openPackage(directory));
            std::unique_ptr<Engine> engine = valueOf(factory(package, EngineOptions{options.batch}));
            return Session::create(std::move(package), std::move(engine), options);
        });
}

} // namespace ctx::runtime
