// Keeps exceptions inside the library.
#pragma once

#include "ctx_runtime/result.h"

#include <exception>
#include <new>

namespace ctx::runtime
{

// A failure inside the library, caught at its boundary.
class Failure : public std::exception
{
public:
    Failure(StatusCode code, std::string message)
        : mStatus(code, std::move(message))
    {
    }

    explicit Failure(Status status)
        : mStatus(std::move(status))
    {
    }

    char const* what() const noexcept override
    {
        return mStatus.message().c_str();
    }

    Status const& status() const noexcept
    {
        return mStatus;
    }

private:
    Status mStatus;
};

// What `body` returns, or what it threw as a status. A message that finds no memory is left out.
template <typename Returned, typename Body>
Returned guarded(Body&& body) noexcept
{
    try
    {
        return body();
    }
    catch (Failure const& failure)
    {
        return failure.status();
    }
    catch (std::bad_alloc const&)
    {
        return Status{StatusCode::kOUT_OF_MEMORY, "out of memory"}; // short enough to need none
    }
    catch (std::exception const& error)
    {
        try
        {
            return Status{StatusCode::kINTERNAL_ERROR, error.what()};
        }
        catch (std::exception const&)
        {
            return Status{StatusCode::kINTERNAL_ERROR, {}};
        }
    }
    catch (...)
    {
        return Status{StatusCode::kINTERNAL_ERROR, "unknown error"};
    }
}

// For code inside the boundary: a failed status ends the call.
inline void require(Status const& status)
{
    if (!status.ok())
    {
        throw Failure{status};
    }
}

template <typename T>
T valueOf(Result<T> result)
{
    require(result.status());
    return std::move(*result);
}

} // namespace ctx::runtime
