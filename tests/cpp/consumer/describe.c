/* The C interface, compiled as C. */

#include <ctx_runtime/ctx_runtime.h>

#include <stdio.h>

int describe(char const* directory)
{
    CtxRuntimeSession* session = NULL;
    CtxRuntimeOptions const options = {sizeof(CtxRuntimeOptions), "none", 1, 0};
    CtxRuntimeStatus const status = ctxRuntimeOpen(directory, &options, &session);
    printf("status %d: %s\n", (int) status, ctxRuntimeLastMessage());
    ctxRuntimeClose(session);
    return status == CTX_RUNTIME_STATUS_ENGINE_FAILED ? 0 : 1;
}
