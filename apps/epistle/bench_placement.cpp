#include "bench_placement.hpp"

#include <charconv>
#include <limits>
#include <string_view>
#include <vector>

#include <fmt/format.h>

#include "core/json_field.hpp"
#include "core/reject.hpp"
#include "layout/dispatch_layout.hpp"

namespace epistle::cli {
namespace {

constexpr std::string_view kReplicas = "replicas:";

Placement with_replicas(std::string_view count, std::int32_t num_experts, int num_ranks) {
  const ExpertPartition partition{num_experts, num_ranks};
  // Every rank has as many of its own at least.
  const std::int32_t most = num_ranks > 1 ? partition.num_local_experts(num_ranks - 1) : 0;
  std::int32_t num_replicas = -1;
  const auto [end, error] = std::from_chars(count.data(), count.data() + count.size(), num_replicas);
  if (error != std::errc() || end != count.data() + count.size() || num_replicas < 0 || num_replicas > most) {
    reject(fmt::format("--placement {}{}: expected a number from 0 to {}, the experts that every one of {} ranks has",
                       kReplicas, count, most, num_ranks));
  }
  std::vector<std::vector<std::int32_t>> slots(static_cast<std::size_t>(num_ranks));
  for (int rank = 0; rank < num_ranks; ++rank) {
    std::vector<std::int32_t>& here = slots[static_cast<std::size_t>(rank)];
    const auto add = [&](int owner, std::int32_t num) {
      for (std::int32_t local = 0; local < num; ++local) here.push_back(partition.first_expert(owner) + local);
    };
    add(rank, partition.num_local_experts(rank));
    add((rank + 1) % num_ranks, num_replicas);
  }
  return {num_experts, slots};
}

template <typename Read>
auto table_of(const JsonField& field, const Read& read) {
  std::vector<std::vector<decltype(read(field))>> table;
  for (const JsonField& row : field.items()) {
    table.emplace_back();
    for (const JsonField& value : row.items()) table.back().push_back(read(value));
  }
  return table;
}

Placement from_file(const std::string& path, std::int32_t num_experts) {
  constexpr double kMost = std::numeric_limits<double>::max();
  constexpr std::int64_t kMostId = std::numeric_limits<std::int32_t>::max();
  const auto integer = [](const JsonField& field) {
    return static_cast<std::int32_t>(field.integer({-kMostId, kMostId}));
  };
  const auto number = [](const JsonField& field) { return field.number({0.0, kMost}); };
  const auto document = read_json_file(path);
  const JsonField root(document, path);
  ReplicaChoice choice;
  if (const auto field = root.find("quotas")) choice.quotas = table_of(*field, number);
  if (const auto field = root.find("near_first")) choice.near_first = field->boolean();
  if (const auto field = root.find("max_imbalance")) choice.max_imbalance = number(*field);
  if (const auto field = root.find("domain_of_rank")) {
    for (const JsonField& domain : field->items()) choice.domain_of_rank.push_back(integer(domain));
  }
  const JsonField slots = root.at("slot_experts");
  try {
    return {num_experts, table_of(slots, integer), 0, choice};
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kInvalidArgument) throw;
    slots.fail(fmt::format("makes no placement of {} experts: {}", num_experts, error.message()));
  }
}

}  // namespace

Placement read_placement(const std::string& spec, std::int32_t num_experts, int num_ranks) {
  if (spec.starts_with(kReplicas)) {
    return with_replicas(std::string_view(spec).substr(kReplicas.size()), num_experts, num_ranks);
  }
  return from_file(spec, num_experts);
}

}  // namespace epistle::cli
