// What nodes of the attentions that look behind a window have in common, for plugin_shells_test.cpp.
#pragma once

#include "plugin_nodes.h"

namespace
{

// An operator's own fields and those that they all have; `names`: of the optional inputs.
std::unique_ptr<nvinfer1::IPluginV3> farPlugin(char const* name, std::vector<PluginField> fields,
    std::string const& names, int32_t rotaryDim = 12, int32_t layout = 0)
{
    int32_t const zero = 0;
    for (PluginField const& field : {PluginField{"scale", &kSCALE, PluginFieldType::kFLOAT32, 1},
             PluginField{"softcap", &kSOFTCAP, PluginFieldType::kFLOAT32, 1}, number("alias", zero),
             number("rotary_dim", rotaryDim), number("interleaved", kONE), number("layout", layout),
             PluginField{"optional_inputs", names.data(), PluginFieldType::kCHAR, static_cast<int32_t>(names.size())}})
    {
        fields.push_back(field);
    }
    return create(name, fields);
}

// With every optional input, and caches of that many slots.
Node farNode(std::unique_ptr<nvinfer1::IPluginV3> plugin, int64_t slots, int32_t layout)
{
    Node node;
    node.plugin = std::move(plugin);
    node.inputs.push_back(floats({kBATCH, kHEADS, kROWS, kDIM}, 1));
    node.inputs.push_back(floats({kBATCH, kKV_HEADS, kROWS, kDIM}, 2));
    node.inputs.push_back(floats({kBATCH, kKV_HEADS, kROWS, kDIM}, 3));
    node.inputs.push_back(floats({kBATCH, kKV_HEADS, slots, kDIM}, 4));
    node.inputs.push_back(floats({kBATCH, kKV_HEADS, slots, kDIM}, 5));
    node.inputs.push_back(integers({kBATCH}, {31, 2}));
    node.inputs.push_back(integers({kBATCH}, {3, 1}));
    node.inputs.push_back(floats({1, 6}, 7));
    node.inputs.push_back(floats({kBATCH}, 8));
    node.inputs.push_back(floats({kHEADS}, 9));
    node.outputs.push_back(floats({kBATCH, kHEADS, kROWS, kDIM}, 10));
    node.outputs.push_back(floats({kBATCH, kKV_HEADS, slots, kDIM}, 11));
    node.outputs.push_back(floats({kBATCH, kKV_HEADS, slots, kDIM}, 12));
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
CtxAttentionCall farCall(Node& same)
{
    CtxAttentionCall call{};
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
    call.capacity = same.inputs[3].desc.dims.d[2];
    call.headDim = kDIM;
    call.rotaryDim = 12;
    call.frequencyBatch = 1;
    call.multiplierBatch = kBATCH;
    call.scale = kSCALE;
    call.softcap = kSOFTCAP;
    call.interleaved = 1;
    call.dataType = CTX_DATA_TYPE_FLOAT32;
    return call;
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

} // namespace
