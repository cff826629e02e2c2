// Generation over a session, several sequences at a time.
#ifndef CTX_RUNTIME_GENERATE_H
#define CTX_RUNTIME_GENERATE_H

#include "ctx_runtime/sampling.h"
#include "ctx_runtime/session.h"

#include <functional>

namespace ctx::runtime
{

struct Request
{
    int64_t row{0};              // sequence to append to
    std::vector<int64_t> prompt; // at least one token
    int64_t maxNewTokens{128};   // at least 1
    Sampling sampling;
    std::vector<int64_t> endTokens; // ids that end the output, not part of it
    bool modelEndTokens{true};      // those that the manifest names end it too
    // The rope length of length-dependent methods; 0: all tokens that there can be, within the package's maximum.
    int64_t plannedLength{0};
};

enum class Finish
{
    kLENGTH,   // maxNewTokens
    kEND,      // an end token
    kCONTEXT,  // the package's maximum context
    kSTOPPED,  // the callback said so
    kCANCELLED // the CancelFlag was set
};

struct GeneratedToken
{
    int64_t row{0};
    int64_t token{0};
    int64_t index{0}; // among the new tokens of its sequence
};

// Called for every token as it is made; false ends its sequence.
using OnToken = std::function<bool(GeneratedToken const&)>;

struct Generation
{
    std::vector<int64_t> tokens;
    Finish finish{Finish::kLENGTH};
};

// Appends to the sequences that the requests name, all in the same calls of the model; gives a generation for each
// request. The last token made is not fed: a sequence then has its prompt and all new tokens but that one.
CTX_RUNTIME_API Result<std::vector<Generation>> generate(Session& session, std::vector<Request> const& requests,
    OnToken const& onToken = {}, CancelFlag const* cancel = nullptr) noexcept;

} // namespace ctx::runtime

#endif
