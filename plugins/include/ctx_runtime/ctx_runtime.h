/*
 * C interface of the runtime: open a package, feed tokens, generate.
 *
 * Calls return a status; ctxRuntimeLastMessage() says what failed, the value got, and the fix. Set `size` of a struct
 * to its sizeof; a field added later at the end then reads as zero for older callers. A session is used by one thread
 * at a time, except for ctxRuntimeCancel.
 */
#ifndef CTX_RUNTIME_CTX_RUNTIME_H
#define CTX_RUNTIME_CTX_RUNTIME_H

#include "ctx_runtime/api.h"

#include <stdint.h>

#ifdef __cplusplus
extern "C"
{
#endif

typedef enum CtxRuntimeStatus
{
    CTX_RUNTIME_STATUS_SUCCESS = 0,
    CTX_RUNTIME_STATUS_INVALID_ARGUMENT = 1, /* what the caller gave makes no sense; nothing has changed */
    CTX_RUNTIME_STATUS_INVALID_PACKAGE = 2,  /* missing, truncated, altered or of another version */
    CTX_RUNTIME_STATUS_CONTEXT_LIMIT = 3,    /* more tokens than the package's maximum; nothing has changed */
    CTX_RUNTIME_STATUS_SEQUENCE_STATE = 4,   /* the sequence or session cannot do this now */
    CTX_RUNTIME_STATUS_CANCELLED = 5,
    CTX_RUNTIME_STATUS_OUT_OF_MEMORY = 6,
    CTX_RUNTIME_STATUS_ENGINE_FAILED = 7,
    CTX_RUNTIME_STATUS_INTERNAL_ERROR = 8
} CtxRuntimeStatus;

typedef enum CtxRuntimeFinish
{
    CTX_RUNTIME_FINISH_LENGTH = 0,   /* maxNewTokens */
    CTX_RUNTIME_FINISH_END = 1,      /* an end token of the model or of the request */
    CTX_RUNTIME_FINISH_CONTEXT = 2,  /* the package's maximum context */
    CTX_RUNTIME_FINISH_STOPPED = 3,  /* the callback said so */
    CTX_RUNTIME_FINISH_CANCELLED = 4 /* ctxRuntimeCancel */
} CtxRuntimeFinish;

typedef struct CtxRuntimeSession CtxRuntimeSession;

typedef struct CtxRuntimeOptions
{
    uint64_t size;
    char const* engine; /* a registered name; null: tensorrt */
    int64_t batch;      /* sequences, numbered from 0; 0: 1 */
    int64_t chunk;      /* most tokens of one call; 0: the package's max_chunk */
} CtxRuntimeOptions;

typedef struct CtxRuntimeInfo
{
    uint64_t size;
    int64_t batch;
    int64_t vocab;
    int64_t maxContext; /* tokens of a sequence; -1: any number */
    int64_t maxChunk;
    int64_t capacity;   /* slots that a sequence's cache has now */
    int64_t cacheBytes; /* memory that the caches take now */
} CtxRuntimeInfo;

typedef struct CtxRuntimeFeed
{
    uint64_t size;
    int64_t const* const* tokens;  /* [batch] lists of ids */
    int64_t const* tokenCounts;    /* [batch], 0 leaves a sequence as it is */
    int64_t const* plannedLengths; /* [batch], the length that each sequence will reach; null: after this feed */
    int32_t everyToken;            /* 0: logits after the last token of each sequence; 1: after all tokens */
} CtxRuntimeFeed;

/* Temperature 0 takes the likeliest token. */
typedef struct CtxRuntimeSampling
{
    uint64_t size;
    double temperature;
    double topP;   /* above 0, up to 1; 0: 1 */
    int64_t topK;  /* 0: all */
    uint64_t seed; /* with hasSeed */
    int32_t hasSeed;
} CtxRuntimeSampling;

typedef struct CtxRuntimeRequest
{
    uint64_t size;
    int64_t row;
    int64_t const* prompt;
    int64_t promptCount;
    int64_t maxNewTokens;
    CtxRuntimeSampling const* sampling; /* null: greedy */
    int64_t const* endTokens;           /* besides the model's own */
    int64_t endTokenCount;
    int64_t plannedLength;    /* 0: all tokens that there can be */
    int32_t withoutModelEnds; /* 1: the model's own end tokens do not end the output */
} CtxRuntimeRequest;

/* Tokens made for one request; `tokens` has room for `tokenRoom`, of which `tokenCount` were made. */
typedef struct CtxRuntimeGeneration
{
    uint64_t size;
    int64_t* tokens; /* may be null with tokenRoom 0 */
    int64_t tokenRoom;
    int64_t tokenCount;
    int32_t finish; /* CtxRuntimeFinish */
} CtxRuntimeGeneration;

/* Called for every token as it is made; 0 ends its sequence. */
typedef int32_t (*CtxRuntimeOnToken)(void* user, int64_t row, int64_t token, int64_t index);

/* What the last call of this thread that failed says; valid until its next call. Never null. */
CTX_RUNTIME_API char const* ctxRuntimeLastMessage(void);

/* The package in `directory`. `options` may be null. On failure *session is null. */
CTX_RUNTIME_API CtxRuntimeStatus ctxRuntimeOpen(
    char const* directory, CtxRuntimeOptions const* options, CtxRuntimeSession** session);

/* Null is harmless. No call may be in progress. */
CTX_RUNTIME_API void ctxRuntimeClose(CtxRuntimeSession* session);

/* Set info->size before. */
CTX_RUNTIME_API CtxRuntimeStatus ctxRuntimeDescribe(CtxRuntimeSession const* session, CtxRuntimeInfo* info);

CTX_RUNTIME_API CtxRuntimeStatus ctxRuntimeLength(CtxRuntimeSession const* session, int64_t row, int64_t* length);

/*
 * Appends tokens. Writes logits [batch, rows, vocab], rows being 1 or, with everyToken, the largest token count; places
 * without a token are 0. `logitCount` is the room in floats; too little of it is refused before anything changes.
 */
CTX_RUNTIME_API CtxRuntimeStatus ctxRuntimeFeed(
    CtxRuntimeSession* session, CtxRuntimeFeed const* feed, float* logits, uint64_t logitCount);

/* `requests` and `generations` are `count` pointers each. `onToken` may be null. */
CTX_RUNTIME_API CtxRuntimeStatus ctxRuntimeGenerate(CtxRuntimeSession* session,
    CtxRuntimeRequest const* const* requests, CtxRuntimeGeneration* const* generations, int64_t count,
    CtxRuntimeOnToken onToken, void* user);

/* From any thread: ends the feed or generation in progress, if there is one. */
CTX_RUNTIME_API void ctxRuntimeCancel(CtxRuntimeSession* session);

CTX_RUNTIME_API CtxRuntimeStatus ctxRuntimeReset(CtxRuntimeSession* session, int64_t row);

CTX_RUNTIME_API CtxRuntimeStatus ctxRuntimeTruncate(CtxRuntimeSession* session, int64_t row, int64_t length);

/* Copies a sequence into row `target`, -1: the first one without tokens. `written` may be null. */
CTX_RUNTIME_API CtxRuntimeStatus ctxRuntimeFork(
    CtxRuntimeSession* session, int64_t row, int64_t target, int64_t* written);

#ifdef __cplusplus
}
#endif

#endif
