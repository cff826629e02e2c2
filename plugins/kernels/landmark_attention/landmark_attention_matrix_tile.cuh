// What the tensor-core kernels of LandmarkAttention share: queries and gathered keys in shared memory, and the scores
// of a warp's step of keys.
#pragma once

#include "kernels/landmark_attention/landmark_attention_keys.cuh"
#include "kernels/landmark_attention/landmark_attention_launch.h"
#include "kernels/sink_window_attention/sink_window_attention_matrix_warp.cuh"

namespace ctx
{

template <typename T_, int DIM, int WARPS, int STAGES>
struct BlocksTraits
{
    using T = T_;
    static constexpr int kDIM = DIM;
    static constexpr int kWARPS = WARPS;
    static constexpr int kSTAGES = STAGES;
    static constexpr int kTHREADS = WARPS * kWARP_SIZE;
    static constexpr int kSTEP_KEYS = 16; // of a warp
    static constexpr int kTILE_KEYS = WARPS * kSTEP_KEYS;
    static constexpr int kSTEP_ELEMENTS = kSTEP_KEYS * DIM;
    using Queries = WarpQueries<DIM, 1>;
    using Score = FragmentC[1][kSTEP_KEYS / 8];
};

// Queries, and what both kernels need to turn them and their keys.
template <typename Traits>
struct BlocksShared
{
    alignas(16) uint16_t query[kLANDMARK_ROWS * Traits::kDIM];
    SharedRotation<Traits::kDIM> rotation;
    LandmarkBlock block;
};

CTX_DEVICE int warpOfBlock()
{
    return static_cast<int>(threadIdx.x) / kWARP_SIZE;
}

CTX_DEVICE int laneOfWarp()
{
    return static_cast<int>(threadIdx.x) % kWARP_SIZE;
}

// The tile's queries as they meet far or near keys; rows past its end and dims past the head's become zeros. Barriers
// included, one before anything is written.
template <typename Traits>
CTX_DEVICE void placeBlockQueries(BlocksShared<Traits>& shared, LandmarkCall const& call, bool isFar)
{
    using Rows = TileRows<Traits::kDIM>;
    using Scope = BlockScope<Traits::kTHREADS>;
    LandmarkBlock const& block = shared.block;
    uint32_t const signs = block.isNegative ? 0x80008000U : 0U;
    auto const rows = static_cast<int>(block.tile.rows);
    __syncthreads();
    CTX_UNROLL_BY(2)
    for (int item = opaque(Scope::thread()); item < kLANDMARK_ROWS * Rows::kCHUNKS; item += Scope::kTHREADS)
    {
        int const row = item / Rows::kCHUNKS;
        int const chunk = item % Rows::kCHUNKS;
        Vector vector{};
        if (row < rows && chunk * kCHUNK < call.common.headDim)
        {
            int64_t const offset = block.rowOffset(call.common.queryStrides, row) + chunk * kCHUNK;
            vector = *reinterpret_cast<Vector const*>(static_cast<uint16_t const*>(call.common.query) + offset);
        }
        CTX_UNROLL
        for (uint32_t& word : vector.values)
        {
            word ^= signs;
        }
        *reinterpret_cast<Vector*>(shared.query + Rows::chunkOffset(row, chunk)) = vector;
    }
    __syncthreads();
    if (call.common.rotaryDim > 0)
    {
        rotateRows(Scope{}, rowRotation<typename Traits::T>(shared.query, call.common, shared.rotation), rows,
            [&block, isFar](int row) { return block.queryPosition(row, isFar); });
        __syncthreads();
    }
}

// Whether any row sees any of a step's keys; the same in all lanes.
template <typename Traits>
CTX_DEVICE bool isAnySeen(KeyPlace const* places)
{
    return __any_sync(kFULL_WARP, places[laneOfWarp() % Traits::kSTEP_KEYS].rows != 0 ? 1 : 0) != 0;
}

// Begins the copies of a warp's step of keys or values: those that some row sees, zeros for the others.
template <typename Traits>
CTX_DEVICE void beginRows(uint16_t* rows, void const* cache, LandmarkCall const& call, KeyPlace const* places)
{
    using Rows = TileRows<Traits::kDIM>;
    static_assert(Traits::kSTEP_KEYS * Rows::kCHUNKS % kWARP_SIZE == 0, "every lane copies as many chunks");
    int const lane = opaque(laneOfWarp());
    auto const headDim = static_cast<int>(call.common.headDim);
    CTX_UNROLL
    for (int i = 0; i < Traits::kSTEP_KEYS * Rows::kCHUNKS / kWARP_SIZE; ++i)
    {
        int const item = i * kWARP_SIZE + lane;
        int const row = item / Rows::kCHUNKS;
        int const chunk = item % Rows::kCHUNKS;
        bool const valid = places[row].rows != 0 && chunk * kCHUNK < headDim;
        int64_t const offset = valid ? static_cast<int64_t>(places[row].slot) * headDim + chunk * kCHUNK : 0;
        copyAsync<16>(rows + Rows::chunkOffset(row, chunk), static_cast<uint16_t const*>(cache) + offset, valid);
    }
}

// Turns a step's keys that have arrived; `isRun`: their positions count up.
template <typename Traits>
CTX_DEVICE void turnKeys(
    uint16_t* keys, BlocksShared<Traits> const& shared, LandmarkCall const& call, KeyPlace const* places, bool isRun)
{
    if (call.common.rotaryDim == 0)
    {
        return;
    }
    auto const rotation = rowRotation<typename Traits::T>(keys, call.common, shared.rotation);
    if (isRun)
    {
        rotateRun(WarpScope{}, rotation, Traits::kSTEP_KEYS, places[0].position);
    }
    else
    {
        rotateSteps(
            WarpScope{}, rotation, Traits::kSTEP_KEYS, [places](int row) { return int64_t{places[row].position}; });
    }
    __syncwarp();
}

// Whether the positions of any step of a part's keys count up.
template <typename Traits>
CTX_DEVICE bool areRuns(LandmarkLayout const& layout, int part)
{
    return part == kSINK_PART || part == kTAIL_PART || layout.block % Traits::kSTEP_KEYS == 0;
}

// Scores become logits in units of ln 2, those of keys that a row does not see -infinity.
template <typename Traits>
CTX_DEVICE void hideUnseen(typename Traits::Score& score, KeyPlace const* places, LogitScale const& scale)
{
    if (scale.cap > 0.0F)
    {
        capScores(score, scale);
    }
    float const perScore = scale.perScore();
    CTX_UNROLL
    for (int half = 0; half < 2; ++half)
    {
        int const row = laneRow(0, half);
        CTX_UNROLL
        for (int n = 0; n < Traits::kSTEP_KEYS / 8; ++n)
        {
            CTX_UNROLL
            for (int i = 2 * half; i < 2 * half + 2; ++i)
            {
                bool const sees = (places[8 * n + laneColumn() + i % 2].rows >> row & 1U) != 0;
                score[0][n].values[i] = sees ? score[0][n].values[i] * perScore : -INFINITY;
            }
        }
    }
}

} // namespace ctx
