// The caches of a session: allocated, grown in all layers or none, released when they end.
#pragma once

#include "ctx_runtime/engine.h"

#include <vector>

namespace ctx::runtime
{

// One tensor [batch, heads, slots, dim]; owns its memory.
class CacheTensor
{
public:
    // Bytes of one head's slot; `heads` are those of all sequences together.
    CacheTensor(Memory& memory, int64_t sequences, int64_t heads, int64_t slotBytes) noexcept;
    ~CacheTensor();
    CacheTensor(CacheTensor&& other) noexcept;
    CacheTensor(CacheTensor const&) = delete;
    CacheTensor& operator=(CacheTensor const&) = delete;
    CacheTensor& operator=(CacheTensor&&) = delete;

    // Other memory with `slots` slots: the first ones keep what they hold, new ones hold zeros. Where it fails
    // everything stays as it was.
    Status resize(int64_t slots) noexcept;

    Status copyRow(int64_t source, int64_t target, int64_t slots) noexcept;
    Status zero(int64_t row, int64_t slots) noexcept;

    std::byte* address() const noexcept
    {
        return mAddress;
    }

    int64_t slots() const noexcept
    {
        return mSlots;
    }

    int64_t bytes() const noexcept
    {
        return mSequences * mHeads * mSlots * mSlotBytes;
    }

private:
    PitchedRows row(int64_t index) const noexcept;

    Memory* mMemory;
    int64_t mSequences;
    int64_t mHeads;     // of one sequence
    int64_t mSlotBytes; // of one head's slot
    int64_t mSlots{0};
    std::byte* mAddress{nullptr};
};

class Caches
{
public:
    // None of them has slots yet.
    Caches(Memory& memory, Contract const& contract, int64_t batch);

    // The growing layers get at least `capacity` slots and keep what they hold, the others all that they ever have.
    // Every tensor is as it was where it fails; one at a time is copied, so that old and new memory exist side by side
    // for one only.
    Status grow(int64_t capacity) noexcept;

    Status copyRow(int64_t source, int64_t target, int64_t slots) noexcept;
    Status zero(int64_t row, int64_t slots) noexcept;

    std::vector<CacheBinding> bindings() const;
    int64_t bytes() const noexcept;

    // Whether a layer's number of slots changes.
    bool grows() const noexcept;

private:
    struct Layer
    {
        std::optional<int64_t> slots; // none: it grows
        CacheTensor key;
        CacheTensor value;
    };

    std::vector<Layer> mLayers;
};

} // namespace ctx::runtime
