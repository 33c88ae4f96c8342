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
  if (num_ranks >= 1 && num_ranks <= kMaxRanksOfHost) return;
  throw Error(ErrorCode::kInvalidArgument,
              fmt::format("a group has 1 to {} ranks on one host; {} were asked for", kMaxRanksOfHost, num_ranks));
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

/// What ranks of one number have in common, for people.
struct Reach {
  std::span<const int> of_rank;
  const char* apart;  ///< "rank 2 is ... rank 0"
};

std::string why_no_domain_size(std::int64_t size, const Reach& reach) {
  const auto num_ranks = static_cast<std::int64_t>(reach.of_rank.size());
  if (size < 0) return "a domain has at least one rank";
  if (size > num_ranks) return "a domain has no more ranks than the group";
  if (num_ranks % size != 0) return "domains are of one size";
  const int stray = find_stray_rank(reach.of_rank, static_cast<int>(size));
  return fmt::format("rank {} is {} rank {}, and they would share a domain", stray, reach.apart, stray - stray % size);
}

int resolve_reach(int declared_size, std::span<const int> host_of, const Reach& reach) {
  const bool is_set = declared_size == 0 && settings().domain_size() > 0;
  const std::int64_t size = is_set ? settings().domain_size() : declared_size;
  const std::vector<int> fitting = find_domain_sizes(reach.of_rank);
  if (size == 0) return fitting.back();
  if (std::find(fitting.begin(), fitting.end(), size) != fitting.end()) return static_cast<int>(size);
  const int num_hosts = *std::max_element(host_of.begin(), host_of.end()) + 1;
  throw Error(ErrorCode::kInvalidArgument,
              fmt::format("{} declares domains of {} ranks, but {} ranks were found, {}: {}; declare one of {}, or 0 "
                          "for what is found",
                          is_set ? "EPISTLE_DOMAIN_SIZE" : "domain_size", size, host_of.size(),
                          num_hosts == 1 ? "all on one host" : fmt::format("on {} hosts", num_hosts),
                          why_no_domain_size(size, reach), fmt::join(fitting, ", ")));
}

}  // namespace

int resolve_domain_size(int declared_size, std::span<const int> host_of) {
  return resolve_reach(declared_size, host_of, {.of_rank = host_of, .apart = "on another host than"});
}

DomainSizes resolve_domain_sizes(int declared_size, std::span<const int> host_of, std::span<const int> gpu_reach_of) {
  if (std::equal(host_of.begin(), host_of.end(), gpu_reach_of.begin(), gpu_reach_of.end())) {
    const int size = resolve_domain_size(declared_size, host_of);
    return {.host = size, .gpu = size};
  }
  const int gpu =
      resolve_reach(declared_size, host_of, {.of_rank = gpu_reach_of, .apart = "in no NVLink fabric with the host of"});
  const std::vector<int> fitting = find_domain_sizes(host_of);
  const bool is_declared = declared_size > 0 || settings().domain_size() > 0;
  const bool fits = is_declared && std::find(fitting.begin(), fitting.end(), gpu) != fitting.end();
  return {.host = fits ? gpu : fitting.back(), .gpu = gpu};
}

int resolve_domain_size(int declared_size, int num_ranks) {
  return resolve_domain_size(declared_size, std::vector<int>(static_cast<std::size_t>(num_ranks), 0));
}

}  // namespace epistle
