// Tiles of queries, keys and values of 2 bytes in shared memory, for the tensor cores: loading and rotating.
#pragma once

#include "kernels/common/async_copy.cuh"
#include "kernels/common/quantised.cuh"
#include "kernels/scaled_rotary_embedding/scaled_rotary_embedding_packs.cuh"
#include "kernels/sink_window_attention/sink_window_attention_block.cuh"

namespace ctx
{

using Vector = Pack<uint32_t, 4>; // 16 bytes: a chunk of 8 elements
constexpr int kCHUNK = 8;

// Rows of DIM elements in shared memory. The chunks of a row are permuted so that those at one place of any 8
// consecutive rows lie in different banks.
template <int DIM>
struct TileRows
{
    static constexpr int kCHUNKS = DIM / kCHUNK;
    static constexpr int kSPREAD = kCHUNKS % 8 == 0 ? 8 : kCHUNKS % 4 == 0 ? 4 : 2;
    static_assert(DIM % 16 == 0, "a matrix instruction takes 16 dims");

    // In elements.
    static CTX_HOST_DEVICE int chunkOffset(int row, int chunk)
    {
        return (row * kCHUNKS + (chunk ^ (row * kSPREAD / 8 % kSPREAD))) * kCHUNK;
    }

    static CTX_HOST_DEVICE int elementOffset(int row, int dim)
    {
        return chunkOffset(row, dim / kCHUNK) + dim % kCHUNK;
    }
};

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

// Rotation of rows in shared memory: frequencies as phase steps.
template <int DIM>
struct SharedRotation
{
    uint64_t phaseStep[DIM / 2];
    float multiplier[DIM / 2]; // NaN where the frequency has no phase step
};

template <int DIM>
CTX_DEVICE void loadRotation(
    SharedRotation<DIM>& shared, CtxSinkWindowAttentionParams const& params, int64_t batch, int threads)
{
    if (params.rotaryDim == 0)
    {
        return;
    }
    RotaryTable const table = RotaryTable::of(params, batch);
    for (int i = static_cast<int>(threadIdx.x); i < static_cast<int>(params.rotaryDim / 2); i += threads)
    {
        float const frequency = table.frequency[i];
        shared.phaseStep[i] = hasPhaseStep(frequency) ? phaseStep(frequency) : 0;
        shared.multiplier[i] = hasPhaseStep(frequency) ? table.multiplier : NAN;
    }
}

// Turns the tile's first `rows` rows; `positionOf` gives a row's position. The scope's other threads see the result
// after a barrier.
template <typename T, int DIM, typename Scope, typename PositionOf>
CTX_DEVICE void rotateRows(uint16_t* tile, int rows, CtxSinkWindowAttentionParams const& params,
    SharedRotation<DIM> const& shared, PositionOf const& positionOf)
{
    auto const pairs = static_cast<int>(params.rotaryDim / 2);
    bool const interleaved = params.interleaved != 0;
    CTX_UNROLL_BY(1)
    for (int item = opaque(Scope::thread()); item < rows * pairs; item += Scope::kTHREADS)
    {
        int const row = item / pairs;
        int const pair = item % pairs;
        CosSin const turn = scaled(rotation(positionOf(row), shared.phaseStep[pair]), shared.multiplier[pair]);
        uint16_t& a = tile[TileRows<DIM>::elementOffset(row, firstDim(pair, interleaved))];
        uint16_t& b = tile[TileRows<DIM>::elementOffset(row, secondDim(pair, pairs, interleaved))];
        Pair const turned = rotatePair(Pair{toFloat(T{a}), toFloat(T{b})}, turn);
        a = fromFloat<T>(turned.first).bits;
        b = fromFloat<T>(turned.second).bits;
    }
}

// The block's first ROWS packed rows of q; rows past the end and dims past the head's become zeros. A negative scale of
// the logits turns the queries' signs, so that it counts as positive later.
template <int DIM, int ROWS, typename Scope>
CTX_DEVICE void loadQueries(
    uint16_t* tile, CtxSinkWindowAttentionParams const& params, BlockCall const& call, void const* source)
{
    using Rows = TileRows<DIM>;
    uint32_t const signs = call.isNegative ? 0x80008000U : 0U;
    CTX_UNROLL_BY(2)
    for (int item = opaque(Scope::thread()); item < ROWS * Rows::kCHUNKS; item += Scope::kTHREADS)
    {
        int const row = item / Rows::kCHUNKS;
        int const chunk = item % Rows::kCHUNKS;
        Vector vector{};
        if (row < call.rows(ROWS) && chunk * kCHUNK < params.headDim)
        {
            int64_t const offset = call.place.queryOffset(params, call.place.firstRow + row) + chunk * kCHUNK;
            vector = *reinterpret_cast<Vector const*>(static_cast<uint16_t const*>(source) + offset);
        }
        CTX_UNROLL
        for (uint32_t& word : vector.values)
        {
            word ^= signs;
        }
        *reinterpret_cast<Vector*>(tile + Rows::chunkOffset(row, chunk)) = vector;
    }
}

// The queries that meet the sinks, or the others, turned where the call does that.
template <typename T, int DIM, int ROWS, typename Scope>
CTX_DEVICE void placeQueries(uint16_t* tile, CtxSinkWindowAttentionParams const& params, BlockCall const& call,
    SharedRotation<DIM> const& rotation, bool forSinks)
{
    loadQueries<DIM, ROWS, Scope>(tile, params, call, queriesOf(params, forSinks));
    Scope::sync();
    if (rotatesQueries(params))
    {
        int64_t const limit = queryLimit(params, forSinks);
        rotateRows<T, DIM, Scope>(tile, call.rows(ROWS), params, rotation,
            [&call, limit](int row) { return call.queryPosition(row, limit); });
        Scope::sync();
    }
}

// ROWS tokens in shared memory, of which the first `keys` come from the cache and the others are zeros. A quantised
// token's bytes wait in the second half of the tile until they are expanded.
template <typename T, int DIM, int ROWS, typename Scope>
struct TileLoader
{
    using Rows = TileRows<DIM>;
    static constexpr int kITEMS = ROWS * Rows::kCHUNKS;
    static constexpr int kPER_THREAD = kITEMS / Scope::kTHREADS;
    static_assert(kITEMS % Scope::kTHREADS == 0, "every thread loads as many chunks");

