#include <algorithm>
#include <cmath>
#include <cstddef>

#include <fmt/format.h>

#include "epistle/error.hpp"
#include "epistle/routing.hpp"

#include "core/reject.hpp"

namespace epistle {
namespace {

// Largest capacity: the integers that a double holds exactly, so that the rounding up below is meaningful.
constexpr double kMaxCapacity = 9007199254740992.0;  // 2^53

void check_table(const RoutingTable& table) {
  if (table.num_tokens < 0 || table.num_experts < 1 || table.top_k < 1) {
    reject(
        fmt::format("routing table of {} tokens, {} experts, top_k {}; expected num_tokens >= 0, num_experts >= 1, "
                    "top_k >= 1",
                    table.num_tokens, table.num_experts, table.top_k));
  }
  const auto num_entries = static_cast<std::size_t>(table.num_tokens) * static_cast<std::size_t>(table.top_k);
  if (table.expert_ids.size() != num_entries || table.weights.size() != num_entries) {
    reject(fmt::format("routing table with {} expert ids and {} weights; expected num_tokens x top_k = {} of each",
                       table.expert_ids.size(), table.weights.size(), num_entries));
  }
  const auto bad = std::find_if(table.expert_ids.begin(), table.expert_ids.end(),
                                [&](std::int32_t id) { return id < kNoExpert || id >= table.num_experts; });
  if (bad != table.expert_ids.end()) {
    reject(fmt::format("token {} has expert id {}, expected {} to {}", (bad - table.expert_ids.begin()) / table.top_k,
                       *bad, kNoExpert, table.num_experts - 1));
  }
}

std::int64_t expert_capacity(const RoutingTable& table, double factor) {
  if (!std::isfinite(factor) || factor <= 0.0) {
    reject(fmt::format("the capacity factor is {}, expected a finite number > 0", factor));
  }
  // The same two roundings, in the same order, as Megatron's ceil((tokens * top_k / experts) * factor).
  const double mean_rows = static_cast<double>(table.num_tokens * table.top_k) / static_cast<double>(table.num_experts);
  const double capacity = std::ceil(mean_rows * factor);
  if (capacity > kMaxCapacity) {
    reject(fmt::format("the capacity factor {} gives {} rows per expert, expected at most {}; lower the factor", factor,
                       capacity, kMaxCapacity));
  }
  return static_cast<std::int64_t>(capacity);
}

/// The entries of the table that go to each expert, in token order.
std::vector<std::vector<std::size_t>> entries_per_expert(const RoutingTable& table) {
  std::vector<std::vector<std::size_t>> entries(static_cast<std::size_t>(table.num_experts));
  for (std::size_t entry = 0; entry < table.expert_ids.size(); ++entry) {
    const std::int32_t expert = table.expert_ids[entry];
    if (expert != kNoExpert) entries[static_cast<std::size_t>(expert)].push_back(entry);
  }
  return entries;
}

/// Moves the `num_kept` entries that stay to the front.
void order_by_weight(std::vector<std::size_t>& entries, std::size_t num_kept, const std::vector<float>& weights) {
  std::nth_element(entries.begin(), entries.begin() + static_cast<std::ptrdiff_t>(num_kept), entries.end(),
                   [&weights](std::size_t left, std::size_t right) {
                     const bool left_nan = std::isnan(weights[left]);
                     const bool right_nan = std::isnan(weights[right]);
                     if (left_nan != right_nan) return right_nan;
                     if (!left_nan && weights[left] != weights[right]) return weights[left] > weights[right];
                     return left < right;
                   });
}

}  // namespace

CapacityResult apply_capacity(RoutingTable& table, const CapacityOptions& options) {
  check_table(table);
  const auto num_experts = static_cast<std::size_t>(table.num_experts);
  CapacityResult result{expert_capacity(table, options.factor), 0, std::vector<std::int64_t>(num_experts, 0),
                        std::vector<std::int64_t>(num_experts, 0)};
  auto entries = entries_per_expert(table);
  for (std::size_t expert = 0; expert < num_experts; ++expert) {
    std::vector<std::size_t>& own = entries[expert];
    const auto num_rows = static_cast<std::int64_t>(own.size());
    if (options.pad) result.padding_per_expert[expert] = std::max<std::int64_t>(0, result.capacity - num_rows);
    if (num_rows <= result.capacity) continue;

    const auto num_kept = static_cast<std::size_t>(result.capacity);
    if (options.policy == DropPolicy::kProbability) order_by_weight(own, num_kept, table.weights);
    for (std::size_t idx = num_kept; idx < own.size(); ++idx) {
      table.expert_ids[own[idx]] = kNoExpert;
      table.weights[own[idx]] = 0.0F;
    }
    result.dropped_per_expert[expert] = num_rows - result.capacity;
    result.dropped += result.dropped_per_expert[expert];
  }
  return result;
}

}  // namespace epistle
