# nlohmann_json's headers, for the runtime: sets CTX_HAS_JSON and makes the target ctx_json.
#
# Searched in this order: CTX_JSON_INCLUDE_DIR, an installed nlohmann_json, and the PyPI package nlohmann-json of the
# Python that is first on PATH.
set(CTX_JSON_INCLUDE_DIR "" CACHE PATH "Directory of nlohmann/json.hpp, where find_package(nlohmann_json) has none")
set(CTX_HAS_JSON FALSE)

function(ctx_find_pypi_json result)
  set(${result} "" PARENT_SCOPE)
  find_package(Python3 QUIET COMPONENTS Interpreter)
  if(NOT Python3_FOUND)
    return()
  endif()
  execute_process(
    COMMAND "${Python3_EXECUTABLE}" -c
      "import importlib.util as u; print(u.find_spec('nlohmann_json').submodule_search_locations[0] + '/include')"
    OUTPUT_VARIABLE directory OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  if(directory AND EXISTS "${directory}/nlohmann/json.hpp")
    set(${result} "${directory}" PARENT_SCOPE)
  endif()
endfunction()

add_library(ctx_json INTERFACE)
if(CTX_JSON_INCLUDE_DIR)
  if(NOT EXISTS "${CTX_JSON_INCLUDE_DIR}/nlohmann/json.hpp")
    message(FATAL_ERROR "CTX_JSON_INCLUDE_DIR is ${CTX_JSON_INCLUDE_DIR}, which has no nlohmann/json.hpp")
  endif()
  target_include_directories(ctx_json SYSTEM INTERFACE "${CTX_JSON_INCLUDE_DIR}")
  set(CTX_HAS_JSON TRUE)
else()
  find_package(nlohmann_json 3.11 QUIET CONFIG)
  if(nlohmann_json_FOUND)
    target_link_libraries(ctx_json INTERFACE nlohmann_json::nlohmann_json)
    set(CTX_HAS_JSON TRUE)
  else()
    ctx_find_pypi_json(ctx_pypi_json)
    if(ctx_pypi_json)
      target_include_directories(ctx_json SYSTEM INTERFACE "${ctx_pypi_json}")
      set(CTX_HAS_JSON TRUE)
    endif()
  endif()
endif()
