#include "fake_engine.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <numeric>

namespace ctx::test
{

using runtime::CacheBinding;
using runtime::Package;
using runtime::PitchedRows;
using runtime::Status;
using runtime::Step;

namespace
{

using nlohmann::json;

json tensor(std::string const& name, char const* role, json shape, char const* type = "int64", int64_t layer = -1)
{
    return {{"name", name}, {"dtype", type}, {"shape", std::move(shape)}, {"role", role}, {"layer", layer}};
}

class FakeEngine final : public runtime::Engine
{
public:
    FakeEngine(EngineRecord& record, Package const& package)
        : mRecord(record)
        , mCache(package.manifest.layers.front())
    {
    }

    runtime::Memory& memory() noexcept override
    {
        return mRecord.memory;
    }

    Status bindCaches(std::vector<CacheBinding> const& layers) noexcept override
    {
        ++mRecord.binds;
        mCaches = layers;
        return {};
    }

    int64_t chunkLimit(int64_t) noexcept override
    {
        return mRecord.chunkLimit;
    }

    Status step(Step const& step, float* logits) noexcept override
    {
        if (mRecord.onStep)
        {
            mRecord.onStep();
        }
        if (static_cast<int64_t>(mRecord.steps.size()) == mRecord.failAt)
        {
            mRecord.failAt = -1;
            return {runtime::StatusCode::kENGINE_FAILED, "the engine fell over"};
        }
        mRecord.steps.push_back({step.rows, step.logitRowCount, {step.inputIds, step.inputIds + step.batch * step.rows},
            {step.seen, step.seen + step.batch}, {step.newTokens, step.newTokens + step.batch},
            step.ropeLength == nullptr ? std::vector<int64_t>{}
                                       : std::vector<int64_t>(step.ropeLength, step.ropeLength + step.batch)});
        std::fill_n(logits, step.batch * step.logitRowCount * kVOCAB, 0.0F);
        for (int64_t b = 0; b < step.batch; ++b)
        {
            write(step, b);
            for (int64_t i = 0; i < step.logitRowCount; ++i)
            {
                int64_t const row = step.logitRows[b * step.logitRowCount + i];
                logits[(b * step.logitRowCount + i) * kVOCAB + next(b, step.seen[b] + row)] = 1;
            }
        }
        return {};
    }

private:
    int64_t slotOf(int64_t token) const
    {
        bool const isRing = mCache.policy == runtime::CachePolicy::kBOUNDED && token >= mCache.sinks;
        return isRing ? mCache.sinks + (token - mCache.sinks) % (mCache.capacity - mCache.sinks) : token;
    }

    // Key 0 of the last head of the last layer.
    float* place(int64_t sequence, int64_t token) const
    {
        CacheBinding const& layer = mCaches.back();
        int64_t const head = sequence * kKV_HEADS + kKV_HEADS - 1;
        return reinterpret_cast<float*>(layer.key) + (head * layer.slots + slotOf(token)) * kHEAD_DIM;
    }

    void write(Step const& step, int64_t sequence)
    {
        for (int64_t row = 0; row < step.newTokens[sequence]; ++row)
        {
            *place(sequence, step.seen[sequence] + row) = static_cast<float>(step.inputIds[sequence * step.rows + row]);
        }
    }

    int64_t next(int64_t sequence, int64_t position) const
    {
        int64_t sum = 0;
        for (int64_t token = 0; token <= position; ++token)
        {
            bool const isSeen = mCache.window == 0 || token < mCache.sinks || position - token < mCache.window;
            sum += isSeen ? static_cast<int64_t>(*place(sequence, token)) : 0;
        }
        return sum % kVOCAB;
    }

