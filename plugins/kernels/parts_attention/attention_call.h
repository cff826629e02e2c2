// What the attentions by parts share with SinkWindowAttention, in its terms.
#pragma once

#include "kernels/sink_window_attention/sink_window_attention_params.h"

namespace ctx
{

// The call as one of SinkWindowAttention with a full cache in which every query sees all keys before it: q and the keys
// that are read are rotated. It stands for all that the rule leaves open.
inline SinkWindowAttentionParams commonParams(CtxAttentionCall const& call)
{
    SinkWindowAttentionParams params{};
    params.query = call.query;
    params.key = call.key;
    params.value = call.value;
    params.pastKey = call.pastKey;
    params.pastValue = call.pastValue;
    params.seen = call.seen;
    params.newTokens = call.newTokens;
    params.inverseFrequency = call.inverseFrequency;
    params.multiplier = call.multiplier;
    params.headSink = call.headSink;
    params.output = call.output;
    params.presentKey = call.presentKey;
    params.presentValue = call.presentValue;
    params.batch = call.batch;
    params.queryHeads = call.queryHeads;
    params.kvHeads = call.kvHeads;
    params.rows = call.rows;
    params.capacity = call.capacity;
    params.headDim = call.headDim;
    params.rotaryDim = call.rotaryDim;
    params.frequencyBatch = call.frequencyBatch;
    params.multiplierBatch = call.multiplierBatch;
    params.scale = call.scale;
    params.softcap = call.softcap;
    params.interleaved = call.interleaved;
    params.dataType = call.dataType;
    params.rotation = call.rotaryDim == 0 ? CTX_ROTATION_KEYS_ON_READ : CTX_ROTATION_QUERY_AND_KEYS_ON_READ;
    params.workspace = call.workspace;
    params.workspaceBytes = call.workspaceBytes;
    params.queryStrides = call.queryStrides;
    params.keyStrides = call.keyStrides;
    params.valueStrides = call.valueStrides;
    params.outputStrides = call.outputStrides;
    return params;
}

} // namespace ctx
