/*
 * C interface of the kernel launchers: plain structs of device pointers and sizes, one call per operator.
 *
 * Layouts are [batch, head, token, dim], contiguous unless strides say otherwise. B batch, S rows (new tokens of the
 * call, right-padded), C cache slots, D head dimension, F = rotaryDim / 2 rotated pairs. Every call only enqueues work
 * on `stream` (a cudaStream_t): it allocates nothing and never synchronises, so it can be captured in a CUDA graph. Set
 * `size` of a struct to its sizeof; a field added later at the end then reads as zero for older callers.
 */
#ifndef CTX_PLUGINS_CTX_KERNELS_H
#define CTX_PLUGINS_CTX_KERNELS_H

#include <stdint.h>

#define CTX_API __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C"
{
#endif

typedef enum CtxStatus
{
    CTX_STATUS_SUCCESS = 0,
    CTX_STATUS_INVALID_ARGUMENT = 1,
    CTX_STATUS_LAUNCH_FAILED = 2,
    CTX_STATUS_INTERNAL_ERROR = 3
} CtxStatus;

typedef enum CtxDataType
{
    CTX_DATA_TYPE_FLOAT32 = 0,
    CTX_DATA_TYPE_FLOAT16 = 1,
    CTX_DATA_TYPE_BFLOAT16 = 2
} CtxDataType;

/* Elements of a key-value cache. The quantised ones hold x / scale, rounded to nearest even and saturated. */
typedef enum CtxCacheType
{
    CTX_CACHE_TYPE_SAME = 0, /* as the call's data type */
    CTX_CACHE_TYPE_FLOAT8_E4M3 = 1,
    CTX_CACHE_TYPE_INT8 = 2 /* -127 to 127 */
} CtxCacheType;

/* What SinkWindowAttention rotates itself, where rotaryDim > 0. */
typedef enum CtxRotation
{
    CTX_ROTATION_KEYS_ON_READ = 0,          /* q as given; keys are cached unrotated, rotated when they are read */
    CTX_ROTATION_ON_WRITE = 1,              /* q, and k before it is cached: both are given unrotated */
    CTX_ROTATION_QUERY_AND_KEYS_ON_READ = 2 /* q, given unrotated, and cached keys when they are read */
} CtxRotation;

/*
 * Elements from a sequence, a head or a token of a tensor to the next; dims are side by side. All 0: contiguous
 * [batch, head, token, dim]. A projection's result [B, S, H * D] has the strides S * H * D, D and H * D.
 */
typedef struct CtxStrides
{
    int64_t batch;
    int64_t head;
    int64_t token;
} CtxStrides;

/*
 * Frequencies at each sequence's rope length n. A number is a pair of floats, high and low, of which the sum keeps 48
 * bits. With g = max(1, slope * n + offset), and of each pair short, long the long one where n > threshold:
 * inverseFrequency = f * (1 - ramp + ramp / g) * g^exponent,
 * multiplier = m * (1 + gain * ln g) / (1 + gain_all * ln g). Arithmetic is float64; n is exact up to 2^53.
 */
typedef struct CtxRotaryFrequenciesParams
{
    uint64_t size;
    int64_t const* ropeLength; /* [B], tokens */
    float const* tables;       /* [4, 2, F]: short and long frequencies in radians per token, ramp, exponent */
    float const* scalars;      /* [7, 2]: threshold, slope, offset, short and long multiplier, gain, gain_all */
    float* inverseFrequency;   /* [B, F], radians per token; memory of its own */
    float* multiplier;         /* [B], factor on cos and sin; memory of its own */
    int64_t batch;
    int64_t pairs; /* F */
} CtxRotaryFrequenciesParams;

/* y = x rotated at `positions`; pairs (i, i + F), or (2i, 2i + 1) if interleaved; dims >= rotaryDim are copied. */
typedef struct CtxScaledRotaryEmbeddingParams
{
    uint64_t size;
    void const* x;                 /* [B, H, S, D] */
    int64_t const* positions;      /* [B, S] */
    float const* inverseFrequency; /* [frequencyBatch, F], radians per token */
    float const* multiplier;       /* [multiplierBatch], factor on cos and sin */
    void* y;                       /* [B, H, S, D]; may be x */
    int64_t batch;
    int64_t heads;
    int64_t rows;
    int64_t headDim;
    int64_t rotaryDim;
    int64_t frequencyBatch;  /* 1 or B */
    int64_t multiplierBatch; /* 1 or B */
    int32_t interleaved;     /* 0 or 1 */
    int32_t dataType;        /* CtxDataType of x and y */
} CtxScaledRotaryEmbeddingParams;

/*
 * Writes the new keys and values into their cache slots, then attends from `present` alone.
 * Token t is in slot t (bounded = 0), or slot t below `sinks` and sinks + (t - sinks) mod (C - sinks) from there on
 * (bounded = 1). The query at position i sees the key at j iff j <= i and (window = 0 or j < sinks or i - j <
 * window). Rows >= newTokens[b] are not written and give 0; a row whose slot would be >= C is not written and gives
 * NaN.
 */
typedef struct CtxSinkWindowAttentionParams
{
    uint64_t size;
    void const* query;             /* [B, Hq, S, D] */
    void const* key;               /* [B, Hkv, S, D] */
    void const* value;             /* [B, Hkv, S, D] */
    void const* pastKey;           /* [B, Hkv, C, D] */
    void const* pastValue;         /* [B, Hkv, C, D] */
    int64_t const* seen;           /* [B], tokens before this call */
    int64_t const* newTokens;      /* [B], rows of this call that are tokens */
    void const* sinkQuery;         /* as query, for keys below `sinks`, or null: `query` serves all keys */
    float const* inverseFrequency; /* [frequencyBatch, F], or null: keys are stored rotated */
    float const* multiplier;       /* [multiplierBatch], or null with inverseFrequency */
    float const* headSink;         /* [Hq], logits that only add to the softmax denominator, or null */
    void* output;                  /* [B, Hq, S, D] */
    void* presentKey;              /* [B, Hkv, C, D]; pastKey itself, or memory apart from it, then past is copied */
    void* presentValue;            /* [B, Hkv, C, D]; likewise */
    int64_t batch;
    int64_t queryHeads;
    int64_t kvHeads;
    int64_t rows;
    int64_t capacity;
    int64_t headDim;
    int64_t sinks;
    int64_t window;
    int64_t rotaryDim;       /* rotation of unrotated keys when they are read; 0: keys are stored rotated */
    int64_t frequencyBatch;  /* 1 or B */
    int64_t multiplierBatch; /* 1 or B */
    float scale;             /* factor on q . k */
    float softcap;           /* logits become softcap * tanh(logits / softcap); 0: none */
    int32_t bounded;         /* 0 or 1 */
    int32_t interleaved;     /* 0 or 1 */
    int32_t dataType;        /* CtxDataType of query, key, value and output */
    int32_t cacheType;       /* CtxCacheType of past and present */
    int32_t rotation;        /* CtxRotation; for a q given unrotated there is no sinkQuery */
    int64_t sinkPosition;    /* q rotated here meets the sinks at min(its position, sinkPosition); 0: as other keys */
    float const* keyScale;   /* [Hkv], what 1 in a quantised cache of keys means; null with CTX_CACHE_TYPE_SAME */
    float const* valueScale; /* [Hkv], likewise of values */
    void* workspace;         /* of ctxSinkWindowAttentionWorkspace bytes, aligned to 16; null: keys are not split */
    uint64_t workspaceBytes;
    CtxStrides queryStrides; /* multiples of 8, as all here; rows may not overlap */
    CtxStrides keyStrides;
    CtxStrides valueStrides;
    CtxStrides outputStrides;
} CtxSinkWindowAttentionParams;

/*
 * What the attentions below have in common with SinkWindowAttention and with each other: tensors, sizes, how logits are
 * made. Keys are given and cached unrotated; q and the keys that are read are rotated at the positions of the rule.
 * Rows >= newTokens[b] are not written and give 0; a row that has no slot is not written and gives NaN.
 */
typedef struct CtxAttentionCall
{
    void const* query;             /* [B, Hq, S, D] */
    void const* key;               /* [B, Hkv, S, D] */
    void const* value;             /* [B, Hkv, S, D] */
    void const* pastKey;           /* [B, Hkv, C, D] */
    void const* pastValue;         /* [B, Hkv, C, D] */
    int64_t const* seen;           /* [B], tokens before this call */
    int64_t const* newTokens;      /* [B], rows of this call that are tokens */
    float const* inverseFrequency; /* [frequencyBatch, F], or null with rotaryDim 0 */
    float const* multiplier;       /* [multiplierBatch], likewise */
    float const* headSink;         /* [Hq], logits that only add to the softmax denominator, or null */
    void* output;                  /* [B, Hq, S, D] */
    void* presentKey;              /* [B, Hkv, C, D]; pastKey itself, or memory apart from it, then past is copied */
    void* presentValue;            /* [B, Hkv, C, D]; likewise */
    int64_t batch;
    int64_t queryHeads;
    int64_t kvHeads;
    int64_t rows;
    int64_t capacity;
    int64_t headDim;
    int64_t rotaryDim;       /* 0: q and k are used as they are */
    int64_t frequencyBatch;  /* 1 or B */
    int64_t multiplierBatch; /* 1 or B */
    float scale;             /* factor on q . k */
    float softcap;           /* logits become softcap * tanh(logits / softcap); 0: none */
    int32_t interleaved;     /* 0 or 1 */
    int32_t dataType;        /* CtxDataType of query, key, value, output and the caches */
    void* workspace;         /* as many bytes as the operator's workspace call says, aligned to 16; or null */
    uint64_t workspaceBytes;
    CtxStrides queryStrides; /* multiples of 8, as all here; rows may not overlap */
    CtxStrides keyStrides;
    CtxStrides valueStrides;
    CtxStrides outputStrides;
} CtxAttentionCall;

/*
 * Token t is in slot t. The query at position i meets the key at j <= i at those positions where i - j < neighbor, else
 * at i / group + neighbor - neighbor / group and j / group (rounded down). One softmax over all.
 */
typedef struct CtxSelfExtendAttentionParams
{
    uint64_t size;
    int64_t group;
    int64_t neighbor; /* a multiple of group */
    CtxAttentionCall call;
} CtxSelfExtendAttentionParams;

/*
 * Token t is in slot t, its key at position t mod chunk. The query at position i meets keys of its own chunk at
 * i mod chunk, those of the previous one at min(i mod chunk + chunk, reach - 1), earlier ones at reach - 1. One softmax
 * over all.
 */
typedef struct CtxDualChunkAttentionParams
{
    uint64_t size;
    int64_t chunk;
    int64_t reach; /* >= chunk */
    CtxAttentionCall call;
} CtxDualChunkAttentionParams;

/*
 * With P(i) = max(0, i + 1 - sinks - window) / block (rounded down), the query at position i sees the tokens below
 * `sinks`, the means of the blocks max(0, P - memory) to P - 1 of `block` tokens each after the sinks, and the tokens
 * from sinks + P * block to i. Positions are ranks in this order. Slots: the sinks, `memorySlots` means (block m at
 * m mod memorySlots), then a ring of window + block + rows - 2 or more tokens after the sinks. Blocks that the call's
 * rows evict are averaged first, then the rows are written.
 */
typedef struct CtxMemoryAttentionParams
{
    uint64_t size;
    int64_t sinks;
    int64_t window;      /* >= 1 */
    int64_t memory;      /* >= 1 */
    int64_t block;       /* >= 1 */
    int64_t memorySlots; /* >= memory + rows / block, rounded up */
    CtxAttentionCall call;
} CtxMemoryAttentionParams;

/*
 * Block m is the `block` tokens from sinks + m * block on. For the query at position i, n blocks are candidates: those
 * whose last token is at or before i - window. Of them it reads the `topk` whose representatives match it best, ties to
 * the lower block, besides the sinks and all tokens after the candidates. With N = min(n, topk + 1) the newest N blocks
 * and the tokens after them are met at their own positions by the query at i, the sinks at theirs and all other blocks
 * as if each were block 0 by the query at i - (n - N) * block. Slots: the sinks, then for each block its tokens and the
 * mean of its keys, which represents it, is rotated as its token block / 2, and has the value 0. With landmark = 1
 * token t is in slot t, a block's last token represents it, and the softmax is grouped: of a block other than the
 * query's own the tokens share what its landmark gets among the query's own tokens and the landmarks of the blocks it
 * reads.
 */
typedef struct CtxLandmarkAttentionParams
{
    uint64_t size;
    int64_t sinks;
    int64_t window;   /* >= 1 */
    int64_t block;    /* >= 1, with landmark >= 2 */
    int64_t topk;     /* >= 1 */
    int32_t shared;   /* 1: one choice per key-value head, by the sum of its query heads' scores */
    int32_t landmark; /* 0 or 1; 1: without headSink */
    CtxAttentionCall call;
} CtxLandmarkAttentionParams;

CTX_API CtxStatus ctxRotaryFrequencies(CtxRotaryFrequenciesParams const* params, void* stream);
CTX_API CtxStatus ctxScaledRotaryEmbedding(CtxScaledRotaryEmbeddingParams const* params, void* stream);
CTX_API CtxStatus ctxSinkWindowAttention(CtxSinkWindowAttentionParams const* params, void* stream);
CTX_API CtxStatus ctxSelfExtendAttention(CtxSelfExtendAttentionParams const* params, void* stream);
CTX_API CtxStatus ctxDualChunkAttention(CtxDualChunkAttentionParams const* params, void* stream);
CTX_API CtxStatus ctxMemoryAttention(CtxMemoryAttentionParams const* params, void* stream);
CTX_API CtxStatus ctxLandmarkAttention(CtxLandmarkAttentionParams const* params, void* stream);

/*
 * Bytes of workspace with which the call may split its keys over more blocks than it has queries to fill; 0 if it
 * never does, or if the sizes are invalid. Of the struct only sizes and types are read, and a call with smaller sizes
 * needs no more.
 */
CTX_API uint64_t ctxSinkWindowAttentionWorkspace(CtxSinkWindowAttentionParams const* params);
CTX_API uint64_t ctxSelfExtendAttentionWorkspace(CtxSelfExtendAttentionParams const* params);
CTX_API uint64_t ctxDualChunkAttentionWorkspace(CtxDualChunkAttentionParams const* params);
CTX_API uint64_t ctxMemoryAttentionWorkspace(CtxMemoryAttentionParams const* params);

/* Likewise; this call needs its workspace. */
CTX_API uint64_t ctxLandmarkAttentionWorkspace(CtxLandmarkAttentionParams const* params);

/* What the last failed call of this thread said; empty if none failed. Valid until the thread's next failure. */
CTX_API char const* ctxLastErrorMessage(void);

#ifdef __cplusplus
}
#endif

#endif /* CTX_PLUGINS_CTX_KERNELS_H */
