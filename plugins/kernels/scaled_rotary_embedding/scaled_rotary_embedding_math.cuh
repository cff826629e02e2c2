// Rotation of one pair and the place of pairs in a head.
#pragma once

#include "kernels/common/angle.cuh"

namespace ctx
{

struct Pair
{
    float first;
    float second;
};

// (a, b) turned by the angle: (a cos - b sin, b cos + a sin).
CTX_HOST_DEVICE Pair rotatePair(Pair pair, CosSin turn)
{
    return Pair{pair.first * turn.cosine - pair.second * turn.sine, pair.second * turn.cosine + pair.first * turn.sine};
}

CTX_HOST_DEVICE CosSin scaled(CosSin turn, float multiplier)
{
    return CosSin{turn.cosine * multiplier, turn.sine * multiplier};
}

// The turn by the sum of two angles.
CTX_HOST_DEVICE CosSin added(CosSin a, CosSin b)
{
    return CosSin{a.cosine * b.cosine - a.sine * b.sine, a.sine * b.cosine + a.cosine * b.sine};
}

CTX_HOST_DEVICE CosSin reversed(CosSin turn)
{
    return CosSin{turn.cosine, -turn.sine};
}

// Dimension of a pair's first and second element.
CTX_HOST_DEVICE int32_t firstDim(int32_t pair, bool interleaved)
{
    return interleaved ? 2 * pair : pair;
}

CTX_HOST_DEVICE int32_t secondDim(int32_t pair, int32_t pairs, bool interleaved)
{
    return interleaved ? 2 * pair + 1 : pair + pairs;
}

} // namespace ctx
