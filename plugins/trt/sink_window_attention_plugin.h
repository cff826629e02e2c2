// TensorRT shell of SinkWindowAttention.
#pragma once

#include "ctx_plugins/ctx_kernels.h"
#include "trt/attention_layout.h"

#include <array>

namespace ctx
{

struct SinkWindowAttentionAttributes
{
    int32_t sinks;
    int32_t window;
    float scale;
    float softcap;
    int32_t alias;
    int32_t bounded;
    int32_t rotaryDim;
    int32_t interleaved;
    int32_t rotation; // a CtxRotation
    int32_t sinkPosition;
    int32_t layout; // an AttentionLayout
    std::string optionalInputs;

    static std::array<Field<SinkWindowAttentionAttributes>, 12> const& fields();
};

// Input index of each optional input, -1 if absent.
struct OptionalInputs
{
    int32_t sinkQuery{-1};
    int32_t inverseFrequency{-1};
    int32_t multiplier{-1};
    int32_t headSink{-1};
    int32_t keyScale{-1};
    int32_t valueScale{-1};
    int32_t nbInputs{0}; // required ones included

    explicit OptionalInputs(std::string const& names);

    // Whether the input at `index` is an optional one that is float32 whatever the activations are.
    bool isFloat(int32_t index) const noexcept;
};

// Sizes and types of a call, or the largest ones of an engine.
struct CallSizes
{
    nvinfer1::Dims const& query;
    nvinfer1::Dims const& past;
    nvinfer1::DataType queryType;
    nvinfer1::DataType pastType;
    int64_t frequencyBatch;
    int64_t multiplierBatch;
};

class SinkWindowAttentionPlugin final : public PluginBase<SinkWindowAttentionPlugin, SinkWindowAttentionAttributes>
{
public:
    static constexpr char const* kNAME = "SinkWindowAttention";

    explicit SinkWindowAttentionPlugin(Attributes const& attributes);

    int32_t getNbOutputs() const noexcept override;
    int32_t getOutputDataTypes(nvinfer1::DataType* outputTypes, int32_t nbOutputs, nvinfer1::DataType const* inputTypes,
        int32_t nbInputs) const noexcept override;
    int32_t getOutputShapes(nvinfer1::DimsExprs const* inputs, int32_t nbInputs, nvinfer1::DimsExprs const* shapeInputs,
        int32_t nbShapeInputs, nvinfer1::DimsExprs* outputs, int32_t nbOutputs,
        nvinfer1::IExprBuilder& exprBuilder) noexcept override;
    bool supportsFormatCombination(int32_t pos, nvinfer1::DynamicPluginTensorDesc const* inOut, int32_t nbInputs,
        int32_t nbOutputs) noexcept override;
    int32_t configurePlugin(nvinfer1::DynamicPluginTensorDesc const* in, int32_t nbInputs,
        nvinfer1::DynamicPluginTensorDesc const* out, int32_t nbOutputs) noexcept override;
    size_t getWorkspaceSize(nvinfer1::DynamicPluginTensorDesc const* in, int32_t nbInputs,
        nvinfer1::DynamicPluginTensorDesc const* out, int32_t nbOutputs) const noexcept override;
    int32_t getAliasedInput(int32_t outputIndex) noexcept override;
    int32_t onShapeChange(nvinfer1::PluginTensorDesc const* in, int32_t nbInputs, nvinfer1::PluginTensorDesc const* out,
        int32_t nbOutputs) noexcept override;
    int32_t enqueue(nvinfer1::PluginTensorDesc const* inputDesc, nvinfer1::PluginTensorDesc const* outputDesc,
        void const* const* inputs, void* const* outputs, void* workspace, cudaStream_t stream) noexcept override;

private:
    AttentionLayout layout() const noexcept;
    void checkRotation() const;
    void checkCounts(int32_t nbInputs, int32_t nbOutputs) const;
    CtxSinkWindowAttentionParams paramsWithoutPointers(CallSizes const& sizes) const;
    void checkOptionalShapes(nvinfer1::PluginTensorDesc const* in, AttentionSizes const& sizes) const;

    OptionalInputs const mOptional;
};

} // namespace ctx
