// What stands in for libfabric in a build without it.
#include "epistle/error.hpp"

#include "fabric/fabric.hpp"

namespace epistle {
namespace {

constexpr const char* kLackOfFabric =
    "this build has no libfabric, which rows need to travel between hosts; install it with its headers (the package "
    "libfabric-dev), and configure again with -D EPISTLE_FABRIC=ON";

}  // namespace

std::string describe_fabric_library() { return kLackOfFabric; }

std::vector<FabricWay> list_fabric_ways(const FabricRequest& /*request*/) {
  throw Error(ErrorCode::kUnsupported, kLackOfFabric);
}

FabricWay choose_fabric_way(const FabricRequest& /*request*/) { throw Error(ErrorCode::kUnsupported, kLackOfFabric); }

std::unique_ptr<FabricEndpoint> open_fabric_endpoint(const FabricRequest& /*request*/) {
  throw Error(ErrorCode::kUnsupported, kLackOfFabric);
}

}  // namespace epistle
