// Slots, candidates and positions of LandmarkAttention, as FORMULAS.md section 3 defines them. Tokens, slots and blocks
// that exist are below 2^31, because a cache has fewer slots.
#pragma once

#include "kernels/landmark_attention/landmark_attention_params.h"
#include "kernels/sink_window_attention/sink_window_attention_math.cuh"

namespace ctx
{

// Where tokens and what represents their blocks are kept, and which blocks are candidates. Representative: the key by
// which a block is chosen.
struct LandmarkLayout
{
    int64_t window;
    uint32_t sinks;
    uint32_t block;
    uint32_t stride; // slots of a block
    uint32_t topk;
    uint32_t blocks; // that a cache holds together with their representatives
    uint32_t tokens; // that a cache holds
    bool isLandmark;

    CTX_HOST_DEVICE static LandmarkLayout of(CtxLandmarkAttentionParams const& params)
    {
        LandmarkLayout layout{};
        layout.isLandmark = params.landmark != 0;
        layout.window = params.window;
        layout.sinks = static_cast<uint32_t>(smaller(params.sinks, params.call.capacity));
        layout.block = static_cast<uint32_t>(params.block);
        layout.stride = layout.block + (layout.isLandmark ? 0U : 1U);
        layout.topk = static_cast<uint32_t>(params.topk);
        uint32_t const behind = static_cast<uint32_t>(params.call.capacity) - layout.sinks;
        layout.blocks = behind / layout.stride;
        auto const rest = static_cast<uint32_t>(smaller(behind % layout.stride, layout.block));
        layout.tokens = layout.sinks + layout.blocks * layout.block + rest;
        return layout;
    }

    CTX_HOST_DEVICE uint32_t slotOf(uint32_t block, uint32_t offset) const
    {
        return sinks + block * stride + offset;
    }

    CTX_HOST_DEVICE uint32_t slotOf(uint32_t token) const
    {
        return token < sinks ? token : slotOf((token - sinks) / block, (token - sinks) % block);
    }

    CTX_HOST_DEVICE uint32_t representativeSlot(uint32_t number) const
    {
        return slotOf(number, stride - 1);
    }

    // At which of its block's tokens a representative is rotated.
    CTX_HOST_DEVICE uint32_t representativeOffset() const
    {
        return isLandmark ? block - 1 : block / 2;
    }

    CTX_HOST_DEVICE uint32_t tokenOf(uint32_t number, uint32_t offset) const
    {
        return sinks + number * block + offset;
    }

    // Blocks that the first `count` tokens fill.
    CTX_HOST_DEVICE uint32_t filledBy(int64_t count) const
    {
        auto const behind = static_cast<uint32_t>(smaller(larger(0, count - sinks), kMAX_SIZE));
        uint32_t const filled = behind / block;
        return filled < blocks ? filled : blocks;
    }

    CTX_HOST_DEVICE uint32_t candidates(uint32_t position) const
    {
        return filledBy(static_cast<int64_t>(position) + 1 - window);
    }
};

// What one query meets. Blocks before `near` are "far": they are met as if each lay right behind the sinks, by the
// query that many blocks nearer, and so are the sinks. All others are met where they are.
struct LandmarkQuery
{
    int32_t position; // -1: it does not attend
    uint32_t candidates;
    uint32_t near;  // first block that is met where it is
    uint32_t whole; // blocks up to here are read, or may be, by their entries in the list
    uint32_t tail;  // first token after those

    CTX_HOST_DEVICE static LandmarkQuery of(LandmarkLayout const& layout, Sequence const& sequence, int64_t token)
    {
        LandmarkQuery query{-1, 0, 0, 0, 0};
        if (token >= sequence.answered)
        {
            return query;
        }
        auto const position = static_cast<uint32_t>(sequence.seen + token);
        query.position = static_cast<int32_t>(position);
        query.candidates = layout.candidates(position);
        query.near = query.candidates > layout.topk + 1 ? query.candidates - layout.topk - 1 : 0;
        // The grouped softmax meets every block but the query's own by way of its landmark.
        query.whole = layout.isLandmark ? layout.filledBy(position) : query.candidates;
        query.tail = layout.tokenOf(query.whole, 0);
        return query;
    }

    CTX_HOST_DEVICE bool attends() const
    {
        return position >= 0;
    }

    // Whether its candidates are too many to read all of them.
    CTX_HOST_DEVICE bool chooses(LandmarkLayout const& layout) const
    {
        return candidates > layout.topk;
    }

    // Where it meets the sinks and far blocks.
    CTX_HOST_DEVICE int32_t farPosition(LandmarkLayout const& layout) const
    {
        return position - static_cast<int32_t>(near * layout.block);
    }
};

} // namespace ctx
