#include "attention.h"

#include <algorithm>
#include <limits>

namespace ctx::software
{

namespace
{

int64_t slotOf(int64_t token, runtime::CacheInfo const& cache, int64_t slots)
{
    bool const isRing = cache.policy == runtime::CachePolicy::kBOUNDED && token >= cache.sinks;
    return isRing ? cache.sinks + (token - cache.sinks) % (slots - cache.sinks) : token;
}

// Tokens that the query at `position` sees: below `sinks`, and from `first` on.
struct Visible
{
    int64_t sinks;
    int64_t first;
};

Visible visibleFrom(int64_t position, runtime::CacheInfo const& cache)
{
    if (cache.window == 0)
    {
        return {0, 0};
    }
    int64_t const sinks = std::min(cache.sinks, position + 1);
    return {sinks, std::max(sinks, position - cache.window + 1)};
}

struct Scored
{
    std::vector<float> weights;
    std::vector<int64_t> slots;
};

void softmax(std::vector<float>& scores)
{
    float const top = *std::max_element(scores.begin(), scores.end());
    float total = 0;
    for (float& score : scores)
    {
        score = std::exp(score - top);
        total += score;
    }
    for (float& score : scores)
    {
        score /= total;
    }
}

} // namespace

float dot(float const* a, float const* b, int64_t count)
{
    float parts[8]{};
    int64_t i = 0;
    for (; i + 8 <= count; i += 8)
    {
        for (int64_t part = 0; part < 8; ++part)
        {
            parts[part] += a[i + part] * b[i + part];
        }
    }
    float sum = 0;
    for (float const part : parts)
    {
        sum += part;
    }
    for (; i < count; ++i)
    {
        sum += a[i] * b[i];
    }
    return sum;
}

void attend(runtime::CacheInfo const& cache, Config const& config, CacheView const& view, Rotation& rotation,
    int64_t seen, std::vector<float> const& q, std::vector<float> const& k, std::vector<float> const& v,
    std::vector<float>& y)
{
    int64_t const dim = config.headDim;
    auto const rows = static_cast<int64_t>(q.size()) / (config.heads * dim);
    for (int64_t row = 0; row < rows; ++row)
    {
        int64_t const slot = slotOf(seen + row, cache, view.slots);
        for (int64_t head = 0; head < config.kvHeads && slot < view.slots; ++head)
        {
            float const* const key = k.data() + (row * config.kvHeads + head) * dim;
            float* const place = view.key + (head * view.slots + slot) * dim;
            cache.keysRotated ? rotation.rotate(key, place, dim, seen + row)
                              : static_cast<void>(std::copy_n(key, dim, place));
            std::copy_n(
                v.data() + (row * config.kvHeads + head) * dim, dim, view.value + (head * view.slots + slot) * dim);
        }
    }
    float const scale = 1 / std::sqrt(static_cast<float>(dim));
    std::vector<float> query(dim);
    std::vector<float> sinkQuery(dim);
    std::vector<float> turned(dim);
    y.assign(q.size(), 0.0F);
    for (int64_t row = 0; row < rows; ++row)
    {
        int64_t const position = seen + row;
        Visible const visible = visibleFrom(position, cache);
        for (int64_t head = 0; head < config.heads; ++head)
        {
            float* const out = y.data() + (row * config.heads + head) * dim;
            if (slotOf(position, cache, view.slots) >= view.slots)
            {
                std::fill_n(out, dim, std::numeric_limits<float>::quiet_NaN());
                continue;
            }
            float const* const given = q.data() + (row * config.heads + head) * dim;
            rotation.rotate(given, query.data(), dim, position);
            rotation.rotate(given, sinkQuery.data(), dim, std::min(position, cache.sinkPosition.value_or(position)));
            int64_t const plane = head / (config.heads / config.kvHeads) * view.slots;
            Scored scored;
            auto const score = [&](int64_t token)
            {
                int64_t const slot = slotOf(token, cache, view.slots);
                float const* key = view.key + (plane + slot) * dim;
                if (!cache.keysRotated)
                {
                    rotation.rotate(key, turned.data(), dim, token);
                    key = turned.data();
                }
                scored.weights.push_back(dot((token < cache.sinks ? sinkQuery : query).data(), key, dim) * scale);
                scored.slots.push_back(slot);
            };
            for (int64_t token = 0; token < visible.sinks; ++token)
            {
                score(token);
            }
            for (int64_t token = visible.first; token <= position; ++token)
            {
                score(token);
            }
            softmax(scored.weights);
            for (size_t i = 0; i < scored.slots.size(); ++i)
            {
                float const* const value = view.value + (plane + scored.slots[i]) * dim;
                for (int64_t d = 0; d < dim; ++d)
                {
                    out[d] += scored.weights[i] * value[d];
                }
            }
        }
    }
}

} // namespace ctx::software
