// Manifests: what is read, and that no text whatever does more than be refused.

#include "check.h"
#include "ctx_runtime/contract.h"
#include "fake_engine.h"

namespace ctx::test
{

namespace
{

using nlohmann::json;
using runtime::Manifest;
using runtime::Result;
using runtime::StatusCode;

Result<Manifest> parsed(std::string const& text)
{
    return runtime::parseManifest(text, "OUT/manifest.json");
}

// Whether the manifest is refused with a message that names the file, the fix and `part`.
bool isRefused(json const& manifest, std::string const& part)
{
    auto const status = parsed(manifest.dump()).status();
    return isFailure(status, StatusCode::kINVALID_PACKAGE, part) && contains(status.message(), "OUT/manifest.json")
        && contains(status.message(), "export");
}

bool isRefusedAsContract(json const& manifest, std::string const& part)
{
    auto const read = parsed(manifest.dump());
    return read.ok() && isFailure(runtime::makeContract(*read).status(), StatusCode::kINVALID_PACKAGE, part);
}

json changed(json manifest, char const* pointer, json const& value)
{
    manifest[json::json_pointer{pointer}] = value;
    return manifest;
}

void aManifestIsRead()
{
    json written = changed(manifestJson(true), "/engine",
        {{"file", "model.engine"}, {"runtime", "tensorrt"}, {"version", "10.13"}, {"compute_capabilities", {"9.0"}}});
    written["plugins"] = {{"file", "libctx_plugins.so"}, {"sha256", "ab"}, {"operators", json::array()}};
    auto const read = parsed(written.dump());
    CHECK(read.ok());
    Manifest const& manifest = *read;
    CHECK(manifest.model.vocab == kVOCAB && manifest.model.endTokens == std::vector<int64_t>{0});
    CHECK(manifest.scaling.inverseFrequency == (std::vector<float>{1.0F, 0.01F}));
    CHECK(!manifest.maxContext && manifest.maxChunk == 8 && manifest.layers.size() == kLAYERS);
    CHECK(manifest.layers[1].sinks == 2 && manifest.layers[1].window == 6 && manifest.layers[1].sinkPosition == 7);
    CHECK(manifest.layers[0].policy == runtime::CachePolicy::kBOUNDED && manifest.layers[0].capacity == 15);
    CHECK(manifest.engine->runtime == "tensorrt" && manifest.engine->computeCapabilities.size() == 1);
    CHECK(manifest.plugins->sha256 == "ab");
    auto const contract = runtime::makeContract(manifest);
    CHECK(contract.ok() && contract->layers[1].presentValue == "present.1.value" && contract->layers[1].slots == 15);
    CHECK(contract->capacity == 15 && contract->inputIds == "input_ids" && !contract->ropeLength);
    auto const full = runtime::makeContract(*parsed(manifestJson().dump()));
    CHECK(full.ok() && !full->layers[0].slots && full->maxContext == 1000);
}

void tablesAndRulesAreRead()
{
    json written = manifestJson();
    written["scaling"]["length_table"] = {{"short_frequencies", {1, 0.1}}, {"long_frequencies", {1, 0.2}},
        {"ramp", {0, 1}}, {"exponent", {0, -1}}, {"threshold", 64.0}, {"slope", 0.5}, {"offset", -3.0},
        {"short_multiplier", 1.0}, {"long_multiplier", 2.0}, {"gain", 0.1}, {"gain_all", 0.0}};
    json& layer = written["layers"][1];
    layer["rule"] = "landmark";
    layer["window"] = 4;
    layer["parameters"] = {{"block", 4}, {"topk", 3}, {"shared", true}, {"token", 5}};
    written["max_context"] = 600;
    auto const read = parsed(written.dump());
    CHECK(read.ok());
    CHECK(read->scaling.lengthTable->longFrequencies[1] == 0.2 && read->scaling.lengthTable->longMultiplier == 2);
    runtime::CacheInfo const& cache = read->layers[1];
    CHECK(cache.rule == runtime::CacheRule::kLANDMARK && cache.block == 4 && cache.topk == 3 && cache.shared);
    CHECK(cache.landmarkToken == 5);
    written["scaling"]["length_table"]["ramp"] = {0};
    CHECK(isRefused(written, "scaling.length_table.ramp has 1 numbers, inv_freq has 2"));
}

void anotherFormatVersionIsRefused()
{
    for (json const& version : {json(2), json("1"), json(1.5), json(), json(json::array())})
    {
        CHECK(isRefused(changed(manifestJson(), "/format_version", version), "this runtime reads 1"));
    }
    CHECK(isRefused(changed(manifestJson(), "/format_version", 7), "has format version 7"));
    CHECK(isRefused(json::array({1, 2}), "has format version none"));
    CHECK(isRefused("text", "has format version none"));
}

void truncatedManifestsAreRefused()
{
    std::string const text = manifestJson().dump();
    for (size_t length = 0; length < text.size(); ++length)
    {
        auto const status = parsed(text.substr(0, length)).status();
        CHECK(status.code() == StatusCode::kINVALID_PACKAGE);
        CHECK(contains(status.message(), "OUT/manifest.json cannot be read"));
    }
    CHECK(parsed(std::string(100000, '[')).status().code() == StatusCode::kINVALID_PACKAGE);
    CHECK(parsed("\xff\xfe{}").status().code() == StatusCode::kINVALID_PACKAGE);
}

// Every value of the manifest in turn; the others stay. A value that none of the code reads may be anything.
void noValueOfAnyTypeDoesMoreThanBeRefused()
{
    json const values[] = {json(), json(true), json("x"), json(""), json(std::string(1, '\0')), json(-1), json(0),
        json(1.5), json(1e300), json(INT64_MAX), json(UINT64_MAX), json(INT64_MIN), json::array(), json::object(),
        json::array({nullptr})};
    for (bool const bounded : {false, true})
    {
        json const flat = manifestJson(bounded).flatten();
        for (auto const& [pointer, value] : flat.items())
        {
            for (json const& other : values)
            {
                json const manifest = changed(manifestJson(bounded), pointer.c_str(), other);
                auto const read = parsed(manifest.dump());
                if (read.ok())
                {
                    auto const contract = runtime::makeContract(*read);
                    CHECK(contract.ok() || contains(contract.status().message(), "export"));
                    continue;
                }
                CHECK(contains(read.status().message(), "OUT/manifest.json"));
                CHECK(contains(read.status().message(), "export"));
            }
        }
    }
}

void whatIsMissingIsNamed()
{
    char const* const required[] = {"/model", "/model/heads", "/model/vocab", "/method", "/scaling",
        "/scaling/inv_freq", "/scaling/rotary_dim", "/max_context", "/max_batch", "/max_chunk", "/layers",
        "/layers/0/policy", "/layers/1/sinks", "/layers/1/window", "/layers/0/capacity", "/layers/0/keys", "/io",
        "/io/0/name", "/io/4/dtype", "/io/4/shape", "/io/4/role"};
    for (std::string const pointer : required)
    {
        json manifest = manifestJson();
        json::json_pointer const place{pointer};
        std::string const key = place.back();
        manifest[place.parent_pointer()].erase(key);
        CHECK(isRefused(manifest, key + " is missing"));
    }
}

void wrongValuesAreShownWithTheirPlace()
{
    CHECK(isRefused(changed(manifestJson(), "/max_chunk", -3), "max_chunk is -3 where a whole number from 1"));
    CHECK(isRefused(changed(manifestJson(), "/model/vocab", UINT64_MAX), "model.vocab is 18446744073709551615"));
    CHECK(isRefused(changed(manifestJson(), "/max_batch", 1e30), "max_batch is 1e+30"));
    CHECK(isRefused(changed(manifestJson(), "/layers/1/keys", "raw"), "layers[1].keys are raw"));
    CHECK(isRefused(changed(manifestJson(), "/layers/1/policy", "paged"), "layers[1].policy is paged"));
    CHECK(isRefused(changed(manifestJson(), "/layers/1/later", 1), "layers[1] has the key later"));
    CHECK(isRefused(changed(manifestJson(), "/io/4/dtype", "int4"), "io[4].dtype is int4"));
    CHECK(isRefused(changed(manifestJson(), "/io/4/shape/1", -2), "io[4].shape[1] is -2"));
    CHECK(isRefused(changed(manifestJson(), "/layers/0/parameters", json::object()), "rule causal has none"));
    CHECK(isRefused(changed(manifestJson(), "/layers/0/rule", "memory"), "layers[0].parameters"));
    CHECK(isRefused(changed(manifestJson(), "/scaling/inv_freq", {1.0}), "has 1 numbers, rotary_dim is 4"));
    CHECK(isRefused(changed(manifestJson(), "/scaling/inv_freq/0", 1e300), "beyond float32"));
}

void sizesThatDoNotGoTogetherAreRefused()
{
    CHECK(isRefused(changed(manifestJson(true), "/layers/0/capacity", 14), "need 15"));
    CHECK(isRefused(changed(manifestJson(true), "/max_chunk", 9), "need 16"));
    CHECK(isRefused(changed(manifestJson(true), "/layers/1/window", 0), "layers[1].window is 0"));
    CHECK(isRefused(changed(manifestJson(), "/layers/0/capacity", 999), "max_context 1000 needs 1000"));
    CHECK(isRefused(changed(manifestJson(), "/max_context", nullptr), "max_context is null"));
    CHECK(isRefused(changed(manifestJson(), "/layers", json::array()), "layers is empty"));
}

void inputsAndOutputsThatDoNotPairUpAreRefused()
{
    CHECK(isRefusedAsContract(changed(manifestJson(), "/io/0/role", "attention_mask"), "without --io genai"));
    CHECK(isRefusedAsContract(changed(manifestJson(), "/io/5/role", "past_key"), "two tensors of role past_key"));
    CHECK(isRefusedAsContract(changed(manifestJson(), "/io/4/role", "other"), "no tensor of role past_key"));
    CHECK(isRefusedAsContract(changed(manifestJson(), "/io/4/shape/3", 5), "differ in shape"));
    CHECK(isRefusedAsContract(changed(manifestJson(), "/io/4/dtype", "int8"), "differ in shape or type"));
    CHECK(isRefusedAsContract(changed(manifestJson(), "/io/4/layer", 7), "of layer 7"));
    CHECK(isRefusedAsContract(changed(manifestJson(), "/io/0/shape", {"batch"}), "input_ids has a shape"));
    CHECK(isRefusedAsContract(changed(manifestJson(), "/io/12/dtype", "int64"), "logits has a shape or type"));
    CHECK(isRefusedAsContract(changed(manifestJson(), "/layers/1/capacity", 2000), "full caches differ"));
}

} // namespace

Cases manifestCases()
{
    return {
        {"a_manifest_is_read", aManifestIsRead},
        {"tables_and_rules_are_read", tablesAndRulesAreRead},
        {"another_format_version_is_refused", anotherFormatVersionIsRefused},
        {"truncated_manifests_are_refused", truncatedManifestsAreRefused},
        {"no_value_of_any_type_does_more_than_be_refused", noValueOfAnyTypeDoesMoreThanBeRefused},
        {"what_is_missing_is_named", whatIsMissingIsNamed},
        {"wrong_values_are_shown_with_their_place", wrongValuesAreShownWithTheirPlace},
        {"sizes_that_do_not_go_together_are_refused", sizesThatDoNotGoTogetherAreRefused},
        {"inputs_and_outputs_that_do_not_pair_up_are_refused", inputsAndOutputsThatDoNotPairUpAreRefused},
    };
}

} // namespace ctx::test
