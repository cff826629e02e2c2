// What drives a plugin shell as TensorRT does: tensors in host memory, nodes of every operator, and what a shell gave
// its kernel. For the one file of a test program.
#pragma once

#include "ctx_plugins/ctx_kernels.h"
#include "trt/tensorrt_abi.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <map>
#include <memory>
#include <new>
#include <string>
#include <vector>

extern "C" nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& nbCreators);
extern "C" void setLoggerFinder(void* finder);

namespace
{

int gAllocations = 0;

} // namespace

// Every allocation by C++ code of this process is counted.
void* operator new(std::size_t bytes)
{
    ++gAllocations;
    if (void* const memory = std::malloc(bytes == 0 ? 1 : bytes))
    {
        return memory;
    }
    throw std::bad_alloc{};
}

void operator delete(void* memory) noexcept
{
    std::free(memory);
}

void operator delete(void* memory, std::size_t) noexcept
{
    std::free(memory);
}

namespace
{

CtxSinkWindowAttentionParams gAttention{};

} // namespace

// The kernels' own, with what a shell gave it kept.
CtxStatus ctxSinkWindowAttention(CtxSinkWindowAttentionParams const* params, void* stream)
{
    static auto const kernel
        = reinterpret_cast<decltype(&ctxSinkWindowAttention)>(dlsym(RTLD_NEXT, "ctxSinkWindowAttention"));
    gAttention = *params;
    return kernel(params, stream);
}

namespace
{

using nvinfer1::DataType;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;
using nvinfer1::PluginTensorDesc;

int gFailures = 0;

#define CHECK(condition)                                                                                               \
    do                                                                                                                 \
    {                                                                                                                  \
        if (!(condition))                                                                                              \
        {                                                                                                              \
            std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                                       \
            ++gFailures;                                                                                               \
        }                                                                                                              \
    } while (false)

constexpr int64_t kBATCH = 2;
constexpr int64_t kHEADS = 4;
constexpr int64_t kKV_HEADS = 2;
constexpr int64_t kROWS = 3;
constexpr int64_t kSLOTS = 12;
constexpr int64_t kDIM = 16;
constexpr int32_t kSINKS = 2;
constexpr int32_t kWINDOW = 5;
constexpr float kSCALE = 0.25F;
constexpr float kSOFTCAP = 20.0F;
constexpr int32_t kONE = 1;

// A tensor in host memory.
struct Tensor
{
    PluginTensorDesc desc{};
    std::vector<float> floats;
    std::vector<int64_t> integers;

    void* data()
    {
        return floats.empty() ? static_cast<void*>(integers.data()) : static_cast<void*>(floats.data());
    }
};

Tensor describe(std::vector<int64_t> const& shape, DataType type)
{
    Tensor tensor;
    tensor.desc.type = type;
    tensor.desc.dims.nbDims = static_cast<int32_t>(shape.size());
    std::copy(shape.begin(), shape.end(), tensor.desc.dims.d);
    return tensor;
}

// Values in (-1, 1) that differ from tensor to tensor.
Tensor floats(std::vector<int64_t> const& shape, unsigned seed)
{
    Tensor tensor = describe(shape, DataType::kFLOAT);
    size_t count = 1;
    for (int64_t const size : shape)
    {
        count *= static_cast<size_t>(size);
    }
    for (size_t i = 0; i < count; ++i)
    {
        seed = seed * 1664525U + 1013904223U;
        tensor.floats.push_back(static_cast<float>(seed >> 8) / 8388608.0F - 1.0F);
    }
    return tensor;
}

Tensor integers(std::vector<int64_t> const& shape, std::vector<int64_t> const& values)
{
    Tensor tensor = describe(shape, DataType::kINT64);
    tensor.integers = values;
    return tensor;
}

// A plugin, its inputs and its outputs.
struct Node
{
    std::unique_ptr<nvinfer1::IPluginV3> plugin;
    std::vector<Tensor> inputs;
    std::vector<Tensor> outputs;

