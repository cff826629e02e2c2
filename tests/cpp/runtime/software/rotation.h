// Rotary embedding as the package's function bodies compute it: float64 angles, float32 cosines and sines.
#pragma once

#include "ctx_runtime/manifest.h"

#include <cmath>
#include <unordered_map>

namespace ctx::software
{

// The frequencies of one sequence in one call. Cosines and sines are computed where a position is first met.
class Rotation
{
public:
    // At rope length `length`, of which packages without a length table take no notice.
    Rotation(runtime::ScalingInfo const& scaling, int64_t length)
        : mFrequencies(scaling.inverseFrequency)
        , mMultiplier(static_cast<float>(scaling.multiplier))
    {
        if (scaling.lengthTable)
        {
            followLength(*scaling.lengthTable, length);
        }
    }

    // y = x [dim] rotated at `position`; pairs are (i, i + F), dims from 2 F on are copied.
    void rotate(float const* x, float* y, int64_t dim, int64_t position)
    {
        std::vector<float> const& turn = turnAt(position);
        size_t const pairs = mFrequencies.size();
        for (size_t i = 0; i < pairs; ++i)
        {
            float const first = x[i];
            float const second = x[i + pairs];
            y[i] = first * turn[i] - second * turn[i + pairs];
            y[i + pairs] = second * turn[i] + first * turn[i + pairs];
        }
        for (auto i = static_cast<int64_t>(2 * pairs); i < dim; ++i)
        {
            y[i] = x[i];
        }
    }

private:
    // FORMULAS of the length table, float64 with one rounding at the end.
    void followLength(runtime::LengthTable const& table, int64_t length)
    {
        auto const n = static_cast<double>(length);
        double const growth = std::max(1.0, table.slope * n + table.offset);
        bool const isLong = n > table.threshold;
        for (size_t i = 0; i < mFrequencies.size(); ++i)
        {
            double const frequency = isLong ? table.longFrequencies[i] : table.shortFrequencies[i];
            double const kept = 1 - table.ramp[i] + table.ramp[i] / growth;
            mFrequencies[i] = static_cast<float>(frequency * kept * std::pow(growth, table.exponent[i]));
        }
        double const log = std::log(growth);
        double const multiplier = isLong ? table.longMultiplier : table.shortMultiplier;
        mMultiplier = static_cast<float>(multiplier * (1 + table.gain * log) / (1 + table.gainAll * log));
    }

    std::vector<float> const& turnAt(int64_t position)
    {
        std::vector<float>& turn = mTurns[position];
        if (turn.empty())
        {
            size_t const pairs = mFrequencies.size();
            turn.resize(2 * pairs);
            for (size_t i = 0; i < pairs; ++i)
            {
                double const angle = static_cast<double>(position) * mFrequencies[i];
                turn[i] = static_cast<float>(std::cos(angle) * mMultiplier);
                turn[i + pairs] = static_cast<float>(std::sin(angle) * mMultiplier);
            }
        }
        return turn;
    }

    std::vector<float> mFrequencies;
    float mMultiplier;
    std::unordered_map<int64_t, std::vector<float>> mTurns; // cosines, then sines, by position
};

} // namespace ctx::software
