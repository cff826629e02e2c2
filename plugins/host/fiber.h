// A thread of control with a stack of its own, switched by hand on one OS thread.
#pragma once

#include <cstddef>
#include <memory>

namespace ctx::host
{

// What a fiber runs; it never returns but switches away for good.
using FiberBody = void (*)();

class Fiber
{
public:
    Fiber();
    ~Fiber();
    Fiber(Fiber const&) = delete;
    Fiber& operator=(Fiber const&) = delete;

    // Makes the fiber begin at `body` when it is next resumed; what it ran before is forgotten.
    void start(FiberBody body);

    // From the scheduler: runs the fiber until it suspends.
    void resume();

    // From the fiber: back to the scheduler.
    void suspend();

private:
    struct Context;
    std::unique_ptr<Context> mContext;
};

} // namespace ctx::host
