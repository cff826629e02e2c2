// What the kernels of a call share: the call itself, tiles of queries, and the workspace in which one kernel leaves
// scores and lists of blocks for the next. A call is worked on in sections of tokens that its workspace can hold.
#pragma once

#include "kernels/landmark_attention/landmark_attention_math.cuh"
#include "kernels/sink_window_attention/sink_window_attention_place.cuh"

namespace ctx
{

// Packed rows whose blocks are listed together, and which a matrix instruction takes together.
constexpr int32_t kLANDMARK_ROWS = 16;

// A block that some rows of a tile read.
struct ChosenBlock
{
    uint32_t number;
    uint32_t rows; // a bit for each
};

// The far blocks of a tile's list come first. Of both kinds numbers ascend.
struct ListSize
{
    uint32_t far;
    uint32_t near;
};

// Sizes of a section's workspace, in elements of one key-value head of one sequence.
struct SectionSizes
{
    int64_t scoreRows;
    int64_t scoreStride; // of a row: a score for each block
    int64_t tiles;
    int64_t rowEntries;  // blocks that a row may choose
    int64_t tileEntries; // blocks that a tile may read besides
    int64_t entries;
    bool hasBiases;

    CTX_HOST_DEVICE static SectionSizes of(LandmarkLayout const& layout, int64_t groups, bool isShared, int64_t tokens)
    {
        SectionSizes sizes{};
        sizes.scoreRows = isShared ? tokens : tokens * groups;
        sizes.scoreStride = (static_cast<int64_t>(layout.blocks) + 3) / 4 * 4;
        sizes.tiles = (tokens * groups + kLANDMARK_ROWS - 1) / kLANDMARK_ROWS;
        sizes.rowEntries = smaller(layout.topk, layout.blocks);
        sizes.hasBiases = layout.isLandmark;
        sizes.tileEntries = layout.isLandmark
            ? smaller(layout.blocks, (smaller(layout.window, kMAX_SIZE) + kLANDMARK_ROWS) / layout.block + 2)
            : 0;
        sizes.entries = tokens * groups * sizes.rowEntries + sizes.tiles * sizes.tileEntries;
        return sizes;
    }

    CTX_HOST_DEVICE int64_t scores() const
    {
        return scoreRows * scoreStride;
    }

    CTX_HOST_DEVICE int64_t biases() const
    {
        return hasBiases ? entries * kLANDMARK_ROWS : 0;
    }

    CTX_HOST_DEVICE int64_t bytes() const
    {
        return (scores() + biases()) * static_cast<int64_t>(sizeof(float))
            + entries * static_cast<int64_t>(sizeof(ChosenBlock)) + tiles * static_cast<int64_t>(sizeof(ListSize));
    }
};

// A call as its kernels get it, for one section.
struct LandmarkCall
{
    // As of a cache whose slots are tokens: `capacity` counts tokens, `window` those that a query may read besides the
    // sinks, on which splitting goes. Its workspace is for what splits leave.
    CtxSinkWindowAttentionParams common;
    LandmarkLayout layout;
    int64_t slots; // of a cache
    uint32_t groups;
    bool isShared;
    uint32_t firstToken;
    uint32_t tokens;
    SectionSizes sizes;
    float* scores;        // [head][score row][block]
    float* biases;        // [head][entry][row of the tile]
    ChosenBlock* entries; // [head][entry]
    ListSize* listSizes;  // [head][tile]

    CTX_HOST_DEVICE int64_t heads() const
    {
        return common.batch * common.kvHeads;
    }

    CTX_HOST_DEVICE uint32_t packedRows() const
    {
        return tokens * groups;
    }
};

// A tile of kLANDMARK_ROWS packed rows, the last one of a section smaller.
struct LandmarkTile
{
    TilePlace place; // rows count from the call's first
    uint32_t head;   // of all sequences
    uint32_t tile;   // of the section
    uint32_t rows;

    CTX_HOST_DEVICE static LandmarkTile of(
        LandmarkCall const& call, GridPlan const& grid, uint32_t block, uint32_t& split)
    {
        LandmarkTile tile{};
        tile.place = grid.placeOf(call.common, block, kLANDMARK_ROWS, split);
        uint32_t const first = tile.place.firstRow;
        tile.head = static_cast<uint32_t>(tile.place.batch * call.common.kvHeads + tile.place.kvHead);
        tile.tile = first / kLANDMARK_ROWS;
        tile.rows = static_cast<uint32_t>(smaller(kLANDMARK_ROWS, call.packedRows() - first));
        tile.place.firstRow = call.firstToken * call.groups + first;
        return tile;
    }

    CTX_HOST_DEVICE LandmarkQuery queryOf(LandmarkCall const& call, Sequence const& sequence, uint32_t row) const
    {
        return row < rows ? LandmarkQuery::of(call.layout, sequence, place.tokenOf(place.firstRow + row))
                          : LandmarkQuery{-1, 0, 0, 0, 0};
    }

    CTX_HOST_DEVICE int64_t firstEntry(LandmarkCall const& call) const
    {
        return head * call.sizes.entries
            + static_cast<int64_t>(tile) * (kLANDMARK_ROWS * call.sizes.rowEntries + call.sizes.tileEntries);
    }

    CTX_HOST_DEVICE ListSize& listSize(LandmarkCall const& call) const
    {
        return call.listSizes[head * call.sizes.tiles + tile];
    }

    // Of a row's scores the first.
    CTX_HOST_DEVICE float* scoresOf(LandmarkCall const& call, uint32_t row) const
    {
        uint32_t const packed = tile * kLANDMARK_ROWS + row;
        uint32_t const scoreRow = call.isShared ? packed / call.groups : packed;
        return call.scores + (head * call.sizes.scoreRows + scoreRow) * call.sizes.scoreStride;
    }

    // Of the head's first slot in a cache, in elements.
    CTX_HOST_DEVICE int64_t cacheOffset(LandmarkCall const& call) const
    {
        return head * call.slots * call.common.headDim;
    }
};

} // namespace ctx
