// Choosing tokens. Oracle: probabilities by hand.

#include "check.h"
#include "ctx_runtime/sampling.h"

#include <cmath>
#include <vector>

namespace ctx::test
{

namespace
{

using runtime::Candidate;
using runtime::Sampler;
using runtime::Sampling;
using runtime::StatusCode;

Sampling sampling(double temperature, int64_t topK = 0, double topP = 1, uint64_t seed = 1)
{
    Sampling made;
    made.temperature = temperature;
    made.topK = topK;
    made.topP = topP;
    made.seed = seed;
    return made;
}

// Probabilities 1/2, 1/8, 1/4, 1/8.
std::vector<float> const& logits()
{
    static std::vector<float> const values{std::log(4.0F), 0.0F, std::log(2.0F), 0.0F};
    return values;
}

std::vector<Candidate> kept(Sampling const& wanted)
{
    auto const made = runtime::candidates(logits().data(), 4, wanted);
    CHECK(made.ok());
    return made.ok() ? *made : std::vector<Candidate>{};
}

bool holds(std::vector<Candidate> const& candidates, std::vector<Candidate> const& expected)
{
    bool same = candidates.size() == expected.size();
    for (size_t i = 0; same && i < expected.size(); ++i)
    {
        same = candidates[i].token == expected[i].token
            && std::abs(candidates[i].probability - expected[i].probability) < 1e-7;
    }
    return same;
}

void temperatureZeroTakesTheLikeliest()
{
    CHECK(holds(kept(sampling(0)), {{0, 1}}));
    float const ties[] = {1, 3, 3, 3};
    auto sampler = Sampler::create(sampling(0));
    CHECK(sampler.ok() && *sampler->choose(ties, 4) == 1);
}

void topKAndTopPKeepTheLikeliest()
{
    CHECK(holds(kept(sampling(1)), {{0, 0.5}, {1, 0.125}, {2, 0.25}, {3, 0.125}}));
    CHECK(holds(kept(sampling(1, 2)), {{0, 2.0 / 3}, {2, 1.0 / 3}}));
    CHECK(holds(kept(sampling(1, 3)), {{0, 4.0 / 7}, {2, 2.0 / 7}, {1, 1.0 / 7}})); // of equal ones the lower id
    CHECK(holds(kept(sampling(1, 9)), kept(sampling(1))));
    CHECK(holds(kept(sampling(1, 0, 0.4)), {{0, 1}}));
    CHECK(holds(kept(sampling(1, 0, 0.74)), {{0, 2.0 / 3}, {2, 1.0 / 3}}));
    CHECK(holds(kept(sampling(1, 0, 0.8)), {{0, 4.0 / 7}, {2, 2.0 / 7}, {1, 1.0 / 7}}));
    CHECK(holds(kept(sampling(1, 2, 0.6)), {{0, 1}})); // topP is of what topK left
    CHECK(holds(kept(sampling(0.5, 2)), {{0, 0.8}, {2, 0.2}}));
}

void manyTokensAreCutAsFewAre()
{
    std::vector<float> many;
    for (int token = 0; token < 1000; ++token)
    {
        many.push_back(static_cast<float>(token * 37 % 1000) / 1000);
    }
    auto const half = runtime::candidates(many.data(), 1000, sampling(1, 0, 0.5));
    CHECK(half.ok() && half->size() > 300 && half->size() < 500);
    for (size_t i = 1; i < half->size(); ++i)
    {
        CHECK(many[(*half)[i - 1].token] > many[(*half)[i].token]);
    }
}

// 20,000 draws: five standard deviations of a share are below 0.018.
void tokensComeAsOftenAsTheirProbability()
{
    auto sampler = Sampler::create(sampling(1, 0, 1, 7));
    CHECK(sampler.ok());
    std::vector<int> counts(4);
    for (int draw = 0; draw < 20000; ++draw)
    {
        ++counts[*sampler->choose(logits().data(), 4)];
    }
    double const expected[] = {0.5, 0.125, 0.25, 0.125};
    for (int token = 0; token < 4; ++token)
    {
        CHECK(std::abs(counts[token] / 20000.0 - expected[token]) < 0.018);
    }
}

void aSeedRepeatsItsTokens()
{
    auto first = Sampler::create(sampling(1, 0, 1, 5));
    auto same = Sampler::create(sampling(1, 0, 1, 5));
    auto other = Sampler::create(sampling(1, 0, 1, 6));
    int differing = 0;
    for (int draw = 0; draw < 100; ++draw)
    {
        int64_t const token = *first->choose(logits().data(), 4);
        CHECK(token == *same->choose(logits().data(), 4));
        differing += token == *other->choose(logits().data(), 4) ? 0 : 1;
    }
    CHECK(differing > 20);
    Sampling unseeded = sampling(1);
    unseeded.seed.reset();
    CHECK(Sampler::create(unseeded).ok());
}

void settingsThatMakeNoSenseAreRefused()
{
    auto const refused = [](Sampling const& wanted, char const* part)
    {
        return isFailure(Sampler::create(wanted).status(), StatusCode::kINVALID_ARGUMENT, part)
            && isFailure(runtime::candidates(logits().data(), 4, wanted).status(), StatusCode::kINVALID_ARGUMENT, part);
    };
    CHECK(refused(sampling(-1), "temperature is -1"));
    CHECK(refused(sampling(NAN), "temperature is"));
    CHECK(refused(sampling(HUGE_VAL), "temperature is inf"));
    CHECK(refused(sampling(1, -1), "top-k is -1"));
    CHECK(refused(sampling(1, 0, 0), "top-p is 0"));
    CHECK(refused(sampling(1, 0, 1.5), "top-p is 1.5"));
    CHECK(refused(sampling(1, 0, NAN), "top-p is"));
    CHECK(!runtime::candidates(nullptr, 4, sampling(1)).ok() && !runtime::candidates(logits().data(), 0, {}).ok());
}

void logitsThatAreNoNumbersAreRefused()
{
    float const broken[] = {0, NAN, 1};
    float const huge[] = {0, HUGE_VALF, 1};
    CHECK(isFailure(
        runtime::candidates(broken, 3, sampling(0)).status(), StatusCode::kENGINE_FAILED, "the logit of token 1"));
    CHECK(isFailure(
        runtime::candidates(huge, 3, sampling(1)).status(), StatusCode::kENGINE_FAILED, "the logit of token 1"));
    float const masked[] = {-HUGE_VALF, 0, -HUGE_VALF};
    auto const made = runtime::candidates(masked, 3, sampling(1));
    CHECK(made.ok() && holds(*made, {{0, 0}, {1, 1}, {2, 0}}));
    auto sampler = Sampler::create(sampling(1));
    CHECK(*sampler->choose(masked, 3) == 1);
}

} // namespace

Cases samplingCases()
{
    return {
        {"temperature_zero_takes_the_likeliest", temperatureZeroTakesTheLikeliest},
        {"top_k_and_top_p_keep_the_likeliest", topKAndTopPKeepTheLikeliest},
        {"many_tokens_are_cut_as_few_are", manyTokensAreCutAsFewAre},
        {"tokens_come_as_often_as_their_probability", tokensComeAsOftenAsTheirProbability},
        {"a_seed_repeats_its_tokens", aSeedRepeatsItsTokens},
        {"settings_that_make_no_sense_are_refused", settingsThatMakeNoSenseAreRefused},
        {"logits_that_are_no_numbers_are_refused", logitsThatAreNoNumbersAreRefused},
    };
}

} // namespace ctx::test
