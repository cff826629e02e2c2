// Of every row the `topk` best blocks, and of every tile of rows the list of those that any of them reads. A row's
// choice is two numbers: a score above which blocks are chosen, and the last block chosen among those that have it.

#include "kernels/landmark_attention/landmark_attention_launch.h"

namespace ctx
{
namespace
{

constexpr int32_t kCHOOSE_WARPS = 8;
constexpr int32_t kCHOOSE_THREADS = kCHOOSE_WARPS * kWARP_SIZE;
constexpr int kDIGIT_BITS = 8;
constexpr int kDIGITS = 1 << kDIGIT_BITS;
constexpr int kLANE_DIGITS = kDIGITS / kWARP_SIZE;

// Larger for larger scores; zeros of both signs are the same.
CTX_HOST_DEVICE uint32_t orderOf(float score)
{
    uint32_t const bits = floatBits(score + 0.0F);
    return (bits >> 31) != 0 ? ~bits : bits | 0x80000000U;
}

struct ChooseRow
{
    LandmarkQuery query;
    float const* scores;
    uint32_t threshold; // as orderOf gives it
    uint32_t last;      // block of that score, from which on it is not enough
    bool chooses;

    // Whether the row reads the block, which is below `query.whole`.
    CTX_HOST_DEVICE bool reads(uint32_t number) const
    {
        if (!chooses || number >= query.candidates)
        {
            return true;
        }
        uint32_t const order = orderOf(scores[number]);
        return order > threshold || (order == threshold && number <= last);
    }
};

struct ChooseShared
{
    LandmarkTile tile;
    ChooseRow row[kLANDMARK_ROWS];
    uint32_t count[kCHOOSE_WARPS][kDIGITS]; // of scores by one of their digits
    uint32_t digit[kCHOOSE_WARPS];
    uint32_t left[kCHOOSE_WARPS]; // to choose among the scores that begin with the digits so far
    uint32_t listed[2][kCHOOSE_WARPS];
};

CTX_DEVICE int warpIndex()
{
    return static_cast<int>(threadIdx.x) / kWARP_SIZE;
}

CTX_DEVICE uint32_t laneIndex()
{
    return threadIdx.x % kWARP_SIZE;
}

// The warp's counts of the digit at `shift` among the row's scores that begin with `prefix`.
CTX_DEVICE void countDigits(ChooseShared& shared, ChooseRow const& row, uint32_t prefix, int shift)
{
    uint32_t* const count = shared.count[warpIndex()];
    for (int digit = static_cast<int>(laneIndex()); digit < kDIGITS; digit += kWARP_SIZE)
    {
        count[digit] = 0;
    }
    __syncwarp();
    CTX_UNROLL_BY(4)
    for (uint32_t number = laneIndex(); number < row.query.candidates; number += kWARP_SIZE)
    {
        uint32_t const order = orderOf(row.scores[number]);
        // In 64 bits, because the first digit is preceded by 32 - 0 of them.
        if ((static_cast<uint64_t>(order) >> (shift + kDIGIT_BITS)) == prefix)
        {
            atomicAdd(&count[(order >> shift) % kDIGITS], 1U);
        }
    }
    __syncwarp();
}

// The digit of the score that is the `left`-th from above, and how many are left of those that have it.
CTX_DEVICE void findDigit(ChooseShared& shared)
{
    uint32_t const* const count = shared.count[warpIndex()];
    uint32_t const left = shared.left[warpIndex()];
    int const highest = kDIGITS - 1 - static_cast<int>(laneIndex()) * kLANE_DIGITS; // of the lane's digits
    uint32_t own = 0;
    CTX_UNROLL
    for (int i = 0; i < kLANE_DIGITS; ++i)
    {
        own += count[highest - i];
    }
    uint32_t until = own;
    CTX_UNROLL
    for (unsigned distance = 1; distance < kWARP_SIZE; distance *= 2)
    {
        uint32_t const before = __shfl_up_sync(kFULL_WARP, until, distance);
        until += laneIndex() >= distance ? before : 0U;
    }
    __syncwarp(); // `left` is read
    uint32_t above = until - own;
    if (above < left && left <= until)
    {
        int digit = highest;
        for (; above + count[digit] < left; --digit)
        {
            above += count[digit];
        }
        shared.digit[warpIndex()] = static_cast<uint32_t>(digit);
        shared.left[warpIndex()] = left - above;
    }
    __syncwarp();
}

// The block that is the `left`-th of those with the row's threshold.
CTX_DEVICE uint32_t findLast(ChooseRow const& row, uint32_t left)
{
    CTX_UNROLL_BY(1)
    for (uint32_t first = 0; first < row.query.candidates; first += kWARP_SIZE)
    {
        uint32_t const number = first + laneIndex();
        bool const has = number < row.query.candidates && orderOf(row.scores[number]) == row.threshold;
        uint32_t with = __ballot_sync(kFULL_WARP, has ? 1 : 0);
        auto const found = static_cast<uint32_t>(__popc(with));
        if (left > found)
        {
            left -= found;
            continue;
        }
        for (; left > 1; --left)
        {
            with &= with - 1; // without the lowest
        }
        return first + static_cast<uint32_t>(__popc((with & (0U - with)) - 1));
    }
    return row.query.candidates;
}

// A warp finds a row's threshold, digit by digit.
CTX_DEVICE void chooseRow(ChooseShared& shared, ChooseRow& row, uint32_t topk)
{
    if (laneIndex() == 0)
    {
        shared.left[warpIndex()] = topk;
    }
    uint32_t prefix = 0;
    CTX_UNROLL_BY(1)
    for (int shift = 32 - kDIGIT_BITS; shift >= 0; shift -= kDIGIT_BITS)
    {
        countDigits(shared, row, prefix, shift);
        findDigit(shared);
        prefix = prefix << kDIGIT_BITS | shared.digit[warpIndex()];
    }
    uint32_t const left = shared.left[warpIndex()];
    bool const areAll = left == shared.count[warpIndex()][prefix % kDIGITS];
    __syncwarp(); // the counts are read
    if (laneIndex() == 0)
    {
        row.threshold = prefix;
    }
    __syncwarp();
    uint32_t const last = areAll ? UINT32_MAX : findLast(row, left);
    if (laneIndex() == 0)
    {
        row.last = last;
    }
}

// Rows of the tile that read a block as a far or as a near one, as bits.
CTX_DEVICE uint32_t readersOf(ChooseShared const& shared, uint32_t number, bool isFar)
{
    uint32_t rows = 0;
    CTX_UNROLL_BY(4)
    for (uint32_t r = 0; r < kLANDMARK_ROWS; ++r)
    {
        ChooseRow const& row = shared.row[r];
        bool const isMet = number < row.query.whole && (number < row.query.near) == isFar;
        rows |= isMet && row.reads(number) ? 1U << r : 0U;
    }
    return rows;
}

// Appends blocks [begin, end) that any row reads to the list, in order; returns how many the list then has.
CTX_DEVICE uint32_t listBlocks(
    ChooseShared& shared, ChosenBlock* list, uint32_t listed, uint32_t begin, uint32_t end, bool isFar)
{
    int turn = 0;
    CTX_UNROLL_BY(1)
    for (uint32_t first = begin; first < end; first += kCHOOSE_THREADS)
    {
        uint32_t const number = first + threadIdx.x;
        uint32_t const rows = number < end ? readersOf(shared, number, isFar) : 0U;
        uint32_t const with = __ballot_sync(kFULL_WARP, rows != 0 ? 1 : 0);
        if (laneIndex() == 0)
        {
            shared.listed[turn][warpIndex()] = static_cast<uint32_t>(__popc(with));
        }
        __syncthreads();
        uint32_t before = 0;
        uint32_t all = 0;
        CTX_UNROLL
        for (int warp = 0; warp < kCHOOSE_WARPS; ++warp)
        {
            before += warp < warpIndex() ? shared.listed[turn][warp] : 0U;
            all += shared.listed[turn][warp];
        }
        if (rows != 0)
        {
            before += static_cast<uint32_t>(__popc(with & ((1U << laneIndex()) - 1)));
            list[listed + before] = ChosenBlock{number, rows};
        }
        listed += all;
        turn = 1 - turn; // a warp may be one turn behind, not two
    }
    __syncthreads();
    return listed;
}

// One block of threads per tile of rows.
CTX_KERNEL_RESIDENT(kCHOOSE_THREADS, 5)
chooseBlocks(LandmarkCall const call, GridPlan const grid)
{
    CTX_DYNAMIC_SHARED(memory);
    auto& shared = *reinterpret_cast<ChooseShared*>(memory);
    LandmarkTile const& tile = shared.tile;
    if (threadIdx.x == 0)
    {
        uint32_t split = 0;
        shared.tile = LandmarkTile::of(call, grid, blockIdx.x, split);
    }
    __syncthreads();
    if (threadIdx.x < kLANDMARK_ROWS)
    {
        ChooseRow row{};
        row.query = tile.queryOf(call, sequenceOf(call.common, tile.place.batch), threadIdx.x);
        row.scores = tile.scoresOf(call, threadIdx.x);
        row.chooses = row.query.attends() && row.query.chooses(call.layout);
        shared.row[threadIdx.x] = row;
    }
    __syncthreads();
    for (int r = warpIndex(); r < kLANDMARK_ROWS; r += kCHOOSE_WARPS)
    {
        if (shared.row[r].chooses)
        {
            chooseRow(shared, shared.row[r], call.layout.topk);
        }
    }
    __syncthreads();
    uint32_t farEnd = 0;
    uint32_t nearBegin = UINT32_MAX;
    uint32_t nearEnd = 0;
    for (ChooseRow const& row : shared.row)
    {
        if (row.query.attends())
        {
            farEnd = row.query.near > farEnd ? row.query.near : farEnd;
            nearBegin = row.query.near < nearBegin ? row.query.near : nearBegin;
            nearEnd = row.query.whole > nearEnd ? row.query.whole : nearEnd;
        }
    }
    ChosenBlock* const list = call.entries + tile.firstEntry(call);
    uint32_t listed = 0;
    CTX_UNROLL_BY(1)
    for (int part = 0; part < 2; ++part)
    {
        bool const isFar = part == 0;
        uint32_t const before = listed;
        listed = listBlocks(shared, list, listed, isFar ? 0 : nearBegin, isFar ? farEnd : nearEnd, isFar);
        if (threadIdx.x == 0)
        {
            ListSize& size = tile.listSize(call);
            (isFar ? size.far : size.near) = listed - before;
        }
    }
}

} // namespace

LaunchResult launchChooseBlocks(LandmarkCall const& call, cudaStream_t stream)
{
    BlockShape const shape{kLANDMARK_ROWS, kWARP_SIZE, kCHOOSE_THREADS, sizeof(ChooseShared)};
    GridPlan const grid = planTiles(call, shape, 1, 0);
    return LaunchResult::fromCuda(launch(chooseBlocks, launchShape(grid, shape), stream, call, grid), "chooseBlocks");
}

} // namespace ctx
