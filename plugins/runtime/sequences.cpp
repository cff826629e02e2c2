#include "sequences.h"

namespace ctx::runtime
{

namespace
{

constexpr int64_t kFIRST_CAPACITY = 256; // slots

std::string nameOf(int64_t row)
{
    return "sequence " + std::to_string(row);
}

bool isSameLayout(CacheInfo const& a, CacheInfo const& b)
{
    return a.policy == b.policy && a.sinks == b.sinks && a.window == b.window && a.capacity == b.capacity
        && a.rule == b.rule && a.memory == b.memory && a.memorySlots == b.memorySlots && a.block == b.block
        && a.topk == b.topk && a.landmarkToken == b.landmarkToken;
}

} // namespace

Sequences::Sequences(int64_t batch, std::vector<CacheInfo> const& caches, std::optional<int64_t> maxContext)
    : mMaximum(maxContext)
    , mSeen(batch, 0)
    , mPeak(batch, 0)
    , mUsed(batch, 0)
    , mLost(batch, false)
{
    for (CacheInfo const& cache : caches)
    {
        auto const isSame = [&cache](CacheInfo const& kind) { return isSameLayout(cache, kind); };
        if (std::none_of(mKinds.begin(), mKinds.end(), isSame))
        {
            mKinds.push_back(cache);
        }
        if (cache.landmarkToken && !mLandmark.landmarkToken)
        {
            mLandmark = cache;
        }
    }
}

Status Sequences::checkFeed(std::vector<int64_t> const& counts) const
{
    for (int64_t row = 0; row < batch(); ++row)
    {
        int64_t const before = textLength(row);
        if (counts[row] > 0)
        {
            if (Status const usable = checkUsable(row); !usable.ok())
            {
                return usable;
            }
        }
        if (mMaximum && counts[row] > *mMaximum - before)
        {
            return {StatusCode::kCONTEXT_LIMIT,
                nameOf(row) + " has " + std::to_string(before) + " tokens and " + std::to_string(counts[row])
                    + " more would pass the package's maximum context of " + std::to_string(*mMaximum)
                    + ": feed at most " + std::to_string(*mMaximum - before) + ", or export with a larger --target"};
        }
    }
    return {};
}

Status Sequences::checkUsable(int64_t row) const
{
    if (mLost[row])
    {
        return {StatusCode::kSEQUENCE_STATE,
            nameOf(row) + " was lost when a call failed or was cancelled: reset it and feed it again"};
    }
    return {};
}

void Sequences::touched(std::vector<int64_t> const& totals)
{
    for (size_t row = 0; row < mSeen.size(); ++row)
    {
        mPeak[row] = std::max(mPeak[row], totals[row]);
        mUsed[row] = std::max(mUsed[row], totals[row]);
    }
}

void Sequences::advance(std::vector<int64_t> const& counts)
{
    for (size_t row = 0; row < mSeen.size(); ++row)
    {
        mSeen[row] += counts[row];
    }
}

void Sequences::failed()
{
    for (int64_t row = 0; row < batch(); ++row)
    {
        mLost[row] = mLost[row] || mSeen[row] < shortest(row);
    }
}

int64_t Sequences::shortest(int64_t row) const
{
    int64_t most = 0;
    for (CacheInfo const& cache : mKinds)
    {
        if (cache.policy == CachePolicy::kBOUNDED)
        {
            most = std::max(most, shortestLength(mPeak[row], cache));
        }
    }
    return most;
}

Status Sequences::truncate(int64_t row, int64_t text)
{
    if (Status const usable = checkUsable(row); !usable.ok())
    {
        return usable;
    }
    int64_t const length = textLength(row);
    if (text < 0 || text > length)
    {
        return {StatusCode::kINVALID_ARGUMENT,
            nameOf(row) + " has " + std::to_string(length) + " tokens and cannot be cut to " + std::to_string(text)
                + ": give a length from 0 to " + std::to_string(length)};
    }
    int64_t const kept = fedTokens(text, mLandmark);
    if (kept > 0 && kept < shortest(row))
    {
        return {StatusCode::kSEQUENCE_STATE,
            nameOf(row) + " cannot be cut to " + std::to_string(text)
                + " tokens: its bounded cache no longer has what they see; the spare slots reach back to "
                + std::to_string(shortest(row))};
    }
    mSeen[row] = kept;
    if (kept == 0)
    {
        mPeak[row] = 0;
    }
    return {};
}

void Sequences::reset(int64_t row)
{
    mSeen[row] = mPeak[row] = mUsed[row] = 0;
    mLost[row] = false;
}

void Sequences::copy(int64_t source, int64_t target)
{
    mSeen[target] = mSeen[source];
    mPeak[target] = mPeak[source];
    mUsed[target] = std::max(mUsed[target], mPeak[source]);
    mLost[target] = false;
}

Result<int64_t> Sequences::freeRow() const
{
    for (int64_t row = 0; row < batch(); ++row)
    {
        if (mSeen[row] == 0)
        {
            return row;
        }
    }
    return {StatusCode::kSEQUENCE_STATE,
        "all " + std::to_string(batch())
            + " sequences have tokens: name the one to overwrite, reset one, or open the session with a larger batch"};
}

int64_t Sequences::mostSlots(int64_t tokens) const
{
    int64_t most = 0;
    for (CacheInfo const& cache : mKinds)
    {
        most = std::max(most, slotsInUse(tokens, cache));
    }
    return most;
}

int64_t Sequences::mostScores(int64_t tokens) const
{
    int64_t most = 0;
    for (CacheInfo const& cache : mKinds)
    {
        most = std::max(most, scoresOfRow(tokens, cache));
    }
    return most;
}

int64_t grownCapacity(int64_t current, int64_t needed, int64_t maximum)
{
    if (needed <= current)
    {
        return current;
    }
    int64_t const wanted = std::max({needed, current + current / 4, kFIRST_CAPACITY});
    return std::min(maximum, (wanted + kFIRST_CAPACITY - 1) / kFIRST_CAPACITY * kFIRST_CAPACITY);
}

} // namespace ctx::runtime
