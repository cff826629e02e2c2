#include "ctx_runtime/package.h"

#include "boundary.h"
#include "files.h"
#include "sha256.h"

namespace ctx::runtime
{

namespace
{

std::string sha256Of(std::string const& path)
{
    Sha256 hash;
    readParts(path, [&hash](char const* bytes, size_t count) { hash.add(bytes, count); });
    return hash.finish();
}

[[noreturn]] void fail(std::string const& message)
{
    throw Failure{StatusCode::kINVALID_PACKAGE, message};
}

void checkInside(char const* what, std::string const& name)
{
    if (!isPlainName(name))
    {
        fail(std::string{what} + " " + name + " lies outside of the package: export it again");
    }
}

std::string engineFile(std::string const& directory, EngineInfo const& engine)
{
    checkInside("the engine", engine.file);
    std::string const path = pathIn(directory, engine.file);
    if (fileKind(path) != FileKind::kREGULAR)
    {
        fail(directory + " has no " + engine.file + ": export the package again");
    }
    if (fileBytes(path) == 0)
    {
        fail(path + " is empty: export the package again");
    }
    return path;
}

// The library is code: nothing but what the exporter put there is to be run.
std::string pluginLibrary(std::string const& directory, PluginInfo const& plugins)
{
    checkInside("the plugin library", plugins.file);
    std::string const path = pathIn(directory, plugins.file);
    if (FileKind const kind = fileKind(path); kind != FileKind::kREGULAR)
    {
        fail("the plugin library " + path
            + " cannot be read: " + (kind == FileKind::kNONE ? "No such file or directory" : "it is no regular file")
            + "; export the package again");
    }
    std::string const found = sha256Of(path);
    if (found != plugins.sha256)
    {
        fail("the plugin library " + path + " is not the one that the package was exported with: its SHA-256 is "
            + found + ", the manifest says " + plugins.sha256 + "; export the package again");
    }
    return path;
}

} // namespace

Result<Package> openPackage(std::string const& directory) noexcept
{
    return guarded<Result<Package>>(
        [&]
        {
            Package package;
            package.directory = directory;
            package.manifest = valueOf(loadManifest(directory));
            package.contract = valueOf(makeContract(package.manifest));
            if (package.manifest.engine)
            {
                package.engineFile = engineFile(directory, *package.manifest.engine);
            }
            if (package.manifest.plugins)
            {
                package.pluginLibrary = pluginLibrary(directory, *package.manifest.plugins);
            }
            return package;
        });
}

Status checkEngine(
    Package const& package, std::string const& runtime, std::string const& version, int64_t batch) noexcept
{
    return guarded<Status>(
        [&]
        {
            std::optional<EngineInfo> const& engine = package.manifest.engine;
            if (!engine || engine->runtime != runtime)
            {
                fail("the package has " + (engine ? "an engine for " + engine->runtime : std::string{"no engine"})
                    + ": export it with --engine " + runtime
                    + (engine ? ", or open it with engine " + engine->runtime : std::string{}));
            }
            if (engine->version != version)
            {
                fail("the engine was built by " + runtime + " " + engine->version + ", installed is " + version
                    + ": export the package again, or install " + engine->version);
            }
            if (batch > package.contract.maxBatch)
            {
                throw Failure{StatusCode::kINVALID_ARGUMENT,
                    "batch is " + std::to_string(batch) + ", the engine takes at most "
                        + std::to_string(package.contract.maxBatch) + " sequences: export with a larger --max-batch"};
            }
            return Status{};
        });
}

} // namespace ctx::runtime
