// What a block knows of its call. Kernels keep it in shared memory, because it takes more registers than they can
// spare.
#pragma once

#include "kernels/sink_window_attention/sink_window_attention_place.cuh"

namespace ctx
{

// No query is turned farther: of those that meet the sinks, or of the others.
CTX_HOST_DEVICE int64_t queryLimit(CtxSinkWindowAttentionParams const& params, bool forSinks)
{
    return forSinks && params.sinkPosition > 0 ? params.sinkPosition : INT64_MAX;
}

CTX_HOST_DEVICE void const* queriesOf(CtxSinkWindowAttentionParams const& params, bool forSinks)
{
    return forSinks && params.sinkQuery != nullptr ? params.sinkQuery : params.query;
}

CTX_HOST_DEVICE bool rotatesQueries(CtxSinkWindowAttentionParams const& params)
{
    return params.rotation != CTX_ROTATION_KEYS_ON_READ;
}

CTX_HOST_DEVICE bool hasSinkQuery(CtxSinkWindowAttentionParams const& params)
{
    return params.sinkQuery != nullptr || params.sinkPosition > 0;
}

CTX_HOST_DEVICE bool rotatesKeys(CtxSinkWindowAttentionParams const& params)
{
    return params.rotaryDim > 0 && params.rotation != CTX_ROTATION_ON_WRITE;
}

// Where a head's tokens are in the caches.
struct CachePlace
{
    CacheLayout layout;
    int64_t firstRow;
    int32_t headDim;
    int32_t cacheType;
};

// What all blocks know, whatever keys their queries see.
struct BlockCall
{
    TilePlace place;
    uint32_t split;
    Sequence sequence;
    QueryTokens tokens;
    int32_t attendingRows; // the tile's first ones
    TileShare share;
    LogitScale scale;
    bool isNegative; // the logits' scale

    // Of the block's tile those that exist.
    CTX_HOST_DEVICE int32_t rows(int32_t tileRows) const
    {
        return static_cast<int32_t>(smaller(tileRows, static_cast<int64_t>(place.packedRows) - place.firstRow));
    }
};

// What masking takes from a row, the first and the last key of a tile that it sees: counted from the tile's first key.
struct RowLimits
{
    int32_t oldest;
    int32_t newest;
};

// Which of a tile's keys a query sees: that of token + oldest to that of token + newest, below `keys`.
struct TileVisibility
{
    int32_t oldest;
    int32_t newest;
    int32_t keys;

    CTX_HOST_DEVICE RowLimits limitsOf(int32_t token) const
    {
        return RowLimits{token + oldest, token + newest < keys ? token + newest : keys - 1};
    }

    // Of queries with tokens from `first` to `last`.
    CTX_HOST_DEVICE bool isAll(int32_t first, int32_t last, int32_t tileKeys) const
    {
        return last + oldest <= 0 && first + newest >= tileKeys - 1 && keys == tileKeys;
    }

    CTX_HOST_DEVICE bool isNothing(int32_t first, int32_t last) const
    {
        return first + oldest >= keys || last + newest < 0;
    }
};

struct SinkWindowCall;

// Tokens of a block's rows, less that of the first.
template <int ROWS>
struct SinkWindowRows
{
    int32_t token[ROWS];

    CTX_HOST_DEVICE void place(SinkWindowCall const& call, CtxSinkWindowAttentionParams const& params, int row);

    CTX_HOST_DEVICE int32_t const* ofTile(SinkWindowCall const&, int32_t) const
    {
        return token;
    }
};

// A block whose queries see sinks and a window.
struct SinkWindowCall : BlockCall
{
    using Params = CtxSinkWindowAttentionParams;
    template <int ROWS>
    using Rows = SinkWindowRows<ROWS>;
    static constexpr bool kHAS_QUANTISED_CACHES = true;
    static constexpr int kWIDE_TILE_KEYS = 64; // of a tile at head dimension 256

    KeyTiles tiles;
    CachePlace cache;

    // Of the first row.
    CTX_HOST_DEVICE int64_t position() const
    {
        return sequence.seen + tokens.first;
    }

