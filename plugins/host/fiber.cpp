#include "host/fiber.h"

#include <cstdint>
#include <new>
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif
#include <sys/mman.h>
#include <unistd.h>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace ctx::host
{
namespace
{

constexpr size_t kSTACK_BYTES = 256 * 1024;

// A stack above an unreadable page, so that overflowing it faults instead of reaching other memory.
class Stack
{
public:
    Stack()
        : mGuardBytes{static_cast<size_t>(sysconf(_SC_PAGESIZE))}
        , mBase{mmap(nullptr, mGuardBytes + kSTACK_BYTES, PROT_READ | PROT_WRITE,
              MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK | MAP_NORESERVE, -1, 0)}
    {
        if (mBase == MAP_FAILED)
        {
            throw std::bad_alloc{};
        }
        mprotect(mBase, mGuardBytes, PROT_NONE);
    }

    ~Stack()
    {
        munmap(mBase, mGuardBytes + kSTACK_BYTES);
    }

    Stack(Stack const&) = delete;
    Stack& operator=(Stack const&) = delete;

    unsigned char* bottom() const
    {
        return static_cast<unsigned char*>(mBase) + mGuardBytes;
    }

    // What a fiber ran before has never returned, so AddressSanitizer still guards its local variables.
    void forget() const
    {
#if defined(__SANITIZE_ADDRESS__)
        __asan_unpoison_memory_region(bottom(), kSTACK_BYTES);
#endif
    }

private:
    size_t mGuardBytes;
    void* mBase;
};

} // namespace

#if defined(__x86_64__)

// Saves the callee-saved registers and the stack pointer of System V's convention, loads the other side's.
extern "C" void ctxHostSwitchStack(void** saved, void* loaded);
asm(R"(
    .text
    .p2align 4
    .hidden ctxHostSwitchStack
    .globl ctxHostSwitchStack
    .type ctxHostSwitchStack, @function
ctxHostSwitchStack:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size ctxHostSwitchStack, .-ctxHostSwitchStack
)");

struct Fiber::Context
{
    Stack stack;
    void* fiberStack{nullptr};
    void* schedulerStack{nullptr};
};

void Fiber::start(FiberBody body)
{
    mContext->stack.forget();
    // As if `body` had been called: after its "return address" the stack is 8 below a multiple of 16.
    auto* top = reinterpret_cast<void**>(mContext->stack.bottom() + kSTACK_BYTES);
    constexpr int kSAVED_REGISTERS = 6;
    *--top = nullptr;
    *--top = reinterpret_cast<void*>(body);
    for (int i = 0; i < kSAVED_REGISTERS; ++i)
    {
        *--top = nullptr;
    }
    mContext->fiberStack = top;
}

void Fiber::resume()
{
    ctxHostSwitchStack(&mContext->schedulerStack, mContext->fiberStack);
}

void Fiber::suspend()
{
    ctxHostSwitchStack(&mContext->fiberStack, mContext->schedulerStack);
}

#else

struct Fiber::Context
{
    Stack stack;
    ucontext_t fiber{};
    ucontext_t scheduler{};
};

void Fiber::start(FiberBody body)
{
    mContext->stack.forget();
    getcontext(&mContext->fiber);
    mContext->fiber.uc_stack.ss_sp = mContext->stack.bottom();
    mContext->fiber.uc_stack.ss_size = kSTACK_BYTES;
    mContext->fiber.uc_link = nullptr;
    makecontext(&mContext->fiber, body, 0);
}

void Fiber::resume()
{
    swapcontext(&mContext->scheduler, &mContext->fiber);
}

void Fiber::suspend()
{
    swapcontext(&mContext->fiber, &mContext->scheduler);
}

#endif

Fiber::Fiber()
    : mContext{std::make_unique<Context>()}
{
}

Fiber::~Fiber() = default;

} // namespace ctx::host
