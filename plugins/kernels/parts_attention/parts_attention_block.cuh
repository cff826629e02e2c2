// A block whose queries see keys in parts. A tile of keys belongs to one part: keys at a border are in a tile of
// either, each masked to its own.
#pragma once

#include "kernels/parts_attention/parts_attention_params.h"
#include "kernels/sink_window_attention/sink_window_attention_turn.cuh"

namespace ctx
{

// Keys of one part that any of the block's rows sees.
struct PartTiles
{
    int64_t begin;
    int64_t slot; // of its first key
    KeyPositions positions;
    CachePlace cache;
    int32_t keys;
    int32_t firstTile;
};

// The parts' keys as tiles, one part after the other.
struct PartKeyTiles
{
    PartTiles parts[kMAX_PARTS];
    int32_t count;
    int32_t tileKeys;

    CTX_HOST_DEVICE int32_t partOf(int32_t tile) const
    {
        return (tile >= parts[1].firstTile ? 1 : 0) + (tile >= parts[2].firstTile ? 1 : 0);
    }

    // Keys of the part before the tile.
    CTX_HOST_DEVICE int32_t offsetOf(int32_t tile) const
    {
        return (tile - parts[partOf(tile)].firstTile) * tileKeys;
    }

    // Of the tile's keys those of its part.
    CTX_HOST_DEVICE int32_t keysOf(int32_t tile) const
    {
        int32_t const left = parts[partOf(tile)].keys - offsetOf(tile);
        return left < tileKeys ? left : tileKeys;
    }
};

// Which of a tile's keys a query sees, if it sees these of the tile's part.
struct PartVisibility
{
    int32_t offset; // of the tile within its part
    int32_t keys;

    CTX_HOST_DEVICE RowLimits limitsOf(RowLimits const& row) const
    {
        return RowLimits{row.oldest - offset, row.newest - offset < keys ? row.newest - offset : keys - 1};
    }

    // Of queries from one to another: limits do not fall from row to row.
    CTX_HOST_DEVICE bool isAll(RowLimits const& first, RowLimits const& last, int32_t tileKeys) const
    {
        return last.oldest <= offset && first.newest >= offset + tileKeys - 1 && keys == tileKeys;
    }

    CTX_HOST_DEVICE bool isNothing(RowLimits const& first, RowLimits const& last) const
    {
        return first.oldest >= offset + keys || last.newest < offset;
    }
};

struct PartsCall;

// What a block's rows see of each part, counted from the block's first key of it, and where they are turned.
template <int ROWS>
struct PartRows
{
    int64_t position[kMAX_PARTS][ROWS];
    RowLimits limits[kMAX_PARTS][ROWS];

    CTX_HOST_DEVICE void place(PartsCall const& call, PartsAttentionParams const& params, int row);
    CTX_HOST_DEVICE RowLimits const* ofTile(PartsCall const& call, int32_t tile) const;
};

struct PartsCall : BlockCall
{
    using Params = PartsAttentionParams;
    template <int ROWS>
    using Rows = PartRows<ROWS>;
    static constexpr bool kHAS_QUANTISED_CACHES = false;
    static constexpr int kWIDE_TILE_KEYS = 32; // beside the table of rows

    PartKeyTiles tiles;

    CTX_HOST_DEVICE PartTiles const& partOf(int32_t tile) const
    {
        return tiles.parts[tiles.partOf(tile)];
    }

    CTX_HOST_DEVICE void const* queries(Params const& params, int32_t) const
    {
        return params.query;
    }

    CTX_HOST_DEVICE CachePlace const& cacheOf(int32_t tile) const
    {
        return partOf(tile).cache;
    }

    CTX_HOST_DEVICE int64_t firstSlot(int32_t tile) const
    {
        PartTiles const& part = partOf(tile);
        return part.cache.layout.slotAfter(part.slot, tiles.offsetOf(tile));
    }

    // Whether the tile is met by other queries than the one before it.
    CTX_HOST_DEVICE bool changesQueries(Params const& params, int32_t tile) const
    {
        return rotatesQueries(params) && tile == partOf(tile).firstTile;
    }

