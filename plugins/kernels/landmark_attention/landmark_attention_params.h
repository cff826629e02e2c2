// Parameters of LandmarkAttention and their check.
#pragma once

#include "kernels/parts_attention/attention_call.h"

namespace ctx
{

struct LandmarkAttentionParams : CtxLandmarkAttentionParams
{
    bool isEmpty() const
    {
        return call.batch == 0 || call.rows == 0;
    }

    // What is wrong, or an empty string. The later checks rely on the sizes.
    std::string validate() const
    {
        SinkWindowAttentionParams common = commonParams(call);
        common.sinks = sinks;
        common.window = window;
        std::string fault = common.validate();
        fault = fault.empty() ? validateAttributes() : fault;
        return fault.empty() ? validateWorkspace() : fault;
    }

    // Whether the attributes make a layout of slots.
    bool hasLayout() const
    {
        return sinks >= 0 && window >= 1 && block >= 1 && block <= kMAX_SIZE && topk >= 1 && topk <= kMAX_SIZE;
    }

private:
    std::string validateAttributes() const
    {
        if (!hasLayout() || (landmark != 0 && block < 2))
        {
            return message("window is ", window, ", block ", block, ", topk ", topk, " and landmark ", landmark,
                ": give at least 1 of the first three, the last two of these below 2^31, and with landmark 1 a block "
                "of 2 or more");
        }
        if ((shared != 0 && shared != 1) || (landmark != 0 && landmark != 1))
        {
            return message("shared is ", shared, " and landmark ", landmark, ": give 0 or 1");
        }
        if (landmark != 0 && call.headSink != nullptr)
        {
            return message("landmark is 1 and head_sink at ", call.headSink,
                ": the grouped softmax has no learned sink, give landmark 0 or no head_sink");
        }
        return {};
    }

    std::string validateWorkspace() const;
};

} // namespace ctx
