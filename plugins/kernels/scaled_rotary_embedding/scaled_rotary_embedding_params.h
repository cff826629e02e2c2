// Parameters of ScaledRotaryEmbedding and their check.
#pragma once

#include "ctx_plugins/ctx_kernels.h"
#include "kernels/common/validation.h"

namespace ctx
{

struct ScaledRotaryEmbeddingParams : CtxScaledRotaryEmbeddingParams
{
    bool isEmpty() const
    {
        return batch == 0 || heads == 0 || rows == 0;
    }

    // What is wrong, or an empty string.
    std::string validate() const
    {
        if (!areSizes({batch, heads, rows, headDim}))
        {
            return message("x has shape [", batch, ", ", heads, ", ", rows, ", ", headDim,
                "]: sizes must not be negative, each below 2^31 and all together at most 2^37 elements");
        }
        if (headDim < 1 || rotaryDim < 2 || rotaryDim > headDim || rotaryDim % 2 != 0)
        {
            return message("rotary_dim is ", rotaryDim, " for a head dimension of ", headDim,
                ": give an even number from 2 to the head dimension");
        }
        if ((frequencyBatch != 1 && frequencyBatch != batch) || (multiplierBatch != 1 && multiplierBatch != batch))
        {
            return message("inv_freq and multiplier have batch ", frequencyBatch, " and ", multiplierBatch,
                " where x has ", batch, ": give 1 or that number");
        }
        if ((interleaved != 0 && interleaved != 1) || dataType < CTX_DATA_TYPE_FLOAT32
            || dataType > CTX_DATA_TYPE_BFLOAT16)
        {
            return message("interleaved is ", interleaved, " and the data type ", dataType,
                ": interleaved must be 0 or 1, the type float32 (0), float16 (1) or bfloat16 (2)");
        }
        return isEmpty() ? std::string{} : validatePointers();
    }

private:
    std::string validatePointers() const
    {
        if (x == nullptr || positions == nullptr || inverseFrequency == nullptr || multiplier == nullptr
            || y == nullptr)
        {
            return message("a null tensor was given: x, positions, inv_freq, multiplier and y must all have memory");
        }
        std::uintptr_t const elementBytes = dataType == CTX_DATA_TYPE_FLOAT32 ? 4 : 2;
        if (!isAligned(x, elementBytes) || !isAligned(y, elementBytes) || !isAligned(positions, sizeof(int64_t))
            || !isAligned(inverseFrequency, sizeof(float)) || !isAligned(multiplier, sizeof(float)))
        {
            return message("x, y, positions, inv_freq and multiplier are at ", x, ", ", y, ", ", positions, ", ",
                inverseFrequency, " and ", multiplier, ": each must be aligned to its elements");
        }
        if (rangesCross(x, y, batch * heads * rows * headDim * static_cast<int64_t>(elementBytes)))
        {
            return message("y at ", y, " overlaps x at ", x, ": give x itself or memory apart from it");
        }
        return {};
    }
};

} // namespace ctx