    // To which a row's query is turned, where the call does that.
    CTX_HOST_DEVICE int64_t queryPosition(int row, int64_t limit) const
    {
        return smaller(limit, sequence.seen + place.tokenOf(place.firstRow + row));
    }

    // That meet the tile.
    CTX_HOST_DEVICE void const* queries(Params const& params, int32_t tile) const
    {
        return queriesOf(params, tiles.isSinkTile(tile));
    }

    CTX_HOST_DEVICE CachePlace const& cacheOf(int32_t) const
    {
        return cache;
    }

    CTX_HOST_DEVICE int64_t firstSlot(int32_t tile) const
    {
        return tiles.firstSlot(cache.layout, tile);
    }

    // Whether the tile is met by other queries than the one before it.
    CTX_HOST_DEVICE bool changesQueries(Params const& params, int32_t tile) const
    {
        return tile == tiles.sinkTiles && hasSinkQuery(params);
    }

    // First tile after this one that is met by other queries, or the end of the block's share.
    CTX_HOST_DEVICE int32_t endOfQueries(Params const& params, int32_t tile) const
    {
        bool const isSinks = tiles.isSinkTile(tile) && hasSinkQuery(params);
        return isSinks && tiles.sinkTiles < share.end ? tiles.sinkTiles : share.end;
    }
};

// The kind of block that a launcher's parameters ask for.
template <typename Params>
struct CallOfParams;

template <>
struct CallOfParams<SinkWindowAttentionParams>
{
    using Call = SinkWindowCall;
};

template <typename Params>
using CallOf = typename CallOfParams<Params>::Call;

// `call` without its tiles.
template <typename Call>
CTX_HOST_DEVICE void startCall(
    Call& call, CtxSinkWindowAttentionParams const& params, GridPlan const& grid, uint32_t block, int32_t tileRows)
{
    call.place = grid.placeOf(params, block, tileRows, call.split);
    call.sequence = sequenceOf(params, call.place.batch);
    call.tokens = queryTokens(call.place, call.sequence, tileRows);
    call.attendingRows = static_cast<int32_t>(
        smaller(tileRows, larger(0, (call.tokens.last + 1) * call.place.groups - call.place.firstRow)));
    float const keyScale = headScale(params.keyScale, call.place.kvHead);
    call.isNegative = params.scale * keyScale < 0.0F;
    call.scale = LogitScale::of(fabsf(params.scale), params.softcap, fabsf(keyScale));
}

CTX_HOST_DEVICE void placeBlock(SinkWindowCall& call, CtxSinkWindowAttentionParams const& params, GridPlan const& grid,
    uint32_t block, int32_t tileRows, int32_t tileKeys)
{
    startCall(call, params, grid, block, tileRows);
    CacheLayout const layout = layoutOf(params);
    call.tiles = keyTiles(params, layout, call.sequence, call.tokens, tileKeys);
    call.share = shareOf(call.tiles.count, call.split, grid.splits);
    call.cache
        = CachePlace{layout, call.place.cacheRow(params), static_cast<int32_t>(params.headDim), params.cacheType};
}

template <int ROWS>
CTX_HOST_DEVICE void SinkWindowRows<ROWS>::place(
    SinkWindowCall const& call, CtxSinkWindowAttentionParams const&, int row)
{
    token[row] = static_cast<int32_t>(call.place.tokenOf(call.place.firstRow + row) - call.tokens.first);
}

// The block's rows are few, so that distances can be clamped.
CTX_HOST_DEVICE TileVisibility visibilityOf(
    SinkWindowCall const& call, CtxSinkWindowAttentionParams const& params, int32_t tile)
{
    constexpr int64_t kFAR = int64_t{1} << 20;
    bool const isLimited = params.window > 0 && !call.tiles.rangeOf(tile).isSinks;
    int64_t const newest = call.position() - call.tiles.firstToken(tile);
    int64_t const oldest = isLimited ? newest - params.window + 1 : -kFAR;
    return TileVisibility{static_cast<int32_t>(larger(-kFAR, smaller(kFAR, oldest))),
        static_cast<int32_t>(larger(-kFAR, smaller(kFAR, newest))), call.tiles.keysOf(tile)};
}

} // namespace ctx
