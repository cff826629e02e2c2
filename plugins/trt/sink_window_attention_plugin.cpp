#include "trt/sink_window_attention_plugin.h"

#include "ctx_plugins/ctx_kernels.h"
#include "kernels/sink_window_attention/sink_window_attention_params.h"
#include "trt/optional_inputs.h"

#include <limits>

namespace ctx
{
namespace
{

using nvinfer1::DataType;

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
    kPRESENT_VALUE,
    kNB_OUTPUTS
};

constexpr double kMAX_INTEGER = std::numeric_limits<int32_t>::max();
constexpr double kMAX_REAL = std::numeric_limits<float>::max();

template <typename T>
T const* optionalInput(void const* const* inputs, int32_t index)
{
    return index < 0 ? nullptr : static_cast<T const*>(inputs[index]);
}

int64_t optionalBatch(nvinfer1::PluginTensorDesc const* descs, int32_t index)
{
    return index < 0 ? 1 : descs[index].dims.d[0];
}

} // namespace

std::array<Field<SinkWindowAttentionAttributes>, 12> const& SinkWindowAttentionAttributes::fields()
{
    using A = SinkWindowAttentionAttributes;
    static std::array<Field<A>, 12> const table{{
        {&A::sinks, {"sinks", 0, kMAX_INTEGER, "first tokens that every later query sees"}},
        {&A::window, {"window", 0, kMAX_INTEGER, "tokens a query sees back, itself included; 0: unlimited"}},
        {&A::scale, {"scale", -kMAX_REAL, kMAX_REAL, "factor on q.k"}},
        {&A::softcap, {"softcap", 0, kMAX_REAL, "logits become softcap * tanh(logits / softcap); 0: none"}},
        {&A::alias, {"alias", 0, 1, "1: present shares memory with past"}},
        {&A::bounded, {"bounded", 0, 1, "0: slot = token; 1: a ring of slots after the sinks"}},
        {&A::rotaryDim, {"rotary_dim", 0, kMAX_INTEGER, "leading dims that are rotated; 0: q and k are used as given"}},
        {&A::interleaved, {"interleaved", 0, 1, "1: pairs (2i, 2i + 1); 0: pairs (i, i + rotary_dim / 2)"}},
        {&A::rotation,
            {"rotation", CTX_ROTATION_KEYS_ON_READ, CTX_ROTATION_QUERY_AND_KEYS_ON_READ,
                "what is rotated here; 0: cached keys on read; 1: q and new keys; 2: q and cached keys on read"}},
        {&A::sinkPosition,
            {"sink_position", 0, kMAX_INTEGER, "sinks meet q rotated at most there; 0: as other keys do"}},
        {&A::layout,
            {"layout", 0, static_cast<double>(AttentionLayout::kPACKED),
                "of q, k, v and y; 0: [batch, head, token, dim]; 1: [batch, token, heads]; 2: q, k and v in one"}},
        {&A::optionalInputs, {"optional_inputs", 0, 0, "comma-separated names of the optional inputs present"}},
    }};
    return table;
}

OptionalInputs::OptionalInputs(std::string const& names)
{
    nbInputs = placeOptionalInputs(names, kNB_REQUIRED_INPUTS,
        {{"sink_q", &sinkQuery}, {"inv_freq", &inverseFrequency}, {"multiplier", &multiplier}, {"head_sink", &headSink},
            {"key_scale", &keyScale}, {"value_scale", &valueScale}});
}

bool OptionalInputs::isFloat(int32_t index) const noexcept
{
    return index >= kNB_REQUIRED_INPUTS && index < nbInputs && index != sinkQuery;
}

SinkWindowAttentionPlugin::SinkWindowAttentionPlugin(Attributes const& attributes)
    : PluginBase{attributes}
    , mOptional{attributes.optionalInputs}
{
    bool const rotates = mAttributes.rotaryDim > 0;
    if (rotates != (mOptional.inverseFrequency >= 0) || rotates != (mOptional.multiplier >= 0)
        || mAttributes.rotaryDim % 2 != 0)
    {
        throw std::invalid_argument(message("attribute rotary_dim is ", mAttributes.rotaryDim,
            " and optional_inputs \"", mAttributes.optionalInputs,
            "\": give an even rotary_dim above 0 together with inv_freq and multiplier, or 0 and neither"));
    }
    if ((mOptional.keyScale >= 0) != (mOptional.valueScale >= 0))
    {
        throw std::invalid_argument(message("attribute optional_inputs is \"", mAttributes.optionalInputs,
            "\": give both key_scale and value_scale (a quantised cache) or neither"));
    }
    if (layout() != AttentionLayout::kHEAD_MAJOR && mOptional.sinkQuery >= 0)
    {
        throw std::invalid_argument(message("attribute layout is ", mAttributes.layout, " and optional_inputs \"",
            mAttributes.optionalInputs, "\": a sink_q goes with layout 0 only, or give a sink_position instead"));
    }
    checkRotation();
}

