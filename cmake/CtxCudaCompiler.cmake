# Finds nvcc, enables CUDA where it may, and sets CTX_HAS_CUDA and CTX_CUDA_OPTIONS, nvcc's options for the kernels.
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

# nvcc's front end runs once for each virtual architecture, which is half of a build. So the kernels are translated for
# the few whose instructions they may use, and assembled from those for every GPU; the newest also stays as PTX.
set(CTX_CUDA_VIRTUAL_ARCHITECTURES 80 90 100)

function(ctx_cuda_code_options result)
  list(GET CTX_CUDA_ARCHITECTURES -1 newest)
  foreach(architecture IN LISTS CTX_CUDA_ARCHITECTURES)
    set(virtual ${architecture}) # 75 or 90a: a virtual architecture of its own
    foreach(candidate IN LISTS CTX_CUDA_VIRTUAL_ARCHITECTURES)
      if(architecture MATCHES "^[0-9]+$" AND NOT candidate GREATER architecture)
        set(virtual ${candidate})
      endif()
    endforeach()
    list(APPEND virtuals ${virtual})
    list(APPEND codes_${virtual} sm_${architecture})
    if(architecture STREQUAL newest)
      list(APPEND codes_${virtual} compute_${virtual})
    endif()
  endforeach()
  list(REMOVE_DUPLICATES virtuals)
  foreach(virtual IN LISTS virtuals)
    list(JOIN codes_${virtual} "," codes)
    list(APPEND options "--generate-code=arch=compute_${virtual},code=[${codes}]")
  endforeach()
  set(${result} ${options} PARENT_SCOPE)
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
    set(CMAKE_CUDA_ARCHITECTURES OFF) # CTX_CUDA_OPTIONS has them
    set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
    enable_language(CUDA)
    set(CTX_HAS_CUDA TRUE)
    ctx_cuda_code_options(CTX_CUDA_OPTIONS)
    list(APPEND CTX_CUDA_OPTIONS --threads=0 --expt-relaxed-constexpr -Xptxas=-v -Xcompiler=-Wall,-Wextra)
    if(CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 12.8)
      list(APPEND CTX_CUDA_OPTIONS --compress-mode=size) # a fifth of the size of the default
    endif()
  elseif(CTX_BUILD_CUDA STREQUAL "ON")
    message(FATAL_ERROR
      "No CUDA compiler found in PATH, /usr/local/cuda or this Python's packages: "
      "pip install nvidia-cuda-nvcc nvidia-cuda-runtime nvidia-cuda-crt nvidia-nvvm, "
      "or give -DCMAKE_CUDA_COMPILER=/path/to/nvcc")
  else()
    message(STATUS "No CUDA compiler found: only the host targets are built (CTX_BUILD_CUDA=ON makes this an error)")
  endif()
endif()
