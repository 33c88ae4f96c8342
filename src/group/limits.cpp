#include "group/limits.hpp"

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "epistle/error.hpp"

#include "core/settings.hpp"

namespace epistle {

void check_num_ranks(int num_ranks) {
  if (num_ranks >= 1 && num_ranks <= kMaxRanks) return;
  throw Error(ErrorCode::kInvalidArgument,
              fmt::format("a group has 1 to {} ranks on one host; {} were asked for", kMaxRanks, num_ranks));
}

void check_num_ranks_of_hosts(int num_ranks) {
  constexpr int kMaxRanksOfHosts = (1 << 20) - 1;
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

namespace {

/// The first rank that lies on another host than the block of `size` ranks that it belongs to; -1 = there is none.
int find_stray_rank(std::span<const int> host_of, int size) {
  for (int rank = 0; rank < static_cast<int>(host_of.size()); ++rank) {
    const int first = rank - rank % size;
    if (host_of[static_cast<std::size_t>(rank)] != host_of[static_cast<std::size_t>(first)]) return rank;
  }
  return -1;
}

std::vector<int> find_domain_sizes(std::span<const int> host_of) {
  std::vector<int> sizes;
  const int num_ranks = static_cast<int>(host_of.size());
  for (int size = 1; size <= num_ranks; ++size) {
    if (num_ranks % size == 0 && find_stray_rank(host_of, size) < 0) sizes.push_back(size);
  }
  return sizes;
}

std::string why_no_domain_size(std::int64_t size, std::span<const int> host_of) {
  const auto num_ranks = static_cast<std::int64_t>(host_of.size());
  if (size < 0) return "a domain has at least one rank";
  if (size > num_ranks) return "a domain has no more ranks than the group";
  if (num_ranks % size != 0) return "domains are of one size";
  const int stray = find_stray_rank(host_of, static_cast<int>(size));
  return fmt::format("rank {} is on another host than rank {}, and they would share a domain", stray,
                     stray - stray % size);
}

}  // namespace

int resolve_domain_size(int declared_size, std::span<const int> host_of) {
  const bool is_set = declared_size == 0 && settings().domain_size() > 0;
  const std::int64_t size = is_set ? settings().domain_size() : declared_size;
  const std::vector<int> fitting = find_domain_sizes(host_of);
  if (size == 0) return fitting.back();
  if (std::find(fitting.begin(), fitting.end(), size) != fitting.end()) return static_cast<int>(size);
  const int num_hosts = *std::max_element(host_of.begin(), host_of.end()) + 1;
  throw Error(ErrorCode::kInvalidArgument,
              fmt::format("{} declares domains of {} ranks, but {} ranks were found, {}: {}; declare one of {}, or 0 "
                          "for what is found",
                          is_set ? "EPISTLE_DOMAIN_SIZE" : "domain_size", size, host_of.size(),
                          num_hosts == 1 ? "all on one host" : fmt::format("on {} hosts", num_hosts),
                          why_no_domain_size(size, host_of), fmt::join(fitting, ", ")));
}

int resolve_domain_size(int declared_size, int num_ranks) {
  return resolve_domain_size(declared_size, std::vector<int>(static_cast<std::size_t>(num_ranks), 0));
}

}  // namespace epistle
