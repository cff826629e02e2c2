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
        if (batch < 0 || heads < 0 || rows < 0)
        {
            return message("x has shape [", batch, ", ", heads, ", ", rows, ", ", headDim,
                "]: batch, heads and rows must not be negative");
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
        if (!isEmpty()
            && (x == nullptr || positions == nullptr || inverseFrequency == nullptr || multiplier == nullptr
                || y == nullptr))
        {
            return message("a null tensor was given: x, positions, inv_freq, multiplier and y must all have memory");
        }
        return {};
    }
};

} // namespace ctx
