// Parameters of SinkWindowAttention and their check.
#pragma once

#include "ctx_plugins/ctx_kernels.h"
#include "kernels/common/validation.h"

#include <algorithm>
#include <array>
#include <cmath>

namespace ctx
{

struct SinkWindowAttentionParams : CtxSinkWindowAttentionParams
{
    static constexpr int64_t kHEAD_DIM_STEP = 8;
    static constexpr int64_t kMAX_HEAD_DIM = 256;
    static constexpr uintptr_t kALIGNMENT = 16;
    static constexpr int64_t kMAX_TOKENS = int64_t{1} << 62;

    bool isEmpty() const
    {
        return batch == 0 || rows == 0;
    }

    int64_t elementBytes() const
    {
        return dataType == CTX_DATA_TYPE_FLOAT32 ? 4 : 2;
    }

    int64_t cacheBytes() const
    {
        return batch * kvHeads * capacity * headDim * (cacheType == CTX_CACHE_TYPE_SAME ? elementBytes() : 1);
    }

    // Strides that are left out are those of contiguous [batch, head, token, dim].
    SinkWindowAttentionParams withStrides() const
    {
        SinkWindowAttentionParams params = *this;
        for (auto const& [name, strides, heads] : params.strided())
        {
            if (isLeftOut(*strides))
            {
                *strides = CtxStrides{heads * rows * headDim, rows * headDim, headDim};
            }
        }
        return params;
    }

    // What is wrong, or an empty string. The later checks rely on the sizes.
    std::string validate() const
    {
        std::string fault = validateSizes();
        fault = fault.empty() ? validateStrides() : fault;
        fault = fault.empty() ? validateAttributes() : fault;
        fault = fault.empty() ? validateRotation() : fault;
        fault = fault.empty() ? validateCacheType() : fault;
        fault = fault.empty() ? validatePointers() : fault;
        return fault;
    }

private:
    struct Strided
    {
        char const* name;
        CtxStrides* strides;
        int64_t heads;
    };

    std::array<Strided, 4> strided()
    {
        return {{{"q", &queryStrides, queryHeads}, {"k", &keyStrides, kvHeads}, {"v", &valueStrides, kvHeads},
            {"y", &outputStrides, queryHeads}}};
    }

    static bool isLeftOut(CtxStrides const& strides)
    {
        return strides.batch == 0 && strides.head == 0 && strides.token == 0;
    }

    // Whether a tensor's rows lie apart, the last of them below 2^37 elements: from the smallest stride to the largest,
    // each passes over what those before it span.
    bool areApart(CtxStrides const& strides, int64_t heads) const
    {
        struct Axis
        {
            int64_t stride;
            int64_t size;
        };
        std::array<Axis, 3> axes{{{strides.batch, batch}, {strides.head, heads}, {strides.token, rows}}};
        std::sort(axes.begin(), axes.end(), [](Axis const& a, Axis const& b) { return a.stride < b.stride; });
        int64_t span = headDim;
        for (auto const& [stride, size] : axes)
        {
            if (size > 1)
            {
                if (stride < span || stride > (kMAX_ELEMENTS - span) / (size - 1))
                {
                    return false;
                }
                span += stride * (size - 1);
            }
        }
        return true;
    }

    std::string validateStrides() const
    {
        SinkWindowAttentionParams params = *this;
        for (auto const& [name, strides, heads] : params.strided())
        {
            bool const isPacked = strides->batch % kHEAD_DIM_STEP == 0 && strides->head % kHEAD_DIM_STEP == 0
                && strides->token % kHEAD_DIM_STEP == 0;
            if (!isLeftOut(*strides) && (!isPacked || !areApart(*strides, heads)))
            {
                return message(name, " has strides of ", strides->batch, " (batch), ", strides->head, " (head) and ",
                    strides->token, " (token) elements: give multiples of ", kHEAD_DIM_STEP, " with which rows of ",
                    headDim, " do not overlap, or zeros for contiguous heads of tokens");
            }
        }
        return {};
    }

