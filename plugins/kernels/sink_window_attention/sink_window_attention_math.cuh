// Cache slots, visible tokens and the online softmax of SinkWindowAttention, as FORMULAS.md section 3 defines them.
#pragma once

#include "kernels/common/platform.cuh"
#include "kernels/sink_window_attention/sink_window_attention_params.h"

#include <cmath>

namespace ctx
{

constexpr float kLOG2_E = 1.4426950408889634F;
// A `seen` outside [0, 2^62] is no count of tokens, and positions past it would overflow: its rows have no slots.
constexpr int64_t kMAX_SEEN = int64_t{1} << 62;

// To 2 units in the last place, with results below 2^-126 as zero.
CTX_HOST_DEVICE float powerOfTwo(float exponent)
{
#if defined(__CUDA_ARCH__)
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(exponent));
    return result;
#else
    return exp2f(exponent);
#endif
}

// To 1 unit in the last place.
CTX_HOST_DEVICE float reciprocal(float value)
{
#if defined(__CUDA_ARCH__)
    float result;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(value));
    return result;
#else
    return 1.0F / value;
#endif
}

CTX_HOST_DEVICE int64_t smaller(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

CTX_HOST_DEVICE int64_t larger(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

// Where the tokens of one sequence are kept.
struct CacheLayout
{
    int64_t capacity; // end of the slots
    int64_t sinks;
    int64_t ring; // the last slots, for the tokens after the sinks; 0: slot = token

    // Slot of a token >= 0; at or above `capacity` there is none.
    CTX_HOST_DEVICE int64_t slotOf(int64_t token) const
    {
        return ring == 0 || token < sinks ? token : capacity - ring + (token - sinks) % ring;
    }

    // Slot of the token `distance` after one in `slot`, both sinks or both not and at the same time in the cache, so at
    // most one round apart. Slots are below 2^31.
    CTX_HOST_DEVICE int64_t slotAfter(int64_t slot, int32_t distance) const
    {
        auto const next = static_cast<uint32_t>(slot + distance);
        return next < capacity ? next : next - static_cast<uint32_t>(ring);
    }

    // Whether a token is still in its slot once `end` tokens have been written.
    CTX_HOST_DEVICE bool isKept(int64_t token, int64_t end) const
    {
        return ring == 0 || token < sinks || token + ring >= end;
    }
};

CTX_HOST_DEVICE CacheLayout layoutOf(CtxSinkWindowAttentionParams const& params)
{
    return CacheLayout{params.capacity, params.sinks, params.bounded != 0 ? params.capacity - params.sinks : 0};
}

// One sequence's part in a call. Rows [0, answered) attend, rows [answered, count) have no slot, the rest is padding.
struct Sequence
{
    int64_t seen;
    int64_t count;
    int64_t answered;
};

CTX_HOST_DEVICE Sequence sequenceOf(CtxSinkWindowAttentionParams const& params, int64_t batch)
{
    Sequence sequence{};
    sequence.seen = params.seen[batch];
    sequence.count = larger(0, smaller(params.newTokens[batch], params.rows));
    if (sequence.seen < 0 || sequence.seen > kMAX_SEEN)
    {
        return sequence;
    }
    int64_t const slots = params.bounded != 0 ? sequence.count : larger(0, params.capacity - sequence.seen);
    sequence.answered = smaller(sequence.count, slots);
    return sequence;
}

// Consecutive tokens [begin, end). Those of the sinks ignore the window and use the sink query.
struct TokenRange
{
    int64_t begin;
    int64_t end;
    bool isSinks;
};

// Sinks that any query in positions [first, last] sees.
CTX_HOST_DEVICE TokenRange sinkRange(int64_t sinks, int64_t last)
{
    return TokenRange{0, smaller(sinks, last + 1), true};
}

// Tokens after the sinks that any query in positions [first, last] sees, of those kept after `end` tokens.
CTX_HOST_DEVICE TokenRange windowRange(
    CacheLayout const& layout, int64_t window, int64_t first, int64_t last, int64_t end)
{
    int64_t begin = layout.sinks;
    if (window > 0)
    {
        begin = larger(begin, first - window + 1);
    }
    if (layout.ring > 0)
    {
        begin = larger(begin, end - layout.ring);
    }
    return TokenRange{begin, last + 1, false};
}

// Logits in units of ln 2, so that the softmax can use powers of two: product * perProduct, or with a soft cap
// cap * tanh(product * perCap).
struct LogitScale
{
    float perProduct;
    float perCap;
    float cap; // 0: none

    // keyScale: what 1 in the cache means.
    CTX_HOST_DEVICE static LogitScale of(float scale, float softcap, float keyScale)
    {
        float const perLogit = scale * keyScale;
        return LogitScale{perLogit * kLOG2_E, softcap > 0.0F ? perLogit / softcap : 0.0F, softcap * kLOG2_E};
    }

    // Of a product, or of a score that is already capped. Never zero, which times -infinity would be NaN.
    CTX_HOST_DEVICE float perScore() const
    {
        constexpr float kSMALLEST = 1.17549435e-38F;
        float const perUncapped = perProduct == 0.0F ? kSMALLEST : perProduct;
        return cap > 0.0F ? 1.0F : perUncapped;
    }

    CTX_HOST_DEVICE float capped(float product) const
    {
        return cap * tanhf(product * perCap);
    }

    // tanh x = 1 - 2 / (1 + e^2x), off by at most 2e-7.
    CTX_HOST_DEVICE float cappedFast(float product) const
    {
        float const power = powerOfTwo(2.0F * kLOG2_E * (product * perCap));
        return fmaf(-2.0F * cap, reciprocal(1.0F + power), cap);
    }

    CTX_HOST_DEVICE float logit(float product) const
    {
        return cap > 0.0F ? capped(product) : product * perProduct;
    }
};

// Running softmax of one query: weights are 2^(logit - maximum).
struct alignas(8) SoftmaxState
{
    float maximum;
    float denominator;

    // Takes a tile's largest logit in; returns the factor on everything summed so far.
    CTX_HOST_DEVICE float raise(float tileMaximum)
    {
        float const next = fmaxf(maximum, tileMaximum);
        float const factor = exp2f(maximum - reference(next));
        maximum = next;
        denominator *= factor;
        return factor;
    }

    // As raise, with the GPU's own power of two.
    CTX_HOST_DEVICE float raiseFast(float tileMaximum)
    {
        float const next = fmaxf(maximum, tileMaximum);
        float const factor = powerOfTwo(maximum - reference(next));
        maximum = next;
        denominator *= factor;
        return factor;
    }

    CTX_HOST_DEVICE float weight(float logit) const
    {
        return exp2f(logit - reference(maximum));
    }

    // Nothing seen yet: any finite reference gives the masked logits (-infinity) weight 0.
    CTX_HOST_DEVICE static float reference(float value)
    {
        return value == -INFINITY ? 0.0F : value;
    }
};

// What stands where no softmax was taken: NaN for a token without a slot, zeros for padding.
CTX_HOST_DEVICE float fillOf(Sequence const& sequence, int64_t token)
{
    return token < sequence.count ? NAN : 0.0F;
}

CTX_HOST_DEVICE float headScale(float const* scales, int64_t kvHead)
{
    return scales == nullptr ? 1.0F : scales[kvHead];
}

} // namespace ctx
