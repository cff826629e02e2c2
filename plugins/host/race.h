// What ThreadSanitizer must know to find races between the threads of a block (CTX_SANITIZE=thread): which of them
// runs, and that barriers alone order their memory. Shuffles and matrix instructions do not, as on a GPU. Without the
// sanitizer all of it is nothing.
#pragma once

#if defined(CTX_RACE_CHECK)
extern "C"
{
void* __tsan_get_current_fiber(void);
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
}
#endif

namespace ctx::host
{

#if defined(CTX_RACE_CHECK)

constexpr bool kIS_RACE_CHECK = true;

// A meeting of threads: what each did before is seen by all after. Two take turns, since threads leave one while others
// arrive at the next.
class Meeting
{
public:
    void arrive(unsigned turn)
    {
        __tsan_release(&mTurns[turn % 2]);
    }

    void leave(unsigned turn)
    {
        __tsan_acquire(&mTurns[turn % 2]);
    }

private:
    char mTurns[2]{};
};

// A thread of a block, seen from the scheduler (begin, enter) and from itself (leave).
class TracedThread
{
public:
    TracedThread() = default;
    TracedThread(TracedThread const&) = delete;
    TracedThread& operator=(TracedThread const&) = delete;

    ~TracedThread()
    {
        end();
    }

    // A new thread, which has seen what the scheduler did so far.
    void begin()
    {
        end();
        mScheduler = __tsan_get_current_fiber();
        mFiber = __tsan_create_fiber(0);
    }

    void enter()
    {
        __tsan_switch_to_fiber(mFiber, 0);
    }

    // The scheduler learns nothing from it.
    void leave()
    {
        constexpr unsigned kNO_ORDER = 1;
        __tsan_switch_to_fiber(mScheduler, kNO_ORDER);
    }

private:
    void end()
    {
        if (mFiber != nullptr)
        {
            __tsan_destroy_fiber(mFiber);
            mFiber = nullptr;
        }
    }

    void* mFiber{nullptr};
    void* mScheduler{nullptr};
};

#else

constexpr bool kIS_RACE_CHECK = false;

class Meeting
{
public:
    void arrive(unsigned) {}

    void leave(unsigned) {}
};

class TracedThread
{
public:
    void begin() {}

    void enter() {}

    void leave() {}
};

#endif

} // namespace ctx::host
