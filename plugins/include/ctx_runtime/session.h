// Sessions: feed tokens in any split, get the same logits; manage the sequences of a batch.
#ifndef CTX_RUNTIME_SESSION_H
#define CTX_RUNTIME_SESSION_H

#include "ctx_runtime/engine.h"

#include <atomic>
#include <memory>
#include <string>
#include <vector>

namespace ctx::runtime
{

// Set from any thread to end calls that were given it; it stays set until cleared.
class CancelFlag
{
public:
    void cancel() noexcept
    {
        mSet.store(true, std::memory_order_relaxed);
    }

    void clear() noexcept
    {
        mSet.store(false, std::memory_order_relaxed);
    }

    bool isSet() const noexcept
    {
        return mSet.load(std::memory_order_relaxed);
    }

private:
    std::atomic<bool> mSet{false};
};

enum class LogitsOf
{
    kLAST,       // the last token fed of each sequence
    kEVERY_TOKEN // all tokens fed
};

// Tokens to append.
struct Feed
{
    std::vector<std::vector<int64_t>> tokens; // one list per sequence; an empty one leaves it as it is
    // The length that each sequence will reach, for methods whose frequencies depend on it: none, one for all, or one
    // per sequence. Default: what the sequence has after this feed.
    std::vector<int64_t> plannedLengths;
    LogitsOf logits{LogitsOf::kLAST};
    CancelFlag const* cancel{nullptr}; // looked at before every call of the engine
};

// Logits [batch, rows, vocab]; places without a token are 0. Reuse one object: its memory is kept from feed to feed.
struct Logits
{
    int64_t batch{0};
    int64_t rows{0}; // 1 for LogitsOf::kLAST
    int64_t vocab{0};
    std::vector<float> values;

    float const* at(int64_t row, int64_t token = 0) const noexcept
    {
        return values.data() + (row * rows + token) * vocab;
    }
};

struct SessionOptions
{
    std::string engine{"tensorrt"}; // a registered name
    int64_t batch{1};               // sequences, called rows, numbered from 0
    int64_t chunk{0};               // most tokens of one call; 0: the package's maxChunk
};

// A package with the caches of `batch` sequences. A call from a second thread while one runs is refused.
class CTX_RUNTIME_API Session
{
public:
    // Takes over the engine, also where it fails.
    static Result<std::unique_ptr<Session>> create(
        Package package, std::unique_ptr<Engine> engine, SessionOptions const& options) noexcept;

    ~Session();
    Session(Session const&) = delete;
    Session& operator=(Session const&) = delete;

    Package const& package() const noexcept;
    int64_t batch() const noexcept;

    // Slots that a sequence's cache has now; a full cache grows up to the package's maximum.
    int64_t capacity() const noexcept;

    // Memory that the caches take now.
    int64_t cacheBytes() const noexcept;

    // Tokens of text in sequence `row`.
    Result<int64_t> length(int64_t row) const noexcept;

    // Appends tokens. A feed that is refused (kINVALID_ARGUMENT, kCONTEXT_LIMIT) has changed nothing. After one that
    // failed or was cancelled half way sequences have their old length where their cache still serves it; the others
    // say so when they are used, until they are reset.
    Status feed(Feed const& feed, Logits& logits) noexcept;

    // Forgets a sequence.
    Status reset(int64_t row) noexcept;
    Status resetAll() noexcept;

    // Sequence `row` keeps its first `length` tokens. A bounded cache's spare slots let maxChunk tokens be taken back,
    // all of them before the first wrap; and always all tokens.
    Status truncate(int64_t row, int64_t length) noexcept;

    // Copies sequence `row` into row `target`, by default the first one without tokens; gives the row written.
    Result<int64_t> fork(int64_t row, std::optional<int64_t> target = std::nullopt) noexcept;

private:
    class State;

    explicit Session(std::unique_ptr<State> state) noexcept;

    std::unique_ptr<State> mState;
};

// The package in `directory` with the registered engine that the options name.
CTX_RUNTIME_API Result<std::unique_ptr<Session>> openSession(
    std::string const& directory, SessionOptions const& options = {}) noexcept;

} // namespace ctx::runtime

#endif
