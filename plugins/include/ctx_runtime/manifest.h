// manifest.json: all that a runtime may know about a package.
#ifndef CTX_RUNTIME_MANIFEST_H
#define CTX_RUNTIME_MANIFEST_H

#include "ctx_runtime/api.h"
#include "ctx_runtime/result.h"

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace ctx::runtime
{

constexpr int64_t kFORMAT_VERSION = 1;

enum class DataType
{
    kFLOAT32,
    kFLOAT16,
    kBFLOAT16,
    kFLOAT8_E4M3,
    kINT8,
    kINT64
};

// Bytes of one element.
CTX_RUNTIME_API int64_t sizeOf(DataType type) noexcept;

// One input or output of the graph. A dimension is a number of at least 1, or kSYMBOLIC.
struct TensorInfo
{
    static constexpr int64_t kSYMBOLIC = -1;

    std::string name;
    DataType type{DataType::kFLOAT32};
    std::vector<int64_t> shape;
    std::string role;
    int64_t layer{-1}; // of a cache
};

enum class CachePolicy
{
    kFULL,   // token t in slot t, up to a maximum
    kBOUNDED // the sinks, then a ring
};

// The rules whose slots hold more than tokens, or whose tokens lie elsewhere, need their parameters.
enum class CacheRule
{
    kPLAIN, // causal, streaming, sliding-window, lm-infinite: tokens alone
    kSELF_EXTEND,
    kDUAL_CHUNK,
    kMEMORY,
    kLANDMARK
};

// Layout of one layer's cache.
struct CacheInfo
{
    CachePolicy policy{CachePolicy::kFULL};
    int64_t sinks{0};
    int64_t window{0};   // tokens a query sees back, itself included; 0: all
    int64_t capacity{0}; // slots of a sequence
    bool keysRotated{true};
    std::string ruleName{"causal"};
    CacheRule rule{CacheRule::kPLAIN};
    std::optional<int64_t> sinkPosition; // largest position at which queries meet the sinks

    int64_t group{0};                     // self-extend
    int64_t neighbor{0};                  // self-extend
    int64_t chunk{0};                     // dual-chunk
    int64_t reach{0};                     // dual-chunk
    int64_t memory{0};                    // memory: averages that a query sees
    int64_t memorySlots{0};               // memory
    int64_t block{0};                     // memory, landmark
    int64_t topk{0};                      // landmark
    bool shared{false};                   // landmark
    std::optional<int64_t> landmarkToken; // landmark: the id that ends every block
};

// Frequencies at rope length n: with g = max(1, slope n + offset), and of short and long the long one where n >
// threshold, inv_freq = f (1 - ramp + ramp / g) g^exponent and multiplier = m (1 + gain ln g) / (1 + gainAll ln g).
struct LengthTable
{
    std::vector<double> shortFrequencies; // [F], radians per token
    std::vector<double> longFrequencies;  // [F]
    std::vector<double> ramp;             // [F]
    std::vector<double> exponent;         // [F]
    double threshold{0};                  // tokens
    double slope{0};
    double offset{0};
    double shortMultiplier{1};
    double longMultiplier{1};
    double gain{0};
    double gainAll{0};
};

struct ScalingInfo
{
    double theta{0};
    int64_t rotaryDim{0};
    double multiplier{1};                   // factor on cos and sin
    std::vector<float> inverseFrequency;    // [F], radians per token
    std::optional<LengthTable> lengthTable; // where the frequencies follow the length
    bool layersDiffer{false};               // layers have tables of their own, which the graph holds
};

struct ModelInfo
{
    std::string family;
    int64_t heads{0};
    int64_t vocab{0};
    int64_t originalContext{0};
    std::optional<int64_t> beginToken;
    std::vector<int64_t> endTokens;
};

struct EngineInfo
{
    std::string file;
    std::string runtime; // tensorrt, tensorrt-rtx
    std::string version; // of that runtime; an engine runs under no other
    std::vector<std::string> computeCapabilities;
};

struct PluginInfo
{
    std::string file;
    std::string sha256; // hexadecimal
};

struct Manifest
{
    ModelInfo model;
    std::string method;
    ScalingInfo scaling;
    std::optional<int64_t> maxContext; // tokens of text; none: the caches are bounded and take any number
    int64_t maxBatch{1};
    int64_t maxChunk{1};
    std::string precision;
    std::vector<CacheInfo> layers;
    std::vector<TensorInfo> io;
    std::optional<EngineInfo> engine;
    std::optional<PluginInfo> plugins;
};

// The manifest of the package in `directory`.
CTX_RUNTIME_API Result<Manifest> loadManifest(std::string const& directory) noexcept;

// The manifest in `text`; messages call it `path`.
CTX_RUNTIME_API Result<Manifest> parseManifest(std::string const& text, std::string const& path) noexcept;

} // namespace ctx::runtime

#endif
