#include "slots.h"

namespace ctx::runtime
{

int64_t slotOf(int64_t token, CacheInfo const& cache)
{
    int64_t const after = token - cache.sinks;
    if (after < 0)
    {
        return token;
    }
    if (cache.rule == CacheRule::kLANDMARK && !cache.landmarkToken)
    {
        return cache.sinks + after + after / cache.block; // a mean follows every block
    }
    return cache.policy == CachePolicy::kBOUNDED ? fixedSlots(cache) + after % ringSize(cache) : token;
}

int64_t slotsWanted(int64_t tokens, CacheInfo const& cache)
{
    int64_t const after = tokens - cache.sinks;
    if (cache.rule == CacheRule::kLANDMARK && !cache.landmarkToken && after > 0)
    {
        return cache.sinks + (after + cache.block - 1) / cache.block * (cache.block + 1);
    }
    return cache.rule == CacheRule::kMEMORY && after > 0 ? tokens + cache.memorySlots : tokens;
}

int64_t slotsInUse(int64_t tokens, CacheInfo const& cache)
{
    return std::min(slotsWanted(tokens, cache), cache.capacity);
}

int64_t scoresOfRow(int64_t tokens, CacheInfo const& cache)
{
    int64_t const slots = slotsInUse(tokens, cache);
    switch (cache.rule)
    {
    case CacheRule::kPLAIN: return slots;
    case CacheRule::kSELF_EXTEND: return 2 * slots;
    case CacheRule::kDUAL_CHUNK:
    case CacheRule::kMEMORY: return 3 * slots;
    case CacheRule::kLANDMARK:
        return std::min(slots, tokens / cache.block + cache.sinks + (cache.topk + 1) * cache.block + cache.window);
    }
    return slots;
}

int64_t shortestLength(int64_t peak, CacheInfo const& cache)
{
    int64_t const overwritten = peak - 1 - ringSize(cache); // newest token whose slot was taken
    if (overwritten < cache.sinks)
    {
        return 0;
    }
    if (cache.rule != CacheRule::kMEMORY)
    {
        return overwritten + cache.window; // the next token, at position n, sees the tokens after n - window
    }
    int64_t const behind = cache.sinks + cache.window;
    // Of n tokens, max(0, n - behind) / block blocks are averages; the others are tokens still.
    int64_t const byRing = (overwritten - cache.sinks + cache.block) / cache.block;
    int64_t const byMemory = std::max<int64_t>(peak - behind, 0) / cache.block - (cache.memorySlots - cache.memory);
    return std::max(behind + byRing * cache.block, behind - 1 + byMemory * cache.block);
}

} // namespace ctx::runtime
