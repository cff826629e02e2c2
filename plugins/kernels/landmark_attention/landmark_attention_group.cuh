// The grouped softmax of checkpoints with landmarks (arXiv 2305.16300, section 3.2): of each block that a row reads, by
// how much the logits of its tokens move to become logits of the query's own group, so that one softmax over all gives
// the blocks' tokens what their landmark gets. That is the landmark's logit less the logarithm of the tokens' sum.
#pragma once

#include "kernels/landmark_attention/landmark_attention_matrix_tile.cuh"

namespace ctx
{

template <typename Traits>
struct GroupShared : BlocksShared<Traits>
{
    alignas(16) uint16_t key[Traits::kWARPS][Traits::kSTEP_ELEMENTS];
    alignas(16) KeyPlace place[Traits::kWARPS][Traits::kSTEP_KEYS];
};

// Of the rows of a lane, for one block.
struct GroupState
{
    SoftmaxState tokens[2]; // denominators of this lane's keys alone
    float landmark[2];
};

// Takes a step of a block's keys in, the first at `offset`.
template <typename Traits>
CTX_DEVICE void takeStep(GroupState& state, typename Traits::Score const& score, uint32_t offset, uint32_t block)
{
    CTX_UNROLL
    for (int half = 0; half < 2; ++half)
    {
        float maximum = -INFINITY;
        float logit[Traits::kSTEP_KEYS / 4];
        CTX_UNROLL
        for (int j = 0; j < Traits::kSTEP_KEYS / 4; ++j)
        {
            uint32_t const key = offset + static_cast<uint32_t>(8 * (j / 2) + laneColumn() + j % 2);
            float const value = score[0][j / 2].values[2 * half + j % 2];
            state.landmark[half] = key == block - 1 ? value : state.landmark[half];
            logit[j] = key < block - 1 ? value : -INFINITY;
            maximum = fmaxf(maximum, logit[j]);
        }
        SoftmaxState& tokens = state.tokens[half];
        tokens.raiseFast(rowMaximum(maximum));
        float const reference = SoftmaxState::reference(tokens.maximum);
        CTX_UNROLL
        for (float const value : logit)
        {
            tokens.denominator += powerOfTwo(value - reference);
        }
    }
}

// A warp's block of tokens.
template <typename Traits>
CTX_DEVICE void groupBlock(GroupShared<Traits>& shared, LandmarkCall const& call, uint32_t entry, bool isFar)
{
    LandmarkBlock const& block = shared.block;
    uint16_t* const key = shared.key[warpOfBlock()];
    KeyPlace* const places = shared.place[warpOfBlock()];
    int const part = isFar ? kFAR_PART : kNEAR_PART;
    uint32_t const first = (entry - (isFar ? 0 : block.keys.farBlocks)) * call.layout.block;
    uint32_t const rows = block.keys.blocks[entry].rows;
    auto const* const cache = static_cast<uint16_t const*>(call.common.presentKey) + block.tile.cacheOffset(call);
    GroupState state{{{-INFINITY, 0.0F}, {-INFINITY, 0.0F}}, {-INFINITY, -INFINITY}};
    CTX_UNROLL_BY(1)
    for (uint32_t offset = 0; offset < call.layout.block; offset += Traits::kSTEP_KEYS)
    {
        uint32_t const own = offset + static_cast<uint32_t>(laneOfWarp());
        if (laneOfWarp() < Traits::kSTEP_KEYS)
        {
            bool const exists = own < call.layout.block;
            KeyPlace place = exists ? block.keys.keyOf(call.layout, block.row, part, first + own) : KeyPlace{};
            place.rows = exists ? rows : 0; // the landmark, too
            places[laneOfWarp()] = place;
        }
        __syncwarp();
        beginRows<Traits>(key, cache, call, places);
        commitCopies();
        waitForCopies<0>();
        __syncwarp(); // the keys are there
        turnKeys<Traits>(key, shared, call, places, areRuns<Traits>(call.layout, part));
        typename Traits::Score score;
        scoreKeys<typename Traits::T, Traits::kDIM, 1, Traits::kSTEP_KEYS>(score, shared.query, 0, key, 0);
        hideUnseen<Traits>(score, places, block.scale);
        takeStep<Traits>(state, score, offset, call.layout.block);
        __syncwarp(); // keys and places are read
    }
    float* const biases = call.biases + (block.tile.firstEntry(call) + entry) * kLANDMARK_ROWS;
    CTX_UNROLL
    for (int half = 0; half < 2; ++half)
    {
        float const landmark = rowMaximum(state.landmark[half]);
        float const sum = rowSum(state.tokens[half].denominator);
        if (threadIdx.x % 4 == 0)
        {
            biases[laneRow(0, half)] = landmark - state.tokens[half].maximum - log2f(sum);
        }
    }
}

// Blocks of the tile's list [begin, end), all met by the same queries.
template <typename Traits>
CTX_DEVICE void groupRange(
    GroupShared<Traits>& shared, LandmarkCall const& call, uint32_t begin, uint32_t end, bool isFar)
{
    placeBlockQueries<Traits>(shared, call, isFar);
    CTX_UNROLL_BY(1)
    for (uint32_t entry = begin + static_cast<uint32_t>(warpOfBlock()); entry < end; entry += Traits::kWARPS)
    {
        groupBlock<Traits>(shared, call, entry, isFar);
    }
}

// A block of threads takes a tile of rows and a share of its list, a warp one block of tokens at a time.
template <typename Traits>
CTX_KERNEL_RESIDENT(Traits::kTHREADS, 4)
groupBlocksMatrix(LandmarkCall const call, GridPlan const grid)
{
    CTX_DYNAMIC_SHARED(memory);
    auto& shared = *reinterpret_cast<GroupShared<Traits>*>(memory);
    startBlock(shared.block, call, grid, Traits::kTILE_KEYS);
    LandmarkBlock const& block = shared.block;
    loadRotation(shared.rotation, call.common, block.tile.place.batch, Traits::kTHREADS);
    EntryShare const share = EntryShare::of(block, call, grid);
    if (share.begin < share.turn)
    {
        groupRange<Traits>(shared, call, share.begin, share.turn, true);
    }
    uint32_t const begin = share.begin < share.turn ? share.turn : share.begin;
    if (begin < share.end)
    {
        groupRange<Traits>(shared, call, begin, share.end, false);
    }
}

template <typename Traits>
LaunchResult launchGroupDim(LandmarkCall const& call, cudaStream_t stream)
{
    return launchGroup<GroupShared<Traits>>(
        call, groupBlocksMatrix<Traits>, Traits::kTHREADS, stream, "groupBlocksMatrix");
}

// Compiled for few head dimensions: checkpoints with landmarks have 64 or 128.
template <typename T>
LaunchResult launchGroupMatrix(LandmarkCall const& call, cudaStream_t stream)
{
    if (call.common.headDim <= 64)
    {
        return launchGroupDim<BlocksTraits<T, 64, 4, 1>>(call, stream);
    }
    return call.common.headDim <= 128 ? launchGroupDim<BlocksTraits<T, 128, 4, 1>>(call, stream)
                                      : launchGroupDim<BlocksTraits<T, 256, 4, 1>>(call, stream);
}

} // namespace ctx
