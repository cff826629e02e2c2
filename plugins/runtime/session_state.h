// What a session holds and does, behind its boundary: calls throw Failure.
#pragma once

#include "caches.h"
#include "chunks.h"
#include "ctx_runtime/session.h"
#include "sequences.h"

#include <mutex>

namespace ctx::runtime
{

class Session::State
{
public:
    State(Package package, std::unique_ptr<Engine> engine, SessionOptions const& options);

    void feed(Feed const& feed, Logits& logits);
    void reset(int64_t row);
    int64_t fork(int64_t row, std::optional<int64_t> target);

    // Refuses work after a failure that left caches in no known state.
    void checkWhole() const;

    void checkRow(int64_t row) const;

    Package mPackage;
    Contract const& mContract;
    std::unique_ptr<Engine> mEngine;
    Caches mCaches; // end before the engine, whose memory they are
    Sequences mSequences;
    int64_t mChunk;
    std::mutex mMutex;
    std::atomic<int64_t> mCapacity{0};
    std::atomic<int64_t> mCacheBytes{0};

private:
    void growTo(int64_t tokens);
    void run(Feed const& feed, std::vector<Spread> const& spread, Logits& logits);
    void runChunk(Chunk const& chunk, std::vector<Spread> const& spread, LogitsOf wanted);
    void store(Chunk const& chunk, std::vector<Spread> const& spread, LogitsOf wanted, Logits& logits) const;
    std::vector<Spread> spread(Feed const& feed) const;
    std::vector<int64_t> ropeLengths(Feed const& feed) const;

    bool mBroken{false};
    // Of a call; their memory is kept from call to call.
    std::vector<int64_t> mInputIds;
    std::vector<int64_t> mSeen;
    std::vector<int64_t> mLogitRows;
    std::vector<int64_t> mRopeLength;
    std::vector<float> mLogits;
};

} // namespace ctx::runtime