    std::string validateSizes() const
    {
        if (!areSizes({batch, queryHeads, rows, headDim}) || !areSizes({batch, kvHeads, capacity, headDim})
            || kvHeads < 1 || queryHeads < kvHeads || queryHeads % kvHeads != 0)
        {
            return message("batch ", batch, ", query heads ", queryHeads, ", key-value heads ", kvHeads, ", rows ",
                rows, ", cache slots ", capacity,
                ": sizes must not be negative, each below 2^31 and a tensor at most 2^37 elements, query heads a "
                "multiple of key-value heads");
        }
        // No grid has more blocks than that.
        if (!isEmpty() && batch * queryHeads > kMAX_SIZE / rows)
        {
            return message("q has ", batch, " x ", queryHeads, " x ", rows, " rows: give less than 2^31 a call");
        }
        if (headDim < kHEAD_DIM_STEP || headDim > kMAX_HEAD_DIM || headDim % kHEAD_DIM_STEP != 0)
        {
            return message("head dimension ", headDim, " is not supported: give a multiple of ", kHEAD_DIM_STEP,
                " up to ", kMAX_HEAD_DIM);
        }
        if (dataType < CTX_DATA_TYPE_FLOAT32 || dataType > CTX_DATA_TYPE_BFLOAT16)
        {
            return message("data type ", dataType, " is unknown: give float32 (0), float16 (1) or bfloat16 (2)");
        }
        return {};
    }

    std::string validateAttributes() const
    {
        if (sinks < 0 || window < 0 || sinks > kMAX_TOKENS || window > kMAX_TOKENS)
        {
            return message("sinks is ", sinks, " and window ", window, ": neither may be negative or above 2^62");
        }
        if (bounded != 0 && bounded != 1)
        {
            return message("bounded is ", bounded, ": give 0 (slot = token) or 1 (sinks and a ring)");
        }
        if (bounded == 1 && capacity <= sinks)
        {
            return message("a bounded cache of ", capacity, " slots holds no ring after ", sinks,
                " sinks: give sinks + window + max_chunk - 1 slots");
        }
        if (!std::isfinite(scale) || !std::isfinite(softcap) || softcap < 0.0F)
        {
            return message(
                "scale is ", scale, " and softcap ", softcap, ": both must be finite, softcap 0 (none) or positive");
        }
        return {};
    }

    std::string validateCacheType() const
    {
        if (cacheType < CTX_CACHE_TYPE_SAME || cacheType > CTX_CACHE_TYPE_INT8)
        {
            return message(
                "cache type ", cacheType, " is unknown: give that of the data (0), float8 e4m3 (1) or int8 (2)");
        }
        bool const isQuantised = cacheType != CTX_CACHE_TYPE_SAME;
        if (((keyScale != nullptr) != isQuantised || (valueScale != nullptr) != isQuantised) && !isEmpty())
        {
            return message("cache type ", cacheType, " with key_scale at ", keyScale, " and value_scale at ",
                valueScale, ": give both for a quantised cache, neither for another");
        }
        return {};
    }

