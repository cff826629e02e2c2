// What the shells of the attentions that look behind a window share: inputs, outputs, layouts, checks, and the part of
// a call that the kernels' C interface has in common for them (CtxAttentionCall).
#pragma once

#include "ctx_plugins/ctx_kernels.h"
#include "trt/attention_layout.h"

#include <limits>

namespace ctx
{

// Attributes that all of them have. An operator's own derive from it.
struct FarAttentionAttributes
{
    float scale;
    float softcap;
    int32_t alias;
    int32_t rotaryDim;
    int32_t interleaved;
    int32_t layout; // an AttentionLayout
    std::string optionalInputs;
};

constexpr double kMAX_COUNT = std::numeric_limits<int32_t>::max();

// An operator's own attributes, followed by those.
template <typename Attributes>
std::vector<Field<Attributes>> withFarAttributes(std::vector<Field<Attributes>> fields)
{
    using A = Attributes;
    constexpr double kMAX_REAL = std::numeric_limits<float>::max();
    std::vector<Field<A>> const shared{
        {&A::scale, {"scale", -kMAX_REAL, kMAX_REAL, "factor on q.k"}},
        {&A::softcap, {"softcap", 0, kMAX_REAL, "logits become softcap * tanh(logits / softcap); 0: none"}},
        {&A::alias, {"alias", 0, 1, "1: present shares memory with past"}},
        {&A::rotaryDim, {"rotary_dim", 0, kMAX_COUNT, "leading dims that are rotated; 0: q and k are used as given"}},
        {&A::interleaved, {"interleaved", 0, 1, "1: pairs (2i, 2i + 1); 0: pairs (i, i + rotary_dim / 2)"}},
        {&A::layout,
            {"layout", 0, static_cast<double>(AttentionLayout::kPACKED),
                "of q, k, v and y; 0: [batch, head, token, dim]; 1: [batch, token, heads]; 2: q, k and v in one"}},
        {&A::optionalInputs, {"optional_inputs", 0, 0, "comma-separated names of the optional inputs present"}},
    };
    fields.insert(fields.end(), shared.begin(), shared.end());
    return fields;
}

// Behind a plugin's overrides. All but the last two throw what is wrong.
class FarAttentionShell
{
public:
    explicit FarAttentionShell(FarAttentionAttributes const& attributes);

    static constexpr int32_t kNB_OUTPUTS = 3;

    bool hasHeadSink() const noexcept
    {
        return mHeadSink >= 0;
    }

    void outputTypes(nvinfer1::DataType* outputTypes, int32_t nbOutputs, nvinfer1::DataType const* inputTypes,
        int32_t nbInputs) const;
    void outputShapes(nvinfer1::DimsExprs const* inputs, int32_t nbInputs, nvinfer1::DimsExprs* outputs,
        int32_t nbOutputs, nvinfer1::IExprBuilder& builder) const;
    void checkConfiguration(nvinfer1::DynamicPluginTensorDesc const* in, int32_t nbInputs, int32_t nbOutputs) const;
    void checkShapes(nvinfer1::PluginTensorDesc const* in, int32_t nbInputs, int32_t nbOutputs) const;

    // A call of the largest shapes, without memory.
    CtxAttentionCall largestCall(
        nvinfer1::DynamicPluginTensorDesc const* in, int32_t nbInputs, int32_t nbOutputs) const;

    // A call, without its workspace.
    CtxAttentionCall call(
        nvinfer1::PluginTensorDesc const* descs, void const* const* inputs, void* const* outputs) const;

    bool supports(int32_t pos, nvinfer1::DynamicPluginTensorDesc const* inOut) const noexcept;
    int32_t aliasedInput(int32_t outputIndex) const noexcept;

private:
    AttentionLayout layout() const noexcept;
    void checkCounts(int32_t nbInputs, int32_t nbOutputs) const;
    CtxAttentionCall sizedCall(nvinfer1::Dims const& query, nvinfer1::Dims const& past, nvinfer1::DataType type) const;

