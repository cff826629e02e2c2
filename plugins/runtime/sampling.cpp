#include "ctx_runtime/sampling.h"

#include "boundary.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace ctx::runtime
{

namespace
{

constexpr int64_t kFIRST_SORTED = 64; // tokens; most cuts by topP keep fewer

// Index of the largest logit, the lowest of equal ones. Refuses what is no number, and +inf, whose weight is none.
int64_t likeliest(float const* logits, int64_t vocab)
{
    int64_t best = 0;
    for (int64_t token = 0; token < vocab; ++token)
    {
        if (std::isnan(logits[token]) || logits[token] == HUGE_VALF)
        {
            throw Failure{StatusCode::kENGINE_FAILED,
                "the logit of token " + std::to_string(token) + " is " + std::to_string(logits[token])
                    + ": the model computed no probabilities; validate the package with ctx-validate"};
        }
        best = logits[token] > logits[best] ? token : best;
    }
    return best;
}

// Sorts until `sorted` tokens are, likeliest first.
void sortFirst(std::vector<int64_t>& order, float const* logits, int64_t sorted)
{
    auto const isLikelier
        = [logits](int64_t a, int64_t b) { return logits[a] != logits[b] ? logits[a] > logits[b] : a < b; };
    auto const middle = order.begin() + std::min<int64_t>(sorted, static_cast<int64_t>(order.size()));
    std::partial_sort(order.begin(), middle, order.end(), isLikelier);
}

// Cuts `kept` to every token before which less than topP was reached, likeliest first.
void cutToTopP(std::vector<Candidate>& kept, float const* logits, double topP)
{
    auto const count = static_cast<int64_t>(kept.size());
    std::vector<float> values;
    for (Candidate const& candidate : kept)
    {
        values.push_back(logits[candidate.token]);
    }
    std::vector<int64_t> order(count); // places in `kept`, which are in order of the ids or sorted already
    std::iota(order.begin(), order.end(), 0);
    std::vector<Candidate> cut;
    double before = 0;
    for (int64_t i = 0, sorted = 0; i < count && (i == 0 || before < topP); ++i)
    {
        if (i == sorted)
        {
            sorted = std::min(count, std::max(kFIRST_SORTED, 4 * sorted));
            sortFirst(order, values.data(), sorted);
        }
        cut.push_back(kept[order[i]]);
        before += kept[order[i]].probability;
    }
    kept = std::move(cut);
}

void normalise(std::vector<Candidate>& kept)
{
    double total = 0;
    for (Candidate const& candidate : kept)
    {
        total += candidate.probability;
    }
    for (Candidate& candidate : kept)
    {
        candidate.probability /= total;
    }
}

std::vector<Candidate> candidatesOf(float const* logits, int64_t vocab, Sampling const& sampling)
{
    require(checkSampling(sampling));
    if (logits == nullptr || vocab < 1)
    {
        throw Failure{StatusCode::kINVALID_ARGUMENT, "there are no logits to choose from"};
    }
    int64_t const best = likeliest(logits, vocab);
    if (sampling.temperature == 0)
    {
        return {{best, 1.0}};
    }
    std::vector<int64_t> order(vocab);
    std::iota(order.begin(), order.end(), 0);
    if (sampling.topK > 0 && sampling.topK < vocab)
    {
        sortFirst(order, logits, sampling.topK);
        order.resize(sampling.topK);
    }
    std::vector<Candidate> kept;
    kept.reserve(order.size());
    double const top = static_cast<double>(logits[best]) / sampling.temperature;
    for (int64_t const token : order)
    {
        // -inf - -inf is no number: without any other token all are alike.
        double const weight = logits[token] == logits[best]
            ? 1.0
            : std::exp(static_cast<double>(logits[token]) / sampling.temperature - top);
        kept.push_back({token, weight});
    }
    normalise(kept);
    if (sampling.topP < 1)
    {
        cutToTopP(kept, logits, sampling.topP);
        normalise(kept);
    }
    return kept;
}

} // namespace

Status checkSampling(Sampling const& sampling) noexcept
{
    return guarded<Status>(
        [&]() -> Status
        {
            if (!(sampling.temperature >= 0) || !std::isfinite(sampling.temperature))
            {
                return {StatusCode::kINVALID_ARGUMENT,
                    "temperature is " + std::to_string(sampling.temperature) + ": give 0 (greedy) or more"};
            }
            if (sampling.topK < 0)
            {
                return {StatusCode::kINVALID_ARGUMENT,
                    "top-k is " + std::to_string(sampling.topK) + ": give a number of tokens, or 0 for all"};
            }
            if (!(sampling.topP > 0 && sampling.topP <= 1))
            {
                return {StatusCode::kINVALID_ARGUMENT,
                    "top-p is " + std::to_string(sampling.topP) + ": give a probability above 0, up to 1"};
            }
            return {};
        });
}

Result<std::vector<Candidate>> candidates(float const* logits, int64_t vocab, Sampling const& sampling) noexcept
{
    return guarded<Result<std::vector<Candidate>>>([&] { return candidatesOf(logits, vocab, sampling); });
}

Sampler::Sampler(Sampling const& sampling, uint64_t seed)
    : mSampling(sampling)
    , mRandom(seed)
{
}

Result<Sampler> Sampler::create(Sampling const& sampling) noexcept
{
    return guarded<Result<Sampler>>(
        [&]() -> Result<Sampler>
        {
            require(checkSampling(sampling));
            if (sampling.seed)
            {
                return Sampler{sampling, *sampling.seed};
            }
            std::random_device device;
            return Sampler{sampling, static_cast<uint64_t>(device()) << 32 | device()};
        });
}

Result<int64_t> Sampler::choose(float const* logits, int64_t vocab) noexcept
{
    return guarded<Result<int64_t>>(
        [&]
        {
            std::vector<Candidate> const kept = candidatesOf(logits, vocab, mSampling);
            if (kept.size() == 1)
            {
                return kept.front().token;
            }
            // 53 random bits, where a standard distribution would draw differently in every library.
            double rest = static_cast<double>(mRandom() >> 11) * 0x1p-53;
            for (Candidate const& candidate : kept)
            {
                rest -= candidate.probability;
                if (rest < 0)
                {
                    return candidate.token;
                }
            }
            // What rounding left over belongs to the last token that can be drawn.
            auto const last = std::find_if(
                kept.rbegin(), kept.rend(), [](Candidate const& candidate) { return candidate.probability > 0; });
            return last->token;
        });
}

} // namespace ctx::runtime
