// Bookkeeping of a batch of sequences: lengths, limits, and how far back each one can be taken.
#pragma once

#include "slots.h"

#include <vector>

namespace ctx::runtime
{

// Lengths are in tokens that the model was fed, unless they are called text: texts have no landmark tokens.
class Sequences
{
public:
    Sequences(int64_t batch, std::vector<CacheInfo> const& caches, std::optional<int64_t> maxContext);

    int64_t batch() const noexcept
    {
        return static_cast<int64_t>(mSeen.size());
    }

    std::vector<int64_t> const& seen() const noexcept
    {
        return mSeen;
    }

    int64_t textLength(int64_t row) const
    {
        return textTokens(mSeen[row], mLandmark);
    }

    // The layer whose landmark tokens are fed between those of the text; without any, its counts are the text's.
    CacheInfo const& landmark() const noexcept
    {
        return mLandmark;
    }

    // Whether `counts` more tokens of text can be taken; asked before anything is written.
    Status checkFeed(std::vector<int64_t> const& counts) const;

    // Refuses a row that a failed call left in a state that nobody knows.
    Status checkUsable(int64_t row) const;

    // A call is about to write up to `totals` tokens.
    void touched(std::vector<int64_t> const& totals);

    // All calls of a feed succeeded.
    void advance(std::vector<int64_t> const& counts);

    // A call failed half way: sequences stay at their lengths where the cache still has what their next token sees,
    // and are lost where it has not.
    void failed();

    // The shortest length that a sequence can be taken back to, besides 0.
    int64_t shortest(int64_t row) const;

    Status truncate(int64_t row, int64_t text);

    // The slots of a row hold zeros.
    void reset(int64_t row);

    void copy(int64_t source, int64_t target);

    // Nobody knows what is in the caches of a row, until it is reset or written whole.
    void lose(int64_t row)
    {
        mLost[row] = true;
    }

    // The first row without tokens.
    Result<int64_t> freeRow() const;

    // Slots in use in the largest cache of a sequence of `tokens` tokens.
    int64_t mostSlots(int64_t tokens) const;

    // Scores of one head of a row, in the layer that has most.
    int64_t mostScores(int64_t tokens) const;

    // Leading slots that may hold the tokens of a row, and those that may hold anything but zeros.
    int64_t slots(int64_t row) const
    {
        return mostSlots(mPeak[row]);
    }

    int64_t usedSlots(int64_t row) const
    {
        return mostSlots(mUsed[row]);
    }

private:
    std::vector<CacheInfo> mKinds;
    std::optional<int64_t> mMaximum; // of text
    CacheInfo mLandmark;
    std::vector<int64_t> mSeen;
    std::vector<int64_t> mPeak; // the most since it was last empty: what a ring's slots were overwritten with
    std::vector<int64_t> mUsed; // the most since its slots last held zeros
    std::vector<bool> mLost;
};

// Slots that a growing cache gets when `needed` do not fit into `current`: a quarter more, in steps of 256, at most
// `maximum`. Copies stay a small part of what attention reads, waste at most a quarter.
int64_t grownCapacity(int64_t current, int64_t needed, int64_t maximum);

} // namespace ctx::runtime
