#include "ctx_runtime/contract.h"

#include "boundary.h"

#include <algorithm>

namespace ctx::runtime
{

namespace
{

[[noreturn]] void fail(std::string const& message)
{
    throw Failure{StatusCode::kINVALID_PACKAGE, message + ": export the package again"};
}

TensorInfo const* find(Manifest const& manifest, char const* role, int64_t layer)
{
    TensorInfo const* found = nullptr;
    for (TensorInfo const& tensor : manifest.io)
    {
        if (tensor.role == role && tensor.layer == layer)
        {
            if (found != nullptr)
            {
                fail("the manifest has two tensors of role " + std::string{role});
            }
            found = &tensor;
        }
    }
    return found;
}

TensorInfo const& plainTensor(Manifest const& manifest, char const* role, size_t dimensions)
{
    TensorInfo const* const found = find(manifest, role, -1);
    if (found == nullptr)
    {
        throw Failure{StatusCode::kINVALID_PACKAGE,
            "the package's graph has no input or output of role " + std::string{role}
                + ": sessions need the native contract, export again without --io genai"};
    }
    bool const isLogits = found->role == "logits";
    if (found->shape.size() != dimensions || (found->type == DataType::kINT64) == isLogits)
    {
        fail("the manifest's " + found->role + " has a shape or type that is not its own");
    }
    return *found;
}

LayerCache layerCache(Manifest const& manifest, int64_t layer)
{
    char const* const roles[] = {"past_key", "past_value", "present_key", "present_value"};
    TensorInfo const* tensors[4]{};
    for (size_t i = 0; i < 4; ++i)
    {
        tensors[i] = find(manifest, roles[i], layer);
        if (tensors[i] == nullptr)
        {
            fail("the manifest describes the caches of " + std::to_string(manifest.layers.size())
                + " layers and names no tensor of role " + roles[i] + " for layer " + std::to_string(layer));
        }
        if (tensors[i]->shape != tensors[0]->shape || tensors[i]->type != tensors[0]->type)
        {
            fail("the past and present caches of layer " + std::to_string(layer) + " differ in shape or type");
        }
    }
    std::vector<int64_t> const& shape = tensors[0]->shape;
    bool const fits = shape.size() == 4 && shape[1] != TensorInfo::kSYMBOLIC && shape[3] != TensorInfo::kSYMBOLIC;
    if (!fits || tensors[0]->type == DataType::kINT64)
    {
        fail("cache " + tensors[0]->name + " is not of [batch, KV heads, slots, head dimension] numbers");
    }
    CacheInfo const& cache = manifest.layers[layer];
    std::optional<int64_t> slots;
    if (shape[2] != TensorInfo::kSYMBOLIC || cache.policy == CachePolicy::kBOUNDED)
    {
        slots = cache.capacity;
        if (shape[2] != TensorInfo::kSYMBOLIC && shape[2] != cache.capacity)
        {
            fail("cache " + tensors[0]->name + " has " + std::to_string(shape[2]) + " slots, its layer a capacity of "
                + std::to_string(cache.capacity));
        }
    }
    return {tensors[0]->name, tensors[1]->name, tensors[2]->name, tensors[3]->name, tensors[0]->type, shape[1],
        shape[3], slots, cache};
}

void checkCaches(Manifest const& manifest)
{
    for (TensorInfo const& tensor : manifest.io)
    {
        if (tensor.layer >= static_cast<int64_t>(manifest.layers.size()))
        {
            fail("the manifest names tensors of layer " + std::to_string(tensor.layer) + " and describes "
                + std::to_string(manifest.layers.size()) + " layers");
        }
    }
    std::optional<int64_t> growing;
    for (CacheInfo const& cache : manifest.layers)
    {
        if (cache.policy == CachePolicy::kFULL && growing.value_or(cache.capacity) != cache.capacity)
        {
            fail("the manifest's full caches differ in capacity");
        }
        growing = cache.policy == CachePolicy::kFULL ? cache.capacity : growing;
    }
}

int64_t limitingCapacity(std::vector<CacheInfo> const& layers)
{
    int64_t smallest = INT64_MAX;
    for (CacheInfo const& cache : layers)
    {
        if (cache.policy == CachePolicy::kFULL)
        {
            return cache.capacity;
        }
        smallest = std::min(smallest, cache.capacity);
    }
    return smallest;
}

Contract contractOf(Manifest const& manifest)
{
    Contract contract;
    contract.inputIds = plainTensor(manifest, "input_ids", 2).name;
    contract.seen = plainTensor(manifest, "seen", 1).name;
    contract.newTokens = plainTensor(manifest, "new", 1).name;
    contract.logitRows = plainTensor(manifest, "logit_rows", 2).name;
    contract.logits = plainTensor(manifest, "logits", 3).name;
    contract.logitsType = plainTensor(manifest, "logits", 3).type;
    if (find(manifest, "rope_length", -1) != nullptr)
    {
        contract.ropeLength = plainTensor(manifest, "rope_length", 1).name;
    }
    checkCaches(manifest);
    for (size_t layer = 0; layer < manifest.layers.size(); ++layer)
    {
        contract.layers.push_back(layerCache(manifest, static_cast<int64_t>(layer)));
    }
    contract.capacity = limitingCapacity(manifest.layers);
    contract.heads = manifest.model.heads;
    contract.vocab = manifest.model.vocab;
    contract.maxContext = manifest.maxContext;
    contract.maxBatch = manifest.maxBatch;
    contract.maxChunk = manifest.maxChunk;
    return contract;
}

} // namespace

Result<Contract> makeContract(Manifest const& manifest) noexcept
{
    return guarded<Result<Contract>>([&] { return contractOf(manifest); });
}

} // namespace ctx::runtime
