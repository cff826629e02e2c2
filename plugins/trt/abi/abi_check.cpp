// Compares our declarations of TensorRT's plugin ABI with an SDK's headers: sizes, offsets and enum values when it is
// compiled, the places of virtual methods when it runs, which the build does. Built only where there is an SDK.

#include <NvInferRuntime.h>

#define CTX_ABI_NAMESPACE ctx_abi
#include "trt/abi/expressions.h"
#include "trt/abi/logger.h"
#include "trt/abi/plugin.h"

#include <cstddef>
#include <cstdio>
#include <cstring>
#include <type_traits>

namespace
{

#define CTX_SAME_VALUE(name)                                                                                           \
    static_assert(static_cast<int64_t>(nvinfer1::name) == static_cast<int64_t>(ctx_abi::name), #name " differs")
#define CTX_SAME_LAYOUT(name)                                                                                          \
    static_assert(sizeof(nvinfer1::name) == sizeof(ctx_abi::name), "size of " #name " differs");                       \
    static_assert(alignof(nvinfer1::name) == alignof(ctx_abi::name), "alignment of " #name " differs")
#define CTX_SAME_OFFSET(name, member)                                                                                  \
    static_assert(offsetof(nvinfer1::name, member) == offsetof(ctx_abi::name, member), #name "." #member " differs");  \
    static_assert(                                                                                                     \
        sizeof(nvinfer1::name::member) == sizeof(ctx_abi::name::member), "size of " #name "." #member " differs")

CTX_SAME_VALUE(DataType::kFLOAT);
CTX_SAME_VALUE(DataType::kHALF);
CTX_SAME_VALUE(DataType::kINT8);
CTX_SAME_VALUE(DataType::kINT32);
CTX_SAME_VALUE(DataType::kBOOL);
CTX_SAME_VALUE(DataType::kUINT8);
CTX_SAME_VALUE(DataType::kFP8);
CTX_SAME_VALUE(DataType::kBF16);
CTX_SAME_VALUE(DataType::kINT64);
CTX_SAME_VALUE(DataType::kINT4);
CTX_SAME_VALUE(TensorFormat::kLINEAR);
CTX_SAME_VALUE(APILanguage::kCPP);
CTX_SAME_VALUE(APILanguage::kPYTHON);
CTX_SAME_VALUE(DimensionOperation::kSUM);
CTX_SAME_VALUE(DimensionOperation::kPROD);
CTX_SAME_VALUE(DimensionOperation::kMAX);
CTX_SAME_VALUE(DimensionOperation::kMIN);
CTX_SAME_VALUE(DimensionOperation::kSUB);
CTX_SAME_VALUE(DimensionOperation::kEQUAL);
CTX_SAME_VALUE(DimensionOperation::kLESS);
CTX_SAME_VALUE(DimensionOperation::kFLOOR_DIV);
CTX_SAME_VALUE(DimensionOperation::kCEIL_DIV);
CTX_SAME_VALUE(PluginFieldType::kFLOAT16);
CTX_SAME_VALUE(PluginFieldType::kFLOAT32);
CTX_SAME_VALUE(PluginFieldType::kFLOAT64);
CTX_SAME_VALUE(PluginFieldType::kINT8);
CTX_SAME_VALUE(PluginFieldType::kINT16);
CTX_SAME_VALUE(PluginFieldType::kINT32);
CTX_SAME_VALUE(PluginFieldType::kCHAR);
CTX_SAME_VALUE(PluginFieldType::kDIMS);
CTX_SAME_VALUE(PluginFieldType::kUNKNOWN);
CTX_SAME_VALUE(PluginFieldType::kBF16);
CTX_SAME_VALUE(PluginFieldType::kINT64);
CTX_SAME_VALUE(TensorRTPhase::kBUILD);
CTX_SAME_VALUE(TensorRTPhase::kRUNTIME);
CTX_SAME_VALUE(PluginCapabilityType::kCORE);
CTX_SAME_VALUE(PluginCapabilityType::kBUILD);
CTX_SAME_VALUE(PluginCapabilityType::kRUNTIME);
CTX_SAME_VALUE(Dims::MAX_DIMS);
CTX_SAME_VALUE(IPluginV3OneBuild::kDEFAULT_FORMAT_COMBINATION_LIMIT);

CTX_SAME_LAYOUT(Dims);
CTX_SAME_OFFSET(Dims, nbDims);
CTX_SAME_OFFSET(Dims, d);
CTX_SAME_LAYOUT(InterfaceInfo);
CTX_SAME_OFFSET(InterfaceInfo, kind);
CTX_SAME_OFFSET(InterfaceInfo, major);
CTX_SAME_OFFSET(InterfaceInfo, minor);
CTX_SAME_LAYOUT(PluginTensorDesc);
CTX_SAME_OFFSET(PluginTensorDesc, dims);
CTX_SAME_OFFSET(PluginTensorDesc, type);
CTX_SAME_OFFSET(PluginTensorDesc, format);
CTX_SAME_OFFSET(PluginTensorDesc, scale);
CTX_SAME_LAYOUT(DynamicPluginTensorDesc);
CTX_SAME_OFFSET(DynamicPluginTensorDesc, desc);
CTX_SAME_OFFSET(DynamicPluginTensorDesc, min);
CTX_SAME_OFFSET(DynamicPluginTensorDesc, max);
CTX_SAME_OFFSET(DynamicPluginTensorDesc, opt);
CTX_SAME_LAYOUT(PluginField);
CTX_SAME_OFFSET(PluginField, name);
CTX_SAME_OFFSET(PluginField, data);
CTX_SAME_OFFSET(PluginField, type);
CTX_SAME_OFFSET(PluginField, length);
CTX_SAME_LAYOUT(PluginFieldCollection);
CTX_SAME_OFFSET(PluginFieldCollection, nbFields);
CTX_SAME_OFFSET(PluginFieldCollection, fields);
CTX_SAME_LAYOUT(DimsExprs);
CTX_SAME_OFFSET(DimsExprs, nbDims);
CTX_SAME_OFFSET(DimsExprs, d);
CTX_SAME_LAYOUT(IDimensionExpr);
CTX_SAME_LAYOUT(IExprBuilder);
CTX_SAME_LAYOUT(IVersionedInterface);
CTX_SAME_LAYOUT(IPluginV3);
CTX_SAME_LAYOUT(IPluginV3OneCore);
CTX_SAME_LAYOUT(IPluginV3OneBuildV2);
CTX_SAME_LAYOUT(IPluginV3OneRuntime);
CTX_SAME_LAYOUT(IPluginCreatorV3One);

// A pointer to a virtual member is 1 + its byte offset in the table of virtual functions (Itanium C++ ABI), so equal
// bytes mean equal places. The language compares pointers of unrelated classes at no earlier time than this.
template <typename Theirs, typename Ours>
int report(char const* name, Theirs theirs, Ours ours)
{
    static_assert(sizeof(theirs) == sizeof(ours), "pointers to members differ in size");
    if (std::memcmp(&theirs, &ours, sizeof(theirs)) == 0)
    {
        return 0;
    }
    std::fprintf(stderr, "%s has another place in the SDK's table of virtual functions\n", name);
    return 1;
}

#define CTX_PLACE(name) report(#name, &nvinfer1::name, &ctx_abi::name)

using LoggerRoot
    = std::conditional_t<ctx::abi::hasVersionedLogger(NV_TENSORRT_MAJOR), ctx::abi::VersionedRoot, ctx::abi::PlainRoot>;
static_assert(static_cast<int32_t>(nvinfer1::ILogger::Severity::kERROR) == ctx::abi::Logger<LoggerRoot>::kERROR,
    "ILogger::Severity::kERROR differs");

} // namespace

int main()
{
    int const differences[] = {
        CTX_PLACE(IVersionedInterface::getAPILanguage),
        CTX_PLACE(IVersionedInterface::getInterfaceInfo),
        CTX_PLACE(IPluginV3::getInterfaceInfo),
        CTX_PLACE(IPluginV3::getCapabilityInterface),
        CTX_PLACE(IPluginV3::clone),
        CTX_PLACE(IPluginV3OneCore::getPluginName),
        CTX_PLACE(IPluginV3OneCore::getPluginVersion),
        CTX_PLACE(IPluginV3OneCore::getPluginNamespace),
        CTX_PLACE(IPluginV3OneBuild::configurePlugin),
        CTX_PLACE(IPluginV3OneBuild::getOutputDataTypes),
        CTX_PLACE(IPluginV3OneBuild::getOutputShapes),
        CTX_PLACE(IPluginV3OneBuild::supportsFormatCombination),
        CTX_PLACE(IPluginV3OneBuild::getNbOutputs),
        CTX_PLACE(IPluginV3OneBuild::getWorkspaceSize),
        CTX_PLACE(IPluginV3OneBuild::getValidTactics),
        CTX_PLACE(IPluginV3OneBuild::getNbTactics),
        CTX_PLACE(IPluginV3OneBuild::getTimingCacheID),
        CTX_PLACE(IPluginV3OneBuild::getFormatCombinationLimit),
        CTX_PLACE(IPluginV3OneBuild::getMetadataString),
        CTX_PLACE(IPluginV3OneBuildV2::getAliasedInput),
        CTX_PLACE(IPluginV3OneRuntime::setTactic),
        CTX_PLACE(IPluginV3OneRuntime::onShapeChange),
        CTX_PLACE(IPluginV3OneRuntime::enqueue),
        CTX_PLACE(IPluginV3OneRuntime::attachToContext),
        CTX_PLACE(IPluginV3OneRuntime::getFieldsToSerialize),
        CTX_PLACE(IPluginCreatorV3One::createPlugin),
        CTX_PLACE(IPluginCreatorV3One::getFieldNames),
        CTX_PLACE(IPluginCreatorV3One::getPluginName),
        CTX_PLACE(IPluginCreatorV3One::getPluginVersion),
        CTX_PLACE(IPluginCreatorV3One::getPluginNamespace),
        report("ILogger::log", &nvinfer1::ILogger::log, &ctx::abi::Logger<LoggerRoot>::log),
        report("ILoggerFinder::findLogger", &nvinfer1::ILoggerFinder::findLogger,
            &ctx::abi::LoggerFinder<LoggerRoot>::findLogger),
        CTX_PLACE(apiv::VDimensionExpr::isConstant),
        CTX_PLACE(apiv::VDimensionExpr::getConstantValue),
        CTX_PLACE(apiv::VDimensionExpr::isSizeTensor),
        CTX_PLACE(apiv::VExprBuilder::constant),
        CTX_PLACE(apiv::VExprBuilder::operation),
        CTX_PLACE(apiv::VExprBuilder::declareSizeTensor),
    };
    int sum = 0;
    for (int const difference : differences)
    {
        sum += difference;
    }
    return sum == 0 ? 0 : 1;
}
