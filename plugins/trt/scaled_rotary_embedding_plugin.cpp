#include "trt/scaled_rotary_embedding_plugin.h"

#include "ctx_plugins/ctx_kernels.h"

namespace ctx
{
namespace
{

enum Input : int32_t
{
    kX,
    kPOSITIONS,
    kINVERSE_FREQUENCY,
    kMULTIPLIER,
    kNB_INPUTS
};

constexpr int32_t kNB_OUTPUTS = 1;

void checkCounts(int32_t nbInputs, int32_t nbOutputs)
{
    if (nbInputs != kNB_INPUTS || nbOutputs != kNB_OUTPUTS)
    {
        throw std::invalid_argument(message("the node has ", nbInputs, " inputs and ", nbOutputs,
            " outputs: give x, positions, inv_freq, multiplier and one output"));
    }
}

} // namespace

std::array<Field<ScaledRotaryEmbeddingAttributes>, 2> const& ScaledRotaryEmbeddingAttributes::fields()
{
    using A = ScaledRotaryEmbeddingAttributes;
    static std::array<Field<A>, 2> const table{{
        {&A::rotaryDim, {"rotary_dim", 2, 65536, "dimensions that rotate, an even number"}},
        {&A::interleaved, {"interleaved", 0, 1, "1: pairs (2i, 2i + 1); 0: pairs (i, i + rotary_dim / 2)"}},
    }};
    return table;
}

ScaledRotaryEmbeddingPlugin::ScaledRotaryEmbeddingPlugin(Attributes const& attributes)
    : PluginBase{attributes}
{
    if (mAttributes.rotaryDim % 2 != 0)
    {
        throw std::invalid_argument(
            message("attribute rotary_dim is ", mAttributes.rotaryDim, ": give an even number"));
    }
}

int32_t ScaledRotaryEmbeddingPlugin::getNbOutputs() const noexcept
{
    return kNB_OUTPUTS;
}

int32_t ScaledRotaryEmbeddingPlugin::getOutputDataTypes(nvinfer1::DataType* outputTypes, int32_t nbOutputs,
    nvinfer1::DataType const* inputTypes, int32_t nbInputs) const noexcept
{
    return guarded(kNAME, "output types", 1,
        [&]
        {
            checkCounts(nbInputs, nbOutputs);
            outputTypes[0] = inputTypes[kX];
            return 0;
        });
}

int32_t ScaledRotaryEmbeddingPlugin::getOutputShapes(nvinfer1::DimsExprs const* inputs, int32_t nbInputs,
    nvinfer1::DimsExprs const*, int32_t, nvinfer1::DimsExprs* outputs, int32_t nbOutputs,
    nvinfer1::IExprBuilder&) noexcept
{
    return guarded(kNAME, "output shapes", 1,
        [&]
        {
            checkCounts(nbInputs, nbOutputs);
            checkRank("x", inputs[kX].nbDims, 4);
            checkRank("positions", inputs[kPOSITIONS].nbDims, 2);
            checkRank("inv_freq", inputs[kINVERSE_FREQUENCY].nbDims, 2);
            checkRank("multiplier", inputs[kMULTIPLIER].nbDims, 1);
            outputs[0] = inputs[kX];
            return 0;
        });
}

bool ScaledRotaryEmbeddingPlugin::supportsFormatCombination(
    int32_t pos, nvinfer1::DynamicPluginTensorDesc const* inOut, int32_t, int32_t) noexcept
{
    nvinfer1::PluginTensorDesc const& tensor = inOut[pos].desc;
    if (tensor.format != nvinfer1::TensorFormat::kLINEAR)
    {
        return false;
    }
    switch (pos)
    {
    case kX: return isActivationType(tensor.type);
    case kPOSITIONS: return tensor.type == nvinfer1::DataType::kINT64;
    case kINVERSE_FREQUENCY:
    case kMULTIPLIER: return tensor.type == nvinfer1::DataType::kFLOAT;
    default: return tensor.type == inOut[kX].desc.type;
    }
}

int32_t ScaledRotaryEmbeddingPlugin::configurePlugin(nvinfer1::DynamicPluginTensorDesc const* in, int32_t nbInputs,
    nvinfer1::DynamicPluginTensorDesc const*, int32_t nbOutputs) noexcept
{
    return guarded(kNAME, "configuration", 1,
        [&]
        {
            checkCounts(nbInputs, nbOutputs);
            int64_t const headDim = in[kX].desc.dims.d[3];
            int64_t const pairs = in[kINVERSE_FREQUENCY].desc.dims.d[1];
            if ((headDim >= 0 && headDim < mAttributes.rotaryDim) || (pairs >= 0 && 2 * pairs != mAttributes.rotaryDim))
            {
                throw std::invalid_argument(
                    message("attribute rotary_dim is ", mAttributes.rotaryDim, " for a head dimension of ", headDim,
                        " and ", pairs, " frequencies: give at most the head dimension, and half as many frequencies"));
            }
            return 0;
        });
}

int32_t ScaledRotaryEmbeddingPlugin::onShapeChange(nvinfer1::PluginTensorDesc const* in, int32_t nbInputs,
    nvinfer1::PluginTensorDesc const*, int32_t nbOutputs) noexcept
{
    return guarded(kNAME, "shapes", 1,
        [&]
        {
            checkCounts(nbInputs, nbOutputs);
            nvinfer1::Dims const& x = in[kX].dims;
            checkRank("x", x.nbDims, 4);
            int64_t const batch = x.d[0];
            checkShape("positions", in[kPOSITIONS].dims, {batch, x.d[2]});
            nvinfer1::Dims const& frequency = in[kINVERSE_FREQUENCY].dims;
            checkShape("inv_freq", frequency, {batchOrOne(frequency, batch), mAttributes.rotaryDim / 2});
            nvinfer1::Dims const& multiplier = in[kMULTIPLIER].dims;
            checkShape("multiplier", multiplier, {batchOrOne(multiplier, batch)});
            return 0;
        });
}

int32_t ScaledRotaryEmbeddingPlugin::enqueue(nvinfer1::PluginTensorDesc const* inputDesc,
    nvinfer1::PluginTensorDesc const*, void const* const* inputs, void* const* outputs, void*,
    cudaStream_t stream) noexcept
{
    return guarded(kNAME, "enqueue", 1,
        [&]
        {
            nvinfer1::Dims const& x = inputDesc[kX].dims;
            CtxScaledRotaryEmbeddingParams params{};
            params.size = sizeof(params);
            params.x = inputs[kX];
            params.positions = static_cast<int64_t const*>(inputs[kPOSITIONS]);
            params.inverseFrequency = static_cast<float const*>(inputs[kINVERSE_FREQUENCY]);
            params.multiplier = static_cast<float const*>(inputs[kMULTIPLIER]);
            params.y = outputs[0];
            params.batch = x.d[0];
            params.heads = x.d[1];
            params.rows = x.d[2];
            params.headDim = x.d[3];
            params.rotaryDim = mAttributes.rotaryDim;
            params.frequencyBatch = inputDesc[kINVERSE_FREQUENCY].dims.d[0];
            params.multiplierBatch = inputDesc[kMULTIPLIER].dims.d[0];
            params.interleaved = mAttributes.interleaved;
            params.dataType = kernelDataType(inputDesc[kX].type);
            throwOnFailure(ctxScaledRotaryEmbedding(&params, stream));
            return 0;
        });
}

} // namespace ctx
