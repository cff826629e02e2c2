// LandmarkAttention nodes and their cases, for plugin_shells_test.cpp.
#pragma once

#include "plugin_nodes.h"

namespace
{

constexpr int32_t kLANDMARK_WINDOW = 3;
constexpr int32_t kLANDMARK_BLOCK = 4;
constexpr int64_t kLANDMARK_SLOTS = 47; // two sinks and nine blocks of five slots

std::unique_ptr<nvinfer1::IPluginV3> landmarkPlugin(
    std::string const& names, int32_t rotaryDim = 12, int32_t layout = 0, int32_t landmark = 0)
{
    int32_t const zero = 0;
    return create("LandmarkAttention",
        {number("sinks", kSINKS), number("window", kLANDMARK_WINDOW), number("block", kLANDMARK_BLOCK),
            number("topk", kONE), number("shared", kONE), number("landmark", landmark),
            PluginField{"scale", &kSCALE, PluginFieldType::kFLOAT32, 1},
            PluginField{"softcap", &kSOFTCAP, PluginFieldType::kFLOAT32, 1}, number("alias", zero),
            number("rotary_dim", rotaryDim), number("interleaved", kONE), number("layout", layout),
            PluginField{"optional_inputs", names.data(), PluginFieldType::kCHAR, static_cast<int32_t>(names.size())}});
}

// With every optional input, one sequence far enough to choose.
Node landmarkNode(int32_t layout = 0)
{
    Node node;
    node.plugin = landmarkPlugin("inv_freq,multiplier,head_sink", 12, layout);
    node.inputs.push_back(floats({kBATCH, kHEADS, kROWS, kDIM}, 1));
    node.inputs.push_back(floats({kBATCH, kKV_HEADS, kROWS, kDIM}, 2));
    node.inputs.push_back(floats({kBATCH, kKV_HEADS, kROWS, kDIM}, 3));
    node.inputs.push_back(floats({kBATCH, kKV_HEADS, kLANDMARK_SLOTS, kDIM}, 4));
    node.inputs.push_back(floats({kBATCH, kKV_HEADS, kLANDMARK_SLOTS, kDIM}, 5));
    node.inputs.push_back(integers({kBATCH}, {31, 2}));
    node.inputs.push_back(integers({kBATCH}, {3, 1}));
    node.inputs.push_back(floats({1, 6}, 7));
    node.inputs.push_back(floats({kBATCH}, 8));
    node.inputs.push_back(floats({kHEADS}, 9));
    node.outputs.push_back(floats({kBATCH, kHEADS, kROWS, kDIM}, 10));
    node.outputs.push_back(floats({kBATCH, kKV_HEADS, kLANDMARK_SLOTS, kDIM}, 11));
    node.outputs.push_back(floats({kBATCH, kKV_HEADS, kLANDMARK_SLOTS, kDIM}, 12));
    if (layout != 0)
    {
        for (Tensor* const tensor : {&node.inputs[0], &node.inputs[1], &node.inputs[2], &node.outputs[0]})
        {
            *tensor = byToken(*tensor);
        }
    }
    if (layout == 2)
    {
        Tensor const all = packed({node.inputs[0], node.inputs[1], node.inputs[2]});
        std::fill_n(node.inputs.begin(), 3, all);
    }
    return node;
}

// What the C interface is called with for `same`, a node of layout 0.
CtxLandmarkAttentionParams landmarkParams(Node& same)
{
    CtxLandmarkAttentionParams params{};
    params.size = sizeof(params);
    params.sinks = kSINKS;
    params.window = kLANDMARK_WINDOW;
    params.block = kLANDMARK_BLOCK;
    params.topk = 1;
    params.shared = 1;
    CtxAttentionCall& call = params.call;
    call.query = same.inputs[0].data();
    call.key = same.inputs[1].data();
    call.value = same.inputs[2].data();
    call.pastKey = same.inputs[3].data();
    call.pastValue = same.inputs[4].data();
    call.seen = same.inputs[5].integers.data();
    call.newTokens = same.inputs[6].integers.data();
    call.inverseFrequency = same.inputs[7].floats.data();
    call.multiplier = same.inputs[8].floats.data();
    call.headSink = same.inputs[9].floats.data();
    call.output = same.outputs[0].data();
    call.presentKey = same.outputs[1].data();
    call.presentValue = same.outputs[2].data();
    call.batch = kBATCH;
    call.queryHeads = kHEADS;
    call.kvHeads = kKV_HEADS;
    call.rows = kROWS;
    call.capacity = kLANDMARK_SLOTS;
    call.headDim = kDIM;
    call.rotaryDim = 12;
    call.frequencyBatch = 1;
    call.multiplierBatch = kBATCH;
    call.scale = kSCALE;
    call.softcap = kSOFTCAP;
    call.interleaved = 1;
    call.dataType = CTX_DATA_TYPE_FLOAT32;
    return params;
}

// Memory aligned to 16 bytes, with a guard region behind.
class Workspace
{
public:
    explicit Workspace(uint64_t bytes)
        : mBytes{bytes}
        , mMemory((bytes + kGUARD) / sizeof(double) + 3, 1.0)
    {
        std::memset(data() + bytes, 0xA5, kGUARD);
    }

    unsigned char* data()
    {
        auto const address = (reinterpret_cast<uintptr_t>(mMemory.data()) + 15) & ~uintptr_t{15};
        return reinterpret_cast<unsigned char*>(address);
    }

    bool isGuardUntouched()
    {
        unsigned char const* const guard = data() + mBytes;
        return std::all_of(guard, guard + kGUARD, [](unsigned char byte) { return byte == 0xA5; });
    }

private:
    static constexpr size_t kGUARD = 64;
    uint64_t mBytes;
    std::vector<double> mMemory;
};

std::vector<nvinfer1::DynamicPluginTensorDesc> dynamicDescs(std::vector<Tensor> const& tensors)
{
    std::vector<nvinfer1::DynamicPluginTensorDesc> descs;
    for (Tensor const& tensor : tensors)
    {
        descs.push_back({tensor.desc, tensor.desc.dims, tensor.desc.dims, tensor.desc.dims});
    }
    return descs;
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
