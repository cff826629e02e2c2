#include "manifest_checks.h"

#include "slots.h"

namespace ctx::runtime
{

namespace
{

// A query and the rows written with it must find all tokens of its window: sinks + window + max_chunk - 1 slots, and
// what a rule adds.
int64_t leastRing(CacheInfo const& cache, int64_t maxChunk)
{
    int64_t const blockRest = cache.rule == CacheRule::kMEMORY ? cache.block - 1 : 0;
    return cache.sinks + cache.memorySlots + cache.window + blockRest + maxChunk - 1;
}

void checkBounded(CacheInfo const& cache, int64_t maxChunk, JsonReader const& place)
{
    if (cache.rule != CacheRule::kPLAIN && cache.rule != CacheRule::kMEMORY)
    {
        place.fail("has a bounded cache, and rule " + cache.ruleName + " needs a full one");
    }
    if (cache.window < 1)
    {
        place.at("window").fail("is 0 in a bounded cache");
    }
    int64_t const least = leastRing(cache, maxChunk);
    if (cache.capacity < least)
    {
        place.at("capacity")
            .fail("is " + std::to_string(cache.capacity) + ", and its sinks and window with calls of "
                + std::to_string(maxChunk) + " tokens need " + std::to_string(least));
    }
    int64_t const leastMemory
        = cache.rule == CacheRule::kMEMORY ? cache.memory + (maxChunk + cache.block - 1) / cache.block : 0;
    if (cache.memorySlots < leastMemory)
    {
        place.at("parameters")
            .at("memory_slots")
            .fail("is " + std::to_string(cache.memorySlots) + " where at least " + std::to_string(leastMemory)
                + " belongs");
    }
}

void checkFull(CacheInfo const& cache, std::optional<int64_t> maxContext, JsonReader const& place)
{
    if (!maxContext)
    {
        place.fail("has a full cache, and max_context is null");
    }
    if (cache.rule == CacheRule::kMEMORY)
    {
        place.fail("has a full cache, and rule memory needs a bounded one");
    }
    int64_t const least = slotsWanted(fedTokens(*maxContext, cache), cache);
    if (cache.capacity < least)
    {
        place.at("capacity")
            .fail("is " + std::to_string(cache.capacity) + ", and max_context " + std::to_string(*maxContext)
                + " needs " + std::to_string(least) + " slots");
    }
}

} // namespace

void checkCache(CacheInfo const& cache, Manifest const& manifest, JsonReader const& place)
{
    if (cache.rule == CacheRule::kLANDMARK && cache.landmarkToken)
    {
        if (cache.block < 2)
        {
            place.at("parameters").at("block").fail("is 1, and a landmark token ends every block");
        }
        if (*cache.landmarkToken >= manifest.model.vocab)
        {
            place.at("parameters")
                .at("token")
                .fail("is " + std::to_string(*cache.landmarkToken) + ", outside of the vocabulary of "
                    + std::to_string(manifest.model.vocab));
        }
    }
    if (cache.policy == CachePolicy::kBOUNDED)
    {
        checkBounded(cache, manifest.maxChunk, place);
    }
    else
    {
        checkFull(cache, manifest.maxContext, place);
    }
}

} // namespace ctx::runtime
