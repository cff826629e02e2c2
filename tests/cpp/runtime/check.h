// Checks of the test program, and the cases that its files hold.
#pragma once

#include "ctx_runtime/result.h"

#include <cstdio>
#include <map>
#include <string>

namespace ctx::test
{

inline int gFailures = 0;

using Cases = std::map<std::string, void (*)()>;

Cases cacheCases();
Cases capiCases();
Cases generateCases();
Cases manifestCases();
Cases samplingCases();
Cases sessionCases();
Cases slotCases();

inline bool contains(std::string const& text, std::string const& part)
{
    return text.find(part) != std::string::npos;
}

// Whether a status has this code and its message this part; prints what it is otherwise.
inline bool isFailure(runtime::Status const& status, runtime::StatusCode code, std::string const& part)
{
    bool const matches = status.code() == code && contains(status.message(), part);
    if (!matches)
    {
        std::fprintf(stderr, "status %d: %s\n", static_cast<int>(status.code()), status.message().c_str());
    }
    return matches;
}

} // namespace ctx::test

#define CHECK(condition)                                                                                               \
    do                                                                                                                 \
    {                                                                                                                  \
        if (!(condition))                                                                                              \
        {                                                                                                              \
            std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                                       \
            ++ctx::test::gFailures;                                                                                    \
        }                                                                                                              \
    } while (false)
