// Choosing the next token from logits.
#ifndef CTX_RUNTIME_SAMPLING_H
#define CTX_RUNTIME_SAMPLING_H

#include "ctx_runtime/api.h"
#include "ctx_runtime/result.h"

#include <cstdint>
#include <optional>
#include <random>
#include <vector>

namespace ctx::runtime
{

// Temperature 0 takes the likeliest token. Otherwise logits / temperature are cut to the topK likeliest (0: all), then
// to the fewest whose probability reaches topP.
struct Sampling
{
    double temperature{0};
    int64_t topK{0};
    double topP{1};
    std::optional<uint64_t> seed; // none: one of the system's
};

CTX_RUNTIME_API Status checkSampling(Sampling const& sampling) noexcept;

struct Candidate
{
    int64_t token{0};
    double probability{0};
};

// What a token is drawn from, for `vocab` logits: likeliest first where topK or topP cut, ties to the lower id.
CTX_RUNTIME_API Result<std::vector<Candidate>> candidates(
    float const* logits, int64_t vocab, Sampling const& sampling) noexcept;

// Draws tokens; the same seed and logits give the same tokens on every machine. They are not those that another
// language's runtime draws with that seed.
class CTX_RUNTIME_API Sampler
{
public:
    static Result<Sampler> create(Sampling const& sampling) noexcept;

    // The next token for `vocab` logits; ties go to the lower id.
    Result<int64_t> choose(float const* logits, int64_t vocab) noexcept;

private:
    explicit Sampler(Sampling const& sampling, uint64_t seed);

    Sampling mSampling;
    std::mt19937_64 mRandom;
};

} // namespace ctx::runtime

#endif