    static CTX_DEVICE uint8_t* waiting(uint16_t* tile, int item)
    {
        return reinterpret_cast<uint8_t*>(tile + kITEMS * kCHUNK / 2) + item * kCHUNK;
    }

    static CTX_DEVICE void begin(
        uint16_t* tile, void const* cache, CachePlace const& place, int64_t firstSlot, int32_t keys)
    {
        bool const isQuantised = place.cacheType != CTX_CACHE_TYPE_SAME;
        int const thread = opaque(Scope::thread());
        CTX_UNROLL_BY(2)
        for (int i = 0; i < kPER_THREAD; ++i)
        {
            int const item = i * Scope::kTHREADS + thread;
            int const row = item / Rows::kCHUNKS;
            int const chunk = item % Rows::kCHUNKS;
            bool const valid = row < keys && chunk * kCHUNK < place.headDim;
            int64_t const slot = place.firstRow + place.layout.slotAfter(firstSlot, valid ? row : 0);
            int64_t const offset = slot * place.headDim + (valid ? chunk * kCHUNK : 0);
            if (isQuantised)
            {
                copyAsync<8>(waiting(tile, item), static_cast<uint8_t const*>(cache) + offset, valid);
            }
            else
            {
                copyAsync<16>(
                    tile + Rows::chunkOffset(row, chunk), static_cast<uint16_t const*>(cache) + offset, valid);
            }
        }
    }

    // After the thread's own copies have arrived; a barrier must follow. The first half of the items is written over
    // none but their own bytes, which have been read by then.
    static CTX_DEVICE void expand(uint16_t* tile, int32_t cacheType)
    {
        constexpr int kHALF = (kPER_THREAD + 1) / 2;
        expandItems<0, kHALF>(tile, cacheType);
        expandItems<kHALF, kPER_THREAD - kHALF>(tile, cacheType);
    }

private:
    template <int FIRST, int COUNT>
    static CTX_DEVICE void expandItems(uint16_t* tile, int32_t cacheType)
    {
        int const thread = opaque(Scope::thread());
        Pack<uint32_t, 2> bytes[COUNT];
        CTX_UNROLL
        for (int i = 0; i < COUNT; ++i)
        {
            bytes[i]
                = *reinterpret_cast<Pack<uint32_t, 2> const*>(waiting(tile, (FIRST + i) * Scope::kTHREADS + thread));
        }
        Scope::sync();
        CTX_UNROLL
        for (int i = 0; i < COUNT; ++i)
        {
            int const item = (FIRST + i) * Scope::kTHREADS + thread;
            Pack<uint32_t, 2> const low = dequantisedWords<T>(bytes[i].values[0], cacheType);
            Pack<uint32_t, 2> const high = dequantisedWords<T>(bytes[i].values[1], cacheType);
            Vector const vector{{low.values[0], low.values[1], high.values[0], high.values[1]}};
            *reinterpret_cast<Vector*>(tile + Rows::chunkOffset(item / Rows::kCHUNKS, item % Rows::kCHUNKS)) = vector;
        }
    }
};

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
