// LandmarkAttention nodes and their cases, for plugin_shells_test.cpp.
#pragma once

#include "far_nodes.h"

namespace
{

constexpr int32_t kLANDMARK_WINDOW = 3;
constexpr int32_t kLANDMARK_BLOCK = 4;
constexpr int64_t kLANDMARK_SLOTS = 47; // two sinks and nine blocks of five slots

std::unique_ptr<nvinfer1::IPluginV3> landmarkPlugin(
    std::string const& names, int32_t rotaryDim = 12, int32_t layout = 0, int32_t landmark = 0)
{
    return farPlugin("LandmarkAttention",
        {number("sinks", kSINKS), number("window", kLANDMARK_WINDOW), number("block", kLANDMARK_BLOCK),
            number("topk", kONE), number("shared", kONE), number("landmark", landmark)},
        names, rotaryDim, layout);
}

// One sequence is far enough to choose.
Node landmarkNode(int32_t layout = 0)
{
    return farNode(landmarkPlugin("inv_freq,multiplier,head_sink", 12, layout), kLANDMARK_SLOTS, layout);
}

CtxLandmarkAttentionParams landmarkParams(Node& same)
{
    CtxLandmarkAttentionParams params{};
    params.size = sizeof(params);
    params.sinks = kSINKS;
    params.window = kLANDMARK_WINDOW;
    params.block = kLANDMARK_BLOCK;
    params.topk = 1;
    params.shared = 1;
    params.call = farCall(same);
    return params;
}

// Oracle: the C interface. Layouts differ in nothing but where elements lie.
void landmarkEqualsTheKernel()
{
    Node same = landmarkNode();
    CtxLandmarkAttentionParams params = landmarkParams(same);
    uint64_t const bytes = ctxLandmarkAttentionWorkspace(&params);
    Workspace workspace{bytes};
    params.call.workspace = workspace.data();
    params.call.workspaceBytes = bytes;
    CHECK(ctxLandmarkAttention(&params, nullptr) == CTX_STATUS_SUCCESS);
    for (int32_t const layout : {0, 1, 2})
    {
        Node node = landmarkNode(layout);
        CHECK(node.onShapeChange() == 0);
        CHECK(node.enqueue(workspace.data()).first == 0);
        CHECK(node.outputs[0].floats == (layout == 0 ? same.outputs[0] : byToken(same.outputs[0])).floats);
        CHECK(node.outputs[1].floats == same.outputs[1].floats);
        CHECK(node.outputs[2].floats == same.outputs[2].floats);
        CHECK(node.outputs[0].floats != landmarkNode(layout).outputs[0].floats);
    }
    CHECK(workspace.isGuardUntouched());
}

// Oracle: the C interface at the largest shapes.
void landmarkWorkspaceIsThatOfTheLargestShapes()
{
    Node node = landmarkNode();
    auto in = dynamicDescs(node.inputs);
    for (size_t const cache : {3, 4})
    {
        in[cache].max.d[2] = 4096;
    }
    for (size_t const rows : {0, 1, 2})
    {
        in[rows].desc.dims.d[2] = -1;
        in[rows].max.d[2] = 64;
    }
    CtxLandmarkAttentionParams params = landmarkParams(node);
    uint64_t const least = ctxLandmarkAttentionWorkspace(&params);
    params.call.capacity = 4096;
    params.call.rows = 64;
    uint64_t const bytes = ctxLandmarkAttentionWorkspace(&params);
    CHECK(bytes > least && least > 0);
    CHECK(node.build().getWorkspaceSize(in.data(), static_cast<int32_t>(in.size()), nullptr, 3) == bytes);
}

void landmarkTypesAreThoseOfQ()
{
    for (size_t i = 0; i <= 12; ++i)
    {
        Node node = landmarkNode();
        Tensor& tensor = i < 10 ? node.inputs[i] : node.outputs[i - 10];
        auto const supported = [&node]
        {
            auto tensors = dynamicDescs(node.inputs);
            auto const outputs = dynamicDescs(node.outputs);
            tensors.insert(tensors.end(), outputs.begin(), outputs.end());
            bool all = true;
            for (int32_t pos = 0; pos < 13; ++pos)
            {
                all = all && node.build().supportsFormatCombination(pos, tensors.data(), 10, 3);
            }
            return all;
        };
        CHECK(supported());
        tensor.desc.type = DataType::kBF16;
        CHECK(!supported());
    }
}

} // namespace
