// Which keys self-extend's queries meet where (arXiv 2401.01325).
#pragma once

#include "kernels/parts_attention/key_part.cuh"

namespace ctx
{

struct SelfExtendRule
{
    enum Part : int32_t
    {
        kFAR,
        kNEAR,
        kPARTS
    };

    int64_t group;
    int64_t neighbor;

    CTX_HOST_DEVICE QueryPart queryPart(int32_t part, int64_t position) const
    {
        int64_t const border = atLeastZero(position - neighbor + 1);
        return part == kFAR ? QueryPart{0, border, position / group + neighbor - neighbor / group}
                            : QueryPart{border, position + 1, position};
    }

    CTX_HOST_DEVICE KeyPositions keyPositions(int32_t part, int64_t first) const
    {
        return part == kNEAR
            ? KeyPositions::counted(first)
            : KeyPositions{first / group, static_cast<uint32_t>(first % group), static_cast<uint32_t>(group), false};
    }
};

} // namespace ctx