    std::string validateRotation() const
    {
        if (rotation < CTX_ROTATION_KEYS_ON_READ || rotation > CTX_ROTATION_QUERY_AND_KEYS_ON_READ || sinkPosition < 0)
        {
            return message("rotation is ", rotation, " and sink_position ", sinkPosition,
                ": rotation must be 0 (keys on read), 1 (on write) or 2 (query, and keys on read), the position not "
                "negative");
        }
        if (rotation != CTX_ROTATION_KEYS_ON_READ ? rotaryDim == 0 || sinkQuery != nullptr : sinkPosition != 0)
        {
            return message("rotation is ", rotation, " with rotary_dim ", rotaryDim, ", sink_position ", sinkPosition,
                " and sink_q at ", sinkQuery,
                ": 0 takes a rotated sink_q and no sink_position, 1 and 2 a rotary_dim "
                "above 0 and no sink_q");
        }
        if (rotaryDim == 0)
        {
            return inverseFrequency == nullptr && multiplier == nullptr
                ? std::string{}
                : message("rotary_dim is 0 (keys stored rotated) but inv_freq or multiplier is given: leave both out");
        }
        if (rotaryDim < 0 || rotaryDim > headDim || rotaryDim % 2 != 0)
        {
            return message("rotary_dim is ", rotaryDim, " for a head dimension of ", headDim,
                ": give 0 or an even number up to the head dimension");
        }
        if ((inverseFrequency == nullptr || multiplier == nullptr) && !isEmpty())
        {
            return message("rotary_dim is ", rotaryDim,
                " (keys stored unrotated) but inv_freq or multiplier is missing: give both, or rotary_dim 0");
        }
        if ((frequencyBatch != 1 && frequencyBatch != batch) || (multiplierBatch != 1 && multiplierBatch != batch))
        {
            return message("inv_freq and multiplier have batch ", frequencyBatch, " and ", multiplierBatch,
                " where q has ", batch, ": give 1 or that number");
        }
        if (interleaved != 0 && interleaved != 1)
        {
            return message("interleaved is ", interleaved, ": give 0 or 1");
        }
        return {};
    }

    std::string validatePointers() const
    {
        void const* const required[] = {query, key, value, output};
        void const* const caches[] = {pastKey, pastValue, presentKey, presentValue};
        for (void const* pointer : required)
        {
            if (!isEmpty() && (pointer == nullptr || !isAligned(pointer, kALIGNMENT)))
            {
                return message("q, k, v and y must have memory aligned to ", kALIGNMENT, " bytes, got ", pointer);
            }
        }
        for (void const* pointer : caches)
        {
            if (cacheBytes() > 0 && (pointer == nullptr || !isAligned(pointer, kALIGNMENT)))
            {
                return message("the caches must have memory aligned to ", kALIGNMENT, " bytes, got ", pointer);
            }
        }
        if (!isEmpty() && (seen == nullptr || newTokens == nullptr))
        {
            return message("seen and new must have memory");
        }
        if (!isAligned(sinkQuery, kALIGNMENT) || !isAligned(seen, sizeof(int64_t))
            || !isAligned(newTokens, sizeof(int64_t)) || !isAligned(inverseFrequency, sizeof(float))
            || !isAligned(multiplier, sizeof(float)) || !isAligned(headSink, sizeof(float))
            || !isAligned(keyScale, sizeof(float)) || !isAligned(valueScale, sizeof(float))
            || !isAligned(workspace, kALIGNMENT))
        {
            return message("sink_q, workspace, seen, new, inv_freq, multiplier, head_sink, key_scale and value_scale "
                           "are at ",
                sinkQuery, ", ", workspace, ", ", seen, ", ", newTokens, ", ", inverseFrequency, ", ", multiplier, ", ",
                headSink, ", ", keyScale, " and ", valueScale, ": sink_q and workspace must be aligned to ", kALIGNMENT,
                " bytes, the others to their elements");
        }
        return validateOverlap();
    }

    // Past is copied to present, keys before values.
    std::string validateOverlap() const
    {
        int64_t const bytes = cacheBytes();
        auto const overlap = [bytes](void const* first, void const* second)
        { return bytes > 0 && (first == second || rangesCross(first, second, bytes)); };
        if (rangesCross(pastKey, presentKey, bytes) || rangesCross(pastValue, presentValue, bytes)
            || overlap(presentKey, presentValue) || overlap(presentKey, pastValue) || overlap(presentValue, pastKey))
        {
            return message("the caches overlap: past_key ", pastKey, ", past_value ", pastValue, ", present_key ",
                presentKey, ", present_value ", presentValue, " of ", bytes,
                " bytes; present must be past itself or memory apart from it, keys apart from values");
        }
        return {};
    }
};

} // namespace ctx