AttentionLayout SinkWindowAttentionPlugin::layout() const noexcept
{
    return static_cast<AttentionLayout>(mAttributes.layout);
}

void SinkWindowAttentionPlugin::checkRotation() const
{
    if (mAttributes.rotation != CTX_ROTATION_KEYS_ON_READ && (mAttributes.rotaryDim == 0 || mOptional.sinkQuery >= 0))
    {
        throw std::invalid_argument(message("attribute rotation is ", mAttributes.rotation, " with rotary_dim ",
            mAttributes.rotaryDim, " and optional_inputs \"", mAttributes.optionalInputs,
            "\": q is rotated here, give a rotary_dim above 0 and no sink_q"));
    }
    if (mAttributes.rotation == CTX_ROTATION_KEYS_ON_READ && mAttributes.sinkPosition != 0)
    {
        throw std::invalid_argument(message("attribute sink_position is ", mAttributes.sinkPosition,
            " where q is not rotated here: give rotation 1 or 2, or sink_position 0 and the input sink_q"));
    }
}

void SinkWindowAttentionPlugin::checkCounts(int32_t nbInputs, int32_t nbOutputs) const
{
    if (nbInputs != mOptional.nbInputs || nbOutputs != kNB_OUTPUTS)
    {
        throw std::invalid_argument(message("the node has ", nbInputs, " inputs and ", nbOutputs,
            " outputs where optional_inputs \"", mAttributes.optionalInputs, "\" asks for ", mOptional.nbInputs,
            " and ", static_cast<int32_t>(kNB_OUTPUTS), ": give optional_inputs the names of exactly those connected"));
    }
}

int32_t SinkWindowAttentionPlugin::getNbOutputs() const noexcept
{
    return kNB_OUTPUTS;
}

int32_t SinkWindowAttentionPlugin::getOutputDataTypes(
    DataType* outputTypes, int32_t nbOutputs, DataType const* inputTypes, int32_t nbInputs) const noexcept
{
    return guarded(kNAME, "output types", 1,
        [&]
        {
            checkCounts(nbInputs, nbOutputs);
            outputTypes[kOUTPUT] = inputTypes[kQUERY];
            outputTypes[kPRESENT_KEY] = inputTypes[kPAST_KEY];
            outputTypes[kPRESENT_VALUE] = inputTypes[kPAST_VALUE];
            return 0;
        });
}

int32_t SinkWindowAttentionPlugin::getOutputShapes(nvinfer1::DimsExprs const* inputs, int32_t nbInputs,
    nvinfer1::DimsExprs const*, int32_t, nvinfer1::DimsExprs* outputs, int32_t nbOutputs,
    nvinfer1::IExprBuilder& exprBuilder) noexcept
{
    return guarded(kNAME, "output shapes", 1,
        [&]
        {
            checkCounts(nbInputs, nbOutputs);
            checkRank("q", inputs[kQUERY].nbDims, layoutRank(layout()));
            checkRank("k", inputs[kKEY].nbDims, layoutRank(layout()));
            checkRank("v", inputs[kVALUE].nbDims, layoutRank(layout()));
            checkRank("past_key", inputs[kPAST_KEY].nbDims, 4);
            checkRank("past_value", inputs[kPAST_VALUE].nbDims, 4);
            checkRank("seen", inputs[kSEEN].nbDims, 1);
            checkRank("new", inputs[kNEW].nbDims, 1);
            outputs[kOUTPUT] = outputShape(layout(), inputs[kQUERY], inputs[kPAST_KEY], exprBuilder);
            outputs[kPRESENT_KEY] = inputs[kPAST_KEY];
            outputs[kPRESENT_VALUE] = inputs[kPAST_VALUE];
            return 0;
        });
}

