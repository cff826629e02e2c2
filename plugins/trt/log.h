// Messages to TensorRT's logger, and the boundary no exception passes.
#pragma once

#include <exception>

namespace ctx
{

// The ILoggerFinder that TensorRT hands over when it loads the library; null: errors go to standard error.
void setLoggerFinder(void* finder) noexcept;

void logError(char const* plugin, char const* where, char const* text) noexcept;

// Runs one override of a plugin; an exception is logged and becomes `failure`.
template <typename Result, typename Body>
Result guarded(char const* plugin, char const* where, Result failure, Body&& body) noexcept
{
    try
    {
        return body();
    }
    catch (std::exception const& error)
    {
        logError(plugin, where, error.what());
    }
    catch (...)
    {
        logError(plugin, where, "an exception that is no std::exception");
    }
    return failure;
}

} // namespace ctx
