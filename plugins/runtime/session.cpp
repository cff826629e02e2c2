#include "ctx_runtime/session.h"

#include "boundary.h"
#include "session_state.h"

namespace ctx::runtime
{

namespace
{

constexpr int64_t kMAX_BATCH = 1 << 20;

// A session's use by one thread.
class Exclusive
{
public:
    explicit Exclusive(std::mutex& mutex)
        : mLock(mutex, std::try_to_lock)
    {
        if (!mLock.owns_lock())
        {
            throw Failure{StatusCode::kSEQUENCE_STATE,
                "the session is in use by another thread: wait for that call, or open one session per thread"};
        }
    }

private:
    std::unique_lock<std::mutex> mLock;
};

} // namespace

Session::Session(std::unique_ptr<State> state) noexcept
    : mState(std::move(state))
{
}

Session::~Session() = default;

Result<std::unique_ptr<Session>> Session::create(
    Package package, std::unique_ptr<Engine> engine, SessionOptions const& options) noexcept
{
    return guarded<Result<std::unique_ptr<Session>>>(
        [&]
        {
            int64_t const maxChunk = package.contract.maxChunk;
            if (engine == nullptr)
            {
                throw Failure{StatusCode::kINVALID_ARGUMENT, "there is no engine: give one that was loaded"};
            }
            if (options.batch < 1 || options.batch > kMAX_BATCH)
            {
                throw Failure{StatusCode::kINVALID_ARGUMENT,
                    "batch is " + std::to_string(options.batch) + ": a session has 1 to " + std::to_string(kMAX_BATCH)
                        + " sequences"};
            }
            if (options.chunk < 0 || options.chunk > maxChunk)
            {
                throw Failure{StatusCode::kINVALID_ARGUMENT,
                    "chunk is " + std::to_string(options.chunk) + ": the package takes 1 to " + std::to_string(maxChunk)
                        + " tokens a call"};
            }
            auto state = std::make_unique<State>(std::move(package), std::move(engine), options);
            return std::unique_ptr<Session>{new Session{std::move(state)}};
        });
}

Package const& Session::package() const noexcept
{
    return mState->mPackage;
}

int64_t Session::batch() const noexcept
{
    return mState->mSequences.batch();
}

int64_t Session::capacity() const noexcept
{
    return mState->mCapacity;
}

int64_t Session::cacheBytes() const noexcept
{
    return mState->mCacheBytes;
}

Result<int64_t> Session::length(int64_t row) const noexcept
{
    return guarded<Result<int64_t>>(
        [&]
        {
            Exclusive const exclusive{mState->mMutex};
            mState->checkRow(row);
            return mState->mSequences.textLength(row);
        });
}

Status Session::feed(Feed const& feed, Logits& logits) noexcept
{
    return guarded<Status>(
        [&]
        {
            Exclusive const exclusive{mState->mMutex};
            mState->feed(feed, logits);
            return Status{};
        });
}

Status Session::reset(int64_t row) noexcept
{
    return guarded<Status>(
        [&]
        {
            Exclusive const exclusive{mState->mMutex};
            mState->checkWhole();
            mState->checkRow(row);
            mState->reset(row);
            return Status{};
        });
}

Status Session::resetAll() noexcept
{
    return guarded<Status>(
        [&]
        {
            Exclusive const exclusive{mState->mMutex};
            mState->checkWhole();
            for (int64_t row = 0; row < mState->mSequences.batch(); ++row)
            {
                mState->reset(row);
            }
            return Status{};
        });
}

Status Session::truncate(int64_t row, int64_t length) noexcept
{
    return guarded<Status>(
        [&]
        {
            Exclusive const exclusive{mState->mMutex};
            mState->checkRow(row);
            return mState->mSequences.truncate(row, length);
        });
}

Result<int64_t> Session::fork(int64_t row, std::optional<int64_t> target) noexcept
{
    return guarded<Result<int64_t>>(
        [&]
        {
            Exclusive const exclusive{mState->mMutex};
            mState->checkWhole();
            mState->checkRow(row);
            return mState->fork(row, target);
        });
}

} // namespace ctx::runtime
