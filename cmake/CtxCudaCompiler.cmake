# Finds nvcc, enables CUDA where it may, and sets CTX_HAS_CUDA.
#
# Searched in this order: CMAKE_CUDA_COMPILER, the variable CUDACXX, PATH, /usr/local/cuda, and the PyPI packages
# nvidia-cuda-nvcc, nvidia-cuda-runtime, nvidia-cuda-crt and nvidia-nvvm of the Python that is first on PATH.
set(CTX_HAS_CUDA FALSE)

function(ctx_find_pypi_nvcc result)
  set(${result} "" PARENT_SCOPE)
  find_package(Python3 QUIET COMPONENTS Interpreter)
  if(NOT Python3_FOUND)
    return()
  endif()
  execute_process(
    COMMAND "${Python3_EXECUTABLE}" -c
      "import glob, sysconfig; print(';'.join(sorted(glob.glob(sysconfig.get_path('purelib') + '/nvidia/cu*/bin/nvcc'), reverse=True)))"
    OUTPUT_VARIABLE candidates OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  if(candidates)
    list(GET candidates 0 nvcc)
    set(${result} "${nvcc}" PARENT_SCOPE)
  endif()
endfunction()

if(NOT CTX_BUILD_CUDA STREQUAL "OFF")
  if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
    find_program(CTX_NVCC nvcc HINTS /usr/local/cuda/bin ENV CUDA_HOME PATH_SUFFIXES bin)
    if(NOT CTX_NVCC)
      ctx_find_pypi_nvcc(ctx_pypi_nvcc)
      if(ctx_pypi_nvcc)
        set(CTX_NVCC "${ctx_pypi_nvcc}" CACHE FILEPATH "CUDA compiler from PyPI" FORCE)
      endif()
    endif()
    if(CTX_NVCC)
      set(CMAKE_CUDA_COMPILER "${CTX_NVCC}" CACHE FILEPATH "CUDA compiler")
    endif()
  endif()
  if(CMAKE_CUDA_COMPILER OR DEFINED ENV{CUDACXX})
    # The PyPI layout keeps libraries in lib, where its nvcc.profile does not look.
    if(CMAKE_CUDA_COMPILER)
      get_filename_component(ctx_cuda_root "${CMAKE_CUDA_COMPILER}" REALPATH)
      get_filename_component(ctx_cuda_root "${ctx_cuda_root}/../.." ABSOLUTE)
      if(NOT EXISTS "${ctx_cuda_root}/lib64" AND EXISTS "${ctx_cuda_root}/lib/libcudart_static.a")
        set(CMAKE_CUDA_FLAGS_INIT "-L${ctx_cuda_root}/lib")
        link_directories("${ctx_cuda_root}/lib")
      endif()
    endif()
    list(TRANSFORM CTX_CUDA_ARCHITECTURES APPEND "-real" OUTPUT_VARIABLE ctx_real_architectures)
    list(GET CTX_CUDA_ARCHITECTURES -1 ctx_newest_architecture)
    set(CMAKE_CUDA_ARCHITECTURES ${ctx_real_architectures} "${ctx_newest_architecture}-virtual")
    set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
    enable_language(CUDA)
    set(CTX_HAS_CUDA TRUE)
  elseif(CTX_BUILD_CUDA STREQUAL "ON")
    message(FATAL_ERROR
      "No CUDA compiler found in PATH, /usr/local/cuda or this Python's packages: "
      "pip install nvidia-cuda-nvcc nvidia-cuda-runtime nvidia-cuda-crt nvidia-nvvm, "
      "or give -DCMAKE_CUDA_COMPILER=/path/to/nvcc")
  else()
    message(STATUS "No CUDA compiler found: only the host targets are built (CTX_BUILD_CUDA=ON makes this an error)")
  endif()
endif()
