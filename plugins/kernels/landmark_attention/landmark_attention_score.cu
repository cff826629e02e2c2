// Scores of the blocks: products of queries with the blocks' representatives, at their positions, in float32, so that a
// choice falls as the tensors' values say. Far representatives are all met at one position: queries are turned by the
// distance to it and keys stay as they lie in the cache. Near ones, topk + 1 at most, are turned where they are read.

#include "kernels/common/element.cuh"
#include "kernels/landmark_attention/landmark_attention_launch.h"
#include "kernels/scaled_rotary_embedding/scaled_rotary_embedding_packs.cuh"

namespace ctx
{
namespace
{

template <typename T_, int DIM>
struct ScoreTraits
{
    using T = T_;
    static constexpr int kDIM = DIM;
    static constexpr int kWARPS = 4;
    static constexpr int kTHREADS = kWARPS * kWARP_SIZE;
    static constexpr int kROWS = kLANDMARK_ROWS;
    static constexpr int kWARP_ROWS = kROWS / kWARPS;
    static constexpr int kKEYS = kWARP_SIZE; // a lane scores one
    // 4 floats more than a row: 16-byte reads of 8 lanes in 8 rows then hit all 32 banks once.
    static constexpr int kKEY_STRIDE = DIM + 4;
};

// A row that chooses: by its own query, or with a shared choice by the sum of its token's.
struct ScoreRow
{
    int64_t offset;  // in q, of the first query; -1: nothing to score
    int32_t far;     // distance to far representatives
    int32_t at;      // position
    uint32_t near;   // first near block
    uint32_t blocks; // candidates
};

template <typename Traits>
struct ScoreShared
{
    alignas(16) float query[Traits::kROWS][Traits::kDIM];
    alignas(16) float key[Traits::kKEYS][Traits::kKEY_STRIDE];
    uint64_t phaseStep[Traits::kDIM / 2];
    float multiplier[Traits::kDIM / 2]; // NaN where the frequency has no phase step
    ScoreRow row[Traits::kROWS];
};

// How score rows are cut into tiles, and each tile's blocks of keys among `splits` blocks of threads.
struct ScoreGrid
{
    uint32_t tiles; // of a head
    uint32_t splits;
};

template <typename Traits>
CTX_DEVICE void placeRow(ScoreShared<Traits>& shared, LandmarkCall const& call, int64_t head, uint32_t first, int index)
{
    CtxSinkWindowAttentionParams const& common = call.common;
    ScoreRow row{-1, 0, 0, 0, 0};
    uint32_t const scoreRow = first + static_cast<uint32_t>(index);
    if (scoreRow < call.sizes.scoreRows)
    {
        uint32_t const group = call.isShared ? 0 : scoreRow % call.groups;
        int64_t const token = call.firstToken + (call.isShared ? scoreRow : scoreRow / call.groups);
        int64_t const batch = head / common.kvHeads;
        auto const query = LandmarkQuery::of(call.layout, sequenceOf(common, batch), token);
        if (query.attends() && query.chooses(call.layout))
        {
            CtxStrides const& strides = common.queryStrides;
            int64_t const queryHead = head % common.kvHeads * call.groups + group;
            row.offset = batch * strides.batch + queryHead * strides.head + token * strides.token;
            row.far = query.farPosition(call.layout)
                - static_cast<int32_t>(call.layout.tokenOf(0, call.layout.representativeOffset()));
            row.at = query.position;
            row.near = query.near;
            row.blocks = query.candidates;
        }
    }
    shared.row[index] = row;
}

template <typename Traits>
CTX_DEVICE void loadFrequencies(ScoreShared<Traits>& shared, CtxSinkWindowAttentionParams const& common, int64_t batch)
{
    if (common.rotaryDim == 0)
    {
        return;
    }
    RotaryTable const table = RotaryTable::of(common, batch);
    for (int i = static_cast<int>(threadIdx.x); i < static_cast<int>(common.rotaryDim / 2); i += Traits::kTHREADS)
    {
        float const frequency = table.frequency[i];
        shared.phaseStep[i] = hasPhaseStep(frequency) ? phaseStep(frequency) : 0;
        shared.multiplier[i] = hasPhaseStep(frequency) ? table.multiplier : NAN;
    }
}

// Turns the first `rows` rows; `positionOf` gives a row's position. The multiplier counts as often as `power` says.
template <typename Traits, typename PositionOf>
CTX_DEVICE void turnRows(float* first, int stride, int rows, int power, ScoreShared<Traits> const& shared,
    CtxSinkWindowAttentionParams const& common, PositionOf const& positionOf)
{
    auto const pairs = static_cast<int32_t>(common.rotaryDim / 2);
    bool const interleaved = common.interleaved != 0;
    CTX_UNROLL_BY(1)
    for (int i = opaque(static_cast<int>(threadIdx.x)); i < rows * pairs; i += Traits::kTHREADS)
    {
        int const row = i / pairs;
        int const pair = i % pairs;
        float const multiplier = shared.multiplier[pair] * (power == 2 ? shared.multiplier[pair] : 1.0F);
        CosSin const turn = scaled(rotation(positionOf(row), shared.phaseStep[pair]), multiplier);
        float& a = first[row * stride + firstDim(pair, interleaved)];
        float& b = first[row * stride + secondDim(pair, pairs, interleaved)];
        Pair const turned = rotatePair(Pair{a, b}, turn);
        a = turned.first;
        b = turned.second;
    }
}

// The rows' queries, or sums of queries, times the logits' scale, as they meet far or near representatives.
template <typename Traits>
CTX_DEVICE void placeQueries(ScoreShared<Traits>& shared, LandmarkCall const& call, bool areFar)
{
    using T = typename Traits::T;
    CtxSinkWindowAttentionParams const& common = call.common;
    __syncthreads(); // the queries before are read
    uint32_t const heads = call.isShared ? call.groups : 1;
    CTX_UNROLL_BY(1)
    for (int i = opaque(static_cast<int>(threadIdx.x)); i < Traits::kROWS * Traits::kDIM; i += Traits::kTHREADS)
    {
        int const row = i / Traits::kDIM;
        int const dim = i % Traits::kDIM;
        float sum = 0.0F;
        if (shared.row[row].offset >= 0 && dim < common.headDim)
        {
            T const* query = static_cast<T const*>(common.query) + shared.row[row].offset + dim;
            for (uint32_t head = 0; head < heads; ++head, query += common.queryStrides.head)
            {
                sum += toFloat(*query);
            }
        }
        shared.query[row][dim] = sum * common.scale;
    }
    __syncthreads();
    turnRows<Traits>(&shared.query[0][0], Traits::kDIM, Traits::kROWS, areFar ? 2 : 1, shared, common,
        [&](int row) { return static_cast<int64_t>(areFar ? shared.row[row].far : shared.row[row].at); });
}

// Representatives of blocks from `first` on; those that no row may choose become zeros.
template <typename Traits>
CTX_DEVICE void loadKeys(
    ScoreShared<Traits>& shared, LandmarkCall const& call, int64_t head, uint32_t first, uint32_t end)
{
    using T = typename Traits::T;
    constexpr int kCOUNT = kVECTOR_ELEMENTS<T>;
    constexpr int kCHUNKS = Traits::kDIM / kCOUNT;
    static_assert(Traits::kKEYS * kCHUNKS % Traits::kTHREADS == 0, "every thread loads as many chunks");
    auto const* const keys = static_cast<T const*>(call.common.presentKey) + head * call.slots * call.common.headDim;
    CTX_UNROLL_BY(4)
    for (int i = 0; i < Traits::kKEYS * kCHUNKS / Traits::kTHREADS; ++i)
    {
        int const item = i * Traits::kTHREADS + static_cast<int>(threadIdx.x);
        int const key = item / kCHUNKS;
        int const dim = item % kCHUNKS * kCOUNT;
        Pack<T, kCOUNT> chunk{};
        if (first + key < end && dim < call.common.headDim)
        {
            int64_t const slot = call.layout.representativeSlot(first + key);
            chunk = *reinterpret_cast<Pack<T, kCOUNT> const*>(keys + slot * call.common.headDim + dim);
        }
        CTX_UNROLL
        for (int j = 0; j < kCOUNT; j += 4)
        {
            Pack<float, 4> four;
            CTX_UNROLL
            for (int k = 0; k < 4; ++k)
            {
                four.values[k] = toFloat(chunk.values[j + k]);
            }
            *reinterpret_cast<Pack<float, 4>*>(&shared.key[key][dim + j]) = four;
        }
    }
}

// Scores of this lane's key with the warp's rows, for those rows to which the block is as far or near as all here.
template <typename Traits>
CTX_DEVICE void scoreKey(
    ScoreShared<Traits> const& shared, LandmarkCall const& call, float* scores, uint32_t number, bool areFar)
{
    int const firstRow = static_cast<int>(threadIdx.x) / kWARP_SIZE * Traits::kWARP_ROWS;
    int const lane = static_cast<int>(threadIdx.x) % kWARP_SIZE;
    float score[Traits::kWARP_ROWS] = {};
    for (int dim = 0; dim < call.common.headDim; dim += 4)
    {
        auto const key = *reinterpret_cast<Pack<float, 4> const*>(&shared.key[lane][dim]);
        CTX_UNROLL
        for (int r = 0; r < Traits::kWARP_ROWS; ++r)
        {
            auto const query = *reinterpret_cast<Pack<float, 4> const*>(&shared.query[firstRow + r][dim]);
            CTX_UNROLL
            for (int i = 0; i < 4; ++i)
            {
                score[r] += query.values[i] * key.values[i];
            }
        }
    }
    CTX_UNROLL
    for (int r = 0; r < Traits::kWARP_ROWS; ++r)
    {
        ScoreRow const& row = shared.row[firstRow + r];
        if (number < row.blocks && (number < row.near) == areFar)
        {
            scores[(firstRow + r) * call.sizes.scoreStride + number] = score[r];
        }
    }
}

// Which blocks the tile's rows score as far and as near ones.
struct ScoreRange
{
    uint32_t farEnd;
    uint32_t nearBegin;
    uint32_t nearEnd;

