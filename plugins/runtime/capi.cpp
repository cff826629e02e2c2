// C interface of the runtime. No exception passes it.

#include "boundary.h"
#include "ctx_runtime/ctx_runtime.h"
#include "ctx_runtime/generate.h"

#include <algorithm>
#include <cstring>

using ctx::runtime::Failure;
using ctx::runtime::guarded;
using ctx::runtime::require;
using ctx::runtime::Status;
using ctx::runtime::StatusCode;
using ctx::runtime::valueOf;

struct CtxRuntimeSession
{
    std::unique_ptr<ctx::runtime::Session> session;
    ctx::runtime::CancelFlag cancel;
    ctx::runtime::Logits logits;
};

namespace
{

std::string& lastMessage()
{
    thread_local std::string text;
    return text;
}

// Runs a call; its status and message are what C sees.
template <typename Body>
CtxRuntimeStatus call(Body&& body) noexcept
{
    Status const status = guarded<Status>(
        [&body]
        {
            body();
            return Status{};
        });
    if (!status.ok())
    {
        try
        {
            lastMessage() = status.message();
        }
        catch (std::exception const&)
        {
            lastMessage().clear();
        }
    }
    return static_cast<CtxRuntimeStatus>(status.code());
}

[[noreturn]] void refuse(char const* message)
{
    throw Failure{StatusCode::kINVALID_ARGUMENT, message};
}

// A caller's struct, of which it may know only the first `size` bytes.
template <typename Struct>
Struct known(Struct const* given)
{
    if (given == nullptr || given->size < sizeof(uint64_t))
    {
        refuse("a struct is null or its size not set: set size to its sizeof");
    }
    Struct result{};
    std::memcpy(&result, given, std::min<size_t>(given->size, sizeof(Struct)));
    return result;
}

// Writes back what the caller's struct has room for.
template <typename Struct>
void give(Struct* target, Struct value)
{
    value.size = target->size;
    std::memcpy(target, &value, std::min<size_t>(target->size, sizeof(Struct)));
}

template <typename Session>
Session& opened(Session* session)
{
    if (session == nullptr)
    {
        refuse("the session is null: open a package");
    }
    return *session;
}

std::vector<int64_t> listOf(int64_t const* values, int64_t count)
{
    if (count < 0 || (count > 0 && values == nullptr))
    {
        refuse("a list of tokens is null or its count negative: give both");
    }
    return count == 0 ? std::vector<int64_t>{} : std::vector<int64_t>(values, values + count);
}

ctx::runtime::Sampling samplingOf(CtxRuntimeSampling const* given)
{
    ctx::runtime::Sampling sampling;
    if (given != nullptr)
    {
        CtxRuntimeSampling const values = known(given);
        sampling.temperature = values.temperature;
        sampling.topK = values.topK;
        sampling.topP = values.topP == 0 ? 1 : values.topP;
        if (values.hasSeed != 0)
        {
            sampling.seed = values.seed;
        }
    }
    return sampling;
}

ctx::runtime::Request requestOf(CtxRuntimeRequest const* given)
{
    CtxRuntimeRequest const values = known(given);
    ctx::runtime::Request request;
    request.row = values.row;
    request.prompt = listOf(values.prompt, values.promptCount);
    request.maxNewTokens = values.maxNewTokens;
    request.sampling = samplingOf(values.sampling);
    request.endTokens = listOf(values.endTokens, values.endTokenCount);
    request.modelEndTokens = values.withoutModelEnds == 0;
    request.plannedLength = values.plannedLength;
    return request;
}

ctx::runtime::Feed feedOf(CtxRuntimeFeed const* given, int64_t batch)
{
    CtxRuntimeFeed const values = known(given);
    if (values.tokens == nullptr || values.tokenCounts == nullptr)
    {
        refuse("the feed has no tokens or no counts: give both for every sequence");
    }
    ctx::runtime::Feed feed;
    for (int64_t row = 0; row < batch; ++row)
    {
        feed.tokens.push_back(listOf(values.tokens[row], values.tokenCounts[row]));
    }
    if (values.plannedLengths != nullptr)
    {
        feed.plannedLengths = listOf(values.plannedLengths, batch);
    }
    feed.logits = values.everyToken != 0 ? ctx::runtime::LogitsOf::kEVERY_TOKEN : ctx::runtime::LogitsOf::kLAST;
    return feed;
}

void giveGeneration(CtxRuntimeGeneration* target, ctx::runtime::Generation const& made)
{
    CtxRuntimeGeneration values = known(target);
    values.tokenCount = static_cast<int64_t>(made.tokens.size());
    values.finish = static_cast<int32_t>(made.finish);
    int64_t const copied = std::min(values.tokenCount, values.tokens == nullptr ? 0 : values.tokenRoom);
    std::copy_n(made.tokens.begin(), std::max<int64_t>(copied, 0), values.tokens);
    give(target, values);
}

} // namespace

char const* ctxRuntimeLastMessage(void)
{
    return lastMessage().c_str();
}

