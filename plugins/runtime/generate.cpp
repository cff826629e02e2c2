#include "ctx_runtime/generate.h"

#include "boundary.h"

#include <algorithm>

namespace ctx::runtime
{

namespace
{

constexpr int64_t kMOST_TOKENS = int64_t{1} << 48;

// A request on its way.
struct Running
{
    Request const* request;
    Sampler sampler;
    std::vector<int64_t> ends;
    bool isDone{false};
};

void checkRequest(Request const& request, Session const& session)
{
    if (request.prompt.empty())
    {
        throw Failure{StatusCode::kINVALID_ARGUMENT,
            "the prompt of sequence " + std::to_string(request.row) + " has no tokens: give at least one"};
    }
    if (request.maxNewTokens < 1 || request.maxNewTokens > kMOST_TOKENS)
    {
        throw Failure{StatusCode::kINVALID_ARGUMENT,
            "max-new-tokens is " + std::to_string(request.maxNewTokens) + ": give 1 to "
                + std::to_string(kMOST_TOKENS)};
    }
    require(session.length(request.row).status());
}

std::vector<Running> started(Session const& session, std::vector<Request> const& requests)
{
    std::vector<Running> running;
    for (Request const& request : requests)
    {
        checkRequest(request, session);
        for (Running const& other : running)
        {
            if (other.request->row == request.row)
            {
                throw Failure{StatusCode::kINVALID_ARGUMENT,
                    "sequence " + std::to_string(request.row) + " has two requests: give each a row of its own"};
            }
        }
        std::vector<int64_t> ends = request.endTokens;
        if (request.modelEndTokens)
        {
            auto const& own = session.package().manifest.model.endTokens;
            ends.insert(ends.end(), own.begin(), own.end());
        }
        running.push_back({&request, valueOf(Sampler::create(request.sampling)), std::move(ends)});
    }
    return running;
}

// One rope length for each whole request, where the package takes one.
std::vector<int64_t> plannedLengths(Session const& session, std::vector<Request> const& requests)
{
    Contract const& contract = session.package().contract;
    std::vector<int64_t> planned;
    for (int64_t row = 0; contract.ropeLength && row < session.batch(); ++row)
    {
        planned.push_back(valueOf(session.length(row)));
    }
    for (Request const& request : requests)
    {
        if (contract.ropeLength)
        {
            int64_t const most
                = planned[request.row] + static_cast<int64_t>(request.prompt.size()) + request.maxNewTokens;
            int64_t const wanted = request.plannedLength > 0 ? request.plannedLength : most;
            planned[request.row] = std::min(wanted, contract.maxContext.value_or(wanted));
        }
    }
    return planned;
}

// Takes one token of a request; gives whether it goes on.
bool takeToken(Running& running, Generation& generation, float const* logits, int64_t vocab, OnToken const& onToken)
{
    int64_t const token = valueOf(running.sampler.choose(logits, vocab));
    if (std::find(running.ends.begin(), running.ends.end(), token) != running.ends.end())
    {
        generation.finish = Finish::kEND;
        return false;
    }
    auto const index = static_cast<int64_t>(generation.tokens.size());
    generation.tokens.push_back(token);
    if (onToken && !onToken({running.request->row, token, index}))
    {
        generation.finish = Finish::kSTOPPED;
        return false;
    }
    return index + 1 < running.request->maxNewTokens;
}

void generateAll(Session& session, std::vector<Running>& running, Feed feed, OnToken const& onToken,
    std::vector<Generation>& generations)
{
    std::optional<int64_t> const maximum = session.package().contract.maxContext;
    Logits logits;
    while (std::any_of(running.begin(), running.end(), [](Running const& one) { return !one.isDone; }))
    {
        Status const fed = session.feed(feed, logits);
        bool const isCancelled = fed.code() == StatusCode::kCANCELLED;
        if (!isCancelled)
        {
            require(fed);
        }
        for (size_t i = 0; i < running.size(); ++i)
        {
            Running& one = running[i];
            std::vector<int64_t>& next = feed.tokens[one.request->row];
            next.clear();
            if (one.isDone)
            {
                continue;
            }
            if (isCancelled)
            {
                generations[i].finish = Finish::kCANCELLED;
                one.isDone = true;
                continue;
            }
            one.isDone = !takeToken(one, generations[i], logits.at(one.request->row), logits.vocab, onToken);
            if (!one.isDone && maximum && valueOf(session.length(one.request->row)) >= *maximum)
            {
                generations[i].finish = Finish::kCONTEXT;
                one.isDone = true;
            }
            if (!one.isDone)
            {
                next.push_back(generations[i].tokens.back());
            }
        }
    }
}

} // namespace

Result<std::vector<Generation>> generate(
    Session& session, std::vector<Request> const& requests, OnToken const& onToken, CancelFlag const* cancel) noexcept
{
    return guarded<Result<std::vector<Generation>>>(
        [&]
        {
            std::vector<Running> running = started(session, requests);
            Feed feed;
            feed.tokens.resize(session.batch());
            feed.cancel = cancel;
            feed.plannedLengths = plannedLengths(session, requests);
            for (Request const& request : requests)
            {
                feed.tokens[request.row] = request.prompt;
            }
            std::vector<Generation> generations(requests.size());
            generateAll(session, running, std::move(feed), onToken, generations);
            return generations;
        });
}

} // namespace ctx::runtime
