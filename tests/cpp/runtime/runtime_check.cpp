// Opens a package for an engine and says why it is refused. Usage: ctx_runtime_check PACKAGE RUNTIME VERSION BATCH

#include "ctx_runtime/package.h"

#include <cstdio>
#include <cstdlib>

int main(int argc, char** argv)
{
    if (argc != 5)
    {
        std::fprintf(stderr, "usage: ctx_runtime_check PACKAGE RUNTIME VERSION BATCH\n");
        return 2;
    }
    auto const package = ctx::runtime::openPackage(argv[1]);
    ctx::runtime::Status const status = package.ok()
        ? ctx::runtime::checkEngine(*package, argv[2], argv[3], std::strtoll(argv[4], nullptr, 10))
        : package.status();
    std::printf("%s\n", status.message().c_str());
    return status.ok() ? 0 : 1;
}
