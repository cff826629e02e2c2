// Describes a package, then tries to run it with an engine of its own that refuses.

#include <ctx_runtime/generate.h>
#include <ctx_runtime/session.h>

#include <cstdio>

extern "C" int describe(char const* directory);

int main(int argc, char** argv)
{
    if (argc != 2)
    {
        std::fprintf(stderr, "usage: consumer PACKAGE\n");
        return 2;
    }
    auto const package = ctx::runtime::openPackage(argv[1]);
    if (!package.ok())
    {
        std::fprintf(stderr, "%s\n", package.status().message().c_str());
        return 1;
    }
    std::printf("%s: %zu layers, %lld slots\n", package->manifest.method.c_str(), package->contract.layers.size(),
        static_cast<long long>(package->contract.capacity));
    auto const registered = ctx::runtime::registerEngine("none",
        [](ctx::runtime::Package const&, ctx::runtime::EngineOptions const&)
        {
            return ctx::runtime::Result<std::unique_ptr<ctx::runtime::Engine>>{
                ctx::runtime::StatusCode::kENGINE_FAILED, "this engine runs nothing"};
        });
    ctx::runtime::SessionOptions options;
    options.engine = "none";
    auto const session = ctx::runtime::openSession(argv[1], options);
    std::printf("%s\n", session.status().message().c_str());
    return registered.ok() && describe(argv[1]) == 0 ? 0 : 1;
}
