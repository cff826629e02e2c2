// Scheduler of the host execution: runs the fibers of one block in turn, from barrier to barrier.

#include "host/cuda_host.h"

#include "host/fiber.h"
#include "host/race.h"
#include "kernels/common/platform.cuh"

#include <algorithm>
#include <deque>
#include <memory>
#include <mutex>
#include <vector>

ctx::host::Index threadIdx{0};
ctx::host::Index blockIdx{0};

namespace ctx::host
{
namespace
{

constexpr size_t kGUARD_BYTES = 256;
constexpr unsigned char kGUARD = 0xa5;
constexpr unsigned char kNAN_BYTE = 0xff; // 0xffffffff is a NaN
constexpr int32_t kMAX_THREADS = 1024;

enum class Wait
{
    kNOTHING,
    kBLOCK,
    kWARP,
    kFOREVER // finished
};

struct Copy
{
    void* target;
    void const* source;
    size_t copied;
    size_t bytes;

    void perform() const
    {
        std::memcpy(target, source, copied);
        std::memset(static_cast<unsigned char*>(target) + copied, 0, bytes - copied);
    }
};

struct Thread
{
    Fiber fiber;
    Wait wait{Wait::kNOTHING};
    unsigned mask{0};
    // A lane reads round n while others may already bring values of round n + 1, never n + 2.
    alignas(16) unsigned char brought[2][kMAX_SHARED_BY_LANE]{};
    unsigned round{0};
    TracedThread trace;
    unsigned blockMeetings{0};
    unsigned warpMeetings{0};
    // In a race check what the lanes brought in the round this thread asked for last: reading theirs would count as a
    // race, which the instruction behind a round is not.
    alignas(16) unsigned char received[kWARP_LANES][kMAX_SHARED_BY_LANE]{};
    std::deque<std::vector<Copy>> groups; // committed, oldest first
    std::vector<Copy> copies;             // not yet committed
};

struct Grid
{
    std::mutex mutex; // one launch at a time
    std::vector<std::unique_ptr<Thread>> threads;
    std::vector<unsigned char> shared;
    Meeting block;
    Meeting warps[kMAX_THREADS / kWARP_LANES];
    Meeting end;
    int32_t count{0};
    void (*body)(void*){nullptr};
    void* argument{nullptr};
};

Grid& grid()
{
    static Grid instance;
    return instance;
}

Thread& current()
{
    return *grid().threads[threadIdx.x];
}

void suspend(Wait wait)
{
    Thread& thread = current();
    thread.wait = wait;
    unsigned const index = threadIdx.x;
    thread.trace.leave();
    thread.fiber.suspend();
    threadIdx.x = index;
}

void runThread()
{
    grid().body(grid().argument);
    grid().end.arrive(0);
    suspend(Wait::kFOREVER);
}

// Lanes of a warp's mask go on once all of them that still run have arrived.
bool releaseWarp(int32_t firstLane)
{
    Grid& state = grid();
    int32_t const end = std::min(firstLane + kWARP_LANES, state.count);
    unsigned arrived = 0;
    for (int32_t i = firstLane; i < end; ++i)
    {
        Wait const wait = state.threads[i]->wait;
        arrived |= wait == Wait::kWARP || wait == Wait::kFOREVER ? 1U << (i - firstLane) : 0U;
    }
    bool released = false;
    for (int32_t i = firstLane; i < end; ++i)
    {
        Thread& thread = *state.threads[i];
        if (thread.wait == Wait::kWARP && (thread.mask & ~arrived) == 0)
        {
            thread.wait = Wait::kNOTHING;
            released = true;
        }
    }
    return released;
}

bool releaseBlock()
{
    Grid& state = grid();
    bool anyWaits = false;
    for (int32_t i = 0; i < state.count; ++i)
    {
        Wait const wait = state.threads[i]->wait;
        if (wait == Wait::kNOTHING || wait == Wait::kWARP)
        {
            return false;
        }
        anyWaits = anyWaits || wait == Wait::kBLOCK;
    }
    for (int32_t i = 0; i < state.count && anyWaits; ++i)
    {
        Thread& thread = *state.threads[i];
        thread.wait = thread.wait == Wait::kBLOCK ? Wait::kNOTHING : thread.wait;
    }
    return anyWaits;
}

// Runs a warp until all its lanes wait for the block or have finished; false if nothing could run.
bool runWarp(int32_t firstLane)
{
    Grid& state = grid();
    int32_t const end = std::min(firstLane + kWARP_LANES, state.count);
    bool ran = false;
    do
    {
        for (int32_t i = firstLane; i < end; ++i)
        {
            if (state.threads[i]->wait == Wait::kNOTHING)
            {
                threadIdx.x = static_cast<unsigned>(i);
                state.threads[i]->trace.enter();
                state.threads[i]->fiber.resume();
                ran = true;
            }
        }
    } while (releaseWarp(firstLane));
    return ran;
}

bool isFinished()
{
    Grid& state = grid();
    for (int32_t i = 0; i < state.count; ++i)
    {
        if (state.threads[i]->wait != Wait::kFOREVER)
        {
            return false;
        }
    }
    return true;
}

// Odd blocks run their warps backwards, so that no kernel works by the order of its warps alone.
cudaError_t runBlock(int64_t block)
{
    Grid& state = grid();
    blockIdx.x = static_cast<unsigned>(block);
    for (int32_t i = 0; i < state.count; ++i)
    {
        state.threads[i]->wait = Wait::kNOTHING;
        state.threads[i]->round = 0;
        state.threads[i]->blockMeetings = 0;
        state.threads[i]->warpMeetings = 0;
        state.threads[i]->trace.begin();
        state.threads[i]->groups.clear();
        state.threads[i]->copies.clear();
        state.threads[i]->fiber.start(runThread);
    }
    int32_t const warps = (state.count + kWARP_LANES - 1) / kWARP_LANES;
    while (!isFinished())
    {
        bool ran = false;
        for (int32_t i = 0; i < warps; ++i)
        {
            int32_t const warp = block % 2 == 0 ? i : warps - 1 - i;
            ran = runWarp(warp * kWARP_LANES) || ran;
        }
        if (!releaseBlock() && !ran)
        {
            return cudaErrorLaunchFailure; // some threads wait at a barrier the others never reach
        }
    }
    state.end.leave(0);
    return cudaSuccess;
}

} // namespace

unsigned char* sharedMemory()
{
    auto const address = reinterpret_cast<uintptr_t>(grid().shared.data());
    return reinterpret_cast<unsigned char*>((address + 15) / 16 * 16);
}

void syncBlock()
{
    unsigned const turn = current().blockMeetings++;
    grid().block.arrive(turn);
    suspend(Wait::kBLOCK);
    grid().block.leave(turn);
}

void syncWarp(unsigned mask)
{
    Meeting& warp = grid().warps[threadIdx.x / kWARP_LANES];
    unsigned const turn = current().warpMeetings++;
    warp.arrive(turn);
    share(mask, nullptr, 0);
    warp.leave(turn);
}

// In a race check byte by byte, where the sanitizer does not look: its memcpy does.
void copyUnseen(unsigned char* target, void const* source, size_t bytes)
{
    if constexpr (kIS_RACE_CHECK)
    {
        auto const* const from = static_cast<unsigned char const volatile*>(source);
        for (size_t i = 0; i < bytes; ++i)
        {
            target[i] = from[i];
        }
    }
    else if (bytes > 0)
    {
        std::memcpy(target, source, bytes);
    }
}

unsigned share(unsigned mask, void const* brought, size_t bytes)
{
    Thread& thread = current();
    unsigned const round = thread.round++ % 2;
    copyUnseen(thread.brought[round], brought, bytes);
    thread.mask = mask;
    suspend(Wait::kWARP);
    return round;
}

void const* sharedBy(unsigned round, int lane)
{
    int32_t const thread = static_cast<int32_t>(threadIdx.x) / kWARP_LANES * kWARP_LANES + lane;
    Thread& source = thread < grid().count ? *grid().threads[static_cast<size_t>(thread)] : current();
    if constexpr (!kIS_RACE_CHECK)
    {
        return source.brought[round];
    }
    unsigned char* const received = current().received[lane];
    copyUnseen(received, source.brought[round], kMAX_SHARED_BY_LANE);
    return received;
}

void beginCopy(void* target, void const* source, size_t copied, size_t bytes)
{
    Copy const copy{target, source, copied, bytes};
    if (blockIdx.x % 2 == 0)
    {
        copy.perform();
        return;
    }
    current().copies.push_back(copy);
}

void commitCopies()
{
    Thread& thread = current();
    thread.groups.push_back(std::move(thread.copies));
    thread.copies.clear();
}

void waitForCopies(size_t pending)
{
    auto& groups = current().groups;
    for (; groups.size() > pending; groups.pop_front())
    {
        for (Copy const& copy : groups.front())
        {
            copy.perform();
        }
    }
}

cudaError_t runGrid(LaunchShape const& shape, void (*thread)(void*), void* argument)
{
    if (shape.blocks < 1 || shape.threads < 1 || shape.threads > kMAX_THREADS || shape.sharedBytes > kMAX_SHARED_BYTES)
    {
        return cudaErrorInvalidConfiguration;
    }
    Grid& state = grid();
    std::lock_guard<std::mutex> const lock{state.mutex};
    while (state.threads.size() < static_cast<size_t>(shape.threads))
    {
        state.threads.push_back(std::make_unique<Thread>());
    }
    state.count = shape.threads;
    state.body = thread;
    state.argument = argument;
    state.shared.resize(shape.sharedBytes + kGUARD_BYTES + 16);
    unsigned char* const shared = sharedMemory();
    for (int64_t block = 0; block < shape.blocks; ++block)
    {
        std::memset(shared, kNAN_BYTE, shape.sharedBytes);
        std::memset(shared + shape.sharedBytes, kGUARD, kGUARD_BYTES);
        if (cudaError_t const status = runBlock(block); status != cudaSuccess)
        {
            return status;
        }
        for (size_t i = 0; i < kGUARD_BYTES; ++i)
        {
            if (shared[shape.sharedBytes + i] != kGUARD)
            {
                return cudaErrorIllegalAddress;
            }
        }
    }
    return cudaSuccess;
}

} // namespace ctx::host

char const* cudaGetErrorString(cudaError_t error)
{
    switch (error)
    {
    case cudaSuccess: return "no error";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorIllegalAddress: return "memory was written past the block's shared memory";
    case cudaErrorLaunchFailure: return "threads of a block wait at a barrier the others never reach";
    }
    return "unknown error";
}
