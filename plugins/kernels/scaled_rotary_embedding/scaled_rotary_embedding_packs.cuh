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

template <typename T>
CTX_HOST_DEVICE void rotateElements(T& first, T& second, CosSin turn)
{
    Pair const turned = rotatePair(Pair{toFloat(first), toFloat(second)}, turn);
    first = fromFloat<T>(turned.first);
    second = fromFloat<T>(turned.second);
}

// Interleaved, the 2 * COUNT elements of both packs are the pairs one after the other.
template <typename T, int COUNT>
CTX_HOST_DEVICE void rotatePacks(
    Pack<T, COUNT>& first, Pack<T, COUNT>& second, CosSin const (&turns)[COUNT], bool interleaved)
{
    if constexpr (COUNT > 1)
    {
        if (interleaved)
        {
            CTX_UNROLL
            for (int32_t i = 0; i < COUNT / 2; ++i)
            {
                rotateElements(first.values[2 * i], first.values[2 * i + 1], turns[i]);
                rotateElements(second.values[2 * i], second.values[2 * i + 1], turns[COUNT / 2 + i]);
            }
            return;
        }
    }
    CTX_UNROLL
    for (int32_t i = 0; i < COUNT; ++i)
    {
        rotateElements(first.values[i], second.values[i], turns[i]);
    }
}

} // namespace ctx
