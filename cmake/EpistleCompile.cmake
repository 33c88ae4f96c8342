# Compiler settings shared by every target of the project: `epistle_compile_options` is linked privately.
add_library(epistle_compile_options INTERFACE)
target_compile_features(epistle_compile_options INTERFACE cxx_std_20)
# No fused multiply-add: the order and rounding of sums is part of the contract (include/epistle/dispatcher.hpp).
target_compile_options(epistle_compile_options INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wpedantic -Wshadow
  -Wconversion -Wundef -Wnon-virtual-dtor -Woverloaded-virtual -ffp-contract=off>)
if(EPISTLE_WERROR)
  target_compile_options(epistle_compile_options INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Werror>)
endif()
if(EPISTLE_SANITIZE)
  # GCC warns of uninitialised values in the standard library (std::regex, std::function) once code is instrumented.
  target_compile_options(epistle_compile_options INTERFACE
    $<$<COMPILE_LANG_AND_ID:CXX,GNU>:-Wno-maybe-uninitialized>)
  target_compile_options(epistle_compile_options INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${EPISTLE_SANITIZE}
    -fno-omit-frame-pointer -fno-sanitize-recover=all>)
  target_link_options(epistle_compile_options INTERFACE -fsanitize=${EPISTLE_SANITIZE})
endif()

# Precompiled headers: the standard library, fmt, GoogleTest and the like are half of the time of a clean build. Off
# unless asked for, as a file that forgets an include then compiles all the same: the release preset and clang-tidy
# compile without.
option(EPISTLE_PCH "Precompile the headers that most sources include" OFF)
set(EPISTLE_PCH_STANDARD <algorithm> <array> <atomic> <chrono> <cstdint> <cstring> <functional> <memory> <optional> <span>
  <string> <string_view> <thread> <utility> <vector>)

# epistle_precompile(TARGET HEADER...): these and the common ones of the standard library, for the C++ sources. A header is
# written <as it is included>.
function(epistle_precompile target)
  if(NOT EPISTLE_PCH)
    return()
  endif()
  set(headers ${EPISTLE_PCH_STANDARD} ${ARGN})
  # A bare ">" would end the generator expression.
  list(TRANSFORM headers REPLACE "^<(.+)>$" "$<$<COMPILE_LANGUAGE:CXX>:<\\1$<ANGLE-R>>")
  target_precompile_headers(${target} PRIVATE ${headers})
endfunction()

# ccache looks into precompiled headers only when it is told that their macros may be trusted, and the compiler must keep
# the include in its preprocessed output.
if(EPISTLE_PCH AND CMAKE_CXX_COMPILER_LAUNCHER MATCHES "ccache$")
  set(CMAKE_CXX_COMPILER_LAUNCHER "${CMAKE_COMMAND}" -E env CCACHE_SLOPPINESS=pch_defines,time_macros
    ${CMAKE_CXX_COMPILER_LAUNCHER})
  add_compile_options("$<$<COMPILE_LANG_AND_ID:CXX,GNU>:-fpch-preprocess>")
endif()

# The C++ sources of a folder compiled as one: the headers that they include, most of the time of a clean build, are then
# read once for all. So names that one file of a folder keeps to itself must differ from those of the folder's other files.
# OFF unless asked for: a changed file costs its whole folder, and one that forgets an include compiles all the same.
set(EPISTLE_BATCHES "OFF" CACHE STRING "Compile the sources of a folder as one: OFF, TESTS (only the test programs), ON")
set_property(CACHE EPISTLE_BATCHES PROPERTY STRINGS OFF TESTS ON)
if(NOT EPISTLE_BATCHES MATCHES "^(OFF|TESTS|ON)$")
  message(FATAL_ERROR "EPISTLE_BATCHES is '${EPISTLE_BATCHES}'; it is one of OFF, TESTS, ON")
endif()

# epistle_batch_folders(TARGET [TESTS]): to be called in the folder where the target was made, which is done with its
# sources then. TESTS: the target is a test program.
function(epistle_batch_folders target)
  if(EPISTLE_BATCHES STREQUAL "OFF" OR (EPISTLE_BATCHES STREQUAL "TESTS" AND NOT "${ARGV1}" STREQUAL "TESTS"))
    return()
  endif()
  get_target_property(sources ${target} SOURCES)
  list(FILTER sources INCLUDE REGEX "\\.cpp$")
  foreach(source IN LISTS sources)
    cmake_path(ABSOLUTE_PATH source)
    cmake_path(RELATIVE_PATH source BASE_DIRECTORY "${PROJECT_SOURCE_DIR}" OUTPUT_VARIABLE group)
    cmake_path(GET group PARENT_PATH group)
    string(MAKE_C_IDENTIFIER "${group}" group)
    set_source_files_properties("${source}" PROPERTIES UNITY_GROUP "${group}")
  endforeach()
  set_target_properties(${target} PROPERTIES UNITY_BUILD ON UNITY_BUILD_MODE GROUP)
  epistle_take_host_objects(${target})
endfunction()
