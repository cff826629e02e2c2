// A package's inputs and outputs, by their names in its graph.
#ifndef CTX_RUNTIME_CONTRACT_H
#define CTX_RUNTIME_CONTRACT_H

#include "ctx_runtime/manifest.h"

namespace ctx::runtime
{

// One layer's cache tensors, [batch, kvHeads, slots, headDim].
struct LayerCache
{
    std::string pastKey;
    std::string pastValue;
    std::string presentKey;
    std::string presentValue;
    DataType type{DataType::kFLOAT32};
    int64_t kvHeads{0};
    int64_t headDim{0};
    std::optional<int64_t> slots; // none: it grows, up to the cache's capacity
    CacheInfo cache;
};

struct Contract
{
    std::string inputIds;
    std::string seen;
    std::string newTokens;
    std::string logitRows;
    std::optional<std::string> ropeLength; // where the frequencies follow the length
    std::string logits;
    DataType logitsType{DataType::kFLOAT32};
    std::vector<LayerCache> layers;
    int64_t capacity{0}; // slots of the cache that limits the package: a full one's, else the smallest ring's
    int64_t heads{0};
    int64_t vocab{0};
    std::optional<int64_t> maxContext; // none: bounded caches take any number of tokens
    int64_t maxBatch{1};
    int64_t maxChunk{1};
};

CTX_RUNTIME_API Result<Contract> makeContract(Manifest const& manifest) noexcept;

} // namespace ctx::runtime

#endif
