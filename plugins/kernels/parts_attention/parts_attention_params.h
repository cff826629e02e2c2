// Parameters of a call by parts: what all rules have in common, and one rule.
#pragma once

#include "kernels/dual_chunk_attention/dual_chunk_attention_rule.cuh"
#include "kernels/memory_attention/memory_attention_rule.cuh"
#include "kernels/parts_attention/attention_call.h"
#include "kernels/self_extend_attention/self_extend_attention_rule.cuh"

namespace ctx
{

// One of the rules. Blocks ask it before they pass over their keys, never while they do, so that all rules share the
// kernels.
struct PartRule
{
    enum class Kind : int32_t
    {
        kSELF_EXTEND,
        kDUAL_CHUNK,
        kMEMORY
    };

    Kind kind;
    union
    {
        SelfExtendRule selfExtend;
        DualChunkRule dualChunk;
        MemoryRule memory;
    };

    static PartRule of(SelfExtendRule const& rule)
    {
        PartRule result{Kind::kSELF_EXTEND, {}};
        result.selfExtend = rule;
        return result;
    }

    static PartRule of(DualChunkRule const& rule)
    {
        PartRule result{Kind::kDUAL_CHUNK, {}};
        result.dualChunk = rule;
        return result;
    }

    static PartRule of(MemoryRule const& rule)
    {
        PartRule result{Kind::kMEMORY, {}};
        result.memory = rule;
        return result;
    }

    CTX_HOST_DEVICE int32_t parts() const
    {
        return kind == Kind::kSELF_EXTEND ? SelfExtendRule::kPARTS : kMAX_PARTS;
    }

    CTX_HOST_DEVICE QueryPart queryPart(int32_t part, int64_t position) const
    {
        switch (kind)
        {
        case Kind::kSELF_EXTEND: return selfExtend.queryPart(part, position);
        case Kind::kDUAL_CHUNK: return dualChunk.queryPart(part, position);
        default: return memory.queryPart(part, position);
        }
    }

    // Of the part's keys from `first` on.
    CTX_HOST_DEVICE KeyPositions keyPositions(int32_t part, int64_t first) const
    {
        switch (kind)
        {
        case Kind::kSELF_EXTEND: return selfExtend.keyPositions(part, first);
        case Kind::kDUAL_CHUNK: return dualChunk.keyPositions(first);
        default: return KeyPositions::counted(first);
        }
    }

    // Of the part's keys in a cache of that many slots.
    CTX_HOST_DEVICE CacheLayout layout(int32_t part, int64_t capacity) const
    {
        return kind == Kind::kMEMORY ? memory.layout(part, capacity) : CacheLayout{capacity, 0, 0};
    }

    // Of the tokens that the call writes.
    CTX_HOST_DEVICE CacheLayout tokenLayout(int64_t capacity) const
    {
        return layout(parts() - 1, capacity);
    }
};

struct PartsAttentionParams : SinkWindowAttentionParams
{
    PartRule rule;
};

} // namespace ctx
