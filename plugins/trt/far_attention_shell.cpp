#include "trt/far_attention_shell.h"

#include "kernels/sink_window_attention/sink_window_attention_params.h"
#include "trt/optional_inputs.h"

namespace ctx
{
namespace
{

using nvinfer1::DataType;
using nvinfer1::Dims;

enum Input : int32_t
{
    kQUERY,
    kKEY,
    kVALUE,
    kPAST_KEY,
    kPAST_VALUE,
    kSEEN,
    kNEW,
    kNB_REQUIRED_INPUTS
};

enum Output : int32_t
{
    kOUTPUT,
    kPRESENT_KEY,
    kPRESENT_VALUE
};

template <typename T>
T const* optionalInput(void const* const* inputs, int32_t index)
{
    return index < 0 ? nullptr : static_cast<T const*>(inputs[index]);
}

} // namespace

FarAttentionShell::FarAttentionShell(FarAttentionAttributes const& attributes)
    : mAttributes{attributes}
{
    mNbInputs = placeOptionalInputs(mAttributes.optionalInputs, kNB_REQUIRED_INPUTS,
        {{"inv_freq", &mInverseFrequency}, {"multiplier", &mMultiplier}, {"head_sink", &mHeadSink}});
    bool const rotates = mAttributes.rotaryDim > 0;
    if (rotates != (mInverseFrequency >= 0) || rotates != (mMultiplier >= 0) || mAttributes.rotaryDim % 2 != 0)
    {
        throw std::invalid_argument(message("attribute rotary_dim is ", mAttributes.rotaryDim,
            " and optional_inputs \"", mAttributes.optionalInputs,
            "\": give an even rotary_dim above 0 together with inv_freq and multiplier, or 0 and neither"));
    }
}

AttentionLayout FarAttentionShell::layout() const noexcept
{
    return static_cast<AttentionLayout>(mAttributes.layout);
}

void FarAttentionShell::checkCounts(int32_t nbInputs, int32_t nbOutputs) const
{
    if (nbInputs != mNbInputs || nbOutputs != kNB_OUTPUTS)
    {
        throw std::invalid_argument(message("the node has ", nbInputs, " inputs and ", nbOutputs,
            " outputs where optional_inputs \"", mAttributes.optionalInputs, "\" asks for ", mNbInputs, " and ",
            kNB_OUTPUTS, ": give optional_inputs the names of exactly those connected"));
    }
}

void FarAttentionShell::outputTypes(
    DataType* outputTypes, int32_t nbOutputs, DataType const* inputTypes, int32_t nbInputs) const
{
    checkCounts(nbInputs, nbOutputs);
    outputTypes[kOUTPUT] = inputTypes[kQUERY];
    outputTypes[kPRESENT_KEY] = inputTypes[kPAST_KEY];
    outputTypes[kPRESENT_VALUE] = inputTypes[kPAST_VALUE];
}

void FarAttentionShell::outputShapes(nvinfer1::DimsExprs const* inputs, int32_t nbInputs, nvinfer1::DimsExprs* outputs,
    int32_t nbOutputs, nvinfer1::IExprBuilder& builder) const
{
    checkCounts(nbInputs, nbOutputs);
    checkRank("q", inputs[kQUERY].nbDims, layoutRank(layout()));
    checkRank("k", inputs[kKEY].nbDims, layoutRank(layout()));
    checkRank("v", inputs[kVALUE].nbDims, layoutRank(layout()));
    checkRank("past_key", inputs[kPAST_KEY].nbDims, 4);
    checkRank("past_value", inputs[kPAST_VALUE].nbDims, 4);
    checkRank("seen", inputs[kSEEN].nbDims, 1);
    checkRank("new", inputs[kNEW].nbDims, 1);
    outputs[kOUTPUT] = outputShape(layout(), inputs[kQUERY], inputs[kPAST_KEY], builder);
    outputs[kPRESENT_KEY] = inputs[kPAST_KEY];
    outputs[kPRESENT_VALUE] = inputs[kPAST_VALUE];
}

bool FarAttentionShell::supports(int32_t pos, nvinfer1::DynamicPluginTensorDesc const* inOut) const noexcept
{
    nvinfer1::PluginTensorDesc const& tensor = inOut[pos].desc;
    if (tensor.format != nvinfer1::TensorFormat::kLINEAR)
    {
        return false;
    }
    if (pos == kSEEN || pos == kNEW)
    {
        return tensor.type == DataType::kINT64;
    }
    if (pos >= kNB_REQUIRED_INPUTS && pos < mNbInputs)
    {
        return tensor.type == DataType::kFLOAT;
    }
    return pos == kQUERY ? isActivationType(tensor.type) : tensor.type == inOut[kQUERY].desc.type;
}

void FarAttentionShell::checkConfiguration(
    nvinfer1::DynamicPluginTensorDesc const* in, int32_t nbInputs, int32_t nbOutputs) const
{
    using Params = SinkWindowAttentionParams;
    checkCounts(nbInputs, nbOutputs);
    int64_t const headDim = headDimOf(layout(), in[kQUERY].desc.dims, in[kPAST_KEY].desc.dims);
    if (headDim > Params::kMAX_HEAD_DIM || (headDim >= 0 && headDim % Params::kHEAD_DIM_STEP != 0))
    {
        throw std::invalid_argument(message("head dimension ", headDim, " is not supported: give a multiple of ",
            Params::kHEAD_DIM_STEP, " up to ", Params::kMAX_HEAD_DIM));
    }
    if (headDim >= 0 && mAttributes.rotaryDim > headDim)
    {
        throw std::invalid_argument(message("attribute rotary_dim is ", mAttributes.rotaryDim,
            " for a head dimension of ", headDim, ": give at most that"));
    }
}

void FarAttentionShell::checkShapes(nvinfer1::PluginTensorDesc const* in, int32_t nbInputs, int32_t nbOutputs) const
{
    checkCounts(nbInputs, nbOutputs);
    Dims const& query = in[kQUERY].dims;
    Dims const& past = in[kPAST_KEY].dims;
    checkRank("q", query.nbDims, layoutRank(layout()));
    checkRank("past_key", past.nbDims, 4);
    AttentionSizes const sizes = AttentionSizes::of(layout(), query, past);
    auto const& [batch, queryHeads, kvHeads, rows, capacity, dim] = sizes;
    checkProjections(layout(), sizes, query, in[kKEY].dims, in[kVALUE].dims);
    checkShape("past_key", past, {batch, kvHeads, capacity, dim});
    checkShape("past_value", in[kPAST_VALUE].dims, {batch, kvHeads, capacity, dim});
    checkShape("seen", in[kSEEN].dims, {batch});
    checkShape("new", in[kNEW].dims, {batch});
    if (mInverseFrequency >= 0)
    {
        Dims const& frequency = in[mInverseFrequency].dims;
        Dims const& multiplier = in[mMultiplier].dims;
        checkShape("inv_freq", frequency, {batchOrOne(frequency, batch), mAttributes.rotaryDim / 2});
        checkShape("multiplier", multiplier, {batchOrOne(multiplier, batch)});
    }
    if (mHeadSink >= 0)
    {
        checkShape("head_sink", in[mHeadSink].dims, {queryHeads});
    }
}

int32_t FarAttentionShell::aliasedInput(int32_t outputIndex) const noexcept
{
    if (mAttributes.alias == 0)
    {
        return -1;
    }
    switch (outputIndex)
    {
    case kPRESENT_KEY: return kPAST_KEY;
    case kPRESENT_VALUE: return kPAST_VALUE;
    default: return -1;
    }
}

CtxAttentionCall FarAttentionShell::sizedCall(Dims const& query, Dims const& past, DataType type) const
{
    CtxAttentionCall call{};
    placeTensors(layout(), AttentionSizes::of(layout(), query, past), call);
    call.rotaryDim = mAttributes.rotaryDim;
    call.frequencyBatch = 1;
    call.multiplierBatch = 1;
    call.scale = mAttributes.scale;
    call.softcap = mAttributes.softcap;
    call.interleaved = mAttributes.interleaved;
    call.dataType = kernelDataType(type);
    return call;
}

CtxAttentionCall FarAttentionShell::largestCall(
    nvinfer1::DynamicPluginTensorDesc const* in, int32_t nbInputs, int32_t nbOutputs) const
{
    checkCounts(nbInputs, nbOutputs);
    return sizedCall(in[kQUERY].max, in[kPAST_KEY].max, in[kQUERY].desc.type);
}

CtxAttentionCall FarAttentionShell::call(
    nvinfer1::PluginTensorDesc const* descs, void const* const* inputs, void* const* outputs) const
{
    CtxAttentionCall call = sizedCall(descs[kQUERY].dims, descs[kPAST_KEY].dims, descs[kQUERY].type);
    if (mInverseFrequency >= 0)
    {
        call.frequencyBatch = descs[mInverseFrequency].dims.d[0];
        call.multiplierBatch = descs[mMultiplier].dims.d[0];
    }
    call.query = inputs[kQUERY];
    call.key = inputs[kKEY];
    call.value = inputs[kVALUE];
    if (layout() == AttentionLayout::kPACKED)
    {
        placeKeysAndValues(call);
    }
    call.pastKey = inputs[kPAST_KEY];
    call.pastValue = inputs[kPAST_VALUE];
    call.seen = static_cast<int64_t const*>(inputs[kSEEN]);
    call.newTokens = static_cast<int64_t const*>(inputs[kNEW]);
    call.inverseFrequency = optionalInput<float>(inputs, mInverseFrequency);
    call.multiplier = optionalInput<float>(inputs, mMultiplier);
    call.headSink = optionalInput<float>(inputs, mHeadSink);
    call.output = outputs[kOUTPUT];
    call.presentKey = outputs[kPRESENT_KEY];
    call.presentValue = outputs[kPRESENT_VALUE];
    return call;
}

} // namespace ctx
