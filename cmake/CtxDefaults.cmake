# C++17, optimised, everything hidden but the listed symbols, compiler caching where ccache is there.
if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "Build type" FORCE)
endif()

set(CMAKE_CXX_STANDARD 17)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_CXX_VISIBILITY_PRESET hidden)
set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
set(CMAKE_VISIBILITY_INLINES_HIDDEN ON)

find_program(CTX_CCACHE ccache)
if(CTX_CCACHE)
  set(CMAKE_CXX_COMPILER_LAUNCHER "${CTX_CCACHE}")
endif()
set(CMAKE_CUDA_COMPILER_LAUNCHER sh "${CMAKE_CURRENT_LIST_DIR}/keep_ptxas_report.sh")
if(CTX_CCACHE)
  list(APPEND CMAKE_CUDA_COMPILER_LAUNCHER "${CTX_CCACHE}")
endif()

# Warnings of the C++ parts; nvcc's host compiler gets the same in plugins/CMakeLists.txt.
set(CTX_CXX_WARNINGS -Wall -Wextra -Wpedantic -Wno-unknown-pragmas)

# Warnings as errors, and the sanitizers asked for: of the runtime and its tests.
function(ctx_compile_strictly target)
  target_compile_options(${target} PRIVATE ${CTX_CXX_WARNINGS} -Werror)
  if(CTX_SANITIZE)
    target_compile_options(${target} PRIVATE -g -fno-omit-frame-pointer -fsanitize=${CTX_SANITIZE}
      -fno-sanitize-recover=all)
    target_link_options(${target} PRIVATE -fsanitize=${CTX_SANITIZE})
  endif()
endfunction()