    template <typename Traits>
    static CTX_DEVICE ScoreRange of(ScoreShared<Traits> const& shared)
    {
        ScoreRange range{0, UINT32_MAX, 0};
        for (ScoreRow const& row : shared.row)
        {
            if (row.offset >= 0)
            {
                range.farEnd = row.near > range.farEnd ? row.near : range.farEnd;
                range.nearBegin = row.near < range.nearBegin ? row.near : range.nearBegin;
                range.nearEnd = row.blocks > range.nearEnd ? row.blocks : range.nearEnd;
            }
        }
        return range;
    }
};

// One block of threads per tile of rows and split of the representatives.
template <typename Traits>
CTX_KERNEL_RESIDENT(Traits::kTHREADS, 5)
scoreBlocks(LandmarkCall const call, ScoreGrid const grid)
{
    CTX_DYNAMIC_SHARED(memory);
    auto& shared = *reinterpret_cast<ScoreShared<Traits>*>(memory);
    uint32_t const split = blockIdx.x % grid.splits;
    uint32_t const tile = blockIdx.x / grid.splits % grid.tiles;
    int64_t const head = blockIdx.x / grid.splits / grid.tiles;
    uint32_t const firstRow = tile * Traits::kROWS;
    if (threadIdx.x < Traits::kROWS)
    {
        placeRow<Traits>(shared, call, head, firstRow, static_cast<int>(threadIdx.x));
    }
    loadFrequencies<Traits>(shared, call.common, head / call.common.kvHeads);
    __syncthreads();
    ScoreRange const range = ScoreRange::of(shared);
    float* const scores = call.scores + (head * call.sizes.scoreRows + firstRow) * call.sizes.scoreStride;
    CTX_UNROLL_BY(1)
    for (int part = 0; part < 2; ++part)
    {
        bool const areFar = part == 0;
        uint32_t const begin = areFar ? 0 : range.nearBegin;
        uint32_t const end = areFar ? range.farEnd : range.nearEnd;
        uint32_t first = begin + split * Traits::kKEYS;
        if (begin >= end || first >= end)
        {
            continue;
        }
        placeQueries<Traits>(shared, call, areFar);
        CTX_UNROLL_BY(1)
        for (; first < end; first += grid.splits * Traits::kKEYS)
        {
            __syncthreads(); // the queries are placed, the keys before are read
            loadKeys<Traits>(shared, call, head, first, end);
            if (!areFar)
            {
                __syncthreads();
                uint32_t const offset = call.layout.representativeOffset();
                turnRows<Traits>(&shared.key[0][0], Traits::kKEY_STRIDE, Traits::kKEYS, 1, shared, call.common,
                    [&](int key) { return static_cast<int64_t>(call.layout.tokenOf(first + key, offset)); });
            }
            __syncthreads();
            scoreKey<Traits>(shared, call, scores, first + threadIdx.x % kWARP_SIZE, areFar);
        }
    }
}

template <typename Traits>
LaunchResult launchScore(LandmarkCall const& call, cudaStream_t stream)
{
    static_assert(sizeof(ScoreShared<Traits>) <= kMAX_SHARED_BYTES, "a tile fits every GPU's shared memory");
    int64_t const tiles = (call.sizes.scoreRows + Traits::kROWS - 1) / Traits::kROWS;
    int64_t const blocks = call.heads() * tiles;
    int64_t const steps = (static_cast<int64_t>(call.layout.blocks) + Traits::kKEYS - 1) / Traits::kKEYS;
    int64_t const resident = residentBlocks(scoreBlocks<Traits>, Traits::kTHREADS, sizeof(ScoreShared<Traits>));
    int64_t const splits = larger(1, smaller(steps, resident / blocks));
    ScoreGrid const grid{static_cast<uint32_t>(tiles), static_cast<uint32_t>(splits)};
    LaunchShape const shape{blocks * splits, Traits::kTHREADS, sizeof(ScoreShared<Traits>)};
    return LaunchResult::fromCuda(launch(scoreBlocks<Traits>, shape, stream, call, grid), "scoreBlocks");
}

template <typename T>
LaunchResult launchDims(LandmarkCall const& call, cudaStream_t stream)
{
    if (call.common.headDim <= 64)
    {
        return launchScore<ScoreTraits<T, 64>>(call, stream);
    }
    return call.common.headDim <= 128 ? launchScore<ScoreTraits<T, 128>>(call, stream)
                                      : launchScore<ScoreTraits<T, 256>>(call, stream);
}

} // namespace

LaunchResult launchScoreBlocks(LandmarkCall const& call, cudaStream_t stream)
{
    if (call.layout.blocks <= call.layout.topk)
    {
        return {};
    }
    switch (call.common.dataType)
    {
    case CTX_DATA_TYPE_FLOAT16: return launchDims<Half>(call, stream);
    case CTX_DATA_TYPE_BFLOAT16: return launchDims<BFloat16>(call, stream);
    default: return launchDims<float>(call, stream);
    }
}

} // namespace ctx
