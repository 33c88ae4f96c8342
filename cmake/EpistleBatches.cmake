# The C++ sources of a folder compiled as one: the headers that they include, most of the time of a clean build, are then
# read once for all. So names that one file of a folder keeps to itself must differ from those of the folder's other files.
# OFF unless asked for: a changed file costs its whole folder, and one that forgets an include compiles all the same.
# WIDE takes folders together as well, for what is always compiled whole: the sanitizers, and clang-tidy, which spends most
# of its time on headers.
set(EPISTLE_BATCHES "OFF" CACHE STRING
  "Compile the sources of a folder as one: OFF, TESTS (only the test programs), ON, WIDE (several folders as one)")
set_property(CACHE EPISTLE_BATCHES PROPERTY STRINGS OFF TESTS ON WIDE)
if(NOT EPISTLE_BATCHES MATCHES "^(OFF|TESTS|ON|WIDE)$")
  message(FATAL_ERROR "EPISTLE_BATCHES is '${EPISTLE_BATCHES}'; it is one of OFF, TESTS, ON, WIDE")
endif()

# The folders of a wide batch: its name, then what its folders match; the first that fits. The folders of src_decide and
# src_machine are those that src/CMakeLists.txt does not optimise for a sanitizer. A folder that is not here is a batch of
# its own.
set(EPISTLE_WIDE_BATCHES
  src_device "^src/(gpu|migrate|measure/cuda|dispatch/(cuda|registry))(/|$)"
  src_dispatch "^src/dispatch(/|$)"
  src_group "^src/(core|fabric|fabric/ofi|group|layout)$"
  src_data "^src/(cost|measure|routing|simulate)$"
  src_decide "^src/(cost/fit|plan|select|select/check|tune)$"
  src_machine "^src/(group/net|launch|report|report/html|topology)$"
  tests_unit_decide "^tests/unit/(cost|launch|plan|report|routing|select|topology|tune)$"
  tests_unit_move "^tests/unit/(core|dispatch|fabric|gpu|group|layout|measure|migrate)$")
if(EPISTLE_BATCHES STREQUAL "WIDE")
  # A local name that another folder's file has, too, is no finding; the other kinds of batches look for those.
  target_compile_options(epistle_compile_options INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Wno-shadow>)
endif()

# epistle_batch_of(VARIABLE folder): the name of the batch of a folder of the project.
function(epistle_batch_of variable folder)
  if(EPISTLE_BATCHES STREQUAL "WIDE")
    set(rest ${EPISTLE_WIDE_BATCHES})
    while(rest)
      list(POP_FRONT rest name pattern)
      if(folder MATCHES "${pattern}")
        set(${variable} "${name}" PARENT_SCOPE)
        return()
      endif()
    endwhile()
  endif()
  string(MAKE_C_IDENTIFIER "${folder}" name)
  set(${variable} "${name}" PARENT_SCOPE)
endfunction()

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
    epistle_batch_of(group "${group}")
    set_source_files_properties("${source}" PROPERTIES UNITY_GROUP "${group}")
  endforeach()
  set_target_properties(${target} PROPERTIES UNITY_BUILD ON UNITY_BUILD_MODE GROUP)
  epistle_take_host_objects(${target})
endfunction()