    FarAttentionAttributes const mAttributes;
    // Input index of each optional input, -1 if absent.
    int32_t mInverseFrequency{-1};
    int32_t mMultiplier{-1};
    int32_t mHeadSink{-1};
    int32_t mNbInputs{0}; // required ones included
};

// Base of such a shell. `Plugin` has kNAME and, of its attributes, `params(call)`: the operator's struct with that call
// in it; kLAUNCH and kWORKSPACE are the operator's functions of the C interface.
template <typename Plugin, typename AttributeTable>
class FarAttentionPlugin : public PluginBase<Plugin, AttributeTable>
{
    using Base = PluginBase<Plugin, AttributeTable>;

public:
    explicit FarAttentionPlugin(AttributeTable const& attributes)
        : Base{attributes}
        , mShell{attributes}
    {
    }

    int32_t getNbOutputs() const noexcept override
    {
        return FarAttentionShell::kNB_OUTPUTS;
    }

    int32_t getOutputDataTypes(nvinfer1::DataType* outputTypes, int32_t nbOutputs, nvinfer1::DataType const* inputTypes,
        int32_t nbInputs) const noexcept override
    {
        return guarded(Plugin::kNAME, "output types", 1,
            [&]
            {
                mShell.outputTypes(outputTypes, nbOutputs, inputTypes, nbInputs);
                return 0;
            });
    }

    int32_t getOutputShapes(nvinfer1::DimsExprs const* inputs, int32_t nbInputs, nvinfer1::DimsExprs const*, int32_t,
        nvinfer1::DimsExprs* outputs, int32_t nbOutputs, nvinfer1::IExprBuilder& exprBuilder) noexcept override
    {
        return guarded(Plugin::kNAME, "output shapes", 1,
            [&]
            {
                mShell.outputShapes(inputs, nbInputs, outputs, nbOutputs, exprBuilder);
                return 0;
            });
    }

    bool supportsFormatCombination(
        int32_t pos, nvinfer1::DynamicPluginTensorDesc const* inOut, int32_t, int32_t) noexcept override
    {
        return mShell.supports(pos, inOut);
    }

    int32_t configurePlugin(nvinfer1::DynamicPluginTensorDesc const* in, int32_t nbInputs,
        nvinfer1::DynamicPluginTensorDesc const*, int32_t nbOutputs) noexcept override
    {
        return guarded(Plugin::kNAME, "configuration", 1,
            [&]
            {
                mShell.checkConfiguration(in, nbInputs, nbOutputs);
                return 0;
            });
    }

    size_t getWorkspaceSize(nvinfer1::DynamicPluginTensorDesc const* in, int32_t nbInputs,
        nvinfer1::DynamicPluginTensorDesc const*, int32_t nbOutputs) const noexcept override
    {
        return guarded(Plugin::kNAME, "workspace", size_t{0},
            [&]
            {
                auto const params = this->mAttributes.params(mShell.largestCall(in, nbInputs, nbOutputs));
                return static_cast<size_t>(Plugin::kWORKSPACE(&params));
            });
    }

    int32_t getAliasedInput(int32_t outputIndex) noexcept override
    {
        return mShell.aliasedInput(outputIndex);
    }

    int32_t onShapeChange(nvinfer1::PluginTensorDesc const* in, int32_t nbInputs, nvinfer1::PluginTensorDesc const*,
        int32_t nbOutputs) noexcept override
    {
        return guarded(Plugin::kNAME, "shapes", 1,
            [&]
            {
                mShell.checkShapes(in, nbInputs, nbOutputs);
                return 0;
            });
    }

    int32_t enqueue(nvinfer1::PluginTensorDesc const* inputDesc, nvinfer1::PluginTensorDesc const*,
        void const* const* inputs, void* const* outputs, void* workspace, cudaStream_t stream) noexcept override
    {
        return guarded(Plugin::kNAME, "enqueue", 1,
            [&]
            {
                auto params = this->mAttributes.params(mShell.call(inputDesc, inputs, outputs));
                if (workspace != nullptr)
                {
                    // At most what getWorkspaceSize asked for at the largest shapes.
                    params.call.workspace = workspace;
                    params.call.workspaceBytes = Plugin::kWORKSPACE(&params);
                }
                throwOnFailure(Plugin::kLAUNCH(&params, stream));
                return 0;
            });
    }

protected:
    FarAttentionShell const mShell;
};

} // namespace ctx
