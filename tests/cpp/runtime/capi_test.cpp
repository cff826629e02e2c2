// The C interface over the fake model.

#include "check.h"
#include "ctx_runtime/ctx_runtime.h"
#include "fake_engine.h"

#include <cstdlib>
#include <cstring>
#include <fstream>

namespace ctx::test
{

namespace
{

using Tokens = std::vector<int64_t>;

// A package of the fake model in a directory of its own, and its engine's record.
class FakePackage
{
public:
    FakePackage()
    {
        char name[] = "/tmp/ctx_runtime_test.XXXXXX";
        CHECK(::mkdtemp(name) != nullptr);
        mDirectory = name;
        std::ofstream{mDirectory + "/manifest.json"} << manifestJson().dump();
        auto const registered
            = runtime::registerEngine("fake", [this](runtime::Package const& package, runtime::EngineOptions const&)
                { return runtime::Result<std::unique_ptr<runtime::Engine>>{fakeEngine(record, package)}; });
        CHECK(registered.ok());
    }

    ~FakePackage()
    {
        std::remove((mDirectory + "/manifest.json").c_str());
        std::remove(mDirectory.c_str());
    }

    CtxRuntimeSession* open(int64_t batch = 1) const
    {
        CtxRuntimeOptions options{};
        options.size = sizeof(options);
        options.engine = "fake";
        options.batch = batch;
        CtxRuntimeSession* session = nullptr;
        CHECK(ctxRuntimeOpen(mDirectory.c_str(), &options, &session) == CTX_RUNTIME_STATUS_SUCCESS);
        return session;
    }

