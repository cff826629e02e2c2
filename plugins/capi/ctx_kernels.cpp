// C interface of the launchers. No exception passes it.

#include "ctx_plugins/ctx_kernels.h"

#include "kernels/launchers.h"

#include <algorithm>
#include <cstring>
#include <exception>

namespace
{

std::string& lastError()
{
    thread_local std::string text;
    return text;
}

CtxStatus fail(CtxStatus status, char const* text) noexcept
{
    try
    {
        lastError() = text;
    }
    catch (std::exception const&)
    {
        lastError().clear();
    }
    return status;
}

// Runs a launcher on its C struct, of which an older caller may know only the first `size` bytes.
template <typename Params, typename CParams>
CtxStatus call(CParams const* given, void* stream, ctx::LaunchResult (*launcher)(Params const&, cudaStream_t)) noexcept
{
    if (given == nullptr || given->size < sizeof(uint64_t))
    {
        return fail(CTX_STATUS_INVALID_ARGUMENT, "params is null or its size not set: set size to sizeof its struct");
    }
    try
    {
        CParams known{};
        std::memcpy(&known, given, std::min<size_t>(given->size, sizeof(CParams)));
        ctx::LaunchResult const result = launcher(Params{known}, static_cast<cudaStream_t>(stream));
        return result.isSuccess() ? CTX_STATUS_SUCCESS : fail(result.status, result.text.c_str());
    }
    catch (std::exception const& error)
    {
        return fail(CTX_STATUS_INTERNAL_ERROR, error.what());
    }
    catch (...)
    {
        return fail(CTX_STATUS_INTERNAL_ERROR, "an exception that is no std::exception");
    }
}

// What an attention asks for, by its C struct, of which an older caller may know less.
template <typename Params, typename CParams>
uint64_t workspaceOf(CParams const* given) noexcept
{
    if (given == nullptr || given->size < sizeof(uint64_t))
    {
        return 0;
    }
    CParams known{};
    std::memcpy(&known, given, std::min<size_t>(given->size, sizeof(known)));
    return ctx::workspaceBytes(Params{known});
}

} // namespace

CtxStatus ctxRotaryFrequencies(CtxRotaryFrequenciesParams const* params, void* stream)
{
    return call(params, stream, ctx::launchRotaryFrequencies);
}

CtxStatus ctxScaledRotaryEmbedding(CtxScaledRotaryEmbeddingParams const* params, void* stream)
{
    return call(params, stream, ctx::launchScaledRotaryEmbedding);
}

CtxStatus ctxSinkWindowAttention(CtxSinkWindowAttentionParams const* params, void* stream)
{
    return call(params, stream, ctx::launchSinkWindowAttention);
}

uint64_t ctxSinkWindowAttentionWorkspace(CtxSinkWindowAttentionParams const* params)
{
    return workspaceOf<ctx::SinkWindowAttentionParams>(params);
}

CtxStatus ctxSelfExtendAttention(CtxSelfExtendAttentionParams const* params, void* stream)
{
    return call(params, stream, ctx::launchSelfExtendAttention);
}

CtxStatus ctxDualChunkAttention(CtxDualChunkAttentionParams const* params, void* stream)
{
    return call(params, stream, ctx::launchDualChunkAttention);
}

CtxStatus ctxMemoryAttention(CtxMemoryAttentionParams const* params, void* stream)
{
    return call(params, stream, ctx::launchMemoryAttention);
}

uint64_t ctxSelfExtendAttentionWorkspace(CtxSelfExtendAttentionParams const* params)
{
    return workspaceOf<ctx::SelfExtendAttentionParams>(params);
}

uint64_t ctxDualChunkAttentionWorkspace(CtxDualChunkAttentionParams const* params)
{
    return workspaceOf<ctx::DualChunkAttentionParams>(params);
}

uint64_t ctxMemoryAttentionWorkspace(CtxMemoryAttentionParams const* params)
{
    return workspaceOf<ctx::MemoryAttentionParams>(params);
}

CtxStatus ctxLandmarkAttention(CtxLandmarkAttentionParams const* params, void* stream)
{
    return call(params, stream, ctx::launchLandmarkAttention);
}

uint64_t ctxLandmarkAttentionWorkspace(CtxLandmarkAttentionParams const* params)
{
    return workspaceOf<ctx::LandmarkAttentionParams>(params);
}

char const* ctxLastErrorMessage(void)
{
    return lastError().c_str();
}
