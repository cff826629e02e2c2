// Our own declarations of TensorRT's plugin ABI, for builds without an SDK: values, tensor descriptions and the root of
// its versioned interfaces. TensorRT 10.3 to 11.1 and TensorRT-RTX 1 share this ABI (10.2 and older have no aliased
// plugin I/O). The namespace, the names of types and virtual methods, their order and the enum values are the ABI;
// abi_check.cpp compares them with an SDK's headers. The plugin registry is left out: it changed from 10 to 11, and a
// library that is asked for its creators needs none.
#pragma once

#include <cstddef>
#include <cstdint>

// abi_check.cpp puts the declarations beside the SDK's by another name.
#ifndef CTX_ABI_NAMESPACE
#define CTX_ABI_NAMESPACE nvinfer1
#endif

using cudaStream_t = struct CUstream_st*;

namespace CTX_ABI_NAMESPACE
{

using AsciiChar = char;

enum class DataType : int32_t
{
    kFLOAT = 0,
    kHALF = 1,
    kINT8 = 2,
    kINT32 = 3,
    kBOOL = 4,
    kUINT8 = 5,
    kFP8 = 6,
    kBF16 = 7,
    kINT64 = 8,
    kINT4 = 9
};

// Only kLINEAR (row-major, no vectorised channels) is used here.
enum class TensorFormat : int32_t
{
    kLINEAR = 0
};

class Dims64
{
public:
    static constexpr int32_t MAX_DIMS{8};
    int32_t nbDims;
    int64_t d[MAX_DIMS];
};

using Dims = Dims64;

struct PluginTensorDesc
{
    Dims dims;
    DataType type;
    TensorFormat format;
    float scale;
};

// What the builder knows of a tensor whose dimensions are set at run time; -1 in desc.dims marks those.
struct DynamicPluginTensorDesc
{
    PluginTensorDesc desc;
    Dims min;
    Dims max;
    Dims opt;
};

class InterfaceInfo
{
public:
    char const* kind;
    int32_t major;
    int32_t minor;
};

enum class APILanguage : int32_t
{
    kCPP = 0,
    kPYTHON = 1
};

class IVersionedInterface
{
public:
    virtual APILanguage getAPILanguage() const noexcept
    {
        return APILanguage::kCPP;
    }

    virtual InterfaceInfo getInterfaceInfo() const noexcept = 0;
    virtual ~IVersionedInterface() noexcept = default;

protected:
    IVersionedInterface() = default;
    IVersionedInterface(IVersionedInterface const&) = default;
    IVersionedInterface(IVersionedInterface&&) = default;
    IVersionedInterface& operator=(IVersionedInterface const&) & = default;
    IVersionedInterface& operator=(IVersionedInterface&&) & = default;
};

class INoCopy
{
protected:
    INoCopy() = default;
    virtual ~INoCopy() = default;
    INoCopy(INoCopy const&) = delete;
    INoCopy(INoCopy&&) = delete;
    INoCopy& operator=(INoCopy const&) = delete;
    INoCopy& operator=(INoCopy&&) = delete;
};

} // namespace CTX_ABI_NAMESPACE
