#include "weights.h"

#include "boundary.h"
#include "files.h"
#include "json_reader.h"

#include <cstring>

namespace ctx::software
{

namespace
{

using runtime::Failure;
using runtime::JsonReader;
using runtime::StatusCode;

constexpr int64_t kMOST = int64_t{1} << 31;

Config readConfig(std::string const& checkpoint)
{
    std::string const path = runtime::pathIn(checkpoint, "config.json");
    nlohmann::json const json = runtime::parsedJson(runtime::fileContents(path, kMOST), path);
    JsonReader const reader{json, path};
    auto const size = [&reader](char const* key) { return reader.at(key).integer(1, kMOST); };
    if (reader.at("model_type").text() != "llama" || !reader.at("tie_word_embeddings").boolean())
    {
        throw Failure{StatusCode::kINVALID_ARGUMENT, path + ": the software engine runs Llama with tied embeddings"};
    }
    Config config;
    config.hidden = size("hidden_size");
    config.inner = size("intermediate_size");
    config.layers = size("num_hidden_layers");
    config.heads = size("num_attention_heads");
    config.kvHeads = size("num_key_value_heads");
    config.headDim = size("head_dim");
    config.vocab = size("vocab_size");
    config.epsilon = static_cast<float>(reader.at("rms_norm_eps").number());
    return config;
}

float fromBits(uint32_t bits)
{
    float value = 0;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
}

std::vector<float> asFloats(std::string const& type, char const* bytes, int64_t count)
{
    std::vector<float> values;
    for (int64_t i = 0; i < count; ++i)
    {
        if (type == "F32")
        {
            uint32_t bits = 0;
            std::memcpy(&bits, bytes + 4 * i, sizeof(bits));
            values.push_back(fromBits(bits));
            continue;
        }
        uint16_t half = 0;
        std::memcpy(&half, bytes + 2 * i, sizeof(half));
        values.push_back(fromBits(static_cast<uint32_t>(half) << 16));
    }
    return values;
}

std::map<std::string, std::vector<float>> readTensors(std::string const& path)
{
    std::string const file = runtime::fileContents(path, kMOST);
    uint64_t headerBytes = 0;
    if (file.size() < sizeof(headerBytes))
    {
        throw Failure{StatusCode::kINVALID_ARGUMENT, path + " is no safetensors file"};
    }
    std::memcpy(&headerBytes, file.data(), sizeof(headerBytes));
    if (headerBytes > file.size() - sizeof(headerBytes))
    {
        throw Failure{StatusCode::kINVALID_ARGUMENT, path + " is truncated"};
    }
    auto const begin = static_cast<int64_t>(sizeof(headerBytes) + headerBytes);
    int64_t const most = static_cast<int64_t>(file.size()) - begin;
    nlohmann::json const json = runtime::parsedJson(file.substr(sizeof(headerBytes), headerBytes), path);
    std::map<std::string, std::vector<float>> tensors;
    for (auto const& [name, entry] : json.items())
    {
        if (name == "__metadata__")
        {
            continue;
        }
        JsonReader const reader{entry, path, name};
        std::string const type = reader.at("dtype").text();
        if (type != "BF16" && type != "F32")
        {
            reader.at("dtype").fail("is " + type + ", the software engine reads BF16 and F32");
        }
        auto const offsets = reader.at("data_offsets").entries();
        int64_t const first = offsets.at(0).integer(0, most);
        int64_t const last = offsets.at(1).integer(first, most);
        tensors[name] = asFloats(type, file.data() + begin + first, (last - first) / (type == "F32" ? 4 : 2));
    }
    return tensors;
}

} // namespace

runtime::Result<Weights> loadWeights(std::string const& checkpoint) noexcept
{
    return runtime::guarded<runtime::Result<Weights>>(
        [&] { return Weights{readConfig(checkpoint), readTensors(runtime::pathIn(checkpoint, "model.safetensors"))}; });
}

} // namespace ctx::software