CtxRuntimeStatus ctxRuntimeOpen(char const* directory, CtxRuntimeOptions const* options, CtxRuntimeSession** session)
{
    return call(
        [&]
        {
            if (session == nullptr)
            {
                refuse("there is nowhere to put the session: give a pointer");
            }
            *session = nullptr;
            if (directory == nullptr)
            {
                refuse("the directory is null: name a package");
            }
            ctx::runtime::SessionOptions wanted;
            if (options != nullptr)
            {
                CtxRuntimeOptions const values = known(options);
                wanted.engine = values.engine == nullptr ? wanted.engine : values.engine;
                wanted.batch = values.batch == 0 ? wanted.batch : values.batch;
                wanted.chunk = values.chunk;
            }
            auto made = std::make_unique<CtxRuntimeSession>();
            made->session = valueOf(ctx::runtime::openSession(directory, wanted));
            *session = made.release();
        });
}

void ctxRuntimeClose(CtxRuntimeSession* session)
{
    delete session;
}

CtxRuntimeStatus ctxRuntimeDescribe(CtxRuntimeSession const* session, CtxRuntimeInfo* info)
{
    return call(
        [&]
        {
            ctx::runtime::Session const& own = *opened(session).session;
            CtxRuntimeInfo values = known(info);
            ctx::runtime::Contract const& contract = own.package().contract;
            values.batch = own.batch();
            values.vocab = contract.vocab;
            values.maxContext = contract.maxContext.value_or(-1);
            values.maxChunk = contract.maxChunk;
            values.capacity = own.capacity();
            values.cacheBytes = own.cacheBytes();
            give(info, values);
        });
}

CtxRuntimeStatus ctxRuntimeLength(CtxRuntimeSession const* session, int64_t row, int64_t* length)
{
    return call(
        [&]
        {
            if (length == nullptr)
            {
                refuse("there is nowhere to put the length: give a pointer");
            }
            *length = valueOf(opened(session).session->length(row));
        });
}

CtxRuntimeStatus ctxRuntimeFeed(
    CtxRuntimeSession* session, CtxRuntimeFeed const* feed, float* logits, uint64_t logitCount)
{
    return call(
        [&]
        {
            CtxRuntimeSession& own = opened(session);
            ctx::runtime::Feed wanted = feedOf(feed, own.session->batch());
            uint64_t rows = 1;
            for (auto const& tokens : wanted.tokens)
            {
                rows = std::max<uint64_t>(rows, tokens.size());
            }
            rows = wanted.logits == ctx::runtime::LogitsOf::kLAST ? 1 : rows;
            uint64_t const needed = own.session->batch() * rows * own.session->package().contract.vocab;
            if (logits == nullptr || logitCount < needed)
            {
                throw Failure{StatusCode::kINVALID_ARGUMENT,
                    "there is room for " + std::to_string(logits == nullptr ? 0 : logitCount)
                        + " logits: give room for " + std::to_string(needed)};
            }
            own.cancel.clear();
            wanted.cancel = &own.cancel;
            require(own.session->feed(wanted, own.logits));
            std::copy(own.logits.values.begin(), own.logits.values.end(), logits);
        });
}

CtxRuntimeStatus ctxRuntimeGenerate(CtxRuntimeSession* session, CtxRuntimeRequest const* const* requests,
    CtxRuntimeGeneration* const* generations, int64_t count, CtxRuntimeOnToken onToken, void* user)
{
    return call(
        [&]
        {
            CtxRuntimeSession& own = opened(session);
            if (count < 0 || (count > 0 && (requests == nullptr || generations == nullptr)))
            {
                refuse("requests or generations are null, or their count negative: give as many of both");
            }
            std::vector<ctx::runtime::Request> wanted;
            for (int64_t i = 0; i < count; ++i)
            {
                wanted.push_back(requestOf(requests[i]));
                known(generations[i]);
            }
            ctx::runtime::OnToken callback;
            if (onToken != nullptr)
            {
                callback = [onToken, user](ctx::runtime::GeneratedToken const& made)
                { return onToken(user, made.row, made.token, made.index) != 0; };
            }
            own.cancel.clear();
            auto const made = valueOf(ctx::runtime::generate(*own.session, wanted, callback, &own.cancel));
            for (int64_t i = 0; i < count; ++i)
            {
                giveGeneration(generations[i], made[i]);
            }
        });
}

void ctxRuntimeCancel(CtxRuntimeSession* session)
{
    if (session != nullptr)
    {
        session->cancel.cancel();
    }
}

CtxRuntimeStatus ctxRuntimeReset(CtxRuntimeSession* session, int64_t row)
{
    return call([&] { require(opened(session).session->reset(row)); });
}

CtxRuntimeStatus ctxRuntimeTruncate(CtxRuntimeSession* session, int64_t row, int64_t length)
{
    return call([&] { require(opened(session).session->truncate(row, length)); });
}

CtxRuntimeStatus ctxRuntimeFork(CtxRuntimeSession* session, int64_t row, int64_t target, int64_t* written)
{
    return call(
        [&]
        {
            auto const wanted = target < 0 ? std::optional<int64_t>{} : std::optional<int64_t>{target};
            int64_t const made = valueOf(opened(session).session->fork(row, wanted));
            if (written != nullptr)
            {
                *written = made;
            }
        });
}
