// To which positions a block turns its queries and keys. How rows are turned depends on how they are kept: rotateRows
// and rotateRun are found by their `rotation`.
#pragma once

#include "kernels/sink_window_attention/sink_window_attention_block.cuh"

namespace ctx
{

// The threads that work on a tile together.
template <int THREADS>
struct BlockScope
{
    static constexpr int kTHREADS = THREADS;

    static CTX_DEVICE int thread()
    {
        return static_cast<int>(threadIdx.x);
    }

    static CTX_DEVICE void sync()
    {
        __syncthreads();
    }
};

struct WarpScope
{
    static constexpr int kTHREADS = kWARP_SIZE;

    static CTX_DEVICE int thread()
    {
        return static_cast<int>(threadIdx.x) % kWARP_SIZE;
    }

    static CTX_DEVICE void sync()
    {
        __syncwarp();
    }
};

// Turns the block's queries to where they meet a tile of keys.
template <typename Scope, int ROWS, typename Rotation>
CTX_DEVICE void turnQueries(Rotation const& rotation, SinkWindowRows<ROWS> const&, SinkWindowCall const& call,
    CtxSinkWindowAttentionParams const& params, int32_t tile)
{
    int64_t const limit = queryLimit(params, call.tiles.isSinkTile(tile));
    rotateRows(Scope{}, rotation, call.rows(ROWS), [&call, limit](int row) { return call.queryPosition(row, limit); });
}

// Turns keys of a tile, from its key `first` on.
template <typename Scope, typename Rotation>
CTX_DEVICE void turnKeys(Rotation const& rotation, SinkWindowCall const& call, int32_t tile, int first, int32_t keys)
{
    rotateRun(Scope{}, rotation, keys, call.tiles.firstToken(tile) + first);
}

} // namespace ctx
