# Run with cmake -P by the test package.install_and_consume; see CMakeLists.txt for the variables.
set(prefix "${WORK_DIR}/prefix")
set(build "${WORK_DIR}/build")
file(REMOVE_RECURSE "${WORK_DIR}")

function(run what)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
  if(NOT result EQUAL 0)
    message(FATAL_ERROR "${what} failed (${result}):\n${output}")
  endif()
  message(STATUS "${what}: ok")
endfunction()

run("install" ${CMAKE_COMMAND} --install "${BINARY_DIR}" --prefix "${prefix}")

# The package may move to another machine: what it links is named, not a path of this one.
file(GLOB_RECURSE exports "${prefix}/*/epistleTargets*.cmake")
if(NOT exports)
  message(FATAL_ERROR "no exported targets below ${prefix}")
endif()
foreach(export IN LISTS exports)
  file(STRINGS "${export}" paths REGEX "INTERFACE_.*[\";:](/|[A-Za-z]:)")
  if(paths)
    message(FATAL_ERROR "${export} names paths of this machine:\n${paths}")
  endif()
endforeach()

set(flags)
if(SANITIZE)
  list(APPEND flags "-DCMAKE_CXX_FLAGS=-fsanitize=${SANITIZE}")
endif()
run("configure the consumer" ${CMAKE_COMMAND} -S "${CONSUMER_DIR}" -B "${build}" -G "${GENERATOR}"
  "-DCMAKE_CXX_COMPILER=${CXX_COMPILER}" "-DCMAKE_PREFIX_PATH=${prefix}" "-DEXPECTED_VERSION=${VERSION}" ${flags})
run("build the consumer" ${CMAKE_COMMAND} --build "${build}")
run("run the consumer" "${build}/consumer")

if(EXISTS "${prefix}/bin/epistle")
  run("run the installed command" "${prefix}/bin/epistle" --version)
endif()
