// Parameters of RotaryFrequencies and their check.
#pragma once

#include "ctx_plugins/ctx_kernels.h"
#include "kernels/common/validation.h"

namespace ctx
{

struct RotaryFrequenciesParams : CtxRotaryFrequenciesParams
{
    bool isEmpty() const
    {
        return batch == 0;
    }

    // What is wrong, or an empty string.
    std::string validate() const
    {
        if (pairs < 1 || !areSizes({batch, pairs}) || !areSizes({8, pairs}))
        {
            return message("rope_length has ", batch, " entries and tables ", pairs,
                " frequencies: give 0 or more and 1 or more, each below 2^31 and at most 2^37 outputs together");
        }
        return isEmpty() ? std::string{} : validatePointers();
    }

private:
    std::string validatePointers() const
    {
        if (ropeLength == nullptr || tables == nullptr || scalars == nullptr || inverseFrequency == nullptr
            || multiplier == nullptr)
        {
            return message("a null tensor was given: rope_length, tables, scalars, inv_freq and multiplier must all "
                           "have memory");
        }
        if (!isAligned(ropeLength, sizeof(int64_t)) || !isAligned(tables, sizeof(float))
            || !isAligned(scalars, sizeof(float)) || !isAligned(inverseFrequency, sizeof(float))
            || !isAligned(multiplier, sizeof(float)))
        {
            return message("rope_length, tables, scalars, inv_freq and multiplier are at ", ropeLength, ", ", tables,
                ", ", scalars, ", ", inverseFrequency, " and ", multiplier, ": each must be aligned to its elements");
        }
        return {};
    }
};

} // namespace ctx
