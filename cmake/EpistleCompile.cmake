# Compiler settings shared by every target of the project: `epistle_compile_options` is linked privately.
add_library(epistle_compile_options INTERFACE)
target_compile_features(epistle_compile_options INTERFACE cxx_std_20)
# No fused multiply-add: the order and rounding of sums is part of the contract (include/epistle/dispatcher.hpp).
target_compile_options(epistle_compile_options INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wpedantic -Wshadow
  -Wconversion -Wnon-virtual-dtor -Woverloaded-virtual -ffp-contract=off>)
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
