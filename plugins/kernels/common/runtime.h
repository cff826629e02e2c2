// The CUDA runtime's types and calls, or the host's stand-ins where kernels are executed by the host.
#pragma once

#if defined(CTX_HOST_EXECUTION)
#include "host/cuda_host.h"
#else
#include <cuda_runtime_api.h>
#endif
