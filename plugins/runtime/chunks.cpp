#include "chunks.h"

namespace ctx::runtime
{

Chunk nextChunk(std::vector<int64_t> const& counts, std::vector<int64_t> const& seen, int64_t start, int64_t maxChunk,
    std::function<int64_t(int64_t)> const& limit)
{
    int64_t const longest = counts.empty() ? 0 : *std::max_element(counts.begin(), counts.end());
    Chunk chunk;
    chunk.start = start;
    chunk.newTokens.assign(counts.size(), 0);
    if (start >= longest)
    {
        return chunk;
    }
    chunk.width = std::min(maxChunk, longest - start);
    int64_t tokens = 0;
    for (size_t row = 0; row < counts.size(); ++row)
    {
        tokens = std::max(tokens, seen[row] + std::min(counts[row], start + chunk.width));
    }
    chunk.width = std::max<int64_t>(1, std::min(chunk.width, limit(tokens)));
    for (size_t row = 0; row < counts.size(); ++row)
    {
        chunk.newTokens[row] = std::clamp<int64_t>(counts[row] - start, 0, chunk.width);
    }
    return chunk;
}

Spread withLandmarks(std::vector<int64_t> const& tokens, int64_t textLength, CacheInfo const& landmark)
{
    Spread spread;
    int64_t const before = fedTokens(textLength, landmark);
    for (size_t i = 0; i < tokens.size(); ++i)
    {
        spread.fed.push_back(tokens[i]);
        int64_t const after = fedTokens(textLength + static_cast<int64_t>(i) + 1, landmark) - before;
        if (after > static_cast<int64_t>(spread.fed.size()))
        {
            spread.fed.push_back(*landmark.landmarkToken);
        }
        spread.rows.push_back(after - 1);
    }
    return spread;
}

} // namespace ctx::runtime
