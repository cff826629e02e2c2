// TensorRT's plugin ABI: the logger, how a plugin library finds it, and the plugin registry.
#pragma once

#include "trt/abi/base.h"
#include "trt/abi/plugin.h"

namespace CTX_ABI_NAMESPACE
{
namespace v_1_0
{

class ILogger : public IVersionedInterface
{
public:
    InterfaceInfo getInterfaceInfo() const noexcept override
    {
        return InterfaceInfo{"ILogger", 1, 0};
    }

    enum class Severity : int32_t
    {
        kINTERNAL_ERROR = 0,
        kERROR = 1,
        kWARNING = 2,
        kINFO = 3,
        kVERBOSE = 4
    };

    virtual void log(Severity severity, AsciiChar const* text) noexcept = 0;
};

class ILoggerFinder : public IVersionedInterface
{
public:
    InterfaceInfo getInterfaceInfo() const noexcept override
    {
        return InterfaceInfo{"ILoggerFinder", 1, 0};
    }

    virtual ILogger* findLogger() = 0;

protected:
    ~ILoggerFinder() override = default;
};

class IErrorRecorder;
class IPluginResource;

} // namespace v_1_0

using ILogger = v_1_0::ILogger;
using ILoggerFinder = v_1_0::ILoggerFinder;
using IErrorRecorder = v_1_0::IErrorRecorder;
using IPluginResource = v_1_0::IPluginResource;

class IPluginRegistry
{
public:
    using PluginLibraryHandle = void*;

    IPluginRegistry() = default;
    IPluginRegistry(IPluginRegistry const&) = delete;
    IPluginRegistry(IPluginRegistry&&) = delete;
    IPluginRegistry& operator=(IPluginRegistry const&) & = delete;
    IPluginRegistry& operator=(IPluginRegistry&&) & = delete;

protected:
    virtual ~IPluginRegistry() noexcept = 0;

public:
    virtual void setErrorRecorder(IErrorRecorder* recorder) noexcept = 0;
    virtual IErrorRecorder* getErrorRecorder() const noexcept = 0;
    virtual bool isParentSearchEnabled() const = 0;
    virtual void setParentSearchEnabled(bool enabled) = 0;
    virtual PluginLibraryHandle loadLibrary(AsciiChar const* pluginPath) noexcept = 0;
    virtual void deregisterLibrary(PluginLibraryHandle handle) noexcept = 0;
    virtual bool registerCreator(IPluginCreatorInterface& creator, AsciiChar const* pluginNamespace) noexcept = 0;
    virtual IPluginCreatorInterface* const* getAllCreators(int32_t* numCreators) const noexcept = 0;
    virtual IPluginCreatorInterface* getCreator(AsciiChar const* pluginName, AsciiChar const* pluginVersion,
        AsciiChar const* pluginNamespace = "") noexcept = 0;
    virtual bool deregisterCreator(IPluginCreatorInterface const& creator) noexcept = 0;
    virtual IPluginResource* acquirePluginResource(AsciiChar const* key, IPluginResource* resource) noexcept = 0;
    virtual int32_t releasePluginResource(AsciiChar const* key) noexcept = 0;
    virtual IPluginCreatorInterface* const* getAllCreatorsRecursive(int32_t* numCreators) noexcept = 0;
};

inline IPluginRegistry::~IPluginRegistry() noexcept = default;

} // namespace CTX_ABI_NAMESPACE
