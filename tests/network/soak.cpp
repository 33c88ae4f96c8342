#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>

#include "network/network_modes.hpp"
#include "support/named_scenarios.hpp"
#include "support/player.hpp"
#include "support/random_scenario.hpp"

namespace epistle::testing {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kTripsOfDispatcher = 5;
// What the process keeps for later grows at first: connections, worker stacks, pools of the C library. Fewer than twice
// as many trips say nothing of leaks.
constexpr std::int64_t kTripsToSettle = 200;
constexpr std::int64_t kMostGrowthKib = 16 << 10;

/// A line "Name:   123 kB" of /proc/self/status.
std::int64_t status_kib(const std::string& name) {
  std::ifstream file("/proc/self/status");
  for (std::string line; std::getline(file, line);) {
    if (line.rfind(name + ":", 0) != 0) continue;
    std::istringstream rest(line.substr(name.size() + 1));
    std::int64_t value = -1;
    rest >> value;
    return value;
  }
  return -1;
}

std::int64_t num_descriptors() {
  return std::distance(std::filesystem::directory_iterator("/proc/self/fd"), std::filesystem::directory_iterator());
}

struct Held {
  std::int64_t kib;
  std::int64_t descriptors;
};

Scenario scenario_of(Group& group, std::uint64_t seed, bool by_domain) {
  Scenario scenario = random_scenario(seed, {.num_ranks = group.size(),
                                             .max_tokens = 16,
                                             .max_hidden = 256,
                                             .max_experts = 32,
                                             .max_top_k = 8,
                                             .max_elements = 40'000});
  scenario.domain_size = group.domain_size();
  scenario.num_rounds = kTripsOfDispatcher;
  scenario.config.max_handles = 2 * kTripsOfDispatcher;  // all are used again at the end
  if (by_domain) scenario.config.order = SumOrder::kDomains;
  return scenario;
}

}  // namespace

Json memory_of_rank() {
  return {{"rss_kib", status_kib("VmRSS")},
          {"private_kib", status_kib("RssAnon")},
          {"shared_kib", status_kib("RssShmem")},
          {"descriptors", num_descriptors()}};
}

Json soak(Group& group, std::int64_t num_trips) {
  // What a dispatcher had is given back at once or a moment later, and what connections hold for messages on their way
  // comes and goes with them. So a leak is what even the least of later looks is above the most of the first ones.
  Held settled{.kib = 0, .descriptors = 0};
  Held last{.kib = std::numeric_limits<std::int64_t>::max(), .descriptors = std::numeric_limits<std::int64_t>::max()};
  const bool settles = num_trips >= 2 * kTripsToSettle;
  std::int64_t done = 0;
  // The ranks come late to each other, each to other round trips.
  Draw late(mix(4711, static_cast<std::uint64_t>(group.rank())));
  for (std::uint64_t seed = 1; done < num_trips; ++seed, done += kTripsOfDispatcher) {
    const bool by_domain = seed % 2 == 0;
    if (late.one_in(8)) std::this_thread::sleep_for(std::chrono::milliseconds(late.between(1, 100)));
    const Mismatch mismatch = play_rank(group, by_domain ? "hybrid" : "alltoall", scenario_of(group, seed, by_domain));
    if (mismatch) throw std::runtime_error("scenario " + std::to_string(seed) + ": " + *mismatch);
    const Held now{.kib = status_kib("RssAnon"), .descriptors = num_descriptors()};
    if (done <= kTripsToSettle)
      settled = {std::max(settled.kib, now.kib), std::max(settled.descriptors, now.descriptors)};
    if (done >= num_trips - num_trips / 4)
      last = {std::min(last.kib, now.kib), std::min(last.descriptors, now.descriptors)};
  }
  group.barrier();
  Json result = {{"round_trips", done},
                 {"private_kib_settled", settled.kib},
                 {"private_kib_end", last.kib},
                 {"descriptors_settled", settled.descriptors},
                 {"descriptors_end", last.descriptors},
                 {"looks_for_leaks", settles}};
  if (settles && (last.descriptors > settled.descriptors || last.kib > settled.kib + kMostGrowthKib)) {
    throw std::runtime_error("memory or descriptors leak: " + result.dump());
  }
  return result;
}

}  // namespace epistle::testing
