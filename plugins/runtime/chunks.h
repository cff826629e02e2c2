// Cutting a feed into calls: right-padded chunks of ragged rows, and landmark tokens between those of a text.
#pragma once

#include "slots.h"

#include <functional>
#include <vector>

namespace ctx::runtime
{

// Columns start to start + width - 1 of a feed; row b has newTokens[b] tokens in them.
struct Chunk
{
    int64_t start{0};
    int64_t width{0};
    std::vector<int64_t> newTokens;
};

// The chunk of `counts` tokens after `seen` that begins at column `start`: at most `maxChunk` wide, and at most what
// `limit(tokens)` allows for the longest sequence at its end. Width 0: there are none left.
Chunk nextChunk(std::vector<int64_t> const& counts, std::vector<int64_t> const& seen, int64_t start, int64_t maxChunk,
    std::function<int64_t(int64_t)> const& limit);

// What the model is fed for tokens of a text, and in which of its rows the text's logits are.
struct Spread
{
    std::vector<int64_t> fed;
    std::vector<int64_t> rows;
};

// `tokens` after `textLength` tokens of text. A landmark token is fed together with the last text token before it, and
// the logits after that one are the landmark's: trained models predict the next word there (arXiv 2305.16300, 3.1).
Spread withLandmarks(std::vector<int64_t> const& tokens, int64_t textLength, CacheInfo const& landmark);

} // namespace ctx::runtime
