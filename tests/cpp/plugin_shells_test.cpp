// Drives the plugin shells as TensorRT does, over kernels that the host executes. Usage: ctx_plugin_shells_test CASE

#include "landmark_nodes.h"
#include "parts_nodes.h"
#include "plugin_nodes.h"

namespace
{

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

// Oracle: the same attention of [batch, head, token, dim].
void layoutsReachTheKernel()
{
    Node byHead = rotatingNode();
    CHECK(byHead.onShapeChange() == 0);
    CHECK(byHead.enqueue().first == 0);
    for (int32_t const layout : {1, 2})
    {
        Node node = nodeOfLayout(layout);
        CHECK(node.onShapeChange() == 0);
        CHECK(node.enqueue().first == 0);
        CHECK(node.outputs[0].floats == byToken(byHead.outputs[0]).floats);
        CHECK(node.outputs[1].floats == byHead.outputs[1].floats);
        CHECK(node.outputs[2].floats == byHead.outputs[2].floats);
        CHECK(gAttention.queryHeads == kHEADS && gAttention.rows == kROWS && gAttention.headDim == kDIM);
        int64_t const width = (layout == 1 ? kKV_HEADS : kHEADS + 2 * kKV_HEADS) * kDIM;
        CHECK(gAttention.keyStrides.token == width && gAttention.keyStrides.head == kDIM);
        CHECK(gAttention.outputStrides.token == kHEADS * kDIM);
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
    Node nodes[] = {attentionNode(), quantisedNode(DataType::kFP8), rotaryNode(), frequenciesNode(), selfExtendNode(),
        dualChunkNode(), memoryNode()};
    for (Node& node : nodes)
    {
        CHECK(node.enqueue().first == 0);
        CHECK(node.enqueue().second == 0);
    }
    Node node = landmarkNode();
    CtxLandmarkAttentionParams const params = landmarkParams(node);
    Workspace workspace{ctxLandmarkAttentionWorkspace(&params)};
    CHECK(node.enqueue(workspace.data()).first == 0);
    CHECK(node.enqueue(workspace.data()).second == 0);
}

// A clone made from the fields it serialises lists the same ones.
void serialisedFieldsMakeTheSamePlugin()
{
    std::pair<char const*, Node (*)()> const makers[] = {{"ScaledRotaryEmbedding", rotaryNode},
        {"SinkWindowAttention", attentionNode}, {"LandmarkAttention", [] { return landmarkNode(); }},
        {"SelfExtendAttention", [] { return selfExtendNode(); }},
        {"DualChunkAttention", [] { return dualChunkNode(); }}, {"MemoryAttention", [] { return memoryNode(); }}};
    for (auto const& [name, maker] : makers)
    {
        Node const node = maker();
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
        node = quantisedNode(DataType::kUINT8);
        CHECK(contains(loggedBy(major, [&] { return node.enqueue().first; }),
            "cache type 5 does not go with scales: give float8 e4m3 or int8"));
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

// A sink_q is given by head; sizes that are no whole number of heads, or not those of the others.
void layoutsThatDoNotFitAreRefused()
{
    Rotation const secondQuery{0, CTX_ROTATION_KEYS_ON_READ, 0, "sink_q"};
    for (int32_t const layout : {1, 2})
    {
        CHECK(contains(loggedBy(11, [&] { return attentionPlugin(secondQuery, layout) == nullptr ? 1 : 0; }),
            "a sink_q goes with layout 0 only"));
    }
    CHECK(contains(
        loggedBy(11, [] { return attentionPlugin({0, 0, 0, ""}, 3) == nullptr ? 1 : 0; }), "attribute layout is 3"));
    char const* const names[] = {"q", "k", "v"};
    for (int32_t const layout : {1, 2})
    {
        for (size_t i = 0; i < 3; ++i)
        {
            Node node = nodeOfLayout(layout);
            node.inputs[i].desc.dims.d[2] += 8;
            std::string const text = loggedBy(11, [&] { return node.onShapeChange(); });
            CHECK(contains(text, ("input " + std::string{names[i]} + " has shape [").c_str()));
        }
        Node node = nodeOfLayout(layout);
        node.inputs[0] = rotatingNode().inputs[0];
        CHECK(contains(loggedBy(11, [&] { return node.onShapeChange(); }), "input q has 4 dimensions: give it 3"));
    }
}

// The grouped softmax has no learned sink; a rotation needs its tables; attributes have ranges.
void landmarkAttributesThatDoNotFitAreRefused()
{
    auto const refusal = [](std::string const& names, int32_t rotaryDim, int32_t layout, int32_t landmark)
    { return loggedBy(11, [&] { return landmarkPlugin(names, rotaryDim, layout, landmark) == nullptr ? 1 : 0; }); };
    CHECK(contains(refusal("inv_freq,multiplier,head_sink", 12, 0, 1), "attribute landmark is 1 with block 4"));
    CHECK(contains(refusal("head_sink", 12, 0, 0), "attribute rotary_dim is 12 and optional_inputs"));
    CHECK(contains(refusal("inv_freq,multiplier", 0, 0, 0), "attribute rotary_dim is 0 and optional_inputs"));
    CHECK(contains(refusal("head_sink,inv_freq", 12, 0, 0), "give some of inv_freq,multiplier,head_sink"));
    CHECK(contains(refusal("", 0, 3, 0), "attribute layout is 3"));
    CHECK(contains(refusal("", 0, 0, 2), "attribute landmark is 2"));
    CHECK(landmarkPlugin("", 0, 0, 1) != nullptr);
    Node node = landmarkNode();
    CHECK(contains(loggedBy(11, [&] { return node.enqueue().first; }), "give what ctxLandmarkAttentionWorkspace says"));
}

// Numbers of a rule that do not go together, or that the call's rows ask more of.
void partsAttributesThatDoNotFitAreRefused()
{
    auto const refusal = [](std::unique_ptr<nvinfer1::IPluginV3> (*make)())
    { return loggedBy(11, [&] { return make() == nullptr ? 1 : 0; }); };
    CHECK(contains(refusal([] { return selfExtendPlugin(3, 8); }), "attribute group is 3 and neighbor 8: give"));
    CHECK(contains(refusal([] { return selfExtendPlugin(0, 8); }), "attribute group is 0: give"));
    CHECK(contains(refusal([] { return selfExtendPlugin(4, 8, "head_sink"); }), "attribute rotary_dim is 12 and"));
    CHECK(contains(refusal([] { return selfExtendPlugin(4, 8, "", 3); }), "attribute layout is 3"));
    CHECK(contains(refusal([] { return dualChunkPlugin(9, 8); }), "attribute reach is 8 and chunk 9: give"));
    CHECK(contains(refusal([] { return memoryPlugin(0, 2, 4); }), "attribute window is 0"));
    CHECK(contains(refusal([] { return memoryPlugin(5, 4, 4); }), "attribute memory_slots is 4 and memory 4: give"));
    Node node = farNode(memoryPlugin(5, 2, 3), kMEMORY_SLOTS, 0);
    CHECK(contains(loggedBy(11, [&] { return node.enqueue().first; }), "memory_slots is 3"));
    node = farNode(memoryPlugin(5, 2, 4), kMEMORY_SLOTS - 1, 0);
    CHECK(contains(loggedBy(11, [&] { return node.enqueue().first; }), "a cache of 13 slots is too small"));
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
    Node (*const makers[])() = {[] { return quantisedNode(DataType::kINT8); }, rotaryNode,
        [] { return landmarkNode(); }, [] { return memoryNode(); }};
    char const* const names[4][13] = {{"k", "k", "v", "k", "past_value", "seen", "new", "sink_q", "inv_freq",
                                          "multiplier", "head_sink", "key_scale", "value_scale"},
        {"positions", "positions", "inv_freq", "multiplier"},
        {"k", "k", "v", "k", "past_value", "seen", "new", "inv_freq", "multiplier", "head_sink"},
        {"k", "k", "v", "k", "past_value", "seen", "new", "inv_freq", "multiplier", "head_sink"}};
    for (size_t kind = 0; kind < 4; ++kind)
    {
        size_t const count = makers[kind]().inputs.size();
        for (size_t i = 0; i < count; ++i)
        {
            Node node = makers[kind]();
            nvinfer1::Dims& dims = node.inputs[i].desc.dims;
            bool const isPastKey = kind != 1 && i == 3;
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
        {"layouts_reach_the_kernel", layoutsReachTheKernel},
        {"layouts_that_do_not_fit_are_refused", layoutsThatDoNotFitAreRefused},
        {"rotation_that_lacks_its_inputs_is_refused", rotationThatLacksItsInputsIsRefused},
        {"quantised_attention_equals_the_kernel", quantisedAttentionEqualsTheKernel},
        {"cache_types_go_with_the_scales", cacheTypesGoWithTheScales},
        {"workspace_is_that_of_the_largest_shapes", workspaceIsThatOfTheLargestShapes},
        {"landmark_equals_the_kernel", landmarkEqualsTheKernel},
        {"landmark_workspace_is_that_of_the_largest_shapes", landmarkWorkspaceIsThatOfTheLargestShapes},
        {"landmark_types_are_those_of_q", landmarkTypesAreThoseOfQ},
        {"landmark_attributes_that_do_not_fit_are_refused", landmarkAttributesThatDoNotFitAreRefused},
        {"self_extend_equals_the_kernel", selfExtendEqualsTheKernel},
        {"dual_chunk_equals_the_kernel", dualChunkEqualsTheKernel},
        {"memory_equals_the_kernel", memoryEqualsTheKernel},
        {"parts_workspace_is_that_of_the_largest_shapes", partsWorkspaceIsThatOfTheLargestShapes},
        {"parts_attributes_that_do_not_fit_are_refused", partsAttributesThatDoNotFitAreRefused},
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
