#include "group/limits.hpp"

#include <algorithm>

#include <fmt/format.h>

#include "epistle/error.hpp"

#include "core/settings.hpp"

namespace epistle {

void check_num_ranks(int num_ranks) {
  if (num_ranks >= 1 && num_ranks <= kMaxRanks) return;
  throw Error(ErrorCode::kInvalidArgument,
              fmt::format("a group has 1 to {} ranks on one host; {} were asked for", kMaxRanks, num_ranks));
}

void check_num_ranks_of_hosts(int num_ranks) {
  constexpr int kMaxRanksOfHosts = (1 << 24) - 1;
  if (num_ranks >= 1 && num_ranks <= kMaxRanksOfHosts) return;
  throw Error(ErrorCode::kInvalidArgument,
              fmt::format("a group has 1 to {} ranks; {} were asked for", kMaxRanksOfHosts, num_ranks));
}

std::chrono::milliseconds resolve_timeout(const GroupOptions& options) {
  if (options.timeout.count() < 0) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("the timeout is {} ms; it must be positive, or 0 for the setting EPISTLE_TIMEOUT_MS",
                            options.timeout.count()));
  }
  const std::chrono::milliseconds timeout =
      options.timeout.count() > 0 ? options.timeout : std::chrono::milliseconds(settings().timeout_ms());
  return std::min(timeout, kMaxTimeout);
}

}  // namespace epistle
