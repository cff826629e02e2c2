// Nodes of the attentions whose queries see keys in parts and their cases, for plugin_shells_test.cpp.
#pragma once

#include "far_nodes.h"

namespace
{

constexpr char const* kALL_OPTIONAL = "inv_freq,multiplier,head_sink";
constexpr int64_t kFULL_SLOTS = 34;
constexpr int64_t kMEMORY_SLOTS = 14; // two sinks, four means and a ring of eight tokens
constexpr int32_t kTWO = 2;
constexpr int32_t kFOUR = 4;
constexpr int32_t kFIVE = 5;
constexpr int32_t kEIGHT = 8;

std::unique_ptr<nvinfer1::IPluginV3> selfExtendPlugin(
    int32_t group, int32_t neighbor, std::string const& names = kALL_OPTIONAL, int32_t layout = 0)
{
    return farPlugin("SelfExtendAttention", {number("group", group), number("neighbor", neighbor)}, names,
        names.empty() ? 0 : 12, layout);
}

std::unique_ptr<nvinfer1::IPluginV3> dualChunkPlugin(int32_t chunk, int32_t reach, int32_t layout = 0)
{
    return farPlugin("DualChunkAttention", {number("chunk", chunk), number("reach", reach)}, kALL_OPTIONAL, 12, layout);
}

std::unique_ptr<nvinfer1::IPluginV3> memoryPlugin(int32_t window, int32_t memory, int32_t slots, int32_t layout = 0)
{
    return farPlugin("MemoryAttention",
        {number("sinks", kSINKS), number("window", window), number("memory", memory), number("block", kTWO),
            number("memory_slots", slots)},
        kALL_OPTIONAL, 12, layout);
}

Node selfExtendNode(int32_t layout = 0)
{
    return farNode(selfExtendPlugin(kFOUR, kEIGHT, kALL_OPTIONAL, layout), kFULL_SLOTS, layout);
}

Node dualChunkNode(int32_t layout = 0)
{
    return farNode(dualChunkPlugin(kFIVE, kEIGHT, layout), kFULL_SLOTS, layout);
}

Node memoryNode(int32_t layout = 0)
{
    return farNode(memoryPlugin(kFIVE, kTWO, kFOUR, layout), kMEMORY_SLOTS, layout);
}

// Oracle: the C interface. Layouts differ in nothing but where elements lie.
template <typename Params>
void nodesEqualTheKernel(
    Params params, Node (*make)(int32_t), CtxStatus (*launch)(Params const*, void*), char const* faultName)
{
    Node same = make(0);
    params.size = sizeof(params);
    params.call = farCall(same);
    CHECK(launch(&params, nullptr) == CTX_STATUS_SUCCESS);
    for (int32_t const layout : {0, 1, 2})
    {
        Node node = make(layout);
        CHECK(node.onShapeChange() == 0);
        CHECK(node.enqueue().first == 0);
        bool const isSame = node.outputs[0].floats == (layout == 0 ? same.outputs[0] : byToken(same.outputs[0])).floats
            && node.outputs[1].floats == same.outputs[1].floats && node.outputs[2].floats == same.outputs[2].floats;
        if (!isSame || node.outputs[0].floats == make(layout).outputs[0].floats)
        {
            std::fprintf(stderr, "%s, layout %d\n", faultName, layout);
            ++gFailures;
        }
    }
}

void selfExtendEqualsTheKernel()
{
    CtxSelfExtendAttentionParams params{};
    params.group = 4;
    params.neighbor = 8;
    nodesEqualTheKernel(params, selfExtendNode, ctxSelfExtendAttention, "SelfExtendAttention");
}

void dualChunkEqualsTheKernel()
{
    CtxDualChunkAttentionParams params{};
    params.chunk = 5;
    params.reach = 8;
    nodesEqualTheKernel(params, dualChunkNode, ctxDualChunkAttention, "DualChunkAttention");
}

void memoryEqualsTheKernel()
{
    CtxMemoryAttentionParams params{};
    params.sinks = kSINKS;
    params.window = 5;
    params.memory = 2;
    params.block = 2;
    params.memorySlots = 4;
    nodesEqualTheKernel(params, memoryNode, ctxMemoryAttention, "MemoryAttention");
}

// Oracle: the C interface at the largest shapes, and that with this memory nothing else is written.
void partsWorkspaceIsThatOfTheLargestShapes()
{
    Node node = selfExtendNode();
    auto in = dynamicDescs(node.inputs);
    for (size_t const cache : {3, 4})
    {
        in[cache].max.d[2] = 4096;
    }
    CtxSelfExtendAttentionParams params{};
    params.size = sizeof(params);
    params.call = farCall(node);
    params.call.capacity = 4096;
    uint64_t const bytes = ctxSelfExtendAttentionWorkspace(&params);
    CHECK(bytes > 0);
    CHECK(node.build().getWorkspaceSize(in.data(), static_cast<int32_t>(in.size()), nullptr, 3) == bytes);
    Workspace workspace{bytes};
    CHECK(node.enqueue(workspace.data()).first == 0);
    CHECK(workspace.isGuardUntouched());
}

} // namespace
