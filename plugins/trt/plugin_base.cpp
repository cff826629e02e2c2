#include "trt/plugin_base.h"

#include "ctx_plugins/ctx_kernels.h"

#include <algorithm>

namespace ctx
{

using nvinfer1::DataType;

bool isActivationType(DataType type) noexcept
{
    return type == DataType::kFLOAT || type == DataType::kHALF || type == DataType::kBF16;
}

int32_t kernelDataType(DataType type)
{
    switch (type)
    {
    case DataType::kFLOAT: return CTX_DATA_TYPE_FLOAT32;
    case DataType::kHALF: return CTX_DATA_TYPE_FLOAT16;
    case DataType::kBF16: return CTX_DATA_TYPE_BFLOAT16;
    default:
        throw std::invalid_argument(message(
            "tensor type ", static_cast<int32_t>(type), " is not supported: give float32, float16 or bfloat16"));
    }
}

bool isQuantisedType(DataType type) noexcept
{
    return type == DataType::kFP8 || type == DataType::kINT8;
}

int32_t kernelCacheType(DataType type)
{
    switch (type)
    {
    case DataType::kFP8: return CTX_CACHE_TYPE_FLOAT8_E4M3;
    case DataType::kINT8: return CTX_CACHE_TYPE_INT8;
    default:
        throw std::invalid_argument(
            message("cache type ", static_cast<int32_t>(type), " does not go with scales: give float8 e4m3 or int8"));
    }
}

void throwOnFailure(int32_t status)
{
    if (status != CTX_STATUS_SUCCESS)
    {
        throw std::runtime_error(ctxLastErrorMessage());
    }
}

void checkRank(char const* tensor, int32_t rank, int32_t expected)
{
    if (rank != expected)
    {
        throw std::invalid_argument(message("input ", tensor, " has ", rank, " dimensions: give it ", expected));
    }
}

void checkShape(char const* tensor, nvinfer1::Dims const& got, std::initializer_list<int64_t> expected)
{
    checkRank(tensor, got.nbDims, static_cast<int32_t>(expected.size()));
    if (!std::equal(expected.begin(), expected.end(), got.d))
    {
        auto const listed = [](auto first, auto last)
        {
            std::string text;
            for (; first != last; ++first)
            {
                text += (text.empty() ? "" : ", ") + std::to_string(*first);
            }
            return text;
        };
        throw std::invalid_argument(message("input ", tensor, " has shape [", listed(got.d, got.d + got.nbDims),
            "]: the other inputs ask for [", listed(expected.begin(), expected.end()), "], give it that"));
    }
}

int64_t batchOrOne(nvinfer1::Dims const& got, int64_t batch) noexcept
{
    return got.nbDims > 0 && got.d[0] == 1 ? 1 : batch;
}

} // namespace ctx
