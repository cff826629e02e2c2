// A package directory, checked before anything in it is used.
#ifndef CTX_RUNTIME_PACKAGE_H
#define CTX_RUNTIME_PACKAGE_H

#include "ctx_runtime/contract.h"

namespace ctx::runtime
{

struct Package
{
    std::string directory;
    Manifest manifest;
    Contract contract;
    std::string engineFile;    // path, empty where the package has no engine
    std::string pluginLibrary; // path of the library that the engine needs, its SHA-256 verified; may be empty
};

// Reads the manifest and checks the files that it names: the engine is there and not empty, the plugin library is the
// one that the package was exported with.
CTX_RUNTIME_API Result<Package> openPackage(std::string const& directory) noexcept;

// Whether the package's engine can be loaded by `runtime` (tensorrt, tensorrt-rtx) of `version` for `batch` sequences:
// what an engine's factory asks first.
CTX_RUNTIME_API Status checkEngine(
    Package const& package, std::string const& runtime, std::string const& version, int64_t batch) noexcept;

} // namespace ctx::runtime

#endif
