// Which keys dual-chunk's queries meet where (arXiv 2402.17463).
#pragma once

#include "kernels/parts_attention/key_part.cuh"

namespace ctx
{

struct DualChunkRule
{
    enum Part : int32_t
    {
        kEARLIER,
        kPREVIOUS,
        kSAME,
        kPARTS
    };

    int64_t chunk;
    int64_t reach;

    CTX_HOST_DEVICE QueryPart queryPart(int32_t part, int64_t position) const
    {
        int64_t const within = position % chunk;
        int64_t const own = position - within;
        int64_t const previous = atLeastZero(own - chunk);
        switch (part)
        {
        case kEARLIER: return QueryPart{0, previous, reach - 1};
        case kPREVIOUS: return QueryPart{previous, own, within + chunk < reach ? within + chunk : reach - 1};
        default: return QueryPart{own, position + 1, within};
        }
    }

    CTX_HOST_DEVICE KeyPositions keyPositions(int64_t first) const
    {
        return KeyPositions{0, static_cast<uint32_t>(first % chunk), static_cast<uint32_t>(chunk), true};
    }
};

} // namespace ctx
