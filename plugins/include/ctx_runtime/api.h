// What libctx_runtime.so shows.
#ifndef CTX_RUNTIME_API_H
#define CTX_RUNTIME_API_H

#define CTX_RUNTIME_API __attribute__((visibility("default")))

#endif
