// Rotation of packs of consecutive elements, and one sequence's table of frequencies.
#pragma once

#include "kernels/common/element.cuh"
#include "kernels/scaled_rotary_embedding/scaled_rotary_embedding_math.cuh"

namespace ctx
{

// Frequencies of one sequence in global memory.
struct RotaryTable
{
    float const* frequency; // radians per token
    float multiplier;       // on cos and sin

    // Of tables [frequencyBatch, pairs] and multipliers [multiplierBatch], where a batch of 1 serves all sequences.
    template <typename Params>
    CTX_HOST_DEVICE static RotaryTable of(Params const& params, int64_t batch)
    {
        int64_t const row = params.frequencyBatch == 1 ? 0 : batch;
        return RotaryTable{params.inverseFrequency + row * (params.rotaryDim / 2),
            params.multiplier[params.multiplierBatch == 1 ? 0 : batch]};
    }

    CTX_HOST_DEVICE CosSin turn(int64_t position, int32_t pair) const
    {
        float const f = frequency[pair];
        return scaled(hasPhaseStep(f) ? rotation(position, phaseStep(f)) : invalidRotation(), multiplier);
    }
};

// A row's dims as packs of COUNT: first the pairs' (two packs each), then those that pass through.
struct RowPacks
{
    int32_t pairPacks;
    int32_t count;

    CTX_HOST_DEVICE static RowPacks of(int64_t headDim, int64_t rotaryDim, int32_t elements)
    {
        auto const pairPacks = static_cast<int32_t>(rotaryDim / 2 / elements);
        return RowPacks{pairPacks, pairPacks + static_cast<int32_t>((headDim - rotaryDim) / elements)};
    }
};

template <typename T, int COUNT>
CTX_HOST_DEVICE void rotatePacks(
    Pack<T, COUNT>& first, Pack<T, COUNT>& second, CosSin const (&turns)[COUNT], bool interleaved)
{
    CTX_UNROLL
    for (int32_t i = 0; i < COUNT; ++i)
    {
        // Interleaved, the 2 * COUNT elements of both packs are the pairs one after the other.
        T& a = interleaved ? (2 * i < COUNT ? first.values[2 * i] : second.values[2 * i - COUNT]) : first.values[i];
        T& b = interleaved ? (2 * i + 1 < COUNT ? first.values[2 * i + 1] : second.values[2 * i + 1 - COUNT])
                           : second.values[i];
        Pair const turned = rotatePair(Pair{toFloat(a), toFloat(b)}, turns[i]);
        a = fromFloat<T>(turned.first);
        b = fromFloat<T>(turned.second);
    }
}

} // namespace ctx
