// What every plugin shares: capabilities, names, cloning, fields, and its creator.
#pragma once

#include "trt/fields.h"
#include "trt/log.h"

#include <initializer_list>
#include <memory>

namespace ctx
{

constexpr char const* kPLUGIN_VERSION = "1";
constexpr char const* kPLUGIN_NAMESPACE = "";

// Type of tensors that hold activations: float32, float16 or bfloat16.
bool isActivationType(nvinfer1::DataType type) noexcept;

// CtxDataType of such a type; throws for others.
int32_t kernelDataType(nvinfer1::DataType type);

// Type of the elements of a quantised cache: float8 e4m3 or int8.
bool isQuantisedType(nvinfer1::DataType type) noexcept;

// CtxCacheType of such a type; throws for others.
int32_t kernelCacheType(nvinfer1::DataType type);

// Throws with the launcher's message if its status is not success.
void throwOnFailure(int32_t status);

void checkRank(char const* tensor, int32_t rank, int32_t expected);

// Throws if a tensor has another shape than the kernels will read it with.
void checkShape(char const* tensor, nvinfer1::Dims const& got, std::initializer_list<int64_t> expected);

// A tensor that may serve the whole batch has 1 as its first size.
int64_t batchOrOne(nvinfer1::Dims const& got, int64_t batch) noexcept;

// Base of a plugin shell. `Plugin` derives from it and has kNAME and Attributes; it is made from attributes.
template <typename Plugin, typename AttributeTable>
class PluginBase : public nvinfer1::IPluginV3,
                   public nvinfer1::IPluginV3OneCore,
                   public nvinfer1::IPluginV3OneBuildV2,
                   public nvinfer1::IPluginV3OneRuntime
{
public:
    using Attributes = AttributeTable;

    explicit PluginBase(Attributes attributes)
        : mAttributes{std::move(attributes)}
        , mFields{listFields(&mAttributes)}
        , mCollection{static_cast<int32_t>(mFields.size()), mFields.data()}
    {
    }

    PluginBase(PluginBase const&) = delete;
    PluginBase& operator=(PluginBase const&) = delete;

    nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override
    {
        switch (type)
        {
        case nvinfer1::PluginCapabilityType::kCORE: return static_cast<nvinfer1::IPluginV3OneCore*>(this);
        case nvinfer1::PluginCapabilityType::kBUILD: return static_cast<nvinfer1::IPluginV3OneBuildV2*>(this);
        case nvinfer1::PluginCapabilityType::kRUNTIME: return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
        }
        return nullptr;
    }

    nvinfer1::IPluginV3* clone() noexcept override
    {
        return guarded<nvinfer1::IPluginV3*>(
            Plugin::kNAME, "clone", nullptr, [this] { return new Plugin{mAttributes}; });
    }

    nvinfer1::AsciiChar const* getPluginName() const noexcept override
    {
        return Plugin::kNAME;
    }

    nvinfer1::AsciiChar const* getPluginVersion() const noexcept override
    {
        return kPLUGIN_VERSION;
    }

    nvinfer1::AsciiChar const* getPluginNamespace() const noexcept override
    {
        return kPLUGIN_NAMESPACE;
    }

    nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext*) noexcept override
    {
        return clone();
    }

    nvinfer1::PluginFieldCollection const* getFieldsToSerialize() noexcept override
    {
        return &mCollection;
    }

protected:
    Attributes const mAttributes;

private:
    std::vector<nvinfer1::PluginField> const mFields; // points into mAttributes
    nvinfer1::PluginFieldCollection const mCollection;
};

template <typename Plugin>
class PluginCreator final : public nvinfer1::IPluginCreatorV3One
{
public:
    nvinfer1::IPluginV3* createPlugin(nvinfer1::AsciiChar const*, nvinfer1::PluginFieldCollection const* fields,
        nvinfer1::TensorRTPhase) noexcept override
    {
        return guarded<nvinfer1::IPluginV3*>(Plugin::kNAME, "creation", nullptr,
            [fields]
            {
                nvinfer1::PluginFieldCollection const none{};
                return new Plugin{readFields<typename Plugin::Attributes>(fields == nullptr ? none : *fields)};
            });
    }

    nvinfer1::PluginFieldCollection const* getFieldNames() noexcept override
    {
        return &mCollection;
    }

    nvinfer1::AsciiChar const* getPluginName() const noexcept override
    {
        return Plugin::kNAME;
    }

    nvinfer1::AsciiChar const* getPluginVersion() const noexcept override
    {
        return kPLUGIN_VERSION;
    }

    nvinfer1::AsciiChar const* getPluginNamespace() const noexcept override
    {
        return kPLUGIN_NAMESPACE;
    }

private:
    std::vector<nvinfer1::PluginField> mFields{listFields<typename Plugin::Attributes>(nullptr)};
    nvinfer1::PluginFieldCollection mCollection{static_cast<int32_t>(mFields.size()), mFields.data()};
};

} // namespace ctx
