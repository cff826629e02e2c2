#include "session_state.h"

#include "boundary.h"

namespace ctx::runtime
{

namespace
{

std::vector<CacheInfo> cachesOf(Contract const& contract)
{
    std::vector<CacheInfo> all;
    for (LayerCache const& layer : contract.layers)
    {
        all.push_back(layer.cache);
    }
    return all;
}

void checkTokens(Feed const& feed, int64_t batch, int64_t vocab)
{
    if (static_cast<int64_t>(feed.tokens.size()) != batch)
    {
        throw Failure{StatusCode::kINVALID_ARGUMENT,
            "the feed has " + std::to_string(feed.tokens.size()) + " lists of tokens: the session has "
                + std::to_string(batch) + " sequences"};
    }
    for (std::vector<int64_t> const& tokens : feed.tokens)
    {
        for (int64_t const token : tokens)
        {
            if (token < 0 || token >= vocab)
            {
                throw Failure{StatusCode::kINVALID_ARGUMENT,
                    "token id " + std::to_string(token) + " is outside of the vocabulary: ids are 0 to "
                        + std::to_string(vocab - 1)};
            }
        }
    }
}

} // namespace

Session::State::State(Package package, std::unique_ptr<Engine> engine, SessionOptions const& options)
    : mPackage(std::move(package))
    , mContract(mPackage.contract)
    , mEngine(std::move(engine))
    , mCaches(mEngine->memory(), mContract, options.batch)
    , mSequences(options.batch, cachesOf(mContract), mContract.maxContext)
    , mChunk(options.chunk == 0 ? mContract.maxChunk : options.chunk)
{
    growTo(1);
}

void Session::State::checkWhole() const
{
    if (mBroken)
    {
        throw Failure{
            StatusCode::kSEQUENCE_STATE, "the session's caches were lost when memory ran out: open the package again"};
    }
}

void Session::State::checkRow(int64_t row) const
{
    if (row < 0 || row >= mSequences.batch())
    {
        throw Failure{StatusCode::kINVALID_ARGUMENT,
            "row " + std::to_string(row) + " does not exist: the session has rows 0 to "
                + std::to_string(mSequences.batch() - 1)};
    }
}

void Session::State::reset(int64_t row)
{
    // Masked slots still take part with weight 0, which a NaN would survive.
    require(mCaches.zero(row, mSequences.usedSlots(row)));
    mSequences.reset(row);
}

int64_t Session::State::fork(int64_t row, std::optional<int64_t> target)
{
    int64_t const written = target ? *target : valueOf(mSequences.freeRow());
    checkRow(written);
    require(mSequences.checkUsable(row));
    if (written != row)
    {
        mSequences.lose(written); // until all of it is there
        require(mCaches.copyRow(row, written, mSequences.slots(row)));
        mSequences.copy(row, written);
    }
    return written;
}

void Session::State::growTo(int64_t tokens)
{
    int64_t const needed = mSequences.mostSlots(tokens);
    int64_t const capacity
        = mCaches.grows() ? grownCapacity(mCapacity, needed, mContract.capacity) : mContract.capacity;
    if (capacity == mCapacity)
    {
        return;
    }
    Status const grown = mCaches.grow(capacity);
    mBroken = grown.code() == StatusCode::kINTERNAL_ERROR;
    checkWhole();
    // After a failure too: tensors that were grown and shrunk again lie elsewhere.
    if (grown.ok() || mCapacity != 0)
    {
        Status const bound = mEngine->bindCaches(mCaches.bindings());
        mBroken = !bound.ok();
        require(bound);
    }
    if (grown.code() == StatusCode::kOUT_OF_MEMORY)
    {
        throw Failure{StatusCode::kOUT_OF_MEMORY,
            "there is no memory for caches of " + std::to_string(capacity)
                + " slots: use fewer tokens or a smaller batch"};
    }
    require(grown);
    mCapacity = capacity;
    mCacheBytes = mCaches.bytes();
}

std::vector<Spread> Session::State::spread(Feed const& feed) const
{
    std::vector<Spread> all;
    for (int64_t row = 0; row < mSequences.batch(); ++row)
    {
        all.push_back(withLandmarks(feed.tokens[row], mSequences.textLength(row), mSequences.landmark()));
    }
    return all;
}

// The rope length of every sequence, fixed for a whole feed; empty where the package has no such input.
std::vector<int64_t> Session::State::ropeLengths(Feed const& feed) const
{
    std::vector<int64_t> lengths;
    size_t const given = feed.plannedLengths.size();
    if (given > 1 && given != feed.tokens.size())
    {
        throw Failure{StatusCode::kINVALID_ARGUMENT,
            std::to_string(given) + " planned lengths given: give one, or one for each of "
                + std::to_string(feed.tokens.size()) + " sequences"};
    }
    for (size_t row = 0; row < feed.tokens.size(); ++row)
    {
        auto const count = static_cast<int64_t>(feed.tokens[row].size());
        int64_t const total = mSequences.seen()[row] + count;
        int64_t const planned = given == 0 ? total : feed.plannedLengths[given == 1 ? 0 : row];
        if (count > 0 && planned < total)
        {
            throw Failure{StatusCode::kINVALID_ARGUMENT,
                "planned length " + std::to_string(planned) + " is less than the " + std::to_string(total)
                    + " tokens that sequence " + std::to_string(row) + " has after this feed"};
        }
        if (mContract.maxContext && given > 0 && planned > *mContract.maxContext)
        {
            throw Failure{StatusCode::kINVALID_ARGUMENT,
                "planned length " + std::to_string(planned) + " is beyond the package's maximum context of "
                    + std::to_string(*mContract.maxContext)};
        }
        lengths.push_back(std::max<int64_t>(planned, 1));
    }
    return mContract.ropeLength ? lengths : std::vector<int64_t>{};
}

void Session::State::feed(Feed const& feed, Logits& logits)
{
    int64_t const batch = mSequences.batch();
    checkWhole();
    checkTokens(feed, batch, mContract.vocab);
    std::vector<int64_t> texts;
    int64_t widest = 0;
    for (std::vector<int64_t> const& tokens : feed.tokens)
    {
        texts.push_back(static_cast<int64_t>(tokens.size()));
        widest = std::max(widest, texts.back());
    }
    require(mSequences.checkFeed(texts));
    mRopeLength = ropeLengths(feed);
    std::vector<Spread> const spread = this->spread(feed);
    int64_t longest = 1;
    for (int64_t row = 0; row < batch; ++row)
    {
        longest = std::max(longest, mSequences.seen()[row] + static_cast<int64_t>(spread[row].fed.size()));
    }
    logits.batch = batch;
    logits.rows = feed.logits == LogitsOf::kLAST ? 1 : widest;
    logits.vocab = mContract.vocab;
    logits.values.assign(static_cast<size_t>(batch * logits.rows) * logits.vocab, 0.0F);
    growTo(longest);
    run(feed, spread, logits);
}

// Calls the engine chunk by chunk; the sequences move when all calls succeeded.
void Session::State::run(Feed const& feed, std::vector<Spread> const& spread, Logits& logits)
{
    std::vector<int64_t> counts;
    for (Spread const& row : spread)
    {
        counts.push_back(static_cast<int64_t>(row.fed.size()));
    }
    auto const limit = [this](int64_t tokens) { return mEngine->chunkLimit(mSequences.mostScores(tokens)); };
    try
    {
        for (Chunk chunk = nextChunk(counts, mSequences.seen(), 0, mChunk, limit); chunk.width > 0;
            chunk = nextChunk(counts, mSequences.seen(), chunk.start + chunk.width, mChunk, limit))
        {
            if (feed.cancel != nullptr && feed.cancel->isSet())
            {
                throw Failure{
                    StatusCode::kCANCELLED, "the feed was cancelled after " + std::to_string(chunk.start) + " tokens"};
            }
            runChunk(chunk, spread, feed.logits);
            store(chunk, spread, feed.logits, logits);
        }
    }
    catch (...)
    {
        mSequences.failed();
        throw;
    }
    mSequences.advance(counts);
}

void Session::State::runChunk(Chunk const& chunk, std::vector<Spread> const& spread, LogitsOf wanted)
{
    int64_t const batch = mSequences.batch();
    int64_t const logitRows = wanted == LogitsOf::kLAST ? 1 : chunk.width;
    mInputIds.assign(batch * chunk.width, 0);
    mSeen.assign(batch, 0);
    mLogitRows.assign(batch * logitRows, 0);
    std::vector<int64_t> totals(batch);
    for (int64_t row = 0; row < batch; ++row)
    {
        auto const& fed = spread[row].fed;
        int64_t const begin = std::min<int64_t>(chunk.start, static_cast<int64_t>(fed.size()));
        std::copy_n(fed.begin() + begin, chunk.newTokens[row], mInputIds.begin() + row * chunk.width);
        mSeen[row] = mSequences.seen()[row] + begin;
        totals[row] = mSeen[row] + chunk.newTokens[row];
        for (int64_t i = 0; i < logitRows; ++i)
        {
            int64_t const last = std::max<int64_t>(chunk.newTokens[row] - 1, 0);
            mLogitRows[row * logitRows + i] = wanted == LogitsOf::kLAST ? last : i;
        }
    }
    mLogits.resize(static_cast<size_t>(batch * logitRows) * mContract.vocab);
    Step step;
    step.batch = batch;
    step.rows = chunk.width;
    step.logitRowCount = logitRows;
    step.inputIds = mInputIds.data();
    step.seen = mSeen.data();
    step.newTokens = chunk.newTokens.data();
    step.logitRows = mLogitRows.data();
    step.ropeLength = mRopeLength.empty() ? nullptr : mRopeLength.data();
    mSequences.touched(totals);
    require(mEngine->step(step, mLogits.data()));
}

// Puts one call's logits where they belong.
void Session::State::store(Chunk const& chunk, std::vector<Spread> const& spread, LogitsOf wanted, Logits& logits) const
{
    int64_t const vocab = mContract.vocab;
    auto const copy = [&](int64_t row, int64_t token, float const* source)
    { std::copy_n(source, vocab, logits.values.begin() + (row * logits.rows + token) * vocab); };
    for (int64_t row = 0; row < mSequences.batch(); ++row)
    {
        if (wanted == LogitsOf::kLAST)
        {
            if (chunk.newTokens[row] > 0)
            {
                copy(row, 0, mLogits.data() + row * vocab);
            }
            continue;
        }
        std::vector<int64_t> const& rows = spread[row].rows; // ascending
        auto token = std::lower_bound(rows.begin(), rows.end(), chunk.start);
        for (; token != rows.end() && *token < chunk.start + chunk.width; ++token)
        {
            float const* const source = mLogits.data() + (row * chunk.width + *token - chunk.start) * vocab;
            copy(row, token - rows.begin(), source);
        }
    }
}

} // namespace ctx::runtime
