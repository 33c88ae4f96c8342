# Resolves EPISTLE_FABRIC (AUTO, ON, OFF) to EPISTLE_HAS_FABRIC. Rows travel between hosts by libfabric: its headers are
# needed here; the library is loaded when it is first used.
set(EPISTLE_HAS_FABRIC OFF)
if(NOT EPISTLE_FABRIC MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "EPISTLE_FABRIC is '${EPISTLE_FABRIC}'; it must be AUTO, ON or OFF")
endif()
if(NOT EPISTLE_FABRIC STREQUAL "OFF")
  find_path(FABRIC_INCLUDE_DIR rdma/fi_rma.h)
  if(FABRIC_INCLUDE_DIR)
    set(EPISTLE_HAS_FABRIC ON)
  elseif(EPISTLE_FABRIC STREQUAL "ON")
    message(FATAL_ERROR "EPISTLE_FABRIC=ON, but rdma/fi_rma.h was not found; install libfabric-dev or set FABRIC_INCLUDE_DIR")
  else()
    message(STATUS "libfabric was not found: built without the transport between hosts (install libfabric-dev)")
  endif()
endif()

# For #if in the project's own sources; never for its users.
target_compile_definitions(epistle_compile_options INTERFACE EPISTLE_HAS_FABRIC=$<BOOL:${EPISTLE_HAS_FABRIC}>)