    nvinfer1::IPluginV3OneRuntime& runtime() const
    {
        return *static_cast<nvinfer1::IPluginV3OneRuntime*>(
            plugin->getCapabilityInterface(nvinfer1::PluginCapabilityType::kRUNTIME));
    }

    nvinfer1::IPluginV3OneBuild& build() const
    {
        return *static_cast<nvinfer1::IPluginV3OneBuildV2*>(
            plugin->getCapabilityInterface(nvinfer1::PluginCapabilityType::kBUILD));
    }

    int32_t onShapeChange() const
    {
        std::vector<PluginTensorDesc> const in = descs(inputs);
        std::vector<PluginTensorDesc> const out = descs(outputs);
        return runtime().onShapeChange(
            in.data(), static_cast<int32_t>(in.size()), out.data(), static_cast<int32_t>(out.size()));
    }

    // Status of enqueue, and how often it allocated.
    std::pair<int32_t, int> enqueue(void* workspace = nullptr)
    {
        std::vector<PluginTensorDesc> const in = descs(inputs);
        std::vector<PluginTensorDesc> const out = descs(outputs);
        std::vector<void const*> from;
        std::vector<void*> to;
        for (Tensor& tensor : inputs)
        {
            from.push_back(tensor.data());
        }
        for (Tensor& tensor : outputs)
        {
            to.push_back(tensor.data());
        }
        int const before = gAllocations;
        int32_t const status = runtime().enqueue(in.data(), out.data(), from.data(), to.data(), workspace, nullptr);
        return {status, gAllocations - before};
    }

