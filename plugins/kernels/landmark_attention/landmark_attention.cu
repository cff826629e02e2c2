// LandmarkAttention's launcher: copy past where present is other memory, write, then section by section score the
// blocks, choose, attend. How many sections there are follows from sizes alone.

#include "kernels/common/element.cuh"
#include "kernels/landmark_attention/landmark_attention_launch.h"

namespace ctx
{
namespace
{

// Of a workspace for sections: one of 512 tokens where 32 heads choose among 2048 blocks.
constexpr int64_t kSECTION_BYTES = 128 << 20;

// A call without its section.
LandmarkCall callOf(LandmarkAttentionParams const& params)
{
    LandmarkCall call{};
    call.layout = LandmarkLayout::of(params);
    call.slots = params.call.capacity;
    call.groups = static_cast<uint32_t>(params.call.queryHeads / params.call.kvHeads);
    call.isShared = params.shared != 0;
    SinkWindowAttentionParams common = commonParams(params.call).withStrides();
    LandmarkLayout const& layout = call.layout;
    common.capacity = layout.tokens;
    common.sinks = layout.sinks;
    // Of a tile's rows each may choose other blocks, with a shared choice each token.
    int64_t const choices = smaller(kLANDMARK_ROWS, params.call.rows * (call.isShared ? 1 : call.groups));
    int64_t const chosen = smaller(layout.blocks, layout.topk * choices);
    common.window = smaller(kMAX_SIZE, chosen * layout.block) + smaller(kMAX_SIZE, params.window) + layout.block;
    call.common = common;
    return call;
}

int64_t sectionBytes(LandmarkCall const& call, int64_t tokens)
{
    return call.heads() * SectionSizes::of(call.layout, call.groups, call.isShared, tokens).bytes();
}

uint64_t splitBytes(LandmarkCall const& call)
{
    return workspaceBytes(SinkWindowAttentionParams{call.common});
}

// Tokens of a section that a workspace holds. A section of t tokens takes no more than t of one.
int64_t sectionTokens(LandmarkCall const& call, int64_t bytes)
{
    return smaller(call.common.rows, bytes / larger(1, sectionBytes(call, 1)));
}

// The section's part of the workspace, and for splits what is left of it.
void placeSection(LandmarkCall& call, int64_t firstToken, int64_t tokens, void* workspace, int64_t bytes)
{
    call.firstToken = static_cast<uint32_t>(firstToken);
    call.tokens = static_cast<uint32_t>(tokens);
    call.sizes = SectionSizes::of(call.layout, call.groups, call.isShared, tokens);
    int64_t const heads = call.heads();
    call.scores = static_cast<float*>(workspace);
    call.biases = call.scores + heads * call.sizes.scores();
    call.entries = reinterpret_cast<ChosenBlock*>(call.biases + heads * call.sizes.biases());
    call.listSizes = reinterpret_cast<ListSize*>(call.entries + heads * call.sizes.entries);
    int64_t const taken = smaller(bytes, (sectionBytes(call, tokens) + 15) / 16 * 16);
    call.common.workspace = static_cast<unsigned char*>(workspace) + taken;
    call.common.workspaceBytes = static_cast<uint64_t>(bytes - taken);
}

LaunchResult launchAttention(LandmarkCall const& call, cudaStream_t stream)
{
    switch (call.common.dataType)
    {
    case CTX_DATA_TYPE_FLOAT16: return launchMatrixBlocks<Half>(call, stream);
    case CTX_DATA_TYPE_BFLOAT16: return launchMatrixBlocks<BFloat16>(call, stream);
    default: return launchScalarBlocks(call, stream);
    }
}

LaunchResult launchSection(LandmarkCall const& call, cudaStream_t stream)
{
    LaunchResult result = launchScoreBlocks(call, stream);
    result = result.isSuccess() ? launchChooseBlocks(call, stream) : result;
    return result.isSuccess() ? launchAttention(call, stream) : result;
}

} // namespace

std::string LandmarkAttentionParams::validateWorkspace() const
{
    if (isEmpty())
    {
        return {};
    }
    auto const least = static_cast<uint64_t>(sectionBytes(callOf(*this), 1));
    if (call.workspace == nullptr || call.workspaceBytes < least
        || call.workspaceBytes > static_cast<uint64_t>(INT64_MAX))
    {
        return message("the workspace has ", call.workspaceBytes, " bytes at ", call.workspace, ": give what ",
            "ctxLandmarkAttentionWorkspace says, at the very least ", least);
    }
    return {};
}

LaunchResult launchLandmarkAttention(LandmarkAttentionParams const& params, cudaStream_t stream)
{
    if (std::string const fault = params.validate(); !fault.empty())
    {
        return LaunchResult::invalid(fault);
    }
    CtxAttentionCall const& given = params.call;
    LaunchResult result = copyPast(commonParams(given), stream);
    if (params.isEmpty() || !result.isSuccess())
    {
        return result;
    }
    LandmarkCall call = callOf(params);
    result = launchWriteBlocks(call, stream);
    auto const bytes = static_cast<int64_t>(given.workspaceBytes);
    int64_t const tokens = sectionTokens(call, bytes);
    for (int64_t first = 0; first < given.rows && result.isSuccess(); first += tokens)
    {
        placeSection(call, first, smaller(tokens, given.rows - first), given.workspace, bytes);
        result = launchSection(call, stream);
    }
    return result;
}

uint64_t workspaceBytes(LandmarkAttentionParams const& params)
{
    CtxAttentionCall const& given = params.call;
    if (!areSizes({given.batch, given.queryHeads, given.rows, given.headDim})
        || !areSizes({given.batch, given.kvHeads, given.capacity, given.headDim}) || given.headDim == 0
        || given.kvHeads < 1 || given.queryHeads < given.kvHeads || params.isEmpty() || !params.hasLayout())
    {
        return 0;
    }
    LandmarkCall const call = callOf(params);
    int64_t const token = sectionBytes(call, 1);
    int64_t const section = smaller(token * given.rows, larger(token, kSECTION_BYTES));
    return static_cast<uint64_t>(section) + 15 + splitBytes(call);
}

} // namespace ctx
