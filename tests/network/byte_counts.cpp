#include <array>
#include <cmath>
#include <fstream>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "epistle/dispatcher.hpp"
#include "epistle/routing.hpp"

#include "network/network_modes.hpp"

namespace epistle::testing {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::int32_t kNumExperts = 64;
constexpr std::int32_t kTopK = 8;
constexpr std::int64_t kHidden = 1024;
constexpr double kTolerance = 0.01;

/// What the interfaces of this namespace have sent since they came up, headers of the network included; -1 = not known.
std::int64_t interface_bytes() {
  std::ifstream file("/sys/class/net/eth0/statistics/tx_bytes");
  std::int64_t num_bytes = -1;
  file >> num_bytes;
  return file ? num_bytes : -1;
}

std::int64_t sum_over_ranks(Group& group, std::int64_t own) {
  std::vector<std::int64_t> all(static_cast<std::size_t>(group.size()));
  group.all_gather(&own, sizeof(own), all.data());
  return std::accumulate(all.begin(), all.end(), std::int64_t{0});
}

/// (token, other domain) pairs of this rank, from the routing alone: experts lie on ranks in equal blocks.
std::int64_t count_pairs(const RoutingTable& table, const Group& group) {
  const int experts_of_rank = table.num_experts / group.size();
  const int own = group.domain_of(group.rank());
  std::int64_t num_pairs = 0;
  for (std::int64_t token = 0; token < table.num_tokens; ++token) {
    std::vector<bool> has_domain(static_cast<std::size_t>(group.num_domains()), false);
    for (std::int64_t entry = token * table.top_k; entry < (token + 1) * table.top_k; ++entry) {
      const int domain = group.domain_of(table.expert_ids[static_cast<std::size_t>(entry)] / experts_of_rank);
      if (domain == own || has_domain[static_cast<std::size_t>(domain)]) continue;
      has_domain[static_cast<std::size_t>(domain)] = true;
      ++num_pairs;
    }
  }
  return num_pairs;
}

Json count_routing(Group& group, const std::string& name, const RoutingTable& table) {
  const DispatcherConfig config{
      .hidden = kHidden, .num_experts = kNumExperts, .top_k = kTopK, .max_tokens = table.num_tokens};
  Dispatcher dispatcher(group, "hybrid", config);
  const std::int64_t row_bytes = kHidden * 2;
  const std::int64_t record_bytes = 8 + 8 * kTopK;  // rank and token; an expert and a weight of each of the top-k
  std::vector<std::uint16_t> tokens(static_cast<std::size_t>(table.num_tokens * kHidden));
  const bool leads = group.rank() == 0 || group.host_of(group.rank() - 1) != group.host_of(group.rank());
  const auto make_trip = [&] {
    const Handle handle = dispatcher.prepare({.expert_ids = table.ids(), .weights = table.probs()});
    const Received received =
        dispatcher.dispatch({.handle = handle, .tokens = {tokens.data(), table.num_tokens, kHidden, DType::kBf16}});
    dispatcher.combine({.received = received, .out = {tokens.data(), table.num_tokens, kHidden, DType::kBf16}});
  };
  make_trip();  // connections are made by the first
  group.barrier();
  const std::int64_t linked_before = dispatcher.network_bytes();
  const std::int64_t sent_before = interface_bytes();
  make_trip();
  group.barrier();
  const std::int64_t sent = interface_bytes() - sent_before;
  const std::int64_t network_bytes = sum_over_ranks(group, dispatcher.network_bytes() - linked_before);
  const std::int64_t num_pairs = sum_over_ranks(group, count_pairs(table, group));
  const bool sees_interfaces = sum_over_ranks(group, sent_before < 0 ? 1 : 0) == 0;
  const std::int64_t sent_by_hosts = sum_over_ranks(group, leads && sees_interfaces ? sent : 0);
  const std::int64_t wanted = num_pairs * (2 * row_bytes + record_bytes);
  Json result = {{"pairs", num_pairs},
                 {"row_bytes", row_bytes},
                 {"header_bytes", num_pairs * record_bytes},
                 {"expected_bytes", wanted},
                 {"network_bytes", network_bytes}};
  if (sees_interfaces) result["interface_bytes"] = sent_by_hosts;
  const auto differs = [wanted](std::int64_t counted, double by) {
    return std::abs(static_cast<double>(counted - wanted)) > by * static_cast<double>(wanted);
  };
  // On the interface there are the headers of TCP besides (66 bytes of 1514 at most), acknowledgements and steps.
  constexpr double kMostOfTcp = 0.1;
  const bool is_too_much = sees_interfaces && (sent_by_hosts < wanted || differs(sent_by_hosts, kMostOfTcp));
  if (wanted == 0 || differs(network_bytes, kTolerance) || is_too_much) {
    throw std::runtime_error(fmt::format("{}: bytes differ from what the routing asks for: {}", name, result.dump()));
  }
  return result;
}

}  // namespace

Json count_bytes(Group& group, std::int64_t num_tokens) {
  RoutingRequest request{.num_tokens = num_tokens,
                         .num_experts = kNumExperts,
                         .top_k = kTopK,
                         .rank = group.rank(),
                         .num_ranks = group.size()};
  Json result = Json::object();
  result["uniform"] = count_routing(group, "uniform", generate_routing({.kind = RoutingKind::kUniform}, request));
  request.num_groups = 8;
  request.groups_per_token = 3;
  result["group-limited"] =
      count_routing(group, "group-limited", generate_routing({.kind = RoutingKind::kForcedRandom}, request));
  return result;
}

}  // namespace epistle::testing
