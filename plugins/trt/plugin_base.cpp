#include "trt/plugin_base.h"

#include "ctx_plugins/ctx_kernels.h"

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

void throwOnFailure(int32_t status, char const* text)
{
    if (status != CTX_STATUS_SUCCESS)
    {
        throw std::runtime_error(text);
    }
}

void checkRank(char const* tensor, int32_t rank, int32_t expected)
{
    if (rank != expected)
    {
        throw std::invalid_argument(message("input ", tensor, " has ", rank, " dimensions: give it ", expected));
    }
}

} // namespace ctx
