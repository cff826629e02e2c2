// The parts in which a rule divides the keys that a query sees. Keys are counted as the part counts them: tokens, or
// blocks of tokens.
#pragma once

#include "kernels/common/platform.cuh"

namespace ctx
{

// At most so many; in every rule the last one holds the query's own token.
constexpr int32_t kMAX_PARTS = 3;

// Keys [begin, end) that the query at a position sees, none if begin >= end, and where it is turned to meet them. Ends
// do not fall from one position to the next.
struct QueryPart
{
    int64_t begin;
    int64_t end;
    int64_t queryPosition;
};

// Where consecutive keys are turned: the o-th at base + (rest + o) / divisor, or if cyclic at (rest + o) mod divisor.
struct KeyPositions
{
    int64_t base;
    uint32_t rest; // below divisor
    uint32_t divisor;
    bool isCyclic;

    // From key `first` on, each at its own index.
    CTX_HOST_DEVICE static KeyPositions counted(int64_t first)
    {
        return KeyPositions{first, 0, 1, false};
    }

    CTX_HOST_DEVICE int64_t at(int32_t offset) const
    {
        uint32_t const sum = rest + static_cast<uint32_t>(offset);
        return isCyclic ? static_cast<int64_t>(sum % divisor) : base + sum / divisor;
    }
};

CTX_HOST_DEVICE int64_t atLeastZero(int64_t value)
{
    return value > 0 ? value : 0;
}

} // namespace ctx
