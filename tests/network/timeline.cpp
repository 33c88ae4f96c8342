#include "dispatch/host/engine/timeline.hpp"

#include <algorithm>
#include <chrono>
#include <string_view>
#include <vector>

#include "epistle/dispatcher.hpp"
#include "epistle/routing.hpp"

#include "network/network_modes.hpp"

namespace epistle::testing {
namespace {

using Json = nlohmann::ordered_json;
using host::TimelineEvent;
using host::TimelineWork;

std::string_view name_of(TimelineWork work) {
  switch (work) {
    case TimelineWork::kPack:
      return "pack";
    case TimelineWork::kArrived:
      return "arrived";
    case TimelineWork::kForward:
      return "forward";
    case TimelineWork::kOwn:
      return "own";
    case TimelineWork::kReceive:
      return "receive";
  }
  return "unknown";
}

/// The earliest moment of all ranks.
std::chrono::steady_clock::time_point first_of_all(Group& group, const std::vector<TimelineEvent>& events) {
  auto own = std::chrono::steady_clock::time_point::max();
  for (const TimelineEvent& event : events) own = std::min(own, event.begin);
  std::vector<std::chrono::steady_clock::time_point> all(static_cast<std::size_t>(group.size()));
  group.all_gather(&own, sizeof(own), all.data());
  return *std::min_element(all.begin(), all.end());
}

}  // namespace

Json record_timeline(Group& group, std::int64_t num_tokens) {
  constexpr std::int64_t kElements = 4096;
  const DispatcherConfig config{.hidden = kElements, .num_experts = 64, .top_k = 8, .max_tokens = num_tokens};
  const RoutingTable table = generate_routing(
      {.kind = RoutingKind::kUniform},
      {.num_tokens = num_tokens, .num_experts = 64, .top_k = 8, .rank = group.rank(), .num_ranks = group.size()});
  Dispatcher dispatcher(group, "hybrid", config);
  std::vector<std::uint16_t> tokens(static_cast<std::size_t>(num_tokens * kElements));
  std::vector<TimelineEvent> events;
  // The first makes connections and takes memory.
  for (const bool is_recorded : {false, true}) {
    const Handle handle = dispatcher.prepare({.expert_ids = table.ids(), .weights = table.probs()});
    group.barrier();
    host::timeline_of_thread() = is_recorded ? &events : nullptr;
    const Received received =
        dispatcher.dispatch({.handle = handle, .tokens = {tokens.data(), num_tokens, kElements, DType::kBf16}});
    host::timeline_of_thread() = nullptr;
  }
  const auto first = first_of_all(group, events);
  const auto microseconds = [first](auto when) {
    return std::chrono::duration<double, std::micro>(when - first).count();
  };
  Json entries = Json::array();
  for (const TimelineEvent& event : events) {
    entries.push_back({{"work", name_of(event.work)},
                       {"domain", event.domain},
                       {"chunk", event.chunk},
                       {"begin_us", microseconds(event.begin)},
                       {"end_us", microseconds(event.end)}});
  }
  return {
      {"domain", group.domain_of(group.rank())}, {"index", group.index_in_domain(group.rank())}, {"events", entries}};
}

}  // namespace epistle::testing
