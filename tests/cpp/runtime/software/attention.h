// SinkWindowAttention as the package's function body computes it: write the new rows, then attend from the cache alone.
#pragma once

#include "rotation.h"
#include "weights.h"

namespace ctx::software
{

// One sequence's caches of one layer, [kvHeads, slots, headDim].
struct CacheView
{
    float* key{nullptr};
    float* value{nullptr};
    int64_t slots{0};
};

// y [rows, heads, headDim] of unrotated q [rows, heads, headDim], k and v [rows, kvHeads, headDim], which are the
// tokens seen, seen + 1, … A row whose slot the cache has not gives NaN.
void attend(runtime::CacheInfo const& cache, Config const& config, CacheView const& view, Rotation& rotation,
    int64_t seen, std::vector<float> const& q, std::vector<float> const& k, std::vector<float> const& v,
    std::vector<float>& y);

// Sum of products, in eight parts that a compiler may keep side by side.
float dot(float const* a, float const* b, int64_t count);

} // namespace ctx::software
