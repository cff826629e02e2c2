// Errors as values: every call of the runtime that can fail returns a Status or a Result. None throws.
#ifndef CTX_RUNTIME_RESULT_H
#define CTX_RUNTIME_RESULT_H

#include <string>
#include <utility>
#include <variant>

namespace ctx::runtime
{

enum class StatusCode
{
    kOK = 0,
    kINVALID_ARGUMENT = 1, // what the caller gave makes no sense; nothing has changed
    kINVALID_PACKAGE = 2,  // the package is missing, truncated, altered or of another version
    kCONTEXT_LIMIT = 3,    // more tokens than the package's maximum; nothing has changed
    kSEQUENCE_STATE = 4,   // the sequence or session cannot do this now
    kCANCELLED = 5,        // the caller's CancelFlag was set
    kOUT_OF_MEMORY = 6,
    kENGINE_FAILED = 7,
    kINTERNAL_ERROR = 8
};

// Whether a call succeeded; if not, what failed, the value got, and the fix.
class [[nodiscard]] Status
{
public:
    Status() = default;

    Status(StatusCode code, std::string message)
        : mCode(code)
        , mMessage(std::move(message))
    {
    }

    bool ok() const noexcept
    {
        return mCode == StatusCode::kOK;
    }

    StatusCode code() const noexcept
    {
        return mCode;
    }

    std::string const& message() const noexcept
    {
        return mMessage;
    }

private:
    StatusCode mCode{StatusCode::kOK};
    std::string mMessage;
};

// A value, or the Status that says why there is none. `*` and `->` need ok().
template <typename T>
class [[nodiscard]] Result
{
public:
    Result(T value)
        : mState(std::move(value))
    {
    }

    Result(Status status)
        : mState(std::move(status))
    {
    }

    Result(StatusCode code, std::string message)
        : mState(Status{code, std::move(message)})
    {
    }

    bool ok() const noexcept
    {
        return std::holds_alternative<T>(mState);
    }

    Status status() const
    {
        Status const* const failure = std::get_if<Status>(&mState);
        return failure == nullptr ? Status{} : *failure;
    }

    T& operator*() noexcept
    {
        return *std::get_if<T>(&mState);
    }

    T const& operator*() const noexcept
    {
        return *std::get_if<T>(&mState);
    }

    T* operator->() noexcept
    {
        return std::get_if<T>(&mState);
    }

    T const* operator->() const noexcept
    {
        return std::get_if<T>(&mState);
    }

private:
    std::variant<T, Status> mState;
};

} // namespace ctx::runtime

#endif