bool SinkWindowAttentionPlugin::supportsFormatCombination(
    int32_t pos, nvinfer1::DynamicPluginTensorDesc const* inOut, int32_t, int32_t) noexcept
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
    if (mOptional.isFloat(pos))
    {
        return tensor.type == DataType::kFLOAT;
    }
    if (pos == kPAST_KEY && mOptional.keyScale >= 0)
    {
        return isQuantisedType(tensor.type);
    }
    int32_t const presentKey = mOptional.nbInputs + kPRESENT_KEY;
    int32_t const presentValue = mOptional.nbInputs + kPRESENT_VALUE;
    bool const isCache = pos == kPAST_VALUE || pos == presentKey || pos == presentValue;
    return pos == kQUERY ? isActivationType(tensor.type) : tensor.type == inOut[isCache ? kPAST_KEY : kQUERY].desc.type;
}

int32_t SinkWindowAttentionPlugin::configurePlugin(nvinfer1::DynamicPluginTensorDesc const* in, int32_t nbInputs,
    nvinfer1::DynamicPluginTensorDesc const*, int32_t nbOutputs) noexcept
{
    return guarded(kNAME, "configuration", 1,
        [&]
        {
            using Params = SinkWindowAttentionParams;
            checkCounts(nbInputs, nbOutputs);
            int64_t const headDim = headDimOf(layout(), in[kQUERY].desc.dims, in[kPAST_KEY].desc.dims);
            if (headDim > Params::kMAX_HEAD_DIM || (headDim >= 0 && headDim % Params::kHEAD_DIM_STEP != 0))
            {
                throw std::invalid_argument(
                    message("head dimension ", headDim, " is not supported: give a multiple of ",
                        Params::kHEAD_DIM_STEP, " up to ", Params::kMAX_HEAD_DIM));
            }
            if (headDim >= 0 && mAttributes.rotaryDim > headDim)
            {
                throw std::invalid_argument(message("attribute rotary_dim is ", mAttributes.rotaryDim,
                    " for a head dimension of ", headDim, ": give at most that"));
            }
            return 0;
        });
}

int32_t SinkWindowAttentionPlugin::getAliasedInput(int32_t outputIndex) noexcept
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

int32_t SinkWindowAttentionPlugin::onShapeChange(nvinfer1::PluginTensorDesc const* in, int32_t nbInputs,
    nvinfer1::PluginTensorDesc const*, int32_t nbOutputs) noexcept
{
    return guarded(kNAME, "shapes", 1,
        [&]
        {
            checkCounts(nbInputs, nbOutputs);
            nvinfer1::Dims const& query = in[kQUERY].dims;
            nvinfer1::Dims const& past = in[kPAST_KEY].dims;
            checkRank("q", query.nbDims, layoutRank(layout()));
            checkRank("past_key", past.nbDims, 4);
            AttentionSizes const sizes = AttentionSizes::of(layout(), query, past);
            auto const& [batch, queryHeads, kvHeads, rows, capacity, dim] = sizes;
            checkProjections(layout(), sizes, query, in[kKEY].dims, in[kVALUE].dims);
            checkShape("past_key", past, {batch, kvHeads, capacity, dim});
            checkShape("past_value", in[kPAST_VALUE].dims, {batch, kvHeads, capacity, dim});
            checkShape("seen", in[kSEEN].dims, {batch});
            checkShape("new", in[kNEW].dims, {batch});
            checkOptionalShapes(in, sizes);
            return 0;
        });
}

void SinkWindowAttentionPlugin::checkOptionalShapes(
    nvinfer1::PluginTensorDesc const* in, AttentionSizes const& sizes) const
{
    int64_t const batch = sizes.batch;
    if (mOptional.sinkQuery >= 0)
    {
        checkShape("sink_q", in[mOptional.sinkQuery].dims, {batch, sizes.queryHeads, sizes.rows, sizes.headDim});
    }
    if (mOptional.inverseFrequency >= 0)
    {
        nvinfer1::Dims const& frequency = in[mOptional.inverseFrequency].dims;
        nvinfer1::Dims const& multiplier = in[mOptional.multiplier].dims;
        checkShape("inv_freq", frequency, {batchOrOne(frequency, batch), mAttributes.rotaryDim / 2});
        checkShape("multiplier", multiplier, {batchOrOne(multiplier, batch)});
    }
    if (mOptional.headSink >= 0)
    {
        checkShape("head_sink", in[mOptional.headSink].dims, {sizes.queryHeads});
    }
    if (mOptional.keyScale >= 0)
    {
        checkShape("key_scale", in[mOptional.keyScale].dims, {sizes.kvHeads});
        checkShape("value_scale", in[mOptional.valueScale].dims, {sizes.kvHeads});
    }
}

