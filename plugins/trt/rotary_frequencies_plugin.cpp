#include "trt/rotary_frequencies_plugin.h"

#include "ctx_plugins/ctx_kernels.h"

namespace ctx
{
namespace
{

enum Input : int32_t
{
    kROPE_LENGTH,
    kTABLES,
    kSCALARS,
    kNB_INPUTS
};

enum Output : int32_t
{
    kINVERSE_FREQUENCY,
    kMULTIPLIER,
    kNB_OUTPUTS
};

// Rows of tables and of scalars, each of a high and a low part.
constexpr int64_t kNB_ROWS = 4;
constexpr int64_t kNB_SCALARS = 7;
constexpr int64_t kNB_PARTS = 2;

void checkCounts(int32_t nbInputs, int32_t nbOutputs)
{
    if (nbInputs != kNB_INPUTS || nbOutputs != kNB_OUTPUTS)
    {
        throw std::invalid_argument(message("the node has ", nbInputs, " inputs and ", nbOutputs,
            " outputs: give rope_length, tables, scalars and two outputs"));
    }
}

// F is free; the rows and parts are known when the engine is built.
void checkTables(nvinfer1::Dims const& tables, nvinfer1::Dims const& scalars)
{
    checkShape("tables", tables, {kNB_ROWS, kNB_PARTS, tables.d[2]});
    checkShape("scalars", scalars, {kNB_SCALARS, kNB_PARTS});
}

} // namespace

std::array<Field<RotaryFrequenciesAttributes>, 0> const& RotaryFrequenciesAttributes::fields()
{
    static std::array<Field<RotaryFrequenciesAttributes>, 0> const table{};
    return table;
}

RotaryFrequenciesPlugin::RotaryFrequenciesPlugin(Attributes const& attributes)
    : PluginBase{attributes}
{
}

int32_t RotaryFrequenciesPlugin::getNbOutputs() const noexcept
{
    return kNB_OUTPUTS;
}

int32_t RotaryFrequenciesPlugin::getOutputDataTypes(
    nvinfer1::DataType* outputTypes, int32_t nbOutputs, nvinfer1::DataType const*, int32_t nbInputs) const noexcept
{
    return guarded(kNAME, "output types", 1,
        [&]
        {
            checkCounts(nbInputs, nbOutputs);
            outputTypes[kINVERSE_FREQUENCY] = nvinfer1::DataType::kFLOAT;
            outputTypes[kMULTIPLIER] = nvinfer1::DataType::kFLOAT;
            return 0;
        });
}

int32_t RotaryFrequenciesPlugin::getOutputShapes(nvinfer1::DimsExprs const* inputs, int32_t nbInputs,
    nvinfer1::DimsExprs const*, int32_t, nvinfer1::DimsExprs* outputs, int32_t nbOutputs,
    nvinfer1::IExprBuilder&) noexcept
{
    return guarded(kNAME, "output shapes", 1,
        [&]
        {
            checkCounts(nbInputs, nbOutputs);
            checkRank("rope_length", inputs[kROPE_LENGTH].nbDims, 1);
            checkRank("tables", inputs[kTABLES].nbDims, 3);
            checkRank("scalars", inputs[kSCALARS].nbDims, 2);
            outputs[kINVERSE_FREQUENCY].nbDims = 2;
            outputs[kINVERSE_FREQUENCY].d[0] = inputs[kROPE_LENGTH].d[0];
            outputs[kINVERSE_FREQUENCY].d[1] = inputs[kTABLES].d[2];
            outputs[kMULTIPLIER] = inputs[kROPE_LENGTH];
            return 0;
        });
}

bool RotaryFrequenciesPlugin::supportsFormatCombination(
    int32_t pos, nvinfer1::DynamicPluginTensorDesc const* inOut, int32_t, int32_t) noexcept
{
    nvinfer1::PluginTensorDesc const& tensor = inOut[pos].desc;
    nvinfer1::DataType const type = pos == kROPE_LENGTH ? nvinfer1::DataType::kINT64 : nvinfer1::DataType::kFLOAT;
    return tensor.format == nvinfer1::TensorFormat::kLINEAR && tensor.type == type;
}

int32_t RotaryFrequenciesPlugin::configurePlugin(nvinfer1::DynamicPluginTensorDesc const* in, int32_t nbInputs,
    nvinfer1::DynamicPluginTensorDesc const*, int32_t nbOutputs) noexcept
{
    return guarded(kNAME, "configuration", 1,
        [&]
        {
            checkCounts(nbInputs, nbOutputs);
            checkTables(in[kTABLES].desc.dims, in[kSCALARS].desc.dims);
            return 0;
        });
}

int32_t RotaryFrequenciesPlugin::onShapeChange(nvinfer1::PluginTensorDesc const* in, int32_t nbInputs,
    nvinfer1::PluginTensorDesc const*, int32_t nbOutputs) noexcept
{
    return guarded(kNAME, "shapes", 1,
        [&]
        {
            checkCounts(nbInputs, nbOutputs);
            checkRank("rope_length", in[kROPE_LENGTH].dims.nbDims, 1);
            checkTables(in[kTABLES].dims, in[kSCALARS].dims);
            return 0;
        });
}

int32_t RotaryFrequenciesPlugin::enqueue(nvinfer1::PluginTensorDesc const* inputDesc, nvinfer1::PluginTensorDesc const*,
    void const* const* inputs, void* const* outputs, void*, cudaStream_t stream) noexcept
{
    return guarded(kNAME, "enqueue", 1,
        [&]
        {
            CtxRotaryFrequenciesParams params{};
            params.size = sizeof(params);
            params.ropeLength = static_cast<int64_t const*>(inputs[kROPE_LENGTH]);
            params.tables = static_cast<float const*>(inputs[kTABLES]);
            params.scalars = static_cast<float const*>(inputs[kSCALARS]);
            params.inverseFrequency = static_cast<float*>(outputs[kINVERSE_FREQUENCY]);
            params.multiplier = static_cast<float*>(outputs[kMULTIPLIER]);
            params.batch = inputDesc[kROPE_LENGTH].dims.d[0];
            params.pairs = inputDesc[kTABLES].dims.d[2];
            throwOnFailure(ctxRotaryFrequencies(&params, stream));
            return 0;
        });
}

} // namespace ctx
