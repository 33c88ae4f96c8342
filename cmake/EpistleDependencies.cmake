# What the library and the command need; the tests and benchmarks find theirs themselves. scripts/install-deps installs all.
find_package(Threads REQUIRED)
find_package(ZLIB REQUIRED)
find_package(fmt REQUIRED)
find_package(hwy REQUIRED)
find_package(nlohmann_json REQUIRED)
find_package(hwloc REQUIRED)
find_package(yaml-cpp REQUIRED)
