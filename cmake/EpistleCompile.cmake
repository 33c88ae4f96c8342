# Compiler settings shared by every target of the project: `epistle_compile_options` is linked privately.
add_library(epistle_compile_options INTERFACE)
target_compile_features(epistle_compile_options INTERFACE cxx_std_20)
# No fused multiply-add: the order and rounding of sums is part of the contract (include/epistle/dispatcher.hpp).
target_compile_options(epistle_compile_options INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wpedantic -Wshadow
  -Wconversion -Wundef -Wnon-virtual-dtor -Woverloaded-virtual -ffp-contract=off>)
# Of Clang's -Wconversion what GCC's means, too.
target_compile_options(epistle_compile_options INTERFACE $<$<COMPILE_LANG_AND_ID:CXX,Clang>:-Wno-sign-conversion>)
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
  add_compile_options("$<$<COMPILE_LANG_AND_ID:CXX,GNU>:-fpch-preprocess>"
    "$<$<COMPILE_LANG_AND_ID:CXX,Clang>:SHELL:-Xclang -fno-pch-timestamp>")
endif()
