// Sessions over the fake model. Oracle: its rule, the sum of the tokens that a position sees, modulo the vocabulary.

#include "check.h"
#include "fake_engine.h"

#include <thread>

namespace ctx::test
{

namespace
{

using runtime::Feed;
using runtime::Logits;
using runtime::LogitsOf;
using runtime::Session;
using runtime::Status;
using runtime::StatusCode;

using Tokens = std::vector<int64_t>;

Tokens counting(int64_t count, int64_t first = 1)
{
    Tokens tokens;
    for (int64_t i = 0; i < count; ++i)
    {
        tokens.push_back((first + 3 * i) % kVOCAB);
    }
    return tokens;
}

int64_t expected(Tokens const& tokens, int64_t sinks = 0, int64_t window = 0)
{
    auto const length = static_cast<int64_t>(tokens.size());
    int64_t sum = 0;
    for (int64_t token = 0; token < length; ++token)
    {
        sum += window == 0 || token < sinks || length - 1 - token < window ? tokens[token] : 0;
    }
    return sum % kVOCAB;
}

Tokens prefix(Tokens const& tokens, int64_t count)
{
    return {tokens.begin(), tokens.begin() + count};
}

void aFeedIsCutIntoCallsOfTheChunk()
{
    EngineRecord record;
    auto const session = fakeSession(record, manifestJson(), 2, 3);
    Feed feed;
    feed.tokens = {counting(7), {5, 6}};
    Logits logits;
    CHECK(session->feed(feed, logits).ok());
    CHECK(record.steps.size() == 3);
    CHECK(record.steps[0].rows == 3 && record.steps[0].ids == (Tokens{1, 4, 7, 5, 6, 0}));
    CHECK(record.steps[0].seen == (Tokens{0, 0}) && record.steps[0].newTokens == (Tokens{3, 2}));
    CHECK(record.steps[1].seen == (Tokens{3, 2}) && record.steps[1].newTokens == (Tokens{3, 0}));
    CHECK(record.steps[2].rows == 1 && record.steps[2].seen == (Tokens{6, 2}) && record.steps[2].logitRows == 1);
    CHECK(record.steps[0].ropeLength.empty());
    CHECK(logits.rows == 1 && chosen(logits, 0) == expected(counting(7)) && chosen(logits, 1) == 0);
    CHECK(*session->length(0) == 7 && *session->length(1) == 2);
}

void anySplitGivesTheSameLogits()
{
    for (bool const bounded : {false, true})
    {
        int64_t const sinks = bounded ? 2 : 0;
        int64_t const window = bounded ? 6 : 0;
        Tokens const tokens = counting(40);
        for (int64_t const chunk : {1, 3, 8})
        {
            EngineRecord record;
            auto const session = fakeSession(record, manifestJson(bounded), 1, chunk);
            Feed feed;
            feed.tokens = {tokens};
            feed.logits = LogitsOf::kEVERY_TOKEN;
            Logits logits;
            CHECK(session->feed(feed, logits).ok() && logits.rows == 40);
            for (int64_t token = 0; token < 40; ++token)
            {
                CHECK(chosen(logits, 0, token) == expected(prefix(tokens, token + 1), sinks, window));
            }
        }
    }
}

void placesWithoutATokenAreZero()
{
    EngineRecord record;
    auto const session = fakeSession(record, manifestJson(), 2);
    Feed feed;
    feed.tokens = {{1, 2}, {}};
    feed.logits = LogitsOf::kEVERY_TOKEN;
    Logits logits;
    CHECK(session->feed(feed, logits).ok() && logits.values.size() == size_t{2 * 2 * kVOCAB});
    for (int64_t i = 0; i < 2 * kVOCAB; ++i)
    {
        CHECK(logits.at(1)[i] == 0);
    }
    feed.tokens = {{}, {}};
    CHECK(session->feed(feed, logits).ok() && logits.rows == 0 && record.steps.size() == 1);
}

void aFullCacheGrowsInPlace()
{
    EngineRecord record;
    auto const session = fakeSession(record, manifestJson());
    CHECK(session->capacity() == 256 && record.binds == 1);
    Tokens const tokens = counting(700);
    Logits logits;
    for (int64_t token = 0; token < 700; ++token)
    {
        CHECK(feedRow(*session, {tokens[token]}, logits).ok());
        CHECK(chosen(logits, 0) == expected(prefix(tokens, token + 1)));
    }
    CHECK(session->capacity() == 768 && record.binds == 3);
    CHECK(session->cacheBytes() == 2 * kLAYERS * kKV_HEADS * 768 * kHEAD_DIM * 4);
}

void pastTheMaximumNothingChanges()
{
    EngineRecord record;
    auto const session = fakeSession(record, manifestJson());
    Tokens const tokens = counting(1000);
    Logits logits;
    CHECK(feedRow(*session, prefix(tokens, 990), logits).ok());
    size_t const steps = record.steps.size();
    CHECK(isFailure(feedRow(*session, counting(11), logits), StatusCode::kCONTEXT_LIMIT, "feed at most 10"));
    CHECK(*session->length(0) == 990 && record.steps.size() == steps);
    CHECK(feedRow(*session, {tokens.begin() + 990, tokens.end()}, logits).ok());
    CHECK(chosen(logits, 0) == expected(tokens) && session->capacity() == 1000);
    CHECK(feedRow(*session, {1}, logits).code() == StatusCode::kCONTEXT_LIMIT);
    CHECK(feedRow(*session, {}, logits).ok());
}

void tokensThatMakeNoSenseChangeNothing()
{
    EngineRecord record;
    auto const session = fakeSession(record, manifestJson(), 2);
    Logits logits;
    CHECK(isFailure(feedRow(*session, {3, kVOCAB}, logits), StatusCode::kINVALID_ARGUMENT, "ids are 0 to 10"));
    CHECK(isFailure(feedRow(*session, {-1}, logits), StatusCode::kINVALID_ARGUMENT, "token id -1"));
    CHECK(isFailure(session->feed({}, logits), StatusCode::kINVALID_ARGUMENT, "the session has 2 sequences"));
    CHECK(record.steps.empty() && *session->length(0) == 0);
}

nlohmann::json dynamicManifest()
{
    nlohmann::json manifest = manifestJson();
    manifest["io"].push_back({{"name", "rope"}, {"dtype", "int64"}, {"shape", {"batch"}}, {"role", "rope_length"}});
    return manifest;
}

void theRopeLengthIsFixedForAFeed()
{
    EngineRecord record;
    auto const session = fakeSession(record, dynamicManifest(), 2, 4);
    Feed feed;
    feed.tokens = {counting(9), {1}};
    Logits logits;
    CHECK(session->feed(feed, logits).ok() && record.steps.size() == 3);
    CHECK(record.steps[0].ropeLength == (Tokens{9, 1}) && record.steps[2].ropeLength == (Tokens{9, 1}));
    feed.tokens = {{1}, {}};
    feed.plannedLengths = {500};
    CHECK(session->feed(feed, logits).ok() && record.steps[3].ropeLength == (Tokens{500, 500}));
    feed.plannedLengths = {10, 1};
    CHECK(isFailure(session->feed(feed, logits), StatusCode::kINVALID_ARGUMENT, "less than the 11 tokens"));
    feed.plannedLengths = {1001};
    CHECK(isFailure(session->feed(feed, logits), StatusCode::kINVALID_ARGUMENT, "maximum context of 1000"));
    feed.plannedLengths = {11, 1, 1};
    CHECK(isFailure(session->feed(feed, logits), StatusCode::kINVALID_ARGUMENT, "3 planned lengths"));
    CHECK(*session->length(0) == 10);
}

void aCallThatFailsLeavesWhatTheCacheStillServes()
{
    for (bool const bounded : {false, true})
    {
        EngineRecord record;
        auto const session = fakeSession(record, manifestJson(bounded));
        Tokens const tokens = counting(30);
        Logits logits;
        CHECK(feedRow(*session, prefix(tokens, 10), logits).ok());
        record.failAt = 3; // the second call of the next feed
        CHECK(isFailure(
            feedRow(*session, {tokens.begin() + 10, tokens.end()}, logits), StatusCode::kENGINE_FAILED, "fell over"));
        CHECK(*session->length(0) == 10);
        Status const again = feedRow(*session, {tokens.begin() + 10, tokens.end()}, logits);
        if (bounded) // 26 tokens went into a ring of 13
        {
            CHECK(isFailure(again, StatusCode::kSEQUENCE_STATE, "reset it"));
            CHECK(session->reset(0).ok() && feedRow(*session, tokens, logits).ok());
        }
        CHECK(chosen(logits, 0) == expected(tokens, bounded ? 2 : 0, bounded ? 6 : 0));
    }
}

void aFeedIsCancelledBetweenCalls()
{
    EngineRecord record;
    auto const session = fakeSession(record, manifestJson());
    runtime::CancelFlag cancel;
    record.onStep = [&] { cancel.cancel(); };
    Feed feed;
    feed.tokens = {counting(20)};
    feed.cancel = &cancel;
    Logits logits;
    CHECK(isFailure(session->feed(feed, logits), StatusCode::kCANCELLED, "after 8 tokens"));
    CHECK(record.steps.size() == 1 && *session->length(0) == 0);
    CHECK(session->feed(feed, logits).code() == StatusCode::kCANCELLED && record.steps.size() == 1);
    cancel.clear();
    record.onStep = nullptr;
    CHECK(session->feed(feed, logits).ok() && chosen(logits, 0) == expected(counting(20)));
}

void memoryThatRunsOutChangesNothing()
{
    EngineRecord record;
    auto const session = fakeSession(record, manifestJson());
    Tokens const tokens = counting(300);
    Logits logits;
    CHECK(feedRow(*session, prefix(tokens, 250), logits).ok());
    record.memory.allocationsUntilRefusal = 2;
    CHECK(isFailure(feedRow(*session, {tokens.begin() + 250, tokens.end()}, logits), StatusCode::kOUT_OF_MEMORY,
        "caches of 512 slots"));
    CHECK(*session->length(0) == 250 && session->capacity() == 256);
    CHECK(feedRow(*session, {tokens.begin() + 250, tokens.end()}, logits).ok());
    CHECK(chosen(logits, 0) == expected(tokens));
}

void sequencesAreForkedTruncatedAndReset()
{
    EngineRecord record;
    auto const session = fakeSession(record, manifestJson(), 3);
    Logits logits;
    CHECK(feedRow(*session, {1, 2, 3, 4}, logits).ok());
    CHECK(feedRow(*session, {9}, logits, 1).ok());
    auto const forked = session->fork(0);
    CHECK(forked.ok() && *forked == 2 && *session->length(2) == 4);
    CHECK(session->truncate(0, 2).ok() && feedRow(*session, {5}, logits).ok());
    CHECK(chosen(logits, 0) == (1 + 2 + 5) % kVOCAB);
    CHECK(feedRow(*session, {5}, logits, 2).ok() && chosen(logits, 2) == (1 + 2 + 3 + 4 + 5) % kVOCAB);
    CHECK(isFailure(session->fork(0).status(), StatusCode::kSEQUENCE_STATE, "all 3 sequences have tokens"));
    CHECK(session->fork(2, 1).ok() && feedRow(*session, {1}, logits, 1).ok() && chosen(logits, 1) == 16 % kVOCAB);
    CHECK(session->reset(2).ok() && *session->length(2) == 0 && *session->length(1) == 6);
    CHECK(session->resetAll().ok() && feedRow(*session, {7}, logits, 1).ok() && chosen(logits, 1) == 7);
    CHECK(isFailure(session->reset(3), StatusCode::kINVALID_ARGUMENT, "rows 0 to 2"));
    CHECK(!session->fork(0, 5).ok() && !session->truncate(-1, 0).ok() && !session->length(3).ok());
}

void aRingForgetsAndIsTakenBackByItsSpareSlots()
{
    EngineRecord record;
    auto const session = fakeSession(record, manifestJson(true));
    Tokens const tokens = counting(100);
    Logits logits;
    CHECK(feedRow(*session, tokens, logits).ok() && session->capacity() == 15 && record.binds == 1);
    CHECK(chosen(logits, 0) == expected(tokens, 2, 6));
    CHECK(session->truncate(0, 92).ok() && feedRow(*session, {1}, logits).ok());
    Tokens shorter = prefix(tokens, 92);
    shorter.push_back(1);
    CHECK(chosen(logits, 0) == expected(shorter, 2, 6));
    CHECK(isFailure(session->truncate(0, 50), StatusCode::kSEQUENCE_STATE, "spare slots reach back"));
}

void aForkedRingReachesBackNoFarther()
{
    EngineRecord record;
    auto const session = fakeSession(record, manifestJson(true), 2);
    Logits logits;
    CHECK(feedRow(*session, counting(100), logits).ok() && session->fork(0).ok());
    CHECK(isFailure(session->truncate(1, 50), StatusCode::kSEQUENCE_STATE, "spare slots reach back"));
    CHECK(session->reset(0).ok() && feedRow(*session, {1}, logits, 1).ok());
    Tokens tokens = counting(100);
    tokens.push_back(1);
    CHECK(chosen(logits, 1) == expected(tokens, 2, 6));
}

void anEngineThatAffordsLessGetsLess()
{
    EngineRecord record;
    record.chunkLimit = 2;
    auto const session = fakeSession(record, manifestJson());
    Logits logits;
    CHECK(feedRow(*session, counting(5), logits).ok() && record.steps.size() == 3 && record.steps[0].rows == 2);
}

void aSecondThreadIsRefused()
{
    EngineRecord record;
    auto const session = fakeSession(record, manifestJson());
    Status other;
    record.onStep = [&]
    {
        std::thread thread{[&]
            {
                Logits logits;
                other = feedRow(*session, {1}, logits);
            }};
        thread.join();
    };
    Logits logits;
    CHECK(feedRow(*session, {1}, logits).ok());
    CHECK(isFailure(other, StatusCode::kSEQUENCE_STATE, "in use by another thread"));
}

void optionsThatMakeNoSenseAreRefused()
{
    EngineRecord record;
    auto const refused = [&record](int64_t batch, int64_t chunk, char const* part)
    {
        runtime::Package package = packageOf(manifestJson());
        auto engine = fakeEngine(record, package);
        runtime::SessionOptions options;
        options.batch = batch;
        options.chunk = chunk;
        auto const made = Session::create(package, std::move(engine), options);
        return isFailure(made.status(), StatusCode::kINVALID_ARGUMENT, part);
    };
    CHECK(refused(0, 0, "batch is 0"));
    CHECK(refused(INT64_MAX, 0, "batch is 9223372036854775807"));
    CHECK(refused(1, 9, "takes 1 to 8 tokens"));
    CHECK(refused(1, -1, "chunk is -1"));
    CHECK(isFailure(
        Session::create(packageOf(manifestJson()), nullptr, {}).status(), StatusCode::kINVALID_ARGUMENT, "no engine"));
    record.memory.allocationsUntilRefusal = 1;
    runtime::Package package = packageOf(manifestJson());
    auto const made = Session::create(package, fakeEngine(record, package), {});
    CHECK(isFailure(made.status(), StatusCode::kOUT_OF_MEMORY, "no memory for caches") && record.memory.held == 0);
    runtime::SessionOptions unknown;
    unknown.engine = "abacus";
    CHECK(isFailure(
        runtime::openSession("nowhere", unknown).status(), StatusCode::kINVALID_ARGUMENT, "engine abacus is unknown"));
}

} // namespace

Cases sessionCases()
{
    return {
        {"a_feed_is_cut_into_calls_of_the_chunk", aFeedIsCutIntoCallsOfTheChunk},
        {"any_split_gives_the_same_logits", anySplitGivesTheSameLogits},
        {"places_without_a_token_are_zero", placesWithoutATokenAreZero},
        {"a_full_cache_grows_in_place", aFullCacheGrowsInPlace},
        {"past_the_maximum_nothing_changes", pastTheMaximumNothingChanges},
        {"tokens_that_make_no_sense_change_nothing", tokensThatMakeNoSenseChangeNothing},
        {"the_rope_length_is_fixed_for_a_feed", theRopeLengthIsFixedForAFeed},
        {"a_call_that_fails_leaves_what_the_cache_still_serves", aCallThatFailsLeavesWhatTheCacheStillServes},
        {"a_feed_is_cancelled_between_calls", aFeedIsCancelledBetweenCalls},
        {"memory_that_runs_out_changes_nothing", memoryThatRunsOutChangesNothing},
        {"sequences_are_forked_truncated_and_reset", sequencesAreForkedTruncatedAndReset},
        {"a_ring_forgets_and_is_taken_back_by_its_spare_slots", aRingForgetsAndIsTakenBackByItsSpareSlots},
        {"a_forked_ring_reaches_back_no_farther", aForkedRingReachesBackNoFarther},
        {"an_engine_that_affords_less_gets_less", anEngineThatAffordsLessGetsLess},
        {"a_second_thread_is_refused", aSecondThreadIsRefused},
        {"options_that_make_no_sense_are_refused", optionsThatMakeNoSenseAreRefused},
    };
}

} // namespace ctx::test
