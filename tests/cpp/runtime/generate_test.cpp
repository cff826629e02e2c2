// Generation over the fake model. Oracle: its rule, applied by hand.

#include "check.h"
#include "ctx_runtime/generate.h"
#include "fake_engine.h"

#include <stdexcept>

namespace ctx::test
{

namespace
{

using runtime::Finish;
using runtime::GeneratedToken;
using runtime::Request;
using runtime::StatusCode;

using Tokens = std::vector<int64_t>;

Request request(Tokens prompt, int64_t maxNewTokens, int64_t row = 0)
{
    Request made;
    made.row = row;
    made.prompt = std::move(prompt);
    made.maxNewTokens = maxNewTokens;
    made.modelEndTokens = false;
    return made;
}

// 1 + 2 = 3, 3 + 3 = 6, 12 - 11 = 1, 2, 4, 8, 16 - 11 = 5, …
void tokensAreStreamedAsTheyAreMade()
{
    EngineRecord record;
    auto const session = fakeSession(record, manifestJson());
    Tokens streamed;
    auto const made = generate(*session, {request({1, 2}, 6)},
        [&](GeneratedToken const& token)
        {
            CHECK(token.row == 0 && token.index == static_cast<int64_t>(streamed.size()));
            CHECK(record.steps.size() == streamed.size() + 1);
            streamed.push_back(token.token);
            return true;
        });
    CHECK(made.ok() && (*made)[0].tokens == (Tokens{3, 6, 1, 2, 4, 8}) && (*made)[0].finish == Finish::kLENGTH);
    CHECK(streamed == (*made)[0].tokens);
    CHECK(*session->length(0) == 7); // the last one is not fed
}

void endTokensEndTheOutput()
{
    EngineRecord record;
    auto const session = fakeSession(record, manifestJson(), 2);
    Request own = request({1, 2}, 10);
    own.endTokens = {4};
    Request model = request({10}, 10, 1); // 10, 20 - 11 = 9, 7, 3, 6, …
    model.prompt = {1, 10};               // 11 - 11 = 0, the model's end
    model.modelEndTokens = true;
    auto const made = generate(*session, {own, model});
    CHECK(made.ok() && (*made)[0].tokens == (Tokens{3, 6, 1, 2}) && (*made)[0].finish == Finish::kEND);
    CHECK((*made)[1].tokens.empty() && (*made)[1].finish == Finish::kEND);
}

void requestsOfSeveralSequencesShareCalls()
{
    EngineRecord record;
    auto const session = fakeSession(record, manifestJson(), 3);
    auto const made = generate(*session, {request({1, 2}, 5, 2), request({4}, 2, 0)});
    CHECK(made.ok() && (*made)[0].tokens == (Tokens{3, 6, 1, 2, 4}) && (*made)[1].tokens == (Tokens{4, 8}));
    CHECK(record.steps.size() == 5);
    CHECK(record.steps[0].newTokens == (Tokens{1, 0, 2}) && record.steps[1].newTokens == (Tokens{1, 0, 1}));
    CHECK(record.steps[2].newTokens == (Tokens{0, 0, 1}));
    auto const more = generate(*session, {request({1}, 1, 2)}); // after 1 2 3 6 1 2
    CHECK(more.ok() && (*more)[0].tokens == Tokens{16 % kVOCAB});
}

void theMaximumContextEndsTheOutput()
{
    EngineRecord record;
    auto const session = fakeSession(record, manifestJson(), 2);
    auto const made = generate(*session, {request(Tokens(998, 1), 10), request({1}, 5, 1)});
    CHECK(made.ok() && (*made)[0].tokens.size() == 3 && (*made)[0].finish == Finish::kCONTEXT);
    CHECK(*session->length(0) == 1000 && (*made)[1].tokens.size() == 5);
    CHECK(isFailure(generate(*session, {request(Tokens(1000, 1), 1, 1)}).status(), StatusCode::kCONTEXT_LIMIT,
        "maximum context of 1000"));
}

void theCallbackEndsItsSequence()
{
    EngineRecord record;
    auto const session = fakeSession(record, manifestJson(), 2);
    auto const made = generate(*session, {request({1, 2}, 5), request({4}, 5, 1)},
        [](GeneratedToken const& token) { return token.row == 1 || token.index < 1; });
    CHECK(made.ok() && (*made)[0].tokens == (Tokens{3, 6}) && (*made)[0].finish == Finish::kSTOPPED);
    CHECK((*made)[1].tokens.size() == 5 && (*made)[1].finish == Finish::kLENGTH);
}

void cancellingEndsAllSequencesWithWhatTheyHave()
{
    EngineRecord record;
    auto const session = fakeSession(record, manifestJson(), 2);
    runtime::CancelFlag cancel;
    auto const made = generate(
        *session, {request({1, 2}, 50), request({4}, 50, 1)},
        [&](GeneratedToken const& token)
        {
            if (token.index == 2)
            {
                cancel.cancel();
            }
            return true;
        },
        &cancel);
    CHECK(made.ok() && (*made)[0].tokens == (Tokens{3, 6, 1}) && (*made)[0].finish == Finish::kCANCELLED);
    CHECK((*made)[1].tokens == (Tokens{4, 8, 5}) && (*made)[1].finish == Finish::kCANCELLED);
    auto const none = generate(*session, {request({1}, 5)}, {}, &cancel);
    CHECK(none.ok() && (*none)[0].tokens.empty() && *session->length(0) == 4);
}

void aCallbackThatThrowsIsAnError()
{
    EngineRecord record;
    auto const session = fakeSession(record, manifestJson());
    auto const made = generate(*session, {request({1, 2}, 5)},
        [](GeneratedToken const&) -> bool { throw std::runtime_error{"the screen is gone"}; });
    CHECK(isFailure(made.status(), StatusCode::kINTERNAL_ERROR, "the screen is gone"));
    auto const other = generate(*session, {request({1, 2}, 5)}, [](GeneratedToken const&) -> bool { throw 7; });
    CHECK(other.status().code() == StatusCode::kINTERNAL_ERROR);
}

void requestsThatMakeNoSenseAreRefused()
{
    EngineRecord record;
    auto const session = fakeSession(record, manifestJson(), 2);
    auto const refused = [&](std::vector<Request> const& requests, char const* part)
    { return isFailure(generate(*session, requests).status(), StatusCode::kINVALID_ARGUMENT, part); };
    CHECK(refused({request({}, 5)}, "has no tokens"));
    CHECK(refused({request({1}, 0)}, "max-new-tokens is 0"));
    CHECK(refused({request({1}, INT64_MAX)}, "max-new-tokens is"));
    CHECK(refused({request({1}, 5, 2)}, "rows 0 to 1"));
    CHECK(refused({request({1}, 5), request({2}, 5)}, "two requests"));
    Request cold = request({1}, 5);
    cold.sampling.temperature = -1;
    CHECK(refused({cold}, "temperature is -1"));
    CHECK(record.steps.empty());
    auto const none = generate(*session, {});
    CHECK(none.ok() && none->empty());
}

void aRequestHasOneRopeLength()
{
    nlohmann::json manifest = manifestJson();
    manifest["io"].push_back({{"name", "rope"}, {"dtype", "int64"}, {"shape", {"batch"}}, {"role", "rope_length"}});
    EngineRecord record;
    auto const session = fakeSession(record, manifest, 2);
    CHECK(generate(*session, {request({1, 2}, 3)}).ok());
    CHECK(record.steps.size() == 3 && record.steps[0].ropeLength == (Tokens{5, 1}));
    CHECK(record.steps[2].ropeLength == (Tokens{5, 1}));
    Request planned = request({1}, 2);
    planned.plannedLength = 70;
    CHECK(generate(*session, {planned}).ok() && record.steps.back().ropeLength == (Tokens{70, 1}));
    CHECK(generate(*session, {request({1}, 5000, 1)}, [](GeneratedToken const&) { return false; }).ok());
    CHECK(record.steps.back().ropeLength[1] == 1000);
    planned.plannedLength = 3;
    CHECK(isFailure(generate(*session, {planned}).status(), StatusCode::kINVALID_ARGUMENT, "planned length 3"));
}

} // namespace

Cases generateCases()
{
    return {
        {"tokens_are_streamed_as_they_are_made", tokensAreStreamedAsTheyAreMade},
        {"end_tokens_end_the_output", endTokensEndTheOutput},
        {"requests_of_several_sequences_share_calls", requestsOfSeveralSequencesShareCalls},
        {"the_maximum_context_ends_the_output", theMaximumContextEndsTheOutput},
        {"the_callback_ends_its_sequence", theCallbackEndsItsSequence},
        {"cancelling_ends_all_sequences_with_what_they_have", cancellingEndsAllSequencesWithWhatTheyHave},
        {"a_callback_that_throws_is_an_error", aCallbackThatThrowsIsAnError},
        {"requests_that_make_no_sense_are_refused", requestsThatMakeNoSenseAreRefused},
        {"a_request_has_one_rope_length", aRequestHasOneRopeLength},
    };
}

} // namespace ctx::test
