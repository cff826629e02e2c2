# TensorRT's headers, where an SDK is: sets CTX_TENSORRT_INCLUDE_DIR. No pip package has them, so without an SDK the
# declarations in plugins/trt/abi are compiled instead.
find_path(CTX_TENSORRT_INCLUDE_DIR NvInferRuntime.h HINTS "${TENSORRT_ROOT}" PATH_SUFFIXES include)
if(CTX_TENSORRT_INCLUDE_DIR)
  message(STATUS "TensorRT headers: ${CTX_TENSORRT_INCLUDE_DIR}")
elseif(TENSORRT_ROOT)
  message(FATAL_ERROR "TENSORRT_ROOT is ${TENSORRT_ROOT}, which has no include/NvInferRuntime.h: give the SDK's root")
else()
  message(STATUS "TensorRT headers: own declarations (give -DTENSORRT_ROOT=... to use an SDK's)")
endif()
