// Drives the plugin shells as TensorRT does, over kernels that the host executes. Usage: ctx_plugin_shells_test CASE

#include "ctx_plugins/ctx_kernels.h"
#include "trt/tensorrt_abi.h"

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

std::unique_ptr<nvinfer1::IPluginV3> createAttention(std::string const& optional)
{
    static int32_t const rotaryDim = 12;
    static int32_t const zero = 0;
    return create("SinkWindowAttention",
        {number("sinks", kSINKS), number("window", kWINDOW),
            PluginField{"scale", &kSCALE, PluginFieldType::kFLOAT32, 1},
            PluginField{"softcap", &kSOFTCAP, PluginFieldType::kFLOAT32, 1}, number("alias", zero),
            number("bounded", kONE), number("rotary_dim", rotaryDim), number("interleaved", zero),
            PluginField{
                "optional_inputs", optional.data(), PluginFieldType::kCHAR, static_cast<int32_t>(optional.size())}});
}

// With every optional input but the scales of a quantised cache, in a bounded cache.
Node attentionNode()
{
    Node node;
    node.plugin = createAttention("sink_q,inv_freq,multiplier,head_sink");
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

// The same with caches of one byte an element.
Node quantisedNode(DataType cache)
{
    Node node = attentionNode();
    node.plugin = createAttention("sink_q,inv_freq,multiplier,head_sink,key_scale,value_scale");
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

// Oracle: the C interface.
void attentionEqualsTheKernel()
{
    Node node = attentionNode();
    CHECK(node.onShapeChange() == 0);
    CHECK(node.enqueue().first == 0);
    Node same = attentionNode();
    CtxSinkWindowAttentionParams const params = attentionParams(same);
    CHECK(ctxSinkWindowAttention(&params, nullptr) == CTX_STATUS_SUCCESS);
    for (size_t i = 0; i < node.outputs.size(); ++i)
    {
        CHECK(node.outputs[i].floats == same.outputs[i].floats);
    }
}

// Oracle: the C interface. Outputs are compared as bytes: those of a cache make no numbers as floats.
void quantisedAttentionEqualsTheKernel()
{
    std::pair<DataType, int32_t> const types[]
        = {{DataType::kFP8, CTX_CACHE_TYPE_FLOAT8_E4M3}, {DataType::kINT8, CTX_CACHE_TYPE_INT8}};
    for (auto const& [type, cacheType] : types)
    {
        Node node = quantisedNode(type);
        CHECK(node.onShapeChange() == 0);
        CHECK(node.enqueue().first == 0);
        Node same = quantisedNode(type);
        CtxSinkWindowAttentionParams params = attentionParams(same);
        params.cacheType = cacheType;
        params.keyScale = same.inputs[11].floats.data();
        params.valueScale = same.inputs[12].floats.data();
        CHECK(ctxSinkWindowAttention(&params, nullptr) == CTX_STATUS_SUCCESS);
        for (size_t i = 0; i < node.outputs.size(); ++i)
        {
            size_t const bytes = node.outputs[i].floats.size() * sizeof(float);
            CHECK(std::memcmp(node.outputs[i].data(), same.outputs[i].data(), bytes) == 0);
        }
    }
}

// Caches have the activations' type, or with scales one of the quantised ones, the same for all four.
void cacheTypesGoWithTheScales()
{
    auto const supported = [](Node const& node)
    {
        std::vector<nvinfer1::DynamicPluginTensorDesc> tensors;
        for (std::vector<Tensor> const* list : {&node.inputs, &node.outputs})
        {
            for (Tensor const& tensor : *list)
            {
                tensors.push_back({tensor.desc, tensor.desc.dims, tensor.desc.dims, tensor.desc.dims});
            }
        }
        bool all = true;
        for (int32_t i = 0; i < static_cast<int32_t>(tensors.size()); ++i)
        {
            all = all
                && node.build().supportsFormatCombination(i, tensors.data(), static_cast<int32_t>(node.inputs.size()),
                    static_cast<int32_t>(node.outputs.size()));
        }
        return all;
    };
    CHECK(supported(attentionNode()));
    CHECK(supported(quantisedNode(DataType::kFP8)));
    CHECK(supported(quantisedNode(DataType::kINT8)));
    for (DataType const type : {DataType::kFLOAT, DataType::kHALF, DataType::kUINT8, DataType::kINT4})
    {
        CHECK(!supported(quantisedNode(type)));
    }
    size_t const caches[] = {3, 4, 13 + 1, 13 + 2};
    for (size_t const cache : caches)
    {
        Node node = quantisedNode(DataType::kINT8);
        Tensor& tensor = cache < 13 ? node.inputs[cache] : node.outputs[cache - 13];
        tensor.desc.type = DataType::kFP8;
        CHECK(!supported(node));
        node = attentionNode();
        (cache < 13 ? node.inputs[cache] : node.outputs[cache - 13]).desc.type = DataType::kINT8;
        CHECK(!supported(node));
    }
    Node scaled = quantisedNode(DataType::kINT8);
    scaled.inputs[11].desc.type = DataType::kHALF;
    CHECK(!supported(scaled));
}

// Oracle: the C interface at the largest shapes. With that memory the result is what the kernel gives with it.
void workspaceIsThatOfTheLargestShapes()
{
    Node node = quantisedNode(DataType::kINT8);
    std::vector<nvinfer1::DynamicPluginTensorDesc> in;
    for (Tensor const& tensor : node.inputs)
    {
        in.push_back({tensor.desc, tensor.desc.dims, tensor.desc.dims, tensor.desc.dims});
    }
    constexpr int64_t kLARGEST_CACHE = 4096;
    for (size_t const cache : {3, 4})
    {
        in[cache].max.d[2] = kLARGEST_CACHE;
    }
    for (Tensor const& tensor : node.inputs)
    {
        size_t const i = static_cast<size_t>(&tensor - node.inputs.data());
        if (in[i].desc.dims.nbDims == 4)
        {
            in[i].desc.dims.d[2] = -1;
        }
    }
    CtxSinkWindowAttentionParams params = attentionParams(node);
    params.cacheType = CTX_CACHE_TYPE_INT8;
    params.capacity = kLARGEST_CACHE;
    uint64_t const bytes = ctxSinkWindowAttentionWorkspace(&params);
    CHECK(node.build().getWorkspaceSize(in.data(), static_cast<int32_t>(in.size()), nullptr, 3) == bytes);

    // Aligned, with a guard region behind.
    constexpr size_t kGUARD = 64;
    std::vector<double> memory((bytes + kGUARD) / sizeof(double) + 2, 1.0);
    auto const address = (reinterpret_cast<uintptr_t>(memory.data()) + 15) & ~uintptr_t{15};
    auto* const workspace = reinterpret_cast<unsigned char*>(address);
    std::memset(workspace + bytes, 0xA5, kGUARD);
    CHECK(node.enqueue(workspace).first == 0);
    for (size_t i = 0; i < kGUARD; ++i)
    {
        CHECK(workspace[bytes + i] == 0xA5);
    }
    Node same = quantisedNode(DataType::kINT8);
    params = attentionParams(same);
    params.cacheType = CTX_CACHE_TYPE_INT8;
    params.keyScale = same.inputs[11].floats.data();
    params.valueScale = same.inputs[12].floats.data();
    params.workspace = workspace;
    params.workspaceBytes = ctxSinkWindowAttentionWorkspace(&params);
    CHECK(ctxSinkWindowAttention(&params, nullptr) == CTX_STATUS_SUCCESS);
    CHECK(node.outputs[0].floats == same.outputs[0].floats);
}

void rotaryEqualsTheKernel()
{
    Node node = rotaryNode();
    CHECK(node.onShapeChange() == 0);
    CHECK(node.enqueue().first == 0);
    Node same = rotaryNode();
    CtxScaledRotaryEmbeddingParams params{};
    params.size = sizeof(params);
    params.x = same.inputs[0].data();
    params.positions = same.inputs[1].integers.data();
    params.inverseFrequency = same.inputs[2].floats.data();
    params.multiplier = same.inputs[3].floats.data();
    params.y = same.outputs[0].data();
    params.batch = kBATCH;
    params.heads = kHEADS;
    params.rows = kROWS;
    params.headDim = kDIM;
    params.rotaryDim = 8;
    params.frequencyBatch = kBATCH;
    params.multiplierBatch = 1;
    params.interleaved = 1;
    CHECK(ctxScaledRotaryEmbedding(&params, nullptr) == CTX_STATUS_SUCCESS);
    CHECK(node.outputs[0].floats == same.outputs[0].floats);
}

void frequenciesEqualTheKernel()
{
    Node node = frequenciesNode();
    CHECK(node.onShapeChange() == 0);
    CHECK(node.enqueue().first == 0);
    Node same = frequenciesNode();
    CtxRotaryFrequenciesParams params{};
    params.size = sizeof(params);
    params.ropeLength = same.inputs[0].integers.data();
    params.tables = same.inputs[1].floats.data();
    params.scalars = same.inputs[2].floats.data();
    params.inverseFrequency = same.outputs[0].floats.data();
    params.multiplier = same.outputs[1].floats.data();
    params.batch = kBATCH;
    params.pairs = 5;
    CHECK(ctxRotaryFrequencies(&params, nullptr) == CTX_STATUS_SUCCESS);
    CHECK(node.outputs[0].floats == same.outputs[0].floats);
    CHECK(node.outputs[1].floats == same.outputs[1].floats);
    CHECK(node.outputs[1].floats != frequenciesNode().outputs[1].floats);
}

// The first call may: the host's blocks and threads are made then.
void enqueueAllocatesNothing()
{
    Node nodes[] = {attentionNode(), quantisedNode(DataType::kFP8), rotaryNode(), frequenciesNode()};
    for (Node& node : nodes)
    {
        CHECK(node.enqueue().first == 0);
        CHECK(node.enqueue().second == 0);
    }
}

// A clone made from the fields it serialises lists the same ones.
void serialisedFieldsMakeTheSamePlugin()
{
    for (char const* name : {"ScaledRotaryEmbedding", "SinkWindowAttention"})
    {
        Node const node = std::strcmp(name, "SinkWindowAttention") == 0 ? attentionNode() : rotaryNode();
        std::unique_ptr<nvinfer1::IPluginV3> const copy{node.runtime().attachToContext(nullptr)};
        CHECK(copy != nullptr);
        nvinfer1::PluginFieldCollection const& first = *node.runtime().getFieldsToSerialize();
        std::vector<PluginField> const fields{first.fields, first.fields + first.nbFields};
        Node const again{create(name, fields), {}, {}};
        nvinfer1::PluginFieldCollection const& second = *again.runtime().getFieldsToSerialize();
        CHECK(first.nbFields == second.nbFields && first.nbFields > 0);
        for (int32_t i = 0; i < first.nbFields; ++i)
        {
            PluginField const& one = first.fields[i];
            PluginField const& other = second.fields[i];
            size_t const bytes = static_cast<size_t>(one.length) * (one.type == PluginFieldType::kCHAR ? 1 : 4);
            CHECK(std::strcmp(one.name, other.name) == 0 && one.type == other.type && one.length == other.length);
            CHECK(std::memcmp(one.data, other.data, bytes) == 0);
        }
    }
}

std::string loggedBy(int major, Node& node, int32_t (*call)(Node&))
{
    std::string const path = "libctx_fake_tensorrt_" + std::to_string(major) + ".so";
    char const* const directory = std::getenv("FAKE_TENSORRT_DIRECTORY");
    void* const library = dlopen((std::string{directory} + "/" + path).c_str(), RTLD_NOW | RTLD_LOCAL);
    CHECK(library != nullptr);
    setLoggerFinder(reinterpret_cast<void* (*)()>(dlsym(library, "fakeLoggerFinder"))());
    CHECK(call(node) != 0);
    setLoggerFinder(nullptr);
    return reinterpret_cast<char const* (*)()>(dlsym(library, "fakeLastError"))();
}

bool contains(std::string const& text, char const* part)
{
    return text.find(part) != std::string::npos;
}

// Both shapes of logger get the kernel's own message; the second text is longer than the first.
void failuresReachTheLogger()
{
    for (int const major : {10, 11})
    {
        Node node = attentionNode();
        node.inputs[0].desc.dims.d[3] = 12;
        std::string const text = loggedBy(major, node, [](Node& failing) { return failing.enqueue().first; });
        CHECK(contains(text, "ctx plugin SinkWindowAttention, enqueue: head dimension 12 is not supported"));
        node = attentionNode();
        node.inputs[0].desc.type = DataType::kINT32;
        CHECK(contains(loggedBy(major, node, [](Node& failing) { return failing.enqueue().first; }),
            "tensor type 3 is not supported"));
        node = quantisedNode(DataType::kUINT8);
        CHECK(contains(loggedBy(major, node, [](Node& failing) { return failing.enqueue().first; }),
            "cache type 5 does not go with scales: give float8 e4m3 or int8"));
    }
}

// It has no attributes: no list of fields, and one that is null, both make the plugin.
void aPluginWithoutAttributesSerialisesNone()
{
    Node const node = frequenciesNode();
    CHECK(node.runtime().getFieldsToSerialize()->nbFields == 0);
    nvinfer1::IPluginCreatorV3One* const creator = findCreator("RotaryFrequencies");
    CHECK(creator->getFieldNames()->nbFields == 0);
    std::unique_ptr<nvinfer1::IPluginV3> const bare{
        creator->createPlugin("node", nullptr, nvinfer1::TensorRTPhase::kBUILD)};
    CHECK(bare != nullptr);
    std::unique_ptr<nvinfer1::IPluginV3> const copy{node.runtime().attachToContext(nullptr)};
    CHECK(copy != nullptr);
}

// B and F are believed; all other sizes of tables and scalars are fixed.
void tablesOfOtherShapesAreRefused()
{
    char const* const names[] = {"rope_length", "tables", "scalars"};
    std::pair<size_t, int32_t> const wrong[] = {{1, 0}, {1, 1}, {2, 0}, {2, 1}};
    for (auto const& [input, axis] : wrong)
    {
        Node node = frequenciesNode();
        ++node.inputs[input].desc.dims.d[axis];
        std::string const text = loggedBy(11, node, [](Node& failing) { return failing.onShapeChange(); });
        CHECK(contains(text, ("input " + std::string{names[input]} + " has shape [").c_str()));
    }
    for (size_t input = 0; input < 3; ++input)
    {
        Node node = frequenciesNode();
        ++node.inputs[input].desc.dims.nbDims;
        std::string const text = loggedBy(11, node, [](Node& failing) { return failing.onShapeChange(); });
        CHECK(contains(text, ("input " + std::string{names[input]} + " has ").c_str()));
    }
}

// Every input once with a size of two more, and the input that is blamed: q, past_key and x are believed.
void shapesThatDisagreeAreRefused()
{
    Node (*const makers[])() = {[] { return quantisedNode(DataType::kINT8); }, rotaryNode};
    char const* const names[2][13] = {{"k", "k", "v", "k", "past_value", "seen", "new", "sink_q", "inv_freq",
                                          "multiplier", "head_sink", "key_scale", "value_scale"},
        {"positions", "positions", "inv_freq", "multiplier"}};
    for (size_t kind = 0; kind < 2; ++kind)
    {
        size_t const count = makers[kind]().inputs.size();
        for (size_t i = 0; i < count; ++i)
        {
            Node node = makers[kind]();
            nvinfer1::Dims& dims = node.inputs[i].desc.dims;
            bool const isPastKey = kind == 0 && i == 3;
            dims.d[dims.nbDims == 4 ? (isPastKey ? 1 : 2) : dims.nbDims - 1] += 2;
            std::string const text = loggedBy(11, node, [](Node& failing) { return failing.onShapeChange(); });
            CHECK(contains(text, ("input " + std::string{names[kind][i]} + " has shape [").c_str()));
        }
    }
}

} // namespace

int main(int argc, char** argv)
{
    std::map<std::string, void (*)()> const cases{
        {"attention_equals_the_kernel", attentionEqualsTheKernel},
        {"quantised_attention_equals_the_kernel", quantisedAttentionEqualsTheKernel},
        {"cache_types_go_with_the_scales", cacheTypesGoWithTheScales},
        {"workspace_is_that_of_the_largest_shapes", workspaceIsThatOfTheLargestShapes},
        {"rotary_equals_the_kernel", rotaryEqualsTheKernel},
        {"frequencies_equal_the_kernel", frequenciesEqualTheKernel},
        {"enqueue_allocates_nothing", enqueueAllocatesNothing},
        {"serialised_fields_make_the_same_plugin", serialisedFieldsMakeTheSamePlugin},
        {"a_plugin_without_attributes_serialises_none", aPluginWithoutAttributesSerialisesNone},
        {"failures_reach_the_logger", failuresReachTheLogger},
        {"shapes_that_disagree_are_refused", shapesThatDisagreeAreRefused},
        {"tables_of_other_shapes_are_refused", tablesOfOtherShapesAreRefused},
    };
    auto const found = cases.find(argc == 2 ? argv[1] : "");
    if (found == cases.end())
    {
        std::fprintf(stderr, "usage: ctx_plugin_shells_test CASE\n");
        return 2;
    }
    found->second();
    return gFailures == 0 ? 0 : 1;
}
