// Stands for a TensorRT of major version FAKE_MAJOR_VERSION: its version, and a logger in that version's shape, written
// out here so that it shares nothing with trt/abi/logger.h. It keeps the last text logged as an error.

#include <cstdint>
#include <string>

namespace
{

std::string lastError;

#if FAKE_MAJOR_VERSION >= 11
struct Info
{
    char const* kind;
    int32_t major;
    int32_t minor;
};

class Interface
{
public:
    virtual int32_t getAPILanguage() const noexcept
    {
        return 0;
    }

    virtual Info getInterfaceInfo() const noexcept
    {
        return Info{"fake", 1, 0};
    }

    virtual ~Interface() noexcept = default;
};
#else
class Interface
{
};
#endif

class Logger final : public Interface
{
public:
    virtual void log(int32_t severity, char const* text) noexcept
    {
        lastError = severity == 1 ? text : "not an error";
    }

    virtual ~Logger() = default;
};

class LoggerFinder final : public Interface
{
public:
    virtual Logger* findLogger()
    {
        static Logger logger;
        return &logger;
    }

    virtual ~LoggerFinder() = default;
};

} // namespace

extern "C" __attribute__((visibility("default"))) int32_t getInferLibMajorVersion()
{
    return FAKE_MAJOR_VERSION;
}

extern "C" __attribute__((visibility("default"))) void* fakeLoggerFinder()
{
    static LoggerFinder finder;
    return &finder;
}

extern "C" __attribute__((visibility("default"))) char const* fakeLastError()
{
    return lastError.c_str();
}
