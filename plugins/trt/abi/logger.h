// TensorRT's logger and how a plugin library finds it. Unlike the rest of the ABI it has two shapes, and whichever
// TensorRT loads the library decides, so these declarations serve with an SDK's headers too.
#pragma once

#include <cstdint>

namespace ctx::abi
{

// TensorRT 10: the interfaces begin with their own methods.
class PlainRoot
{
};

// TensorRT 11 and TensorRT-RTX: the methods of a versioned interface come first. None of them is called here.
class VersionedRoot
{
public:
    virtual void getAPILanguage() const noexcept = 0;
    virtual void getInterfaceInfo() const noexcept = 0;
    virtual ~VersionedRoot() noexcept = default;
};

constexpr bool hasVersionedLogger(int32_t majorVersion)
{
    return majorVersion != 10;
}

template <typename Root>
class Logger : public Root
{
public:
    static constexpr int32_t kERROR = 1;

    virtual void log(int32_t severity, char const* text) noexcept = 0;

protected:
    ~Logger() = default;
};

template <typename Root>
class LoggerFinder : public Root
{
public:
    virtual Logger<Root>* findLogger() = 0;

protected:
    ~LoggerFinder() = default;
};

} // namespace ctx::abi
