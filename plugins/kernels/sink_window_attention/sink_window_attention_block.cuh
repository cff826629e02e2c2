// What a block of the tensor-core kernels knows of its call, and how it places its queries and prepares keys.
#pragma once

#include "kernels/sink_window_attention/sink_window_attention_matrix.cuh"

namespace ctx
{

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

// The queries that meet the sinks, or the others.
template <typename T, int DIM, int ROWS, typename Scope>
CTX_DEVICE void placeQueries(uint16_t* tile, CtxSinkWindowAttentionParams const& params, BlockCall const& call,
    SharedRotation<DIM> const& rotation, bool forSinks)
{
    void const* const source = forSinks && params.sinkQuery != nullptr ? params.sinkQuery : params.query;
    loadQueries<T, DIM, ROWS, Scope>(tile, params, call.place, source, call.isNegative);
    Scope::sync();
    if (params.rotation == CTX_ROTATION_KEYS_ON_READ)
    {
        return;
    }
    auto const rows = static_cast<int>(smaller(ROWS, call.place.packedRows - call.place.firstRow));
    int64_t const limit = forSinks && params.sinkPosition > 0 ? params.sinkPosition : INT64_MAX;
    rotateRows<T, DIM, Scope>(tile, rows, params, rotation,
        [&](int row) { return smaller(limit, call.sequence.seen + call.place.tokenOf(call.place.firstRow + row)); });
    Scope::sync();
}

CTX_HOST_DEVICE bool hasSinkQuery(CtxSinkWindowAttentionParams const& params)
{
    return params.sinkQuery != nullptr || params.sinkPosition > 0;
}

CTX_HOST_DEVICE bool rotatesKeys(CtxSinkWindowAttentionParams const& params)
{
    return params.rotaryDim > 0 && params.rotation != CTX_ROTATION_ON_WRITE;
}

// Expands and rotates a tile of keys that has arrived.
template <typename Loader, typename T, int DIM, typename Scope>
CTX_DEVICE void prepareKeys(uint16_t* tile, CtxSinkWindowAttentionParams const& params,
    SharedRotation<DIM> const& rotation, int32_t keys, int64_t firstToken)
{
    if (params.cacheType != CTX_CACHE_TYPE_SAME)
    {
        Loader::expand(tile, params.cacheType);
        Scope::sync();
    }
    if (rotatesKeys(params))
    {
        rotateRows<T, DIM, Scope>(tile, keys, params, rotation, [firstToken](int row) { return firstToken + row; });
        Scope::sync();
    }
}

// Tokens of the block's rows, less that of the first.
template <int ROWS>
CTX_DEVICE void placeTokens(int32_t (&token)[ROWS], BlockCall const& call, int threads)
{
    for (int row = static_cast<int>(threadIdx.x); row < ROWS; row += threads)
    {
        token[row] = static_cast<int32_t>(call.place.tokenOf(call.place.firstRow + row) - call.tokens.first);
    }
}

} // namespace ctx