    EngineRecord& mRecord;
    runtime::CacheInfo mCache;
    std::vector<CacheBinding> mCaches;
};

} // namespace

json manifestJson(bool bounded)
{
    json const cache
        = {{"policy", bounded ? "bounded" : "full"}, {"sinks", bounded ? 2 : 0}, {"window", bounded ? 6 : 0},
            {"capacity", bounded ? 15 : 1000}, {"keys", "rotated"}, {"rule", bounded ? "streaming" : "causal"},
            {"sink_position", bounded ? json(7) : json()}, {"parameters", nullptr}};
    json io = {tensor("input_ids", "input_ids", {"batch", "tokens"}), tensor("seen", "seen", {"batch"}),
        tensor("new", "new", {"batch"}), tensor("logit_rows", "logit_rows", {"batch", "rows"})};
    for (int64_t layer = 0; layer < kLAYERS; ++layer)
    {
        for (std::string const time : {"past", "present"})
        {
            for (std::string const part : {"key", "value"})
            {
                json const slots = bounded ? json(15) : json("slots");
                io.push_back(tensor(time + "." + std::to_string(layer) + "." + part, (time + "_" + part).c_str(),
                    {"batch", kKV_HEADS, slots, kHEAD_DIM}, "float32", layer));
            }
        }
    }
    io.push_back(tensor("logits", "logits", {"batch", "rows", kVOCAB}, "float32"));
    json const scaling = {{"theta", 10000.0}, {"rotary_dim", 4}, {"parameters", json::object()}, {"multiplier", 1.0},
        {"inv_freq", {1.0, 0.01}}, {"layers", nullptr}, {"length_table", nullptr}};
    return {{"format_version", 1},
        {"model",
            {{"family", "fake"}, {"layers", kLAYERS}, {"heads", 2}, {"kv_heads", kKV_HEADS}, {"head_dim", kHEAD_DIM},
                {"vocab", kVOCAB}, {"original_context", 64}, {"bos_token_id", 1}, {"eos_token_ids", {0}}}},
        {"method", "none"}, {"scaling", scaling}, {"factor", 1.0}, {"max_context", bounded ? json() : json(1000)},
        {"max_batch", 4}, {"max_chunk", 8}, {"precision", "fp32"}, {"weights", {{"files", json::array()}}},
        {"layers", json(kLAYERS, cache)}, {"io", io}, {"engine", nullptr}, {"plugins", nullptr}};
}

Package packageOf(json const& manifest)
{
    Package package;
    auto read = runtime::parseManifest(manifest.dump(), "manifest.json");
    if (!read.ok())
    {
        std::fprintf(stderr, "%s\n", read.status().message().c_str());
        std::exit(1);
    }
    package.manifest = *read;
    auto contract = runtime::makeContract(package.manifest);
    if (!contract.ok())
    {
        std::fprintf(stderr, "%s\n", contract.status().message().c_str());
        std::exit(1);
    }
    package.contract = *contract;
    return package;
}

std::byte* LimitedMemory::allocate(int64_t bytes) noexcept
{
    bool const isRefused = allocationsUntilRefusal == 0;
    allocationsUntilRefusal -= allocationsUntilRefusal >= 0 ? 1 : 0;
    std::byte* const address = isRefused ? nullptr : mHost.allocate(bytes);
    held += address == nullptr ? 0 : 1;
    return address;
}

void LimitedMemory::release(std::byte* address) noexcept
{
    --held;
    mHost.release(address);
}

Status LimitedMemory::copyRows(PitchedRows target, PitchedRows source, int64_t width, int64_t count) noexcept
{
    return mHost.copyRows(target, source, width, count);
}

Status LimitedMemory::zeroRows(PitchedRows target, int64_t width, int64_t count) noexcept
{
    return mHost.zeroRows(target, width, count);
}

Status LimitedMemory::synchronize() noexcept
{
    return mHost.synchronize();
}

std::unique_ptr<runtime::Engine> fakeEngine(EngineRecord& record, Package const& package)
{
    return std::make_unique<FakeEngine>(record, package);
}

std::unique_ptr<runtime::Session> fakeSession(EngineRecord& record, json const& manifest, int64_t batch, int64_t chunk)
{
    Package package = packageOf(manifest);
    auto engine = fakeEngine(record, package);
    runtime::SessionOptions options;
    options.batch = batch;
    options.chunk = chunk;
    auto made = runtime::Session::create(std::move(package), std::move(engine), options);
    if (!made.ok())
    {
        std::fprintf(stderr, "%s\n", made.status().message().c_str());
        std::exit(1);
    }
    return std::move(*made);
}

int64_t chosen(runtime::Logits const& logits, int64_t row, int64_t token)
{
    float const* const values = logits.at(row, token);
    return std::max_element(values, values + logits.vocab) - values;
}

Status feedRow(runtime::Session& session, std::vector<int64_t> const& tokens, runtime::Logits& logits, int64_t row)
{
    runtime::Feed feed;
    feed.tokens.resize(session.batch());
    feed.tokens[row] = tokens;
    return session.feed(feed, logits);
}

} // namespace ctx::test
