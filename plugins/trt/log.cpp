#include "trt/log.h"

#include "trt/abi/logger.h"

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <dlfcn.h>
#include <string>

namespace ctx
{
namespace
{

std::atomic<void*>& loggerFinder() noexcept
{
    static std::atomic<void*> finder{nullptr};
    return finder;
}

// Major version of the library that holds the object's table of virtual functions; 0 if it is no TensorRT.
int32_t majorVersionOf(void* object) noexcept
{
    Dl_info info{};
    if (dladdr(*static_cast<void**>(object), &info) == 0 || info.dli_fname == nullptr)
    {
        return 0;
    }
    void* const library = dlopen(info.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
    if (library == nullptr)
    {
        return 0;
    }
    auto const majorVersion = reinterpret_cast<int32_t (*)()>(dlsym(library, "getInferLibMajorVersion"));
    int32_t const major = majorVersion == nullptr ? 0 : majorVersion();
    dlclose(library);
    return major;
}

template <typename Root>
bool logWith(void* finder, char const* line)
{
    abi::Logger<Root>* const logger = static_cast<abi::LoggerFinder<Root>*>(finder)->findLogger();
    if (logger != nullptr)
    {
        logger->log(abi::Logger<Root>::kERROR, line);
    }
    return logger != nullptr;
}

bool logToTensorRt(char const* line)
{
    void* const finder = loggerFinder().load();
    int32_t const major = finder == nullptr ? 0 : majorVersionOf(finder);
    if (major == 0)
    {
        return false;
    }
    return abi::hasVersionedLogger(major) ? logWith<abi::VersionedRoot>(finder, line)
                                          : logWith<abi::PlainRoot>(finder, line);
}

} // namespace

void setLoggerFinder(void* finder) noexcept
{
    loggerFinder().store(finder);
}

void logError(char const* plugin, char const* where, char const* text) noexcept
{
    try
    {
        std::string const line = std::string{"ctx plugin "} + plugin + ", " + where + ": " + text;
        if (logToTensorRt(line.c_str()))
        {
            return;
        }
    }
    catch (...) // out of memory, or the finder's own exception: standard error needs neither
    {
    }
    std::fprintf(stderr, "ctx plugin %s, %s: %s\n", plugin, where, text);
}

} // namespace ctx
