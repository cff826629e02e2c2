// Where caches live: a GPU's memory or the host's.
#ifndef CTX_RUNTIME_MEMORY_H
#define CTX_RUNTIME_MEMORY_H

#include "ctx_runtime/api.h"
#include "ctx_runtime/result.h"

#include <cstddef>
#include <cstdint>

namespace ctx::runtime
{

// Rows of bytes, `pitch` bytes from one to the next.
struct PitchedRows
{
    std::byte* address{nullptr};
    int64_t pitch{0};
};

// Addresses are the memory's own and may mean nothing to the host. Copies and zeroing may be queued, in order with each
// other and with what the engine runs; `synchronize` waits for them. No call throws.
class Memory
{
public:
    virtual ~Memory() = default;

    // `bytes` > 0 bytes, aligned to 256; null where there are none.
    virtual std::byte* allocate(int64_t bytes) noexcept = 0;

    // Waits for nothing: what uses the memory must be over.
    virtual void release(std::byte* address) noexcept = 0;

    // `count` rows of `width` bytes; source and target do not overlap.
    virtual Status copyRows(PitchedRows target, PitchedRows source, int64_t width, int64_t count) noexcept = 0;

    virtual Status zeroRows(PitchedRows target, int64_t width, int64_t count) noexcept = 0;

    virtual Status synchronize() noexcept = 0;
};

class CTX_RUNTIME_API HostMemory final : public Memory
{
public:
    std::byte* allocate(int64_t bytes) noexcept override;
    void release(std::byte* address) noexcept override;
    Status copyRows(PitchedRows target, PitchedRows source, int64_t width, int64_t count) noexcept override;
    Status zeroRows(PitchedRows target, int64_t width, int64_t count) noexcept override;
    Status synchronize() noexcept override;
};

} // namespace ctx::runtime

#endif
