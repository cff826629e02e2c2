// Runs a package through the runtime with the software engine, one command a line, one answer a line.
//
// Usage: ctx_runtime_script PACKAGE CHECKPOINT BATCH CHUNK
//   feed PLAN ROW:ID,ID… …         the likeliest token after each sequence: ROW:ID …
//   generate COUNT PLAN ROW:ID,ID… …   COUNT greedy tokens of each sequence, end tokens ignored: ROW:ID,ID… …
//   truncate ROW LENGTH    fork ROW TARGET|-    reset ROW    lengths    capacity
//   candidates TEMPERATURE TOPK TOPP LOGIT,LOGIT,…: TOKEN:PROBABILITY …
// PLAN is a rope length or -. A failure answers "error CODE MESSAGE".

#include "ctx_runtime/generate.h"
#include "software/software_engine.h"

#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <sstream>

namespace
{

using ctx::runtime::Feed;
using ctx::runtime::Logits;
using ctx::runtime::Request;
using ctx::runtime::Result;
using ctx::runtime::Session;
using ctx::runtime::Status;

std::string told(Status const& status)
{
    return "error " + std::to_string(static_cast<int>(status.code())) + " " + status.message();
}

int64_t numberOf(std::string const& text)
{
    return std::strtoll(text.c_str(), nullptr, 10);
}

// "ROW:ID,ID" as a row and its ids.
std::pair<int64_t, std::vector<int64_t>> listOf(std::string const& text)
{
    size_t const colon = text.find(':');
    std::vector<int64_t> ids;
    std::istringstream rest{text.substr(colon + 1)};
    for (std::string id; std::getline(rest, id, ',');)
    {
        ids.push_back(numberOf(id));
    }
    return {numberOf(text.substr(0, colon)), ids};
}

std::string feedOnce(Session& session, std::istringstream& arguments)
{
    std::string plan;
    arguments >> plan;
    Feed feed;
    feed.tokens.resize(session.batch());
    if (plan != "-")
    {
        feed.plannedLengths = {numberOf(plan)};
    }
    std::vector<int64_t> rows;
    for (std::string text; arguments >> text;)
    {
        auto [row, ids] = listOf(text);
        feed.tokens.at(row) = ids;
        rows.push_back(row);
    }
    Logits logits;
    if (Status const status = session.feed(feed, logits); !status.ok())
    {
        return told(status);
    }
    std::string answer = "ok";
    for (int64_t const row : rows)
    {
        auto const best = ctx::runtime::candidates(logits.at(row), logits.vocab, {});
        if (!best.ok())
        {
            return told(best.status());
        }
        answer += " " + std::to_string(row) + ":" + std::to_string(best->front().token);
    }
    return answer;
}

std::string generateAll(Session& session, std::istringstream& arguments)
{
    std::string count;
    std::string plan;
    arguments >> count >> plan;
    std::vector<Request> requests;
    for (std::string text; arguments >> text;)
    {
        Request request;
        std::tie(request.row, request.prompt) = listOf(text);
        request.maxNewTokens = numberOf(count);
        request.modelEndTokens = false;
        request.plannedLength = plan == "-" ? 0 : numberOf(plan);
        requests.push_back(request);
    }
    auto const made = ctx::runtime::generate(session, requests);
    if (!made.ok())
    {
        return told(made.status());
    }
    std::string answer = "ok";
    for (size_t i = 0; i < requests.size(); ++i)
    {
        answer += " " + std::to_string(requests[i].row) + ":";
        for (int64_t const token : (*made)[i].tokens)
        {
            answer += std::to_string(token) + ",";
        }
        answer.pop_back();
    }
    return answer;
}

std::string candidatesOf(std::istringstream& arguments)
{
    std::string text;
    ctx::runtime::Sampling sampling;
    arguments >> sampling.temperature >> sampling.topK >> sampling.topP >> text;
    std::vector<float> logits;
    std::istringstream rest{text};
    for (std::string logit; std::getline(rest, logit, ',');)
    {
        logits.push_back(std::strtof(logit.c_str(), nullptr));
    }
    auto const made = ctx::runtime::candidates(logits.data(), static_cast<int64_t>(logits.size()), sampling);
    std::string answer = made.ok() ? "ok" : told(made.status());
    for (size_t i = 0; made.ok() && i < made->size(); ++i)
    {
        char text[64];
        std::snprintf(
            text, sizeof(text), " %lld:%.17g", static_cast<long long>((*made)[i].token), (*made)[i].probability);
        answer += text;
    }
    return answer;
}

std::string answerTo(Session& session, std::string const& line)
{
    std::istringstream arguments{line};
    std::string command;
    arguments >> command;
    if (command == "feed")
    {
        return feedOnce(session, arguments);
    }
    if (command == "generate")
    {
        return generateAll(session, arguments);
    }
    if (command == "candidates")
    {
        return candidatesOf(arguments);
    }
    std::string first;
    std::string second;
    arguments >> first >> second;
    if (command == "truncate")
    {
        Status const status = session.truncate(numberOf(first), numberOf(second));
        return status.ok() ? "ok" : told(status);
    }
    if (command == "reset")
    {
        Status const status = session.reset(numberOf(first));
        return status.ok() ? "ok" : told(status);
    }
    if (command == "fork")
    {
        auto const target = second == "-" ? std::nullopt : std::optional<int64_t>{numberOf(second)};
        Result<int64_t> const written = session.fork(numberOf(first), target);
        return written.ok() ? "ok " + std::to_string(*written) : told(written.status());
    }
    std::string answer = "ok";
    for (int64_t row = 0; command == "lengths" && row < session.batch(); ++row)
    {
        answer += " " + std::to_string(*session.length(row));
    }
    return command == "capacity" ? "ok " + std::to_string(session.capacity()) : answer;
}

} // namespace

int main(int argc, char** argv)
{
    if (argc != 5)
    {
        std::fprintf(stderr, "usage: ctx_runtime_script PACKAGE CHECKPOINT BATCH CHUNK\n");
        return 2;
    }
    Status const registered = ctx::runtime::registerEngine("software", ctx::software::softwareEngine(argv[2]));
    ctx::runtime::SessionOptions options;
    options.engine = "software";
    options.batch = numberOf(argv[3]);
    options.chunk = numberOf(argv[4]);
    auto opened = ctx::runtime::openSession(argv[1], options);
    if (!registered.ok() || !opened.ok())
    {
        std::printf("%s\n", told(opened.status()).c_str());
        return 1;
    }
    for (std::string line; std::getline(std::cin, line);)
    {
        std::printf("%s\n", answerTo(**opened, line).c_str());
    }
    return 0;
}
