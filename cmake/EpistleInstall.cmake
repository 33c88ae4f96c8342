# The installable package: find_package(epistle) gives epistle::epistle.
include(CMakePackageConfigHelpers)

install(TARGETS epistle EXPORT epistleTargets
  LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}
  ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR}
  RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
install(DIRECTORY include/epistle DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(FILES "${CMAKE_CURRENT_BINARY_DIR}/generated/include/epistle/version.hpp"
  DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/epistle)
if(EPISTLE_BUILD_CLI)
  install(TARGETS epistle_cli RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
endif()
install(EXPORT epistleTargets NAMESPACE epistle:: DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/epistle)
configure_package_config_file(cmake/epistleConfig.cmake.in "${CMAKE_CURRENT_BINARY_DIR}/epistleConfig.cmake"
  INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/epistle)
write_basic_package_version_file("${CMAKE_CURRENT_BINARY_DIR}/epistleConfigVersion.cmake" COMPATIBILITY SameMinorVersion)
install(FILES "${CMAKE_CURRENT_BINARY_DIR}/epistleConfig.cmake" "${CMAKE_CURRENT_BINARY_DIR}/epistleConfigVersion.cmake"
  cmake/Findhwloc.cmake DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/epistle)
