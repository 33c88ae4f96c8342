#include <algorithm>
#include <iostream>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "network/network_modes.hpp"
#include "support/go_on.hpp"
#include "support/round_trip.hpp"

namespace epistle::testing {
namespace {

using Json = nlohmann::ordered_json;

Scenario scenario_of_masks(const Group& group) {
  Scenario scenario;
  scenario.config = {.hidden = 512, .num_experts = 3 * group.size(), .top_k = 4, .max_tokens = 48};
  scenario.config.order = SumOrder::kDomains;
  for (int rank = 0; rank < group.size(); ++rank) scenario.tokens_per_rank.push_back(16 + rank * 29 % 32);
  scenario.domain_size = group.domain_size();
  scenario.masked = group.masked();
  return scenario;
}

/// A round trip by every dispatcher, and a number that all gather, which is 0 of those that are left out.
void expect_bits(Group& group, std::vector<std::unique_ptr<Subject>>& subjects, int& trip) {
  std::vector<int> trips(static_cast<std::size_t>(group.size()));
  const int own = trip + 1;
  group.all_gather(&own, sizeof(own), trips.data());
  for (const int rank : group.masked()) {
    if (trips[static_cast<std::size_t>(rank)] != 0) throw std::runtime_error("a masked rank has told a number");
  }
  // A failure may have left some ranks a round trip ahead of others.
  trip = *std::max_element(trips.begin(), trips.end());
  const Round round(scenario_of_masks(group), trip);
  for (const auto& subject : subjects) {
    if (const Mismatch mismatch = round_trip(*subject, round)) throw std::runtime_error(*mismatch);
  }
}

}  // namespace

Json go_on_masked(Group& group, std::int64_t num_trips) {
  std::vector<std::unique_ptr<Subject>> subjects;
  for (const char* const name : {"hybrid", "alltoall"}) {
    subjects.push_back(std::make_unique<Subject>(group, name, scenario_of_masks(group).config));
  }
  Json result;
  int trip = 0;
  std::int64_t done = 0;
  while (done < num_trips) {
    try {
      expect_bits(group, subjects, trip);
      if (trip == 3) std::cout << "ready" << std::endl;
      if (!group.masked().empty()) ++done;
    } catch (const Error& error) {
      if (result.empty()) {
        result = {{"code", std::string(to_string(error.code()))}, {"peer_rank", error.context().peer_rank}};
      }
      go_on_without(group, error);
      done = 0;
    }
  }
  group.barrier();
  result["masked"] = group.masked();
  result["round_trips"] = done;
  return result;
}

}  // namespace epistle::testing