    // First tile after this one that is met by other queries, or the end of the block's share.
    CTX_HOST_DEVICE int32_t endOfQueries(Params const& params, int32_t tile) const
    {
        int32_t const part = tiles.partOf(tile);
        bool const isLast = part == kMAX_PARTS - 1 || !rotatesQueries(params);
        int32_t const end = isLast ? tiles.count : tiles.parts[part + 1].firstTile;
        return end < share.end ? end : share.end;
    }
};

template <>
struct CallOfParams<PartsAttentionParams>
{
    using Call = PartsCall;
};

// The part's keys that tokens [first, last] see, from positions on that count from the sequence's first token.
CTX_HOST_DEVICE PartTiles partTiles(PartsCall const& call, PartsAttentionParams const& params, int32_t part)
{
    int64_t const begin = params.rule.queryPart(part, call.sequence.seen + call.tokens.first).begin;
    int64_t const end = params.rule.queryPart(part, call.sequence.seen + call.tokens.last).end;
    CacheLayout const layout = params.rule.layout(part, params.capacity);
    PartTiles tiles{};
    tiles.begin = begin;
    tiles.keys = static_cast<int32_t>(larger(0, end - begin));
    tiles.slot = layout.slotOf(begin);
    tiles.positions = params.rule.keyPositions(part, begin);
    tiles.cache
        = CachePlace{layout, call.place.cacheRow(params), static_cast<int32_t>(params.headDim), CTX_CACHE_TYPE_SAME};
    return tiles;
}

CTX_HOST_DEVICE void placeBlock(PartsCall& call, PartsAttentionParams const& params, GridPlan const& grid,
    uint32_t block, int32_t tileRows, int32_t tileKeys)
{
    startCall(call, params, grid, block, tileRows);
    PartKeyTiles& tiles = call.tiles;
    tiles.tileKeys = tileKeys;
    tiles.count = 0;
    int32_t const parts = call.tokens.attend() ? params.rule.parts() : 0;
    for (int32_t part = 0; part < kMAX_PARTS; ++part)
    {
        tiles.parts[part] = part < parts ? partTiles(call, params, part) : PartTiles{};
        tiles.parts[part].firstTile = tiles.count;
        tiles.count += (tiles.parts[part].keys + tileKeys - 1) / tileKeys;
    }
    call.share = shareOf(tiles.count, call.split, grid.splits);
}

template <int ROWS>
CTX_HOST_DEVICE void PartRows<ROWS>::place(PartsCall const& call, PartsAttentionParams const& params, int row)
{
    for (int32_t part = 0; part < kMAX_PARTS; ++part)
    {
        position[part][row] = 0;
        limits[part][row] = RowLimits{0, -1};
        if (row < call.attendingRows && part < params.rule.parts())
        {
            QueryPart const seen
                = params.rule.queryPart(part, call.sequence.seen + call.place.tokenOf(call.place.firstRow + row));
            int64_t const begin = call.tiles.parts[part].begin;
            position[part][row] = seen.queryPosition;
            limits[part][row]
                = RowLimits{static_cast<int32_t>(seen.begin - begin), static_cast<int32_t>(seen.end - 1 - begin)};
        }
    }
}

template <int ROWS>
CTX_HOST_DEVICE RowLimits const* PartRows<ROWS>::ofTile(PartsCall const& call, int32_t tile) const
{
    return limits[call.tiles.partOf(tile)];
}

CTX_HOST_DEVICE PartVisibility visibilityOf(PartsCall const& call, PartsAttentionParams const&, int32_t tile)
{
    return PartVisibility{call.tiles.offsetOf(tile), call.tiles.keysOf(tile)};
}

template <typename Scope, int ROWS, typename Rotation>
CTX_DEVICE void turnQueries(Rotation const& rotation, PartRows<ROWS> const& rows, PartsCall const& call,
    PartsAttentionParams const&, int32_t tile)
{
    int64_t const* const positions = rows.position[call.tiles.partOf(tile)];
    rotateRows(Scope{}, rotation, call.attendingRows, [positions](int row) { return positions[row]; });
}

template <typename Scope, typename Rotation>
CTX_DEVICE void turnKeys(Rotation const& rotation, PartsCall const& call, int32_t tile, int first, int32_t keys)
{
    KeyPositions const& positions = call.partOf(tile).positions;
    int32_t const offset = call.tiles.offsetOf(tile) + first;
    rotateSteps(Scope{}, rotation, keys, [&positions, offset](int row) { return positions.at(offset + row); });
}

} // namespace ctx
