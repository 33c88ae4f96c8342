# Suites: what is built and run together besides everything. A suite is a target that builds its programs, and a label of
# their tests: `cmake --build --preset cuda-dev --target epistle_suite_cuda`, `ctest --preset cuda-dev -L suite_cuda`.
#   cuda        what the CUDA device changes or adds
#   sanitized   the ranks are threads of one process: run with the sanitizers, too
set(EPISTLE_SUITES cuda sanitized)
foreach(suite IN LISTS EPISTLE_SUITES)
  add_custom_target(epistle_suite_${suite})
endforeach()

# epistle_add_to_suites(TARGETS target... [TESTS test...] SUITES suite...)
function(epistle_add_to_suites)
  cmake_parse_arguments(ARG "" "" "TARGETS;TESTS;SUITES" ${ARGN})
  foreach(suite IN LISTS ARG_SUITES)
    if(NOT suite IN_LIST EPISTLE_SUITES)
      message(FATAL_ERROR "'${suite}' is no suite; there are: ${EPISTLE_SUITES}")
    endif()
    add_dependencies(epistle_suite_${suite} ${ARG_TARGETS})
    if(ARG_TESTS)
      set_property(TEST ${ARG_TESTS} APPEND PROPERTY LABELS suite_${suite})
    endif()
  endforeach()
endfunction()
