// Parameters of DualChunkAttention and their check.
#pragma once

#include "kernels/parts_attention/parts_attention_params.h"

namespace ctx
{

struct DualChunkAttentionParams : CtxDualChunkAttentionParams
{
    PartsAttentionParams parts() const
    {
        return PartsAttentionParams{commonParams(call), PartRule::of(rule())};
    }

    // What is wrong, or an empty string.
    std::string validate() const
    {
        std::string const fault = parts().validate();
        return fault.empty() ? validateRule() : fault;
    }

private:
    DualChunkRule rule() const
    {
        return DualChunkRule{chunk, reach};
    }

    std::string validateRule() const
    {
        if (chunk < 1 || chunk > reach || reach > kMAX_SIZE)
        {
            return message("chunk is ", chunk, " and reach ", reach,
                ": give a chunk of 1 or more tokens and a reach of at least that, below 2^31");
        }
        return {};
    }
};

} // namespace ctx
