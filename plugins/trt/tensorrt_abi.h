// TensorRT's plugin interfaces: an SDK's headers where CMake found them, otherwise our own declarations.
#pragma once

#if defined(CTX_HAS_TENSORRT_HEADERS)
#include <NvInferRuntime.h>
#else
#include "trt/abi/expressions.h"
#include "trt/abi/plugin.h"
#endif
