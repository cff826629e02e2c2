// Where tokens lie, how far back they reach, how feeds are cut. Oracle: rows written by hand from the rules.

#include "check.h"
#include "chunks.h"
#include "sequences.h"
#include "slots.h"

namespace ctx::test
{

namespace
{

using runtime::CacheInfo;
using runtime::CachePolicy;
using runtime::CacheRule;
using runtime::Chunk;
using runtime::nextChunk;
using runtime::Sequences;
using runtime::StatusCode;

using Tokens = std::vector<int64_t>;

CacheInfo full(int64_t capacity)
{
    CacheInfo cache;
    cache.capacity = capacity;
    return cache;
}

// 2 sinks, a window of 3, calls of up to 3 tokens: a ring of 5.
CacheInfo ring()
{
    CacheInfo cache;
    cache.policy = CachePolicy::kBOUNDED;
    cache.sinks = 2;
    cache.window = 3;
    cache.capacity = 7;
    return cache;
}

CacheInfo landmark()
{
    CacheInfo cache = full(100);
    cache.rule = CacheRule::kLANDMARK;
    cache.sinks = 1;
    cache.window = 4;
    cache.block = 3;
    cache.topk = 2;
    return cache;
}

CacheInfo memory()
{
    CacheInfo cache = ring();
    cache.rule = CacheRule::kMEMORY;
    cache.memory = 2;
    cache.block = 2;
    cache.memorySlots = 4;
    cache.capacity = 2 + 4 + 3 + 1 + 2;
    return cache;
}

Tokens slotsOf(CacheInfo const& cache, int64_t count)
{
    Tokens slots;
    for (int64_t token = 0; token < count; ++token)
    {
        slots.push_back(slotOf(token, cache));
    }
    return slots;
}

void tokensLieWhereTheRulesSay()
{
    CHECK(slotsOf(full(9), 5) == (Tokens{0, 1, 2, 3, 4}));
    CHECK(slotsOf(ring(), 14) == (Tokens{0, 1, 2, 3, 4, 5, 6, 2, 3, 4, 5, 6, 2, 3}));
    CHECK(slotsOf(landmark(), 9) == (Tokens{0, 1, 2, 3, 5, 6, 7, 9, 10}));
    CHECK(slotsOf(memory(), 10) == (Tokens{0, 1, 6, 7, 8, 9, 10, 11, 6, 7}));
    CacheInfo trained = landmark();
    trained.landmarkToken = 5;
    CHECK(slotsOf(trained, 4) == (Tokens{0, 1, 2, 3}));
}

void slotsInUseStopAtTheCapacity()
{
    CHECK(slotsInUse(3, ring()) == 3 && slotsInUse(100, ring()) == 7);
    CHECK(slotsInUse(1, landmark()) == 1);
    CHECK(slotsInUse(2, landmark()) == 5 && slotsInUse(4, landmark()) == 5 && slotsInUse(5, landmark()) == 9);
    CHECK(slotsInUse(2, memory()) == 2 && slotsInUse(3, memory()) == 7);
    CHECK(scoresOfRow(100, landmark()) == 33 + 1 + 3 * 3 + 4);
    CHECK(scoresOfRow(100, memory()) == 3 * 12);
}

// After p tokens in a ring of 5 token p - 6 is gone; the token at n needs those after n - 3.
void aRingCanBeTakenBackByItsSpareSlots()
{
    CHECK(shortestLength(7, ring()) == 0); // nothing was overwritten
    CHECK(shortestLength(8, ring()) == 5); // token 2 is gone; at 5 tokens 3, 4, 5 are seen
    CHECK(shortestLength(20, ring()) == 17);
    // Slots for two averages more than a query sees: block m is kept until block m + 4 is. After 41 tokens blocks up to
    // (41 - 5) / 2 - 1 = 17 are averages, the oldest kept is 14; at 39 blocks 15 and 16 are seen.
    CHECK(shortestLength(8, memory()) == 0 && shortestLength(9, memory()) == 7);
    CHECK(shortestLength(20, memory()) == 17 && shortestLength(41, memory()) == 39);
}

void capacityGrowsByAQuarterInStepsOf256()
{
    CHECK(runtime::grownCapacity(0, 1, 5000) == 256);
    CHECK(runtime::grownCapacity(256, 256, 5000) == 256);
    CHECK(runtime::grownCapacity(256, 257, 5000) == 512);
    CHECK(runtime::grownCapacity(2048, 2049, 5000) == 2560);
    CHECK(runtime::grownCapacity(2048, 4900, 5000) == 5000);
    CHECK(runtime::grownCapacity(0, 1, 100) == 100);
}

void feedsAreCutIntoChunksOfRaggedRows()
{
    Tokens const counts{7, 2, 0};
    Tokens const seen{10, 0, 50};
    auto const any = [](int64_t) { return INT64_MAX; };
    Chunk const first = nextChunk(counts, seen, 0, 3, any);
    CHECK(first.start == 0 && first.width == 3 && first.newTokens == (Tokens{3, 2, 0}));
    Chunk const last = nextChunk(counts, seen, 6, 3, any);
    CHECK(last.width == 1 && last.newTokens == (Tokens{1, 0, 0}));
    CHECK(nextChunk(counts, seen, 7, 3, any).width == 0);
    CHECK(nextChunk({}, {}, 0, 3, any).width == 0);
    int64_t asked = 0;
    auto const two = [&asked](int64_t tokens)
    {
        asked = tokens;
        return int64_t{2};
    };
    CHECK(nextChunk({7, 2}, {10, 0}, 3, 3, two).width == 2 && asked == 16);
    CHECK(nextChunk({7}, {0}, 0, 3, [](int64_t) { return int64_t{0}; }).width == 1);
}

// Blocks of 3 after 1 sink end in token 9, which is fed with the token before it.
void landmarkTokensAreFedBetweenThoseOfTheText()
{
    CacheInfo cache = landmark();
    cache.landmarkToken = 9;
    runtime::Spread const spread = withLandmarks({1, 2, 3, 4, 5}, 0, cache);
    CHECK(spread.fed == (Tokens{1, 2, 3, 9, 4, 5, 9}));
    CHECK(spread.rows == (Tokens{0, 1, 3, 4, 6}));
    runtime::Spread const later = withLandmarks({3, 4}, 2, cache);
    CHECK(later.fed == (Tokens{3, 9, 4}) && later.rows == (Tokens{1, 2}));
    for (int64_t text = 0; text < 20; ++text)
    {
        CHECK(textTokens(fedTokens(text, cache), cache) == text);
    }
    CHECK(withLandmarks({1, 2}, 5, full(10)).rows == (Tokens{0, 1}));
}

void aFullCacheRefusesTokensPastItsMaximum()
{
    Sequences sequences{2, {full(100)}, 100};
    sequences.advance({90, 0});
    CHECK(sequences.checkFeed({10, 100}).ok());
    CHECK(isFailure(sequences.checkFeed({11, 0}), StatusCode::kCONTEXT_LIMIT, "feed at most 10"));
    CHECK(isFailure(sequences.checkFeed({0, INT64_MAX}), StatusCode::kCONTEXT_LIMIT, "sequence 1 has 0 tokens"));
}

void sequencesAreLostWhereTheirCacheLacksWhatIsSeen()
{
    Sequences sequences{2, {full(100), ring()}, 100};
    sequences.touched({6, 0});
    sequences.advance({6, 0});
    sequences.touched({12, 2}); // a call of 6 more tokens fails: 9 is the shortest that the ring serves
    sequences.failed();
    CHECK(isFailure(sequences.checkUsable(0), StatusCode::kSEQUENCE_STATE, "sequence 0 was lost"));
    CHECK(sequences.checkUsable(1).ok());
    CHECK(!sequences.truncate(0, 3).ok());
    sequences.reset(0);
    CHECK(sequences.checkUsable(0).ok() && sequences.textLength(0) == 0);
}

void truncationGoesAsFarAsTheSpareSlots()
{
    Sequences sequences{1, {ring()}, std::nullopt};
    sequences.touched({20});
    sequences.advance({20});
    CHECK(isFailure(sequences.truncate(0, 16), StatusCode::kSEQUENCE_STATE, "reach back to 17"));
    CHECK(isFailure(sequences.truncate(0, 21), StatusCode::kINVALID_ARGUMENT, "from 0 to 20"));
    CHECK(isFailure(sequences.truncate(0, -1), StatusCode::kINVALID_ARGUMENT, "from 0 to 20"));
    CHECK(sequences.truncate(0, 17).ok() && sequences.textLength(0) == 17);
    CHECK(sequences.truncate(0, 0).ok() && sequences.slots(0) == 0 && sequences.usedSlots(0) == 7);
}

} // namespace

Cases slotCases()
{
    return {
        {"tokens_lie_where_the_rules_say", tokensLieWhereTheRulesSay},
        {"slots_in_use_stop_at_the_capacity", slotsInUseStopAtTheCapacity},
        {"a_ring_can_be_taken_back_by_its_spare_slots", aRingCanBeTakenBackByItsSpareSlots},
        {"capacity_grows_by_a_quarter_in_steps_of_256", capacityGrowsByAQuarterInStepsOf256},
        {"feeds_are_cut_into_chunks_of_ragged_rows", feedsAreCutIntoChunksOfRaggedRows},
        {"landmark_tokens_are_fed_between_those_of_the_text", landmarkTokensAreFedBetweenThoseOfTheText},
        {"a_full_cache_refuses_tokens_past_its_maximum", aFullCacheRefusesTokensPastItsMaximum},
        {"sequences_are_lost_where_their_cache_lacks_what_is_seen", sequencesAreLostWhereTheirCacheLacksWhatIsSeen},
        {"truncation_goes_as_far_as_the_spare_slots", truncationGoesAsFarAsTheSpareSlots},
    };
}

} // namespace ctx::test
