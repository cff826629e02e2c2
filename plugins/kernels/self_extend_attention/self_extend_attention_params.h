// Parameters of SelfExtendAttention and their check.
#pragma once

#include "kernels/parts_attention/parts_attention_params.h"

namespace ctx
{

struct SelfExtendAttentionParams : CtxSelfExtendAttentionParams
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
    SelfExtendRule rule() const
    {
        return SelfExtendRule{group, neighbor};
    }

    std::string validateRule() const
    {
        if (group < 1 || neighbor < 1 || neighbor > kMAX_SIZE || neighbor % group != 0)
        {
            return message("group is ", group, " and neighbor ", neighbor,
                ": give a group of 1 or more tokens and a multiple of it below 2^31");
        }
        return {};
    }
};

} // namespace ctx
