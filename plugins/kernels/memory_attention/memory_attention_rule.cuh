// Which keys memory's queries meet where: positions are ranks among what a query sees, all of one part shifted so that
// its keys keep their own index.
#pragma once

#include "kernels/parts_attention/key_part.cuh"
#include "kernels/sink_window_attention/sink_window_attention_math.cuh"

namespace ctx
{

struct MemoryRule
{
    enum Part : int32_t
    {
        kSINKS,
        kBLOCKS,
        kTOKENS,
        kPARTS
    };

    int64_t sinks;
    int64_t window;
    int64_t memory;
    int64_t block;
    int64_t memorySlots;

    // Blocks that a query at `position` no longer sees as tokens.
    CTX_HOST_DEVICE int64_t evicted(int64_t position) const
    {
        return atLeastZero(position + 1 - sinks - window) / block;
    }

    CTX_HOST_DEVICE QueryPart queryPart(int32_t part, int64_t position) const
    {
        int64_t const blocks = evicted(position);
        int64_t const oldest = atLeastZero(blocks - memory);
        // Of the query among sinks and tokens, as if no block had been before them.
        int64_t const rank = position - blocks * block;
        switch (part)
        {
        case kSINKS: return QueryPart{0, sinks < position + 1 ? sinks : position + 1, rank + blocks - oldest};
        case kBLOCKS: return QueryPart{oldest, blocks, rank - sinks + blocks};
        default: return QueryPart{sinks + blocks * block, position + 1, position};
        }
    }

    CTX_HOST_DEVICE CacheLayout layout(int32_t part, int64_t capacity) const
    {
        int64_t const firstOfRing = sinks + memorySlots;
        switch (part)
        {
        case kSINKS: return CacheLayout{capacity, 0, 0};
        case kBLOCKS: return CacheLayout{firstOfRing, 0, memorySlots};
        default: return CacheLayout{capacity, sinks, capacity - firstOfRing};
        }
    }
};

} // namespace ctx
