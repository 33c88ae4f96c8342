# Run with cmake -P by the test package.exports: the shared library exports what the public headers declare, and of the
# project nothing else. NM, LIBRARY and INCLUDE_DIRS are given.
cmake_minimum_required(VERSION 3.25)
execute_process(COMMAND "${NM}" -D -C --defined-only "${LIBRARY}" OUTPUT_VARIABLE symbols RESULT_VARIABLE result)
if(NOT result EQUAL 0)
  message(FATAL_ERROR "${NM} cannot read ${LIBRARY} (${result})")
endif()
string(REPLACE "," ";" INCLUDE_DIRS "${INCLUDE_DIRS}")
set(headers)
foreach(folder IN LISTS INCLUDE_DIRS)
  file(GLOB found "${folder}/epistle/*.hpp")
  list(APPEND headers ${found})
endforeach()
set(public "")
foreach(header IN LISTS headers)
  file(READ "${header}" text)
  string(APPEND public "${text}")
endforeach()

# A symbol's own name comes first, after its address, its kind and what tables are "for"; templates of the standard library
# over our types are of neither.
string(REGEX MATCHALL "[0-9a-f]+ [A-Za-z] ((vtable|typeinfo|typeinfo name|VTT|guard variable) for )?epistle::[A-Za-z_0-9:~]+"
  exported "${symbols}")
set(names)
foreach(symbol IN LISTS exported)
  # What a class has is its own affair; v0_2 is the namespace of one version.
  string(REGEX REPLACE "^.* epistle::(v[0-9]+_[0-9]+::)?([A-Za-z_0-9]+).*$" "\\2" name "${symbol}")
  list(APPEND names ${name})
endforeach()
list(REMOVE_DUPLICATES names)
list(LENGTH exported num_exported)
# These are what a user starts with: without them nothing was looked at.
foreach(wanted Group Dispatcher Error join_process_group)
  if(NOT wanted IN_LIST names)
    message(SEND_ERROR "${LIBRARY} does not export ${wanted}: EPISTLE_API is missing at its declaration")
  endif()
endforeach()
foreach(name IN LISTS names)
  if(NOT public MATCHES "[^A-Za-z0-9_]${name}[^A-Za-z0-9_]")
    message(SEND_ERROR
      "${LIBRARY} exports ${name}, which no public header declares: hide it, or give it a place in include/epistle")
  endif()
endforeach()
message(STATUS "${num_exported} symbols, all of the public headers")
