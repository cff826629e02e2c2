// A Llama checkpoint of the Hugging Face layout: config.json and one model.safetensors, as float32.
#pragma once

#include "ctx_runtime/result.h"

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace ctx::software
{

struct Config
{
    int64_t hidden{0};
    int64_t inner{0};
    int64_t layers{0};
    int64_t heads{0};
    int64_t kvHeads{0};
    int64_t headDim{0};
    int64_t vocab{0};
    float epsilon{0};
};

struct Weights
{
    Config config;
    std::map<std::string, std::vector<float>> tensors;

    float const* at(std::string const& name) const
    {
        return tensors.at(name).data();
    }
};

runtime::Result<Weights> loadWeights(std::string const& checkpoint) noexcept;

} // namespace ctx::software
