#include "trt/log.h"

#include <atomic>
#include <cstdio>

namespace ctx
{
namespace
{

std::atomic<nvinfer1::ILoggerFinder*>& loggerFinder() noexcept
{
    static std::atomic<nvinfer1::ILoggerFinder*> finder{nullptr};
    return finder;
}

} // namespace

void setLoggerFinder(nvinfer1::ILoggerFinder* finder) noexcept
{
    loggerFinder().store(finder);
}

void logError(char const* plugin, char const* where, char const* text) noexcept
{
    try
    {
        std::string const line = std::string{"ctx plugin "} + plugin + ", " + where + ": " + text;
        nvinfer1::ILoggerFinder* const finder = loggerFinder().load();
        if (nvinfer1::ILogger* const logger = finder == nullptr ? nullptr : finder->findLogger(); logger != nullptr)
        {
            logger->log(nvinfer1::ILogger::Severity::kERROR, line.c_str());
            return;
        }
        std::fprintf(stderr, "%s\n", line.c_str());
    }
    catch (...)
    {
        std::fprintf(stderr, "ctx plugin %s, %s: %s\n", plugin, where, text);
    }
}

} // namespace ctx
