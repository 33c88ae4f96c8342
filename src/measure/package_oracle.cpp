#include "measure/package_oracle.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <set>
#include <string_view>
#include <unordered_map>

#include <fmt/format.h>

#include "core/numeric.hpp"
#include "layout/replica_hash.hpp"

namespace epistle {
namespace {

constexpr double kTolerance = 8.0 / 256.0;          // units of bf16's last place that CollectiveX allows a combine
constexpr std::uint64_t kMix = 0x9e3779b97f4a7c15;  // SplitMix64

std::string_view row_at(std::span<const std::uint16_t> rows, std::int64_t row, std::int64_t hidden) noexcept {
  const auto part = rows.subspan(static_cast<std::size_t>(row * hidden), static_cast<std::size_t>(hidden));
  return {reinterpret_cast<const char*>(part.data()), part.size_bytes()};
}

std::span<const std::int32_t> ids_of(const RoutingTable& table, std::int64_t token) noexcept {
  return std::span(table.expert_ids)
      .subspan(static_cast<std::size_t>(token * table.top_k), static_cast<std::size_t>(table.top_k));
}

/// How often the row of a token belongs to `rank`.
std::int64_t num_copies(const PackageRun& run, const RoutingTable& table, std::int64_t token, int rank) {
  const std::int32_t per_rank = table.num_experts / static_cast<std::int32_t>(run.tables.size());
  std::int64_t count = 0;
  for (const std::int32_t id : ids_of(table, token)) count += id >= 0 && id / per_rank == rank ? 1 : 0;
  return run.semantics.per_expert ? count : std::min<std::int64_t>(count, 1);
}

/// What the elements of a token's row are multiplied by in its sum.
double factor_of(const PackageRun& run, const RoutingTable& table, std::int64_t token) {
  const std::int32_t per_rank = table.num_experts / static_cast<std::int32_t>(run.tables.size());
  std::set<std::int32_t> ranks;
  double weights = 0.0;
  const auto ids = ids_of(table, token);
  for (std::size_t slot = 0; slot < ids.size(); ++slot) {
    if (ids[slot] < 0) continue;
    ranks.insert(ids[slot] / per_rank);
    weights += static_cast<double>(table.weights[static_cast<std::size_t>(token * table.top_k) + slot]);
  }
  return run.semantics.weighted ? weights : static_cast<double>(ranks.size());
}

}  // namespace

std::vector<std::uint16_t> package_rows(std::uint64_t seed, int rank, std::int64_t num_tokens, std::int64_t hidden) {
  constexpr int kNumValues = 15;  // -7 to 7
  constexpr int kLeastValue = -(kNumValues / 2);
  std::vector<std::uint16_t> rows(static_cast<std::size_t>(num_tokens * hidden));
  std::uint64_t state = mix_bits(seed * kMix + static_cast<std::uint64_t>(rank));
  for (std::uint16_t& element : rows) {
    state += kMix;
    const int value = static_cast<int>(mix_bits(state) % kNumValues) + kLeastValue;
    element = numeric::fp32_to_bf16(static_cast<float>(value));
  }
  return rows;
}

std::string check_package_rows(const PackageRun& run, int rank, std::span<const std::uint16_t> received) {
  std::unordered_map<std::string_view, std::int64_t> missing;
  std::vector<std::vector<std::uint16_t>> sent;  // what the views show
  std::int64_t num_wanted = 0;
  for (std::size_t source = 0; source < run.tables.size(); ++source) {
    const RoutingTable& table = run.tables[source];
    sent.push_back(package_rows(run.seed, static_cast<int>(source), table.num_tokens, run.hidden));
    for (std::int64_t token = 0; token < table.num_tokens; ++token) {
      const std::int64_t copies = num_copies(run, table, token, rank);
      if (copies > 0) missing[row_at(sent.back(), token, run.hidden)] += copies;
      num_wanted += copies;
    }
  }
  const auto num_received = static_cast<std::int64_t>(received.size()) / run.hidden;
  if (static_cast<std::int64_t>(received.size()) != num_wanted * run.hidden) {
    return fmt::format("rank {} received {} rows of {} elements, {} belong to it", rank, num_received, run.hidden,
                       num_wanted);
  }
  for (std::int64_t row = 0; row < num_received; ++row) {
    const auto found = missing.find(row_at(received, row, run.hidden));
    if (found == missing.end() || found->second == 0) {
      return fmt::format("row {} that rank {} received is none of those that belong to it", row, rank);
    }
    --found->second;
  }
  return {};
}

std::string check_package_sums(const PackageRun& run, int rank, std::span<const std::uint16_t> sums) {
  const RoutingTable& table = run.tables[static_cast<std::size_t>(rank)];
  const auto rows = package_rows(run.seed, rank, table.num_tokens, run.hidden);
  if (sums.size() != rows.size()) {
    return fmt::format("combine gave rank {} {} elements instead of {} rows of {}", rank, sums.size(), table.num_tokens,
                       run.hidden);
  }
  double factor = 0.0;
  for (std::size_t at = 0; at < sums.size(); ++at) {
    const auto token = static_cast<std::int64_t>(at) / run.hidden;
    if (static_cast<std::int64_t>(at) % run.hidden == 0) factor = factor_of(run, table, token);
    const double wanted = factor * static_cast<double>(numeric::bf16_to_fp32(rows[at]));
    const auto got = static_cast<double>(numeric::bf16_to_fp32(sums[at]));
    // Written so that a NaN is a difference.
    if (std::fabs(got - wanted) <= kTolerance * std::fabs(wanted)) continue;
    return fmt::format("combine gave rank {} {} at element {} of token {}; it must be {}", rank, got,
                       static_cast<std::int64_t>(at) % run.hidden, token, wanted);
  }
  return {};
}

}  // namespace epistle
