// Parameters of MemoryAttention and their check.
#pragma once

#include "kernels/parts_attention/parts_attention_params.h"

namespace ctx
{

struct MemoryAttentionParams : CtxMemoryAttentionParams
{
    PartsAttentionParams parts() const
    {
        PartsAttentionParams params{commonParams(call), PartRule::of(rule())};
        // Every token has a slot.
        params.bounded = 1;
        return params;
    }

    // What is wrong, or an empty string.
    std::string validate() const
    {
        std::string const fault = parts().validate();
        return fault.empty() ? validateRule() : fault;
    }

private:
    MemoryRule rule() const
    {
        return MemoryRule{sinks, window, memory, block, memorySlots};
    }

    std::string validateRule() const
    {
        if (sinks < 0 || window < 1 || memory < 1 || block < 1 || sinks > kMAX_SIZE || window > kMAX_SIZE
            || memory > kMAX_SIZE || block > kMAX_SIZE)
        {
            return message("sinks is ", sinks, ", window ", window, ", memory ", memory, " and block ", block,
                ": sinks may not be negative, the others must be 1 or more, all below 2^31");
        }
        int64_t const slots = memory + (call.rows + block - 1) / block;
        if (memorySlots < slots || memorySlots > kMAX_SIZE)
        {
            return message("memory_slots is ", memorySlots, " for ", memory, " memory tokens of ", block,
                " tokens and calls of ", call.rows, " rows: give at least ", slots);
        }
        int64_t const ring = window + block + call.rows - 2;
        if (call.capacity < sinks + memorySlots + ring)
        {
            return message("a cache of ", call.capacity, " slots is too small for ", sinks, " sinks, ", memorySlots,
                " memory slots and a ring of ", ring, " tokens: give one slot for each");
        }
        return {};
    }
};

} // namespace ctx