CtxSinkWindowAttentionParams SinkWindowAttentionPlugin::paramsWithoutPointers(CallSizes const& sizes) const
{
    CtxSinkWindowAttentionParams params{};
    params.size = sizeof(params);
    placeTensors(layout(), AttentionSizes::of(layout(), sizes.query, sizes.past), params);
    params.sinks = mAttributes.sinks;
    params.window = mAttributes.window;
    params.rotaryDim = mAttributes.rotaryDim;
    params.frequencyBatch = sizes.frequencyBatch;
    params.multiplierBatch = sizes.multiplierBatch;
    params.scale = mAttributes.scale;
    params.softcap = mAttributes.softcap;
    params.bounded = mAttributes.bounded;
    params.interleaved = mAttributes.interleaved;
    params.dataType = kernelDataType(sizes.queryType);
    params.rotation = mAttributes.rotation;
    params.sinkPosition = mAttributes.sinkPosition;
    params.cacheType = mOptional.keyScale < 0 ? CTX_CACHE_TYPE_SAME : kernelCacheType(sizes.pastType);
    return params;
}

size_t SinkWindowAttentionPlugin::getWorkspaceSize(nvinfer1::DynamicPluginTensorDesc const* in, int32_t nbInputs,
    nvinfer1::DynamicPluginTensorDesc const*, int32_t nbOutputs) const noexcept
{
    return guarded(kNAME, "workspace", size_t{0},
        [&]
        {
            checkCounts(nbInputs, nbOutputs);
            auto const largestBatch = [&](int32_t index) { return index < 0 ? int64_t{1} : in[index].max.d[0]; };
            CtxSinkWindowAttentionParams const params = paramsWithoutPointers(
                {in[kQUERY].max, in[kPAST_KEY].max, in[kQUERY].desc.type, in[kPAST_KEY].desc.type,
                    largestBatch(mOptional.inverseFrequency), largestBatch(mOptional.multiplier)});
            return static_cast<size_t>(ctxSinkWindowAttentionWorkspace(&params));
        });
}

int32_t SinkWindowAttentionPlugin::enqueue(nvinfer1::PluginTensorDesc const* inputDesc,
    nvinfer1::PluginTensorDesc const*, void const* const* inputs, void* const* outputs, void* workspace,
    cudaStream_t stream) noexcept
{
    return guarded(kNAME, "enqueue", 1,
        [&]
        {
            CtxSinkWindowAttentionParams params = paramsWithoutPointers({inputDesc[kQUERY].dims,
                inputDesc[kPAST_KEY].dims, inputDesc[kQUERY].type, inputDesc[kPAST_KEY].type,
                optionalBatch(inputDesc, mOptional.inverseFrequency), optionalBatch(inputDesc, mOptional.multiplier)});
            params.query = inputs[kQUERY];
            params.key = inputs[kKEY];
            params.value = inputs[kVALUE];
            if (layout() == AttentionLayout::kPACKED)
            {
                placeKeysAndValues(params);
            }
            params.pastKey = inputs[kPAST_KEY];
            params.pastValue = inputs[kPAST_VALUE];
            params.seen = static_cast<int64_t const*>(inputs[kSEEN]);
            params.newTokens = static_cast<int64_t const*>(inputs[kNEW]);
            params.sinkQuery = optionalInput<void>(inputs, mOptional.sinkQuery);
            params.inverseFrequency = optionalInput<float>(inputs, mOptional.inverseFrequency);
            params.multiplier = optionalInput<float>(inputs, mOptional.multiplier);
            params.headSink = optionalInput<float>(inputs, mOptional.headSink);
            params.keyScale = optionalInput<float>(inputs, mOptional.keyScale);
            params.valueScale = optionalInput<float>(inputs, mOptional.valueScale);
            params.output = outputs[kOUTPUT];
            params.presentKey = outputs[kPRESENT_KEY];
            params.presentValue = outputs[kPRESENT_VALUE];
            if (workspace != nullptr)
            {
                // At most what getWorkspaceSize asked for at the largest shapes.
                params.workspace = workspace;
                params.workspaceBytes = ctxSinkWindowAttentionWorkspace(&params);
            }
            throwOnFailure(ctxSinkWindowAttention(&params, stream));
            return 0;
        });
}

} // namespace ctx
