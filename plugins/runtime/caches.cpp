#include "caches.h"

#include <algorithm>

namespace ctx::runtime
{

namespace
{

// Whether a tensor of this shape has a number of bytes.
bool fits(int64_t heads, int64_t slots, int64_t slotBytes) noexcept
{
    int64_t bytes = 0;
    return !__builtin_mul_overflow(heads, slots, &bytes) && !__builtin_mul_overflow(bytes, slotBytes, &bytes);
}

} // namespace

CacheTensor::CacheTensor(Memory& memory, int64_t sequences, int64_t heads, int64_t slotBytes) noexcept
    : mMemory(&memory)
    , mSequences(sequences)
    , mHeads(heads)
    , mSlotBytes(slotBytes)
{
}

CacheTensor::~CacheTensor()
{
    if (mAddress != nullptr)
    {
        mMemory->release(mAddress);
    }
}

CacheTensor::CacheTensor(CacheTensor&& other) noexcept
    : mMemory(other.mMemory)
    , mSequences(other.mSequences)
    , mHeads(other.mHeads)
    , mSlotBytes(other.mSlotBytes)
    , mSlots(std::exchange(other.mSlots, 0))
    , mAddress(std::exchange(other.mAddress, nullptr))
{
}

Status CacheTensor::resize(int64_t slots) noexcept
{
    int64_t const heads = mSequences * mHeads;
    std::byte* const address = fits(heads, slots, mSlotBytes) ? mMemory->allocate(heads * slots * mSlotBytes) : nullptr;
    if (address == nullptr)
    {
        return {StatusCode::kOUT_OF_MEMORY, {}};
    }
    int64_t const oldPitch = mSlots * mSlotBytes;
    int64_t const pitch = slots * mSlotBytes;
    int64_t const kept = std::min(oldPitch, pitch);
    Status status;
    if (kept > 0)
    {
        status = mMemory->copyRows({address, pitch}, {mAddress, oldPitch}, kept, heads);
    }
    if (status.ok() && pitch > kept)
    {
        status = mMemory->zeroRows({address + kept, pitch}, pitch - kept, heads);
    }
    // Before either memory is given back.
    Status const waited = mMemory->synchronize();
    status = status.ok() ? waited : status;
    if (!status.ok())
    {
        mMemory->release(address);
        return status;
    }
    if (mAddress != nullptr)
    {
        mMemory->release(mAddress);
    }
    mAddress = address;
    mSlots = slots;
    return {};
}

Status CacheTensor::copyRow(int64_t source, int64_t target, int64_t slots) noexcept
{
    int64_t const width = std::min(slots, mSlots) * mSlotBytes;
    return width == 0 || source == target ? Status{} : mMemory->copyRows(row(target), row(source), width, mHeads);
}

Status CacheTensor::zero(int64_t index, int64_t slots) noexcept
{
    int64_t const width = std::min(slots, mSlots) * mSlotBytes;
    return width == 0 ? Status{} : mMemory->zeroRows(row(index), width, mHeads);
}

PitchedRows CacheTensor::row(int64_t index) const noexcept
{
    int64_t const pitch = mSlots * mSlotBytes;
    return {mAddress + index * mHeads * pitch, pitch};
}

Caches::Caches(Memory& memory, Contract const& contract, int64_t batch)
{
    mLayers.reserve(contract.layers.size());
    for (LayerCache const& layer : contract.layers)
    {
        int64_t const slotBytes = layer.headDim * sizeOf(layer.type);
        mLayers.push_back({layer.slots, CacheTensor{memory, batch, layer.kvHeads, slotBytes},
            CacheTensor{memory, batch, layer.kvHeads, slotBytes}});
    }
}

Status Caches::grow(int64_t capacity) noexcept
{
    std::vector<std::pair<CacheTensor*, int64_t>> grown;
    try
    {
        grown.reserve(2 * mLayers.size());
    }
    catch (std::exception const&)
    {
        return {StatusCode::kOUT_OF_MEMORY, {}};
    }
    for (Layer& layer : mLayers)
    {
        int64_t const wanted = layer.slots.value_or(capacity);
        for (CacheTensor* const tensor : {&layer.key, &layer.value})
        {
            if (tensor->slots() >= wanted)
            {
                continue;
            }
            int64_t const before = tensor->slots();
            Status status = tensor->resize(wanted);
            if (status.ok())
            {
                grown.emplace_back(tensor, before);
                continue;
            }
            // Backwards, each one shrinks into the memory that its own growth gave back.
            while (!grown.empty())
            {
                auto const [wider, slots] = grown.back();
                grown.pop_back();
                if (slots > 0 && !wider->resize(slots).ok())
                {
                    return {StatusCode::kINTERNAL_ERROR, "caches of different sizes"};
                }
            }
            return status;
        }
    }
    return {};
}

Status Caches::copyRow(int64_t source, int64_t target, int64_t slots) noexcept
{
    for (Layer& layer : mLayers)
    {
        for (CacheTensor* const tensor : {&layer.key, &layer.value})
        {
            if (Status status = tensor->copyRow(source, target, slots); !status.ok())
            {
                return status;
            }
        }
    }
    return {};
}

Status Caches::zero(int64_t row, int64_t slots) noexcept
{
    for (Layer& layer : mLayers)
    {
        for (CacheTensor* const tensor : {&layer.key, &layer.value})
        {
            if (Status status = tensor->zero(row, slots); !status.ok())
            {
                return status;
            }
        }
    }
    return {};
}

std::vector<CacheBinding> Caches::bindings() const
{
    std::vector<CacheBinding> all;
    for (Layer const& layer : mLayers)
    {
        all.push_back({layer.key.address(), layer.value.address(), layer.key.slots()});
    }
    return all;
}

int64_t Caches::bytes() const noexcept
{
    int64_t total = 0;
    for (Layer const& layer : mLayers)
    {
        total += layer.key.bytes() + layer.value.bytes();
    }
    return total;
}

bool Caches::grows() const noexcept
{
    return std::any_of(mLayers.begin(), mLayers.end(), [](Layer const& layer) { return !layer.slots; });
}

} // namespace ctx::runtime
