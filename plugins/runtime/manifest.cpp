// Reads manifest.json: types, ranges and presence of every entry that a runtime needs.

#include "ctx_runtime/manifest.h"

#include "boundary.h"
#include "files.h"
#include "json_reader.h"
#include "manifest_checks.h"

#include <cmath>
#include <limits>
#include <map>

namespace ctx::runtime
{

namespace
{

constexpr int64_t kMAX_TOKENS = int64_t{1} << 48;  // counts of tokens and slots, so that sums of a few stay numbers
constexpr int64_t kMAX_SIZE = int64_t{1} << 31;    // sizes of everything else
constexpr int64_t kMAX_BYTES = int64_t{256} << 20; // of a manifest

std::map<std::string, DataType> const& dataTypes()
{
    static std::map<std::string, DataType> const types{{"float32", DataType::kFLOAT32}, {"float16", DataType::kFLOAT16},
        {"bfloat16", DataType::kBFLOAT16}, {"float8e4m3fn", DataType::kFLOAT8_E4M3}, {"int8", DataType::kINT8},
        {"int64", DataType::kINT64}};
    return types;
}

ModelInfo readModel(JsonReader const& reader)
{
    ModelInfo model;
    model.family = reader.at("family").text();
    model.heads = reader.at("heads").integer(1, kMAX_SIZE);
    model.vocab = reader.at("vocab").integer(1, kMAX_SIZE);
    model.originalContext = reader.at("original_context").integer(1, kMAX_TOKENS);
    model.beginToken = reader.optionalInteger("bos_token_id", 0, kMAX_SIZE);
    if (std::optional<JsonReader> const ends = reader.find("eos_token_ids"))
    {
        for (JsonReader const& entry : ends->entries())
        {
            model.endTokens.push_back(entry.integer(0, kMAX_SIZE));
        }
    }
    return model;
}

LengthTable readLengthTable(JsonReader const& reader, size_t pairs)
{
    LengthTable table;
    std::pair<char const*, std::vector<double>*> const rows[] = {{"short_frequencies", &table.shortFrequencies},
        {"long_frequencies", &table.longFrequencies}, {"ramp", &table.ramp}, {"exponent", &table.exponent}};
    for (auto const& [name, values] : rows)
    {
        *values = reader.at(name).numbers();
        if (values->size() != pairs)
        {
            reader.at(name).fail(
                "has " + std::to_string(values->size()) + " numbers, inv_freq has " + std::to_string(pairs));
        }
    }
    std::pair<char const*, double*> const scalars[] = {{"threshold", &table.threshold}, {"slope", &table.slope},
        {"offset", &table.offset}, {"short_multiplier", &table.shortMultiplier},
        {"long_multiplier", &table.longMultiplier}, {"gain", &table.gain}, {"gain_all", &table.gainAll}};
    for (auto const& [name, value] : scalars)
    {
        *value = reader.at(name).number();
    }
    return table;
}

ScalingInfo readScaling(JsonReader const& reader)
{
    ScalingInfo scaling;
    scaling.theta = reader.at("theta").number();
    scaling.rotaryDim = reader.at("rotary_dim").integer(0, kMAX_SIZE);
    scaling.multiplier = reader.at("multiplier").number();
    for (double const value : reader.at("inv_freq").numbers())
    {
        if (std::abs(value) > static_cast<double>(std::numeric_limits<float>::max()))
        {
            reader.at("inv_freq").fail("has a number beyond float32");
        }
        scaling.inverseFrequency.push_back(static_cast<float>(value));
    }
    if (2 * static_cast<int64_t>(scaling.inverseFrequency.size()) != scaling.rotaryDim)
    {
        reader.at("inv_freq")
            .fail("has " + std::to_string(scaling.inverseFrequency.size()) + " numbers, rotary_dim is "
                + std::to_string(scaling.rotaryDim));
    }
    if (std::optional<JsonReader> const table = reader.find("length_table"))
    {
        scaling.lengthTable = readLengthTable(*table, scaling.inverseFrequency.size());
    }
    scaling.layersDiffer = reader.find("layers").has_value();
    return scaling;
}

void readRule(JsonReader const& reader, CacheInfo& cache)
{
    static std::map<std::string, CacheRule> const rules{{"self-extend", CacheRule::kSELF_EXTEND},
        {"dual-chunk", CacheRule::kDUAL_CHUNK}, {"memory", CacheRule::kMEMORY}, {"landmark", CacheRule::kLANDMARK}};
    if (std::optional<JsonReader> const name = reader.find("rule"))
    {
        cache.ruleName = name->text();
    }
    auto const found = rules.find(cache.ruleName);
    std::optional<JsonReader> const parameters = reader.find("parameters");
    if (found == rules.end())
    {
        if (parameters)
        {
            parameters->fail("are there, and rule " + cache.ruleName.substr(0, 60) + " has none");
        }
        return;
    }
    cache.rule = found->second;
    JsonReader const values = reader.at("parameters");
    auto const size = [&values](char const* key) { return values.at(key).integer(1, kMAX_SIZE); };
    switch (cache.rule)
    {
    case CacheRule::kPLAIN: break;
    case CacheRule::kSELF_EXTEND:
        values.onlyKeys({"group", "neighbor"});
        cache.group = size("group");
        cache.neighbor = size("neighbor");
        break;
    case CacheRule::kDUAL_CHUNK:
        values.onlyKeys({"chunk", "reach"});
        cache.chunk = size("chunk");
        cache.reach = size("reach");
        break;
    case CacheRule::kMEMORY:
        values.onlyKeys({"memory", "block", "memory_slots"});
        cache.memory = size("memory");
        cache.block = size("block");
        cache.memorySlots = size("memory_slots");
        break;
    case CacheRule::kLANDMARK:
        values.onlyKeys({"block", "topk", "shared", "token"});
        cache.block = size("block");
        cache.topk = size("topk");
        cache.shared = values.at("shared").boolean();
        cache.landmarkToken = values.optionalInteger("token", 0, kMAX_SIZE);
        break;
    }
}

CacheInfo readCache(JsonReader const& reader)
{
    CacheInfo cache;
    std::string const policy = reader.at("policy").text();
    if (policy != "full" && policy != "bounded")
    {
        reader.at("policy").fail("is " + policy.substr(0, 60) + ", which is neither full nor bounded");
    }
    cache.policy = policy == "full" ? CachePolicy::kFULL : CachePolicy::kBOUNDED;
    cache.sinks = reader.at("sinks").integer(0, kMAX_TOKENS);
    cache.window = reader.at("window").integer(0, kMAX_TOKENS);
    cache.capacity = reader.at("capacity").integer(1, kMAX_TOKENS);
    std::string const keys = reader.at("keys").text();
    if (keys != "rotated" && keys != "unrotated")
    {
        reader.at("keys").fail("are " + keys.substr(0, 60) + ", which is neither rotated nor unrotated");
    }
    cache.keysRotated = keys == "rotated";
    cache.sinkPosition = reader.optionalInteger("sink_position", 0, kMAX_TOKENS);
    reader.onlyKeys({"policy", "sinks", "window", "capacity", "keys", "rule", "sink_position", "parameters"});
    readRule(reader, cache);
    return cache;
}

TensorInfo readTensor(JsonReader const& reader)
{
    TensorInfo tensor;
    tensor.name = reader.at("name").text();
    tensor.role = reader.at("role").text();
    auto const type = dataTypes().find(reader.at("dtype").text());
    if (type == dataTypes().end())
    {
        reader.at("dtype").fail("is " + reader.at("dtype").text().substr(0, 60) + ", which this runtime does not know");
    }
    tensor.type = type->second;
    for (JsonReader const& size : reader.at("shape").entries())
    {
        tensor.shape.push_back(size.json().is_string() ? TensorInfo::kSYMBOLIC : size.integer(1, kMAX_TOKENS));
    }
    if (std::optional<JsonReader> const layer = reader.find("layer"))
    {
        tensor.layer = layer->integer(-1, kMAX_SIZE);
    }
    reader.onlyKeys({"name", "dtype", "shape", "role", "layer"});
    return tensor;
}

EngineInfo readEngine(JsonReader const& reader)
{
    EngineInfo engine;
    engine.file = reader.at("file").text();
    engine.runtime = reader.at("runtime").text();
    engine.version = reader.at("version").text();
    if (std::optional<JsonReader> const capabilities = reader.find("compute_capabilities"))
    {
        for (JsonReader const& entry : capabilities->entries())
        {
            engine.computeCapabilities.push_back(entry.text());
        }
    }
    return engine;
}

void checkVersion(nlohmann::json const& json, std::string const& path)
{
    auto const found = json.is_object() ? json.find("format_version") : json.end();
    bool const isThere = json.is_object() && found != json.end();
    if (!isThere || !found->is_number_integer() || *found != kFORMAT_VERSION)
    {
        std::string const version = isThere && found->is_primitive() ? found->dump().substr(0, 60) : "none";
        throw Failure{StatusCode::kINVALID_PACKAGE,
            path + " has format version " + version + ", this runtime reads " + std::to_string(kFORMAT_VERSION)
                + ": export the package again with the ctx-export of this runtime"};
    }
}

Manifest readManifest(std::string const& text, std::string const& path)
{
    nlohmann::json const json = parsedJson(text, path);
    checkVersion(json, path);
    JsonReader const root{json, path};
    Manifest manifest;
    manifest.model = readModel(root.at("model"));
    manifest.method = root.at("method").text();
    manifest.scaling = readScaling(root.at("scaling"));
    root.at("max_context");
    manifest.maxContext = root.optionalInteger("max_context", 1, kMAX_TOKENS);
    manifest.maxBatch = root.at("max_batch").integer(1, kMAX_SIZE);
    manifest.maxChunk = root.at("max_chunk").integer(1, kMAX_SIZE);
    manifest.precision = root.at("precision").text();
    for (JsonReader const& layer : root.at("layers").entries())
    {
        manifest.layers.push_back(readCache(layer));
        checkCache(manifest.layers.back(), manifest, layer);
    }
    if (manifest.layers.empty())
    {
        root.at("layers").fail("is empty");
    }
    for (JsonReader const& tensor : root.at("io").entries())
    {
        manifest.io.push_back(readTensor(tensor));
    }
    if (std::optional<JsonReader> const engine = root.find("engine"))
    {
        manifest.engine = readEngine(*engine);
    }
    if (std::optional<JsonReader> const plugins = root.find("plugins"))
    {
        manifest.plugins = PluginInfo{plugins->at("file").text(), plugins->at("sha256").text()};
    }
    return manifest;
}

} // namespace

int64_t sizeOf(DataType type) noexcept
{
    switch (type)
    {
    case DataType::kFLOAT32: return 4;
    case DataType::kFLOAT16:
    case DataType::kBFLOAT16: return 2;
    case DataType::kFLOAT8_E4M3:
    case DataType::kINT8: return 1;
    case DataType::kINT64: return 8;
    }
    return 0;
}

Result<Manifest> parseManifest(std::string const& text, std::string const& path) noexcept
{
    return guarded<Result<Manifest>>([&] { return readManifest(text, path); });
}

Result<Manifest> loadManifest(std::string const& directory) noexcept
{
    return guarded<Result<Manifest>>(
        [&]
        {
            std::string const path = pathIn(directory, "manifest.json");
            if (fileKind(path) == FileKind::kNONE)
            {
                throw Failure{StatusCode::kINVALID_PACKAGE,
                    directory + " is not a package: it has no manifest.json; make one with ctx-export"};
            }
            return readManifest(fileContents(path, kMAX_BYTES), path);
        });
}

} // namespace ctx::runtime
