// What a session asks of an engine: run one call of the model over caches that the session owns. Every rule about
// tokens, slots, growth and limits is the session's.
#ifndef CTX_RUNTIME_ENGINE_H
#define CTX_RUNTIME_ENGINE_H

#include "ctx_runtime/memory.h"
#include "ctx_runtime/package.h"

#include <functional>
#include <memory>

namespace ctx::runtime
{

// One call: S right-padded rows of each of B sequences. The arrays are the session's and live until `step` returns.
struct Step
{
    int64_t batch{0};                   // B, the same in every call of a session
    int64_t rows{0};                    // S, 1 to the package's maxChunk
    int64_t logitRowCount{0};           // R, 1 or S
    int64_t const* inputIds{nullptr};   // [B, S], 0 where there is no token
    int64_t const* seen{nullptr};       // [B], tokens before this call
    int64_t const* newTokens{nullptr};  // [B], 0 to S
    int64_t const* logitRows{nullptr};  // [B, R], rows of the call that go through the vocabulary projection
    int64_t const* ropeLength{nullptr}; // [B], where the package has that input, else null
};

// One layer's caches, [B, kvHeads, slots, headDim] of its type.
struct CacheBinding
{
    std::byte* key{nullptr};
    std::byte* value{nullptr};
    int64_t slots{0};
};

// A loaded model. A session calls it from one thread at a time. No call throws.
//
// Behind TensorRT: past and present of a tensor are bound to the one address of its binding, so the plugins write the
// new rows in place and nothing is copied from call to call. Calls with rows = 1 belong to the decode profile, others
// to the prefill profile, each with its execution context. Between two `bindCaches` the addresses and shapes of all
// calls with rows = 1 and logitRowCount = 1 are the same, inputs apart: an engine that copies those into memory of its
// own may capture such a call in a CUDA graph once and replay it, and drops the graph in `bindCaches`.
class Engine
{
public:
    virtual ~Engine() = default;

    // Where the session is to allocate caches; it outlives them, since the session ends them before the engine.
    virtual Memory& memory() noexcept = 0;

    // The caches' addresses and sizes from now on, one binding per layer; called before the first step, and again
    // whenever caches have grown. Nothing may run on the old ones any more when it returns.
    virtual Status bindCaches(std::vector<CacheBinding> const& layers) noexcept = 0;

    // Most rows of one call that this engine can afford where a row has `scores` attention scores a head, at least 1.
    // The package's maxChunk is the session's to hold.
    virtual int64_t chunkLimit(int64_t scores) noexcept
    {
        static_cast<void>(scores);
        return INT64_MAX;
    }

    // Runs one call and waits for it. Writes float32 logits [B, R, vocab] to host memory; rows without a token may get
    // anything. The caches hold the new tokens afterwards; after a failure nobody knows what those slots hold.
    virtual Status step(Step const& step, float* logits) noexcept = 0;
};

struct EngineOptions
{
    int64_t batch{1}; // sequences of every call
};

// Loads a package's model. It refuses what it cannot run: a package without its engine, another version of the runtime,
// more sequences than the engine was built for.
using EngineFactory = std::function<Result<std::unique_ptr<Engine>>(Package const&, EngineOptions const&)>;

// Makes `factory` known to `openSession` as `name`; a later registration of the same name replaces it. Thread-safe.
CTX_RUNTIME_API Status registerEngine(std::string const& name, EngineFactory factory) noexcept;

} // namespace ctx::runtime

#endif
