#include "trt/attention_layout.h"

namespace ctx
{
namespace
{

using nvinfer1::DimensionOperation;
using nvinfer1::Dims;

// Elements of a token.
int64_t packedWidth(AttentionSizes const& sizes) noexcept
{
    return (sizes.queryHeads + 2 * sizes.kvHeads) * sizes.headDim;
}

// Of heads side by side in tokens of that many elements.
CtxStrides tokenStrides(AttentionSizes const& sizes, int64_t width) noexcept
{
    return CtxStrides{sizes.rows * width, sizes.headDim, width};
}

} // namespace

int32_t layoutRank(AttentionLayout layout) noexcept
{
    return layout == AttentionLayout::kHEAD_MAJOR ? 4 : 3;
}

int64_t headDimOf(AttentionLayout layout, Dims const& query, Dims const& past) noexcept
{
    return layout == AttentionLayout::kHEAD_MAJOR ? query.d[3] : past.d[3];
}

AttentionSizes AttentionSizes::of(AttentionLayout layout, Dims const& query, Dims const& past) noexcept
{
    AttentionSizes sizes{query.d[0], query.d[1], past.d[1], query.d[2], past.d[2], headDimOf(layout, query, past)};
    if (layout != AttentionLayout::kHEAD_MAJOR)
    {
        int64_t const others = layout == AttentionLayout::kPACKED ? 2 * sizes.kvHeads : 0;
        sizes.queryHeads = sizes.headDim > 0 ? query.d[2] / sizes.headDim - others : 0;
        sizes.rows = query.d[1];
    }
    return sizes;
}

void checkProjections(
    AttentionLayout layout, AttentionSizes const& sizes, Dims const& query, Dims const& key, Dims const& value)
{
    auto const& [batch, queryHeads, kvHeads, rows, capacity, headDim] = sizes;
    switch (layout)
    {
    case AttentionLayout::kHEAD_MAJOR:
        checkShape("q", query, {batch, queryHeads, rows, headDim});
        checkShape("k", key, {batch, kvHeads, rows, headDim});
        checkShape("v", value, {batch, kvHeads, rows, headDim});
        break;
    case AttentionLayout::kTOKEN_MAJOR:
        checkShape("q", query, {batch, rows, queryHeads * headDim});
        checkShape("k", key, {batch, rows, kvHeads * headDim});
        checkShape("v", value, {batch, rows, kvHeads * headDim});
        break;
    case AttentionLayout::kPACKED:
        checkShape("q", query, {batch, rows, packedWidth(sizes)});
        checkShape("k", key, {batch, rows, packedWidth(sizes)});
        checkShape("v", value, {batch, rows, packedWidth(sizes)});
        break;
    }
}

nvinfer1::DimsExprs outputShape(AttentionLayout layout, nvinfer1::DimsExprs const& query,
    nvinfer1::DimsExprs const& past, nvinfer1::IExprBuilder& builder)
{
    nvinfer1::DimsExprs shape = query;
    if (layout == AttentionLayout::kPACKED)
    {
        nvinfer1::IDimensionExpr const* const half
            = builder.operation(DimensionOperation::kPROD, *past.d[1], *past.d[3]);
        nvinfer1::IDimensionExpr const* const others
            = builder.operation(DimensionOperation::kPROD, *builder.constant(2), *half);
        shape.d[2] = builder.operation(DimensionOperation::kSUB, *query.d[2], *others);
    }
    return shape;
}

template <typename Call>
void placeTensors(AttentionLayout layout, AttentionSizes const& sizes, Call& call) noexcept
{
    call.batch = sizes.batch;
    call.queryHeads = sizes.queryHeads;
    call.kvHeads = sizes.kvHeads;
    call.rows = sizes.rows;
    call.capacity = sizes.capacity;
    call.headDim = sizes.headDim;
    if (layout == AttentionLayout::kHEAD_MAJOR)
    {
        return;
    }
    bool const isPacked = layout == AttentionLayout::kPACKED;
    int64_t const queryWidth = sizes.queryHeads * sizes.headDim;
    int64_t const keyWidth = sizes.kvHeads * sizes.headDim;
    call.outputStrides = tokenStrides(sizes, queryWidth);
    call.queryStrides = tokenStrides(sizes, isPacked ? packedWidth(sizes) : queryWidth);
    call.keyStrides = tokenStrides(sizes, isPacked ? packedWidth(sizes) : keyWidth);
    call.valueStrides = call.keyStrides;
}

template <typename Call>
void placeKeysAndValues(Call& call) noexcept
{
    if (call.query == nullptr)
    {
        return;
    }
    int64_t const bytes = call.headDim * (call.dataType == CTX_DATA_TYPE_FLOAT32 ? 4 : 2);
    auto const* const heads = static_cast<unsigned char const*>(call.query);
    call.key = heads + call.queryHeads * bytes;
    call.value = heads + (call.queryHeads + call.kvHeads) * bytes;
}

template void placeTensors(AttentionLayout, AttentionSizes const&, CtxSinkWindowAttentionParams&) noexcept;
template void placeTensors(AttentionLayout, AttentionSizes const&, CtxAttentionCall&) noexcept;
template void placeKeysAndValues(CtxSinkWindowAttentionParams&) noexcept;
template void placeKeysAndValues(CtxAttentionCall&) noexcept;

} // namespace ctx