    EngineRecord record;

private:
    std::string mDirectory;
};

bool saysLast(std::string const& part)
{
    return contains(ctxRuntimeLastMessage(), part);
}

CtxRuntimeStatus feed(
    CtxRuntimeSession* session, std::vector<Tokens> const& rows, std::vector<float>& logits, int32_t everyToken = 0)
{
    std::vector<int64_t const*> lists;
    Tokens counts;
    for (Tokens const& tokens : rows)
    {
        lists.push_back(tokens.data());
        counts.push_back(static_cast<int64_t>(tokens.size()));
    }
    CtxRuntimeFeed given{};
    given.size = sizeof(given);
    given.tokens = lists.data();
    given.tokenCounts = counts.data();
    given.everyToken = everyToken;
    return ctxRuntimeFeed(session, &given, logits.data(), logits.size());
}

void aSessionIsUsedFromC()
{
    FakePackage package;
    CtxRuntimeSession* const session = package.open(2);
    CtxRuntimeInfo info{};
    info.size = sizeof(info);
    CHECK(ctxRuntimeDescribe(session, &info) == CTX_RUNTIME_STATUS_SUCCESS);
    CHECK(info.batch == 2 && info.vocab == kVOCAB && info.maxContext == 1000 && info.maxChunk == 8);
    CHECK(info.capacity == 256 && info.cacheBytes > 0);
    std::vector<float> logits(2 * 3 * kVOCAB, -1);
    CHECK(feed(session, {{1, 2, 3}, {4}}, logits, 1) == CTX_RUNTIME_STATUS_SUCCESS);
    CHECK(logits[1] == 1 && logits[kVOCAB + 3] == 1 && logits[2 * kVOCAB + 6] == 1 && logits[3 * kVOCAB + 4] == 1);
    CHECK(logits[4 * kVOCAB] == 0);
    int64_t length = 0;
    CHECK(ctxRuntimeLength(session, 0, &length) == CTX_RUNTIME_STATUS_SUCCESS && length == 3);
    int64_t written = 0;
    CHECK(ctxRuntimeReset(session, 1) == CTX_RUNTIME_STATUS_SUCCESS);
    CHECK(ctxRuntimeFork(session, 0, -1, &written) == CTX_RUNTIME_STATUS_SUCCESS && written == 1);
    CHECK(ctxRuntimeTruncate(session, 0, 1) == CTX_RUNTIME_STATUS_SUCCESS);
    CHECK(feed(session, {{}, {1}}, logits) == CTX_RUNTIME_STATUS_SUCCESS && logits[kVOCAB + 7] == 1);
    ctxRuntimeClose(session);
    ctxRuntimeClose(nullptr);
}

struct Stream
{
    CtxRuntimeSession* session;
    Tokens tokens;
    int64_t cancelAt;
};

int32_t onToken(void* user, int64_t, int64_t token, int64_t index)
{
    auto* const stream = static_cast<Stream*>(user);
    stream->tokens.push_back(token);
    if (index == stream->cancelAt)
    {
        ctxRuntimeCancel(stream->session);
    }
    return 1;
}

void tokensAreGeneratedFromC()
{
    FakePackage package;
    CtxRuntimeSession* const session = package.open();
    Tokens const prompt{1, 2};
    CtxRuntimeSampling sampling{};
    sampling.size = sizeof(sampling);
    sampling.temperature = 0.001; // the fake logits are 1 and 0
    sampling.hasSeed = 1;
    CtxRuntimeRequest request{};
    request.size = sizeof(request);
    request.prompt = prompt.data();
    request.promptCount = 2;
    request.maxNewTokens = 4;
    request.sampling = &sampling;
    Tokens room(3);
    CtxRuntimeGeneration generation{};
    generation.size = sizeof(generation);
    generation.tokens = room.data();
    generation.tokenRoom = 3;
    CtxRuntimeRequest const* const requests[] = {&request};
    CtxRuntimeGeneration* const generations[] = {&generation};
    Stream stream{session, {}, -1};
    CHECK(ctxRuntimeGenerate(session, requests, generations, 1, onToken, &stream) == CTX_RUNTIME_STATUS_SUCCESS);
    CHECK(generation.tokenCount == 4 && generation.finish == CTX_RUNTIME_FINISH_LENGTH);
    CHECK(room == (Tokens{3, 6, 1}) && stream.tokens == (Tokens{3, 6, 1, 2}));
    stream.cancelAt = 1;
    CHECK(ctxRuntimeGenerate(session, requests, generations, 1, onToken, &stream) == CTX_RUNTIME_STATUS_SUCCESS);
    CHECK(generation.tokenCount == 2 && generation.finish == CTX_RUNTIME_FINISH_CANCELLED);
    CHECK(ctxRuntimeGenerate(session, requests, generations, 1, nullptr, nullptr) == CTX_RUNTIME_STATUS_SUCCESS);
    CHECK(generation.tokenCount == 4); // a call that starts later is not cancelled
    ctxRuntimeClose(session);
}

// An older caller's structs end earlier, a newer one's later.
void structsOfOtherSizesAreUnderstood()
{
    FakePackage package;
    CtxRuntimeSession* const session = package.open();
    CtxRuntimeInfo info{};
    info.size = offsetof(CtxRuntimeInfo, maxContext);
    info.maxContext = 77;
    CHECK(ctxRuntimeDescribe(session, &info) == CTX_RUNTIME_STATUS_SUCCESS);
    CHECK(info.vocab == kVOCAB && info.maxContext == 77 && info.size == offsetof(CtxRuntimeInfo, maxContext));
    struct Newer
    {
        CtxRuntimeInfo known;
        int64_t more;
    } newer{};
    newer.known.size = sizeof(newer);
    newer.more = 5;
    CHECK(ctxRuntimeDescribe(session, &newer.known) == CTX_RUNTIME_STATUS_SUCCESS && newer.more == 5);
    CHECK(newer.known.maxChunk == 8);
    info.size = 0;
    CHECK(ctxRuntimeDescribe(session, &info) == CTX_RUNTIME_STATUS_INVALID_ARGUMENT && saysLast("set size"));
    ctxRuntimeClose(session);
}

void failuresAreStatusesWithAMessage()
{
    FakePackage package;
    CtxRuntimeSession* session = package.open();
    std::vector<float> logits(kVOCAB);
    CHECK(feed(session, {{kVOCAB}}, logits) == CTX_RUNTIME_STATUS_INVALID_ARGUMENT && saysLast("ids are 0 to 10"));
    CHECK(feed(session, {Tokens(1001, 1)}, logits) == CTX_RUNTIME_STATUS_CONTEXT_LIMIT && saysLast("maximum context"));
    std::vector<float> few(kVOCAB - 1);
    CHECK(feed(session, {{1}}, few) == CTX_RUNTIME_STATUS_INVALID_ARGUMENT && saysLast("give room for 11"));
    CHECK(feed(nullptr, {{1}}, logits) == CTX_RUNTIME_STATUS_INVALID_ARGUMENT && saysLast("the session is null"));
    CHECK(ctxRuntimeFeed(session, nullptr, logits.data(), 11) == CTX_RUNTIME_STATUS_INVALID_ARGUMENT);
    CHECK(ctxRuntimeGenerate(session, nullptr, nullptr, 1, nullptr, nullptr) == CTX_RUNTIME_STATUS_INVALID_ARGUMENT);
    CHECK(ctxRuntimeGenerate(session, nullptr, nullptr, -1, nullptr, nullptr) == CTX_RUNTIME_STATUS_INVALID_ARGUMENT);
    CHECK(ctxRuntimeLength(session, 4, nullptr) == CTX_RUNTIME_STATUS_INVALID_ARGUMENT);
    int64_t length = 0;
    CHECK(ctxRuntimeLength(session, 4, &length) == CTX_RUNTIME_STATUS_INVALID_ARGUMENT && saysLast("row 4"));
    ctxRuntimeCancel(nullptr);
    ctxRuntimeClose(session);
    CHECK(ctxRuntimeOpen(nullptr, nullptr, &session) == CTX_RUNTIME_STATUS_INVALID_ARGUMENT && session == nullptr);
    CHECK(ctxRuntimeOpen("x", nullptr, nullptr) == CTX_RUNTIME_STATUS_INVALID_ARGUMENT);
    CtxRuntimeOptions options{};
    options.size = sizeof(options);
    options.engine = "fake";
    CHECK(ctxRuntimeOpen("/nowhere", &options, &session) == CTX_RUNTIME_STATUS_INVALID_PACKAGE);
    CHECK(saysLast("/nowhere is not a package"));
}

} // namespace

Cases capiCases()
{
    return {
        {"a_session_is_used_from_c", aSessionIsUsedFromC},
        {"tokens_are_generated_from_c", tokensAreGeneratedFromC},
        {"structs_of_other_sizes_are_understood", structsOfOtherSizesAreUnderstood},
        {"failures_are_statuses_with_a_message", failuresAreStatusesWithAMessage},
    };
}

} // namespace ctx::test
