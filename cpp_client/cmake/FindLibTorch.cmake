# Finds LibTorch in a torch wheel or a LibTorch download, CPU or CUDA build, without a CUDA toolkit.
#
# PyTorch's own TorchConfig.cmake of a CUDA build insists on a toolkit. We link the CPU libraries
# only, which every build has; the CUDA ones beside them are loaded at run time where there is a
# driver (src/torch_process.cpp).
#
# Looks in LibTorch_ROOT, in CMAKE_PREFIX_PATH (torch.utils.cmake_prefix_path is fine), in
# LibTorch_HINT, and for the wheel of the python3 that comes first on PATH.
#
# Defines LibTorch::LibTorch, LibTorch_FOUND, LibTorch_VERSION and LibTorch_HOME.

set(_LibTorch_hints)
foreach(prefix IN LISTS CMAKE_PREFIX_PATH)
  list(APPEND _LibTorch_hints "${prefix}/../..") # from share/cmake
endforeach()
list(APPEND _LibTorch_hints ${LibTorch_HINT})

if(NOT LibTorch_ROOT AND NOT LibTorch_INCLUDE_DIR)
  find_program(_LibTorch_python python3 NO_CACHE)
  if(_LibTorch_python)
    set(_LibTorch_code [[
from importlib.util import find_spec
torch = find_spec("torch")
print(torch.submodule_search_locations[0] if torch else "")
]])
    execute_process(
      COMMAND "${_LibTorch_python}" -c "${_LibTorch_code}"
      OUTPUT_VARIABLE _LibTorch_wheel
      OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
    list(APPEND _LibTorch_hints ${_LibTorch_wheel})
  endif()
endif()

find_path(LibTorch_INCLUDE_DIR torch/script.h HINTS ${_LibTorch_hints} PATH_SUFFIXES include)
find_path(
  LibTorch_API_INCLUDE_DIR torch/torch.h
  HINTS "${LibTorch_INCLUDE_DIR}/torch/csrc/api/include"
  NO_DEFAULT_PATH)
cmake_path(GET LibTorch_INCLUDE_DIR PARENT_PATH LibTorch_HOME)
find_library(LibTorch_CPU_LIBRARY torch_cpu HINTS "${LibTorch_HOME}/lib")
find_library(LibTorch_C10_LIBRARY c10 HINTS "${LibTorch_HOME}/lib")
mark_as_advanced(LibTorch_INCLUDE_DIR LibTorch_API_INCLUDE_DIR LibTorch_CPU_LIBRARY
                 LibTorch_C10_LIBRARY)

set(LibTorch_VERSION)
set(_LibTorch_header "${LibTorch_INCLUDE_DIR}/torch/headeronly/version.h")
if(EXISTS "${_LibTorch_header}")
  foreach(part MAJOR MINOR PATCH)
    file(STRINGS "${_LibTorch_header}" _LibTorch_line REGEX "define TORCH_VERSION_${part} ")
    string(REGEX MATCH "[0-9]+$" _LibTorch_number "${_LibTorch_line}")
    list(APPEND LibTorch_VERSION "${_LibTorch_number}")
  endforeach()
  list(JOIN LibTorch_VERSION "." LibTorch_VERSION)
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(
  LibTorch
  REQUIRED_VARS LibTorch_CPU_LIBRARY LibTorch_C10_LIBRARY LibTorch_INCLUDE_DIR
                LibTorch_API_INCLUDE_DIR
  VERSION_VAR LibTorch_VERSION
  REASON_FAILURE_MESSAGE
    "Set LibTorch_ROOT to a LibTorch download, or to a wheel's folder, site-packages/torch"
)

if(LibTorch_FOUND AND NOT TARGET LibTorch::LibTorch)
  add_library(LibTorch::c10 SHARED IMPORTED)
  set_target_properties(LibTorch::c10 PROPERTIES IMPORTED_LOCATION "${LibTorch_C10_LIBRARY}")
  add_library(LibTorch::LibTorch SHARED IMPORTED)
  set_target_properties(
    LibTorch::LibTorch
    PROPERTIES IMPORTED_LOCATION "${LibTorch_CPU_LIBRARY}"
               INTERFACE_LINK_LIBRARIES LibTorch::c10
               INTERFACE_INCLUDE_DIRECTORIES "${LibTorch_INCLUDE_DIR};${LibTorch_API_INCLUDE_DIR}")
endif()
