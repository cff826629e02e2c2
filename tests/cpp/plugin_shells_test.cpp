// Drives the plugin shells as TensorRT does, over kernels that the host executes. Usage: ctx_plugin_shells_test CASE

#include "ctx_plugins/ctx_kernels.h"
#include "trt/tensorrt_abi.h"

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

    int32_t onShapeChange() const
    {
        std::vector<PluginTensorDesc> const in = descs(inputs);
        std::vector<PluginTensorDesc> const out = descs(outputs);
        return runtime().onShapeChange(
            in.data(), static_cast<int32_t>(in.size()), out.data(), static_cast<int32_t>(out.size()));
    }

    // Status of enqueue, and how often it allocated.
    std::pair<int32_t, int> enqueue()
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
        int32_t const status = runtime().enqueue(in.data(), out.data(), from.data(), to.data(), nullptr, nullptr);
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

std::unique_ptr<nvinfer1::IPluginV3> attentionPlugin(Rotation const& rotation)
{
    int32_t const zero = 0;
    std::string const& names = rotation.optionalInputs;
    return create("SinkWindowAttention",
        {number("sinks", kSINKS), number("window", kWINDOW),
            PluginField{"scale", &kSCALE, PluginFieldType::kFLOAT32, 1},
            PluginField{"softcap", &kSOFTCAP, PluginFieldType::kFLOAT32, 1}, number("alias", zero),
            number("bounded", kONE), number("rotary_dim", rotation.rotaryDim), number("interleaved", zero),
            number("rotation", rotation.rotation), number("sink_position", rotation.sinkPosition),
            PluginField{"optional_inputs", names.data(), PluginFieldType::kCHAR, static_cast<int32_t>(names.size())}});
}

// With every optional input, in a bounded cache.
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
    node.inputs.push_back(floats({1, rotaryDim / 2}, 7));
    node.inputs.push_back(floats({kBATCH}, 8));
    node.inputs.push_back(floats({kHEADS}, 9));
    node.outputs.push_back(floats({kBATCH, kHEADS, kROWS, kDIM}, 10));
    node.outputs.push_back(floats({kBATCH, kKV_HEADS, kSLOTS, kDIM}, 11));
    node.outputs.push_back(floats({kBATCH, kKV_HEADS, kSLOTS, kDIM}, 12));
    return node;
}

// Oracle: the C interface, called with every tensor by its name.
void attentionEqualsTheKernel()
{
    Node node = attentionNode();
    CHECK(node.onShapeChange() == 0);
    CHECK(node.enqueue().first == 0);
    Node same = attentionNode();
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
    CHECK(ctxSinkWindowAttention(&params, nullptr) == CTX_STATUS_SUCCESS);
    for (size_t i = 0; i < node.outputs.size(); ++i)
    {
        CHECK(node.outputs[i].floats == same.outputs[i].floats);
    }
}

// Attributes and inputs of an attention that rotates its q, and its k when it is written.
void rotationReachesTheKernel()
{
    constexpr size_t kSINK_QUERY = 7;
    for (int32_t const rotation : {CTX_ROTATION_ON_WRITE, CTX_ROTATION_QUERY_AND_KEYS_ON_READ})
    {
        Node node = attentionNode();
        node.plugin = attentionPlugin({12, rotation, kSINKS + kWINDOW - 1, "inv_freq,multiplier,head_sink"});
        node.inputs.erase(node.inputs.begin() + kSINK_QUERY);
        CHECK(node.onShapeChange() == 0);
        CHECK(node.enqueue().first == 0);
        CHECK(gAttention.rotation == rotation && gAttention.sinkPosition == kSINKS + kWINDOW - 1);
        CHECK(gAttention.rotaryDim == 12 && gAttention.sinkQuery == nullptr);
        CHECK(gAttention.inverseFrequency == node.inputs[kSINK_QUERY].data());
    }
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
    Node nodes[] = {attentionNode(), rotaryNode(), frequenciesNode()};
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

template <typename Call>
std::string loggedBy(int major, Call&& call)
{
    std::string const path = "libctx_fake_tensorrt_" + std::to_string(major) + ".so";
    char const* const directory = std::getenv("FAKE_TENSORRT_DIRECTORY");
    void* const library = dlopen((std::string{directory} + "/" + path).c_str(), RTLD_NOW | RTLD_LOCAL);
    CHECK(library != nullptr);
    setLoggerFinder(reinterpret_cast<void* (*)()>(dlsym(library, "fakeLoggerFinder"))());
    CHECK(call() != 0);
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
        std::string const text = loggedBy(major, [&] { return node.enqueue().first; });
        CHECK(contains(text, "ctx plugin SinkWindowAttention, enqueue: head dimension 12 is not supported"));
        node = attentionNode();
        node.inputs[0].desc.type = DataType::kINT32;
        CHECK(contains(loggedBy(major, [&] { return node.enqueue().first; }), "tensor type 3 is not supported"));
    }
}

// A second q needs a q that is rotated there, and that one tables and no sink_q.
void rotationThatLacksItsInputsIsRefused()
{
    std::pair<Rotation, char const*> const wrong[] = {
        {{0, CTX_ROTATION_ON_WRITE, 0, ""}, "attribute rotation is 1 with rotary_dim 0"},
        {{8, CTX_ROTATION_ON_WRITE, 0, ""}, "attribute rotary_dim is 8 and optional_inputs \"\""},
        {{8, CTX_ROTATION_QUERY_AND_KEYS_ON_READ, 0, "sink_q,inv_freq,multiplier"}, "and no sink_q"},
        {{8, CTX_ROTATION_KEYS_ON_READ, 6, "inv_freq,multiplier"}, "attribute sink_position is 6"},
        {{8, CTX_ROTATION_ON_WRITE, -1, "inv_freq,multiplier"}, "attribute sink_position is -1"},
        {{8, 3, 0, "inv_freq,multiplier"}, "attribute rotation is 3"},
    };
    for (auto const& [rotation, reason] : wrong)
    {
        CHECK(contains(loggedBy(11, [&] { return attentionPlugin(rotation) == nullptr ? 1 : 0; }), reason));
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
        std::string const text = loggedBy(11, [&] { return node.onShapeChange(); });
        CHECK(contains(text, ("input " + std::string{names[input]} + " has shape [").c_str()));
    }
    for (size_t input = 0; input < 3; ++input)
    {
        Node node = frequenciesNode();
        ++node.inputs[input].desc.dims.nbDims;
        std::string const text = loggedBy(11, [&] { return node.onShapeChange(); });
        CHECK(contains(text, ("input " + std::string{names[input]} + " has ").c_str()));
    }
}

// Every input once with a size of two more, and the input that is blamed: q, past_key and x are believed.
void shapesThatDisagreeAreRefused()
{
    Node (*const makers[])() = {attentionNode, rotaryNode};
    char const* const names[2][11]
        = {{"k", "k", "v", "k", "past_value", "seen", "new", "sink_q", "inv_freq", "multiplier", "head_sink"},
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
            std::string const text = loggedBy(11, [&] { return node.onShapeChange(); });
            CHECK(contains(text, ("input " + std::string{names[kind][i]} + " has shape [").c_str()));
        }
    }
}

} // namespace

int main(int argc, char** argv)
{
    std::map<std::string, void (*)()> const cases{
        {"attention_equals_the_kernel", attentionEqualsTheKernel},
        {"rotation_reaches_the_kernel", rotationReachesTheKernel},
        {"rotation_that_lacks_its_inputs_is_refused", rotationThatLacksItsInputsIsRefused},
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
