// Warp-wide matrix instructions of compute capability 8.0: products of 16 x 16 and 16 x 8 elements of 2 bytes with
// float32 sums, and loads of 8 x 8 matrices from shared memory. All 32 lanes take part.
#pragma once

#include "kernels/common/element.cuh"

namespace ctx
{

// A lane's elements, with g = lane / 4 and t = lane % 4; two elements of 2 bytes share a word, the first one low.
struct FragmentA // 16 rows, 16 columns
{
    uint32_t values[4]; // rows g, g + 8, g, g + 8; columns 2t and 2t + 1, in the last two words 8 further
};

struct FragmentB // 16 rows, 8 columns
{
    uint32_t values[2]; // column g; rows 2t and 2t + 1, in the second word 8 further
};

struct FragmentC // 16 rows, 8 columns
{
    float values[4]; // row g, columns 2t and 2t + 1; then row g + 8
};

// Four 8 x 8 matrices; of each, a lane holds row g, columns 2t and 2t + 1, or transposed rows 2t and 2t + 1, column g.
struct Matrices
{
    uint32_t values[4];
};

} // namespace ctx

#if defined(CTX_HOST_EXECUTION)
#include "host/matrix_host.h"
#else

namespace ctx
{

// An address in shared memory, in bytes; its arithmetic takes 32 bits.
using SharedAddress = uint32_t;

CTX_DEVICE SharedAddress sharedAddress(void const* pointer)
{
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// sum += a * b
template <typename T>
CTX_DEVICE void multiplyAdd(FragmentC& sum, FragmentA const& a, FragmentB const& b);

template <>
CTX_DEVICE void multiplyAdd<Half>(FragmentC& sum, FragmentA const& a, FragmentB const& b)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
        : "+f"(sum.values[0]), "+f"(sum.values[1]), "+f"(sum.values[2]), "+f"(sum.values[3])
        : "r"(a.values[0]), "r"(a.values[1]), "r"(a.values[2]), "r"(a.values[3]), "r"(b.values[0]), "r"(b.values[1]));
}

template <>
CTX_DEVICE void multiplyAdd<BFloat16>(FragmentC& sum, FragmentA const& a, FragmentB const& b)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
        : "+f"(sum.values[0]), "+f"(sum.values[1]), "+f"(sum.values[2]), "+f"(sum.values[3])
        : "r"(a.values[0]), "r"(a.values[1]), "r"(a.values[2]), "r"(a.values[3]), "r"(b.values[0]), "r"(b.values[1]));
}

// Lane 8m + r gives the address of row r of matrix m, 16 bytes in shared memory.
CTX_DEVICE Matrices loadMatrices(SharedAddress row)
{
    Matrices result;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
        : "=r"(result.values[0]), "=r"(result.values[1]), "=r"(result.values[2]), "=r"(result.values[3])
        : "r"(row)
        : "memory");
    return result;
}

CTX_DEVICE Matrices loadMatricesTransposed(SharedAddress row)
{
    Matrices result;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
        : "=r"(result.values[0]), "=r"(result.values[1]), "=r"(result.values[2]), "=r"(result.values[3])
        : "r"(row)
        : "memory");
    return result;
}

} // namespace ctx

#endif
