// What a block knows of its call. Kernels keep it in shared memory, because it takes more registers than they can
// spare.
#pragma once

#include "kernels/sink_window_attention/sink_window_attention_place.cuh"

namespace ctx
{

// Where a head's tokens are in the caches.
struct CachePlace
{
    CacheLayout layout;
    int64_t firstRow;
    int32_t headDim;
    int32_t cacheType;
};

struct BlockCall
{
    TilePlace place;
    uint32_t split;
    Sequence sequence;
    QueryTokens tokens;
    KeyTiles tiles;
    TileShare share;
    CachePlace cache;
    LogitScale scale;
    bool isNegative; // the logits' scale

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

    // Of the block's tile those that exist.
    CTX_HOST_DEVICE int32_t rows(int32_t tileRows) const
    {
        return static_cast<int32_t>(smaller(tileRows, static_cast<int64_t>(place.packedRows) - place.firstRow));
    }
};

CTX_HOST_DEVICE BlockCall blockCall(CtxSinkWindowAttentionParams const& params, GridPlan const& grid, uint32_t block,
    int32_t tileRows, int32_t tileKeys)
{
    BlockCall call{};
    call.place = grid.placeOf(params, block, tileRows, call.split);
    call.sequence = sequenceOf(params, call.place.batch);
    call.tokens = queryTokens(call.place, call.sequence, tileRows);
    CacheLayout const layout = layoutOf(params);
    call.tiles = keyTiles(params, layout, call.sequence, call.tokens, tileKeys);
    call.share = shareOf(call.tiles, call.split, grid.splits);
    call.cache
        = CachePlace{layout, call.place.cacheRow(params), static_cast<int32_t>(params.headDim), params.cacheType};
    float const keyScale = headScale(params.keyScale, call.place.kvHead);
    call.isNegative = params.scale * keyScale < 0.0F;
    call.scale = LogitScale::of(fabsf(params.scale), params.softcap, fabsf(keyScale));
    return call;
}

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

} // namespace ctx
