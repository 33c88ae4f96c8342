# Resolves EPISTLE_PMIX (AUTO, ON, OFF) to EPISTLE_HAS_PMIX. Ranks that mpirun or srun started can meet by PMIx: its header
# is needed here; the library is loaded when ranks first meet so.
set(EPISTLE_HAS_PMIX OFF)
if(NOT EPISTLE_PMIX MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "EPISTLE_PMIX is '${EPISTLE_PMIX}'; it must be AUTO, ON or OFF")
endif()
if(NOT EPISTLE_PMIX STREQUAL "OFF")
  # Debian keeps it beside the library.
  find_path(PMIX_INCLUDE_DIR pmix.h
    HINTS "/usr/lib/${CMAKE_LIBRARY_ARCHITECTURE}/pmix2/include" "/usr/lib/${CMAKE_LIBRARY_ARCHITECTURE}/pmix/include")
  if(PMIX_INCLUDE_DIR)
    set(EPISTLE_HAS_PMIX ON)
  elseif(EPISTLE_PMIX STREQUAL "ON")
    message(FATAL_ERROR "EPISTLE_PMIX=ON, but pmix.h was not found; install libpmix-dev or set PMIX_INCLUDE_DIR")
  else()
    message(STATUS "PMIx was not found: ranks of mpirun on several hosts need MASTER_ADDR (install libpmix-dev)")
  endif()
endif()
