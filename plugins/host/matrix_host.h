// The matrix instructions as the host executes them: every lane brings its fragments and computes its own elements of
// the result. Included by kernels/common/matrix.cuh.
#pragma once

namespace ctx
{

using SharedAddress = unsigned char const*;

inline SharedAddress sharedAddress(void const* pointer)
{
    return static_cast<SharedAddress>(pointer);
}

namespace host
{

struct Fragments
{
    FragmentA a;
    FragmentB b;
};

template <typename T>
float elementOf(uint32_t word, int index)
{
    return toFloat(T{static_cast<uint16_t>(word >> (16 * index))});
}

inline int lane()
{
    return static_cast<int>(threadIdx.x) % kWARP_LANES;
}

} // namespace host

template <typename T>
void multiplyAdd(FragmentC& sum, FragmentA const& a, FragmentB const& b)
{
    host::Fragments const own{a, b};
    unsigned const round = host::share(0xffffffffU, &own, sizeof(own));
    auto const of = [round](int lane) { return static_cast<host::Fragments const*>(host::sharedBy(round, lane)); };
    int const g = host::lane() / 4;
    int const t = host::lane() % 4;
    for (int i = 0; i < 4; ++i)
    {
        int const column = 2 * t + i % 2;
        float total = 0.0F;
        for (int k = 0; k < 16; ++k)
        {
            int const word = k / 8;
            int const holder = k % 8 / 2;
            uint32_t const left = of(4 * g + holder)->a.values[2 * word + i / 2];
            uint32_t const right = of(4 * column + holder)->b.values[word];
            total += host::elementOf<T>(left, k % 2) * host::elementOf<T>(right, k % 2);
        }
        sum.values[i] += total;
    }
}

namespace host
{

struct MatrixRow
{
    uint16_t values[8];
};

// A lane brings the row it addresses as it is now.
inline unsigned shareRow(void const* row)
{
    MatrixRow own;
    std::memcpy(&own, row, sizeof(own));
    return share(0xffffffffU, &own, sizeof(own));
}

inline uint32_t matrixElement(unsigned round, int matrix, int row, int column)
{
    return static_cast<MatrixRow const*>(sharedBy(round, 8 * matrix + row))->values[column];
}

} // namespace host

inline Matrices loadMatrices(SharedAddress row)
{
    unsigned const round = host::shareRow(row);
    int const g = host::lane() / 4;
    int const t = host::lane() % 4;
    Matrices result;
    for (int m = 0; m < 4; ++m)
    {
        result.values[m] = host::matrixElement(round, m, g, 2 * t) | host::matrixElement(round, m, g, 2 * t + 1) << 16;
    }
    return result;
}

inline Matrices loadMatricesTransposed(SharedAddress row)
{
    unsigned const round = host::shareRow(row);
    int const g = host::lane() / 4;
    int const t = host::lane() % 4;
    Matrices result;
    for (int m = 0; m < 4; ++m)
    {
        result.values[m] = host::matrixElement(round, m, 2 * t, g) | host::matrixElement(round, m, 2 * t + 1, g) << 16;
    }
    return result;
}

} // namespace ctx