    static std::vector<PluginTensorDesc> descs(std::vector<Tensor> const& tensors)
    {
        std::vector<PluginTensorDesc> list;
        for (Tensor const& tensor : tensors)
        {
            list.push_back(tensor.desc);
        }
        return list;
    }
};

nvinfer1::IPluginCreatorV3One* findCreator(char const* name)
{
    int32_t count = 0;
    nvinfer1::IPluginCreatorInterface* const* const creators = getCreators(count);
    for (int32_t i = 0; i < count; ++i)
    {
        auto* const creator = static_cast<nvinfer1::IPluginCreatorV3One*>(creators[i]);
        if (std::strcmp(creator->getPluginName(), name) == 0)
        {
            return creator;
        }
    }
    return nullptr;
}

std::unique_ptr<nvinfer1::IPluginV3> create(char const* name, std::vector<PluginField> const& fields)
{
    nvinfer1::PluginFieldCollection const collection{static_cast<int32_t>(fields.size()), fields.data()};
    return std::unique_ptr<nvinfer1::IPluginV3>{
        findCreator(name)->createPlugin("node", &collection, nvinfer1::TensorRTPhase::kRUNTIME)};
}

PluginField number(char const* name, int32_t const& value)
{
    return PluginField{name, &value, PluginFieldType::kINT32, 1};
}

Node rotaryNode()
{
    static int32_t const rotaryDim = 8;
    Node node;
    node.plugin = create("ScaledRotaryEmbedding", {number("rotary_dim", rotaryDim), number("interleaved", kONE)});
    node.inputs.push_back(floats({kBATCH, kHEADS, kROWS, kDIM}, 1));
    node.inputs.push_back(integers({kBATCH, kROWS}, {0, 1, 2, 70, 71, 72}));
    node.inputs.push_back(floats({kBATCH, rotaryDim / 2}, 2));
    node.inputs.push_back(floats({1}, 3));
    node.outputs.push_back(floats({kBATCH, kHEADS, kROWS, kDIM}, 4));
    return node;
}

// Two sequences, of which the first is before the threshold and without growth.
Node frequenciesNode()
{
    constexpr int64_t kPAIRS = 5;
    Node node;
    node.plugin = create("RotaryFrequencies", {});
    node.inputs.push_back(integers({kBATCH}, {4096, 131072}));
    node.inputs.push_back(floats({4, 2, kPAIRS}, 1));
    node.inputs.push_back(floats({7, 2}, 2));
    float const scalars[] = {5000, 0, 1.0F / 4096, 0, 0.25F, 0, 1.5F, 0, 2.5F, 0, 0.1F, 0, 0.05F, 0};
    node.inputs[2].floats.assign(std::begin(scalars), std::end(scalars));
    node.outputs.push_back(floats({kBATCH, kPAIRS}, 3));
    node.outputs.push_back(floats({kBATCH}, 4));
    return node;
}

// What a node has to say about rotation.
struct Rotation
{
    int32_t rotaryDim;
    int32_t rotation;
    int32_t sinkPosition;
    std::string optionalInputs;
};

std::unique_ptr<nvinfer1::IPluginV3> attentionPlugin(Rotation const& rotation, int32_t layout = 0)
{
    int32_t const zero = 0;
    std::string const& names = rotation.optionalInputs;
    return create("SinkWindowAttention",
        {number("sinks", kSINKS), number("window", kWINDOW),
            PluginField{"scale", &kSCALE, PluginFieldType::kFLOAT32, 1},
            PluginField{"softcap", &kSOFTCAP, PluginFieldType::kFLOAT32, 1}, number("alias", zero),
            number("bounded", kONE), number("rotary_dim", rotation.rotaryDim), number("interleaved", zero),
            number("rotation", rotation.rotation), number("sink_position", rotation.sinkPosition),
            number("layout", layout),
            PluginField{"optional_inputs", names.data(), PluginFieldType::kCHAR, static_cast<int32_t>(names.size())}});
}

// With every optional input but the scales of a quantised cache, in a bounded cache.
Node attentionNode()
{
    constexpr int32_t rotaryDim = 12;
    Node node;
    node.plugin = attentionPlugin({rotaryDim, CTX_ROTATION_KEYS_ON_READ, 0, "sink_q,inv_freq,multiplier,head_sink"});
    node.inputs.push_back(floats({kBATCH, kHEADS, kROWS, kDIM}, 1));
    node.inputs.push_back(floats({kBATCH, kKV_HEADS, kROWS, kDIM}, 2));
    node.inputs.push_back(floats({kBATCH, kKV_HEADS, kROWS, kDIM}, 3));
    node.inputs.push_back(floats({kBATCH, kKV_HEADS, kSLOTS, kDIM}, 4));
    node.inputs.push_back(floats({kBATCH, kKV_HEADS, kSLOTS, kDIM}, 5));
    node.inputs.push_back(integers({kBATCH}, {30, 2}));
    node.inputs.push_back(integers({kBATCH}, {3, 1}));
    node.inputs.push_back(floats({kBATCH, kHEADS, kROWS, kDIM}, 6));
    node.inputs.push_back(floats({1, 6}, 7));
    node.inputs.push_back(floats({kBATCH}, 8));
    node.inputs.push_back(floats({kHEADS}, 9));
    node.outputs.push_back(floats({kBATCH, kHEADS, kROWS, kDIM}, 10));
    node.outputs.push_back(floats({kBATCH, kKV_HEADS, kSLOTS, kDIM}, 11));
    node.outputs.push_back(floats({kBATCH, kKV_HEADS, kSLOTS, kDIM}, 12));
    return node;
}

// [batch, head, token, dim] as [batch, token, head * dim].
Tensor byToken(Tensor const& byHead)
{
    int64_t const* const sizes = byHead.desc.dims.d;
    Tensor tensor = describe({sizes[0], sizes[2], sizes[1] * sizes[3]}, DataType::kFLOAT);
    for (int64_t row = 0; row < sizes[0] * sizes[2]; ++row)
    {
        for (int64_t head = 0; head < sizes[1]; ++head)
        {
            int64_t const from = (row / sizes[2] * sizes[1] + head) * sizes[2] + row % sizes[2];
            auto const first = byHead.floats.begin() + from * sizes[3];
            tensor.floats.insert(tensor.floats.end(), first, first + sizes[3]);
        }
    }
    return tensor;
}

// Tensors [batch, token, …] side by side.
Tensor packed(std::vector<Tensor> const& parts)
{
    int64_t width = 0;
    for (Tensor const& part : parts)
    {
        width += part.desc.dims.d[2];
    }
    Tensor tensor = describe({kBATCH, kROWS, width}, DataType::kFLOAT);
    for (int64_t row = 0; row < kBATCH * kROWS; ++row)
    {
        for (Tensor const& part : parts)
        {
            auto const first = part.floats.begin() + row * part.desc.dims.d[2];
            tensor.floats.insert(tensor.floats.end(), first, first + part.desc.dims.d[2]);
        }
    }
    return tensor;
}

// An attention that rotates its q and k.
Node rotatingNode()
{
    Node node = attentionNode();
    node.plugin = attentionPlugin({12, CTX_ROTATION_ON_WRITE, kSINKS + kWINDOW - 1, "inv_freq,multiplier,head_sink"});
    node.inputs.erase(node.inputs.begin() + 7); // sink_q
    return node;
}

// The same with q, k, v and y as the layout has them.
Node nodeOfLayout(int32_t layout)
{
    Node node = rotatingNode();
    node.plugin
        = attentionPlugin({12, CTX_ROTATION_ON_WRITE, kSINKS + kWINDOW - 1, "inv_freq,multiplier,head_sink"}, layout);
    for (Tensor* const tensor : {&node.inputs[0], &node.inputs[1], &node.inputs[2], &node.outputs[0]})
    {
        *tensor = byToken(*tensor);
    }
    if (layout == 2)
    {
        Tensor const all = packed({node.inputs[0], node.inputs[1], node.inputs[2]});
        std::fill_n(node.inputs.begin(), 3, all);
    }
    return node;
}

// The same with caches of one byte an element.
Node quantisedNode(DataType cache)
{
    Node node = attentionNode();
    node.plugin = attentionPlugin(
        {12, CTX_ROTATION_KEYS_ON_READ, 0, "sink_q,inv_freq,multiplier,head_sink,key_scale,value_scale"});
    for (unsigned const seed : {13U, 14U})
    {
        node.inputs.push_back(floats({kKV_HEADS}, seed));
        for (float& scale : node.inputs.back().floats)
        {
            scale = std::fabs(scale) / 64.0F;
        }
    }
    for (Tensor* const tensor : {&node.inputs[3], &node.inputs[4], &node.outputs[1], &node.outputs[2]})
    {
        tensor->desc.type = cache;
        std::memset(tensor->data(), 3, tensor->floats.size() * sizeof(float)); // numbers of either type
    }
    return node;
}

// What the C interface is called with for `same`, every tensor by its name.
CtxSinkWindowAttentionParams attentionParams(Node& same)
{
    CtxSinkWindowAttentionParams params{};
    params.size = sizeof(params);
    params.query = same.inputs[0].data();
    params.key = same.inputs[1].data();
    params.value = same.inputs[2].data();
    params.pastKey = same.inputs[3].data();
    params.pastValue = same.inputs[4].data();
    params.seen = same.inputs[5].integers.data();
    params.newTokens = same.inputs[6].integers.data();
    params.sinkQuery = same.inputs[7].data();
    params.inverseFrequency = same.inputs[8].floats.data();
    params.multiplier = same.inputs[9].floats.data();
    params.headSink = same.inputs[10].floats.data();
    params.output = same.outputs[0].data();
    params.presentKey = same.outputs[1].data();
    params.presentValue = same.outputs[2].data();
    params.batch = kBATCH;
    params.queryHeads = kHEADS;
    params.kvHeads = kKV_HEADS;
    params.rows = kROWS;
    params.capacity = kSLOTS;
    params.headDim = kDIM;
    params.sinks = kSINKS;
    params.window = kWINDOW;
    params.rotaryDim = 12;
    params.frequencyBatch = 1;
    params.multiplierBatch = kBATCH;
    params.scale = kSCALE;
    params.softcap = kSOFTCAP;
    params.bounded = 1;
    params.dataType = CTX_DATA_TYPE_FLOAT32;
    return params;
}

} // namespace
