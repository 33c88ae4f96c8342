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

int resolve_domain_size(int declared_size, int num_ranks) {
  const bool is_set = declared_size == 0 && settings().domain_size() > 0;
  const std::int64_t size = is_set ? settings().domain_size() : declared_size;
  if (size == 0) return num_ranks;
  if (size > 0 && size <= num_ranks && num_ranks % size == 0) return static_cast<int>(size);
  std::string fitting;
  for (int divisor = 1; divisor <= num_ranks; ++divisor) {
    if (num_ranks % divisor == 0) fitting += fmt::format("{}{}", fitting.empty() ? "" : ", ", divisor);
  }
  throw Error(
      ErrorCode::kInvalidArgument,
      fmt::format("{} declares domains of {} ranks, but {} ranks were found, all on one host: {}; declare one of "
                  "{}, or 0 for what is found",
                  is_set ? "EPISTLE_DOMAIN_SIZE" : "domain_size", size, num_ranks,
                  size < 0           ? "a domain has at least one rank"
                  : size > num_ranks ? "a domain has no more ranks than the group"
                                     : "domains are of one size",
                  fitting));
}

}  // namespace epistle
