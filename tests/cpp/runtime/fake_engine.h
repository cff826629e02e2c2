// A model of one rule: the token after a sequence is the sum of its tokens, modulo the vocabulary. It keeps each
// token's id in the first key of its slot and sums what it finds there, so that a wrong slot, a lost growth or a stale
// row gives other tokens. Packages for it are written by hand.
#pragma once

#include "ctx_runtime/engine.h"
#include "ctx_runtime/session.h"

#include <functional>
#include <nlohmann/json.hpp>

namespace ctx::test
{

constexpr int64_t kVOCAB = 11;
constexpr int64_t kLAYERS = 2;
constexpr int64_t kKV_HEADS = 2;
constexpr int64_t kHEAD_DIM = 4;

// A manifest of `kLAYERS` full layers for up to 1000 tokens in calls of up to 8; or of rings of a window of 6 after 2
// sinks, which have 2 + 6 + 8 - 1 = 15 slots.
nlohmann::json manifestJson(bool bounded = false);

runtime::Package packageOf(nlohmann::json const& manifest);

// Memory that refuses one allocation.
class LimitedMemory final : public runtime::Memory
{
public:
    std::byte* allocate(int64_t bytes) noexcept override;
    void release(std::byte* address) noexcept override;
    runtime::Status copyRows(
        runtime::PitchedRows target, runtime::PitchedRows source, int64_t width, int64_t count) noexcept override;
    runtime::Status zeroRows(runtime::PitchedRows target, int64_t width, int64_t count) noexcept override;
    runtime::Status synchronize() noexcept override;

    int64_t allocationsUntilRefusal{-1}; // -1: none is refused
    int64_t held{0};                     // allocations alive

private:
    runtime::HostMemory mHost;
};

// One call as the engine got it.
struct SeenStep
{
    int64_t rows;
    int64_t logitRows;
    std::vector<int64_t> ids;
    std::vector<int64_t> seen;
    std::vector<int64_t> newTokens;
    std::vector<int64_t> ropeLength;
};

// What a test sees of its engine while the session owns it; outlives the session.
struct EngineRecord
{
    LimitedMemory memory;
    std::vector<SeenStep> steps;
    int64_t binds{0};
    int64_t failAt{-1};            // index of the call that fails
    int64_t chunkLimit{INT64_MAX}; // of every call
    std::function<void()> onStep;  // runs before a call
};

std::unique_ptr<runtime::Engine> fakeEngine(EngineRecord& record, runtime::Package const& package);

// A session over such an engine; an error prints and ends the test program.
std::unique_ptr<runtime::Session> fakeSession(
    EngineRecord& record, nlohmann::json const& manifest, int64_t batch = 1, int64_t chunk = 0);

// The token that a row's logits choose.
int64_t chosen(runtime::Logits const& logits, int64_t row, int64_t token = 0);

// Feeds one sequence's tokens.
runtime::Status feedRow(
    runtime::Session& session, std::vector<int64_t> const& tokens, runtime::Logits& logits, int64_t row = 0);

} // namespace ctx::test
