// Asynchronous copies as the host executes them. In even blocks a copy happens at once, in odd ones when it is waited
// for, so that neither overwriting what others still read nor reading what has not arrived goes unseen.
#pragma once

namespace ctx
{

template <int BYTES>
void copyAsync(void* target, void const* source, bool valid)
{
    host::beginCopy(target, source, valid ? BYTES : 0, BYTES);
}

template <int BYTES>
void copyAsync(void* target, void const* source)
{
    host::beginCopy(target, source, BYTES, BYTES);
}

inline void commitCopies()
{
    host::commitCopies();
}

template <int PENDING>
void waitForCopies()
{
    host::waitForCopies(PENDING);
}

} // namespace ctx
