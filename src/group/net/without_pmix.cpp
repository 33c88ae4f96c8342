// What stands in for PMIx in a build without it.
#include "epistle/error.hpp"

#include "group/net/pmix_gathering.hpp"

namespace epistle {
namespace {

constexpr const char* kLackOfPmix =
    "this build has no PMIx; install it with its headers (the package libpmix-dev) and configure again with "
    "-D EPISTLE_PMIX=ON";

}  // namespace

std::string lack_of_pmix() { return kLackOfPmix; }

bool has_pmix_server(int /*rank*/) noexcept { return false; }

GatherTexts gather_by_pmix(const PmixRank& /*rank*/) { throw Error(ErrorCode::kUnsupported, kLackOfPmix); }

}  // namespace epistle
