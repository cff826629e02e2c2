// Where a block's work lies: its queries, the tiles of keys they see, its part of those where keys are split over
// blocks, and the memory in which parts are kept until they are merged.
#pragma once

#include "kernels/sink_window_attention/sink_window_attention_math.cuh"

namespace ctx
{

// Queries of one sequence and one key-value head, all its query heads side by side: packed row = token of the call *
// groups + head within the group. Packed rows are below 2^31; dividing 64 bits would be half the kernel's code.
struct TilePlace
{
    int64_t batch;
    int64_t kvHead;
    uint32_t groups;   // query heads per key-value head
    uint32_t firstRow; // packed
    uint32_t packedRows;

    CTX_HOST_DEVICE uint32_t tokenOf(uint32_t packedRow) const
    {
        return packedRow / groups;
    }

    CTX_HOST_DEVICE int64_t headOf(uint32_t packedRow) const
    {
        return kvHead * groups + packedRow % groups;
    }

    // Offset of a packed row in q and sink_q, or in y.
    CTX_HOST_DEVICE int64_t rowOffset(CtxStrides const& strides, uint32_t packedRow) const
    {
        return batch * strides.batch + headOf(packedRow) * strides.head + tokenOf(packedRow) * strides.token;
    }

    // Offset of the head's first slot in a cache, in rows.
    CTX_HOST_DEVICE int64_t cacheRow(CtxSinkWindowAttentionParams const& params) const
    {
        return (batch * params.kvHeads + kvHead) * params.capacity;
    }
};

// How a call is cut into blocks: for each sequence and key-value head tiles of packed rows, and each of those split
// over the keys. Tiles with the most keys come first, so that none begins late. The heads of a section take turns with
// their tiles: the keys and values of a section stay in the L2 cache.
struct GridPlan
{
    uint32_t tilesPerHead;
    uint32_t splits;
    uint32_t heads; // of all sequences
    uint32_t sectionHeads;

    // A block's tile of `tileRows` queries, and its split.
    CTX_HOST_DEVICE TilePlace placeOf(
        CtxSinkWindowAttentionParams const& params, uint32_t block, uint32_t tileRows, uint32_t& split) const
    {
        split = block % splits;
        uint32_t const tileOfAll = block / splits;
        uint32_t const firstHead = tileOfAll / (sectionHeads * tilesPerHead) * sectionHeads;
        auto const inSection = static_cast<uint32_t>(smaller(sectionHeads, heads - firstHead));
        uint32_t const index = tileOfAll - firstHead * tilesPerHead;
        uint32_t const tile = tilesPerHead - 1 - index / inSection;
        uint32_t const head = firstHead + index % inSection;
        auto const kvHeads = static_cast<uint32_t>(params.kvHeads);
        uint32_t const groups = static_cast<uint32_t>(params.queryHeads) / kvHeads;
        return TilePlace{
            head / kvHeads, head % kvHeads, groups, tile * tileRows, groups * static_cast<uint32_t>(params.rows)};
    }
};

// Keys that a tile of queries sees, as tiles of TILE_KEYS: those of the sinks, then those of the window.
struct KeyTiles
{
    TokenRange sinks;
    TokenRange window;
    int64_t windowSlot; // of the window's first token
    int32_t sinkTiles;
    int32_t count;
    int32_t tileKeys;

    CTX_HOST_DEVICE bool isSinkTile(int32_t tile) const
    {
        return tile < sinkTiles;
    }

    CTX_HOST_DEVICE TokenRange const& rangeOf(int32_t tile) const
    {
        return isSinkTile(tile) ? sinks : window;
    }

    CTX_HOST_DEVICE int64_t firstToken(int32_t tile) const
    {
        return isSinkTile(tile) ? static_cast<int64_t>(tile) * tileKeys
                                : window.begin + static_cast<int64_t>(tile - sinkTiles) * tileKeys;
    }

    CTX_HOST_DEVICE int64_t firstSlot(CacheLayout const& layout, int32_t tile) const
    {
        return isSinkTile(tile) ? static_cast<int64_t>(tile) * tileKeys
                                : layout.slotAfter(windowSlot, (tile - sinkTiles) * tileKeys);
    }

    // Of the tile's keys those within its range.
    CTX_HOST_DEVICE int32_t keysOf(int32_t tile) const
    {
        return static_cast<int32_t>(smaller(tileKeys, rangeOf(tile).end - firstToken(tile)));
    }
};

CTX_HOST_DEVICE int32_t tilesOf(TokenRange const& range, int32_t tileKeys)
{
    return range.end > range.begin ? static_cast<int32_t>((range.end - range.begin + tileKeys - 1) / tileKeys) : 0;
}

// Of the tile's rows that attend, if there are any, tokens [first, last] of the call.
struct QueryTokens
{
    int64_t first;
    int64_t last;

    CTX_HOST_DEVICE bool attend() const
    {
        return first <= last;
    }
};

CTX_HOST_DEVICE QueryTokens queryTokens(TilePlace const& place, Sequence const& sequence, uint32_t tileRows)
{
    return QueryTokens{
        place.tokenOf(place.firstRow), smaller(place.tokenOf(place.firstRow + tileRows - 1), sequence.answered - 1)};
}

CTX_HOST_DEVICE KeyTiles keyTiles(CtxSinkWindowAttentionParams const& params, CacheLayout const& layout,
    Sequence const& sequence, QueryTokens const& tokens, int32_t tileKeys)
{
    KeyTiles tiles{};
    tiles.tileKeys = tileKeys;
    if (tokens.attend())
    {
        int64_t const last = sequence.seen + tokens.last;
        tiles.sinks = sinkRange(layout.sinks, last);
        tiles.window
            = windowRange(layout, params.window, sequence.seen + tokens.first, last, sequence.seen + sequence.count);
        tiles.windowSlot = layout.slotOf(tiles.window.begin);
        tiles.sinkTiles = tilesOf(tiles.sinks, tileKeys);
        tiles.count = tiles.sinkTiles + tilesOf(tiles.window, tileKeys);
    }
    return tiles;
}

// A split's tiles [begin, end).
struct TileShare
{
    int32_t begin;
    int32_t end;
};

CTX_HOST_DEVICE TileShare shareOf(int32_t tiles, uint32_t split, uint32_t splits)
{
    auto const share = static_cast<int32_t>((tiles + splits - 1) / splits);
    int64_t const begin = static_cast<int64_t>(split) * share;
    return TileShare{static_cast<int32_t>(smaller(begin, tiles)), static_cast<int32_t>(smaller(begin + share, tiles))};
}

// Results of the splits in the workspace: sums of weighted values [split][row][D], then [split][row] softmax states,
// with rows [batch][kv head][packed row].
struct Partials
{
    float* sums;
    SoftmaxState* states;
    int64_t rows;

    CTX_HOST_DEVICE static Partials of(CtxSinkWindowAttentionParams const& params, uint32_t splits)
    {
        auto* const sums = static_cast<float*>(params.workspace);
        int64_t const rows = params.batch * params.queryHeads * params.rows;
        return Partials{sums, reinterpret_cast<SoftmaxState*>(sums + splits * rows * params.headDim), rows};
    }

    CTX_HOST_DEVICE int64_t index(
        CtxSinkWindowAttentionParams const& params, TilePlace const& place, uint32_t packedRow, uint32_t split) const
    {
        return split * rows + (place.batch * params.kvHeads + place.kvHead) * place.packedRows + packedRow;
    }
};

} // namespace ctx
