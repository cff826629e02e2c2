// Where the tokens of a sequence lie in a layer's cache, and how much of it they use.
#pragma once

#include "ctx_runtime/manifest.h"

#include <algorithm>

namespace ctx::runtime
{

// Tokens that the model is fed for the first `text` tokens of a text: with landmark tokens one more after every
// block - 1.
inline int64_t fedTokens(int64_t text, CacheInfo const& cache)
{
    return cache.landmarkToken ? text + std::max<int64_t>(text - cache.sinks, 0) / (cache.block - 1) : text;
}

// The inverse of `fedTokens`.
inline int64_t textTokens(int64_t fed, CacheInfo const& cache)
{
    return cache.landmarkToken ? fed - std::max<int64_t>(fed - cache.sinks, 0) / cache.block : fed;
}

// Slots before the ring of a bounded cache.
inline int64_t fixedSlots(CacheInfo const& cache)
{
    return cache.sinks + cache.memorySlots;
}

// Tokens after the sinks that a bounded cache holds.
inline int64_t ringSize(CacheInfo const& cache)
{
    return cache.capacity - fixedSlots(cache);
}

// Slot of token `token`, counted in tokens that the model was fed.
int64_t slotOf(int64_t token, CacheInfo const& cache);

// Leading slots that a sequence of `tokens` tokens would need with no end to the cache.
int64_t slotsWanted(int64_t tokens, CacheInfo const& cache);

// Leading slots that a sequence of `tokens` tokens may have written.
int64_t slotsInUse(int64_t tokens, CacheInfo const& cache);

// Scores that a head of one row has at once, where a sequence has `tokens` tokens.
int64_t scoresOfRow(int64_t tokens, CacheInfo const& cache);

// The shortest length besides 0 that a bounded cache, once it has had `peak` tokens, still serves: it has all that the
// next token sees and what its blocks are averaged from.
int64_t shortestLength(int64_t peak, CacheInfo const& cache);

} // namespace ctx::runtime
