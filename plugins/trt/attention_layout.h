// How q, k, v and y of an attention node lie, and the sizes, shapes and strides that follow.
#pragma once

#include "ctx_plugins/ctx_kernels.h"
#include "trt/plugin_base.h"

namespace ctx
{

enum class AttentionLayout : int32_t
{
    kHEAD_MAJOR,  // q and y [B, Hq, S, D], k and v [B, Hkv, S, D]
    kTOKEN_MAJOR, // q and y [B, S, Hq * D], k and v [B, S, Hkv * D]
    kPACKED       // y [B, S, Hq * D]; q, k and v are one tensor [B, S, (Hq + 2 * Hkv) * D]: q's heads, k's, v's
};

// Rank of q, k, v and y.
int32_t layoutRank(AttentionLayout layout) noexcept;

// D, or -1 where it is not known yet.
int64_t headDimOf(AttentionLayout layout, nvinfer1::Dims const& query, nvinfer1::Dims const& past) noexcept;

// Sizes that the shapes of q and past_key give a call.
struct AttentionSizes
{
    int64_t batch;
    int64_t queryHeads;
    int64_t kvHeads;
    int64_t rows;
    int64_t capacity;
    int64_t headDim;

    static AttentionSizes of(AttentionLayout layout, nvinfer1::Dims const& query, nvinfer1::Dims const& past) noexcept;
};

// Throws if q, k or v has another shape than the kernels will read it with.
void checkProjections(AttentionLayout layout, AttentionSizes const& sizes, nvinfer1::Dims const& query,
    nvinfer1::Dims const& key, nvinfer1::Dims const& value);

// Shape of y.
nvinfer1::DimsExprs outputShape(AttentionLayout layout, nvinfer1::DimsExprs const& query,
    nvinfer1::DimsExprs const& past, nvinfer1::IExprBuilder& builder);

// Sizes and strides of a call, a CtxSinkWindowAttentionParams or CtxAttentionCall.
template <typename Call>
void placeTensors(AttentionLayout layout, AttentionSizes const& sizes, Call& call) noexcept;

// Where k and v begin in memory that holds q before them.
template <typename Call>
void placeKeysAndValues(Call& call) noexcept;

} // namespace ctx
