// A scenario: the shape of a dispatcher and of what every rank gives to it. Every rank can compute every rank's inputs
// from the seed (see scenario_round.hpp), so ranks may be threads or processes.
#pragma once

#include <cstdint>
#include <vector>

#include "epistle/config.hpp"
#include "epistle/types.hpp"

namespace epistle::testing {

struct Scenario {
  DispatcherConfig config;
  std::vector<std::int64_t> tokens_per_rank;
  std::uint64_t seed = 1;
  double missing_probability = 0.1;  ///< of an entry being kNoExpert
  bool hot_experts = false;          ///< most tokens go to the first experts
  bool odd_values = false;           ///< infinities, NaNs and subnormals among the values and weights
  IdType id_type = IdType::kInt32;
  bool stage_combine = false;  ///< give combine rows from private memory instead of expert_outputs()
  int num_rounds = 2;          ///< prepares with different routing on one dispatcher
  int num_workers = 1;         ///< on the host
  bool strided = false;        ///< whatever has strides has gaps, and scales are given column by column
  int domain_size = 0;         ///< of the group; 0 = all ranks are in one domain
  double counted = -1.0;       ///< share of the tokens that PrepareRequest::num_tokens says; negative: it is not given
  std::uint64_t placement_seed = 0;             ///< of what place_experts() has drawn; 0 = experts are not placed
  bool placed_later = false;                    ///< the first round has the trivial placement
  std::vector<Placement> next_placements = {};  ///< set before the second round, the third, ...
  std::vector<int> masked = {};                 ///< ranks that the group goes on without
  bool seed_in_memory = false;                  ///< step_seed_at is given, not step_seed

  [[nodiscard]] int num_ranks() const noexcept { return static_cast<int>(tokens_per_rank.size()); }
};

/// A small counter-based generator (SplitMix64's finaliser): value `idx` of stream `key`.
[[nodiscard]] EPISTLE_HOST_DEVICE inline std::uint64_t mix(std::uint64_t key, std::uint64_t idx) {
  std::uint64_t z = key * 0x9e3779b97f4a7c15U + idx * 0xbf58476d1ce4e5b9U + 0x94d049bb133111ebU;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9U;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebU;
  return z ^ (z >> 31);
}

/// From 0 up to 1.
[[nodiscard]] inline double unit(std::uint64_t bits) { return static_cast<double>(bits >> 11) * 0x1.0p-53; }

// ---- Configurations as enumerations, for tests that go through all of them -----------------------------------------

/// The layout of that kind; `rows_per_expert` of expert blocks, `alignment` of expert_major.
[[nodiscard]] inline Layout layout_of(OutputLayout kind, std::int32_t alignment, std::int64_t rows_per_expert) {
  if (kind == OutputLayout::kExpertMajor) return ExpertMajor{.alignment = alignment};
  if (kind == OutputLayout::kExpertBlocks) return ExpertBlocks{.rows_per_expert = rows_per_expert};
  return TokenMajor{};
}

/// The sizing of that mode; `rows_per_rank` of capacity sizing, which expert blocks do not take.
[[nodiscard]] inline Sizing sizing_of(SizingMode mode, OutputLayout layout, std::int64_t rows_per_rank) {
  if (mode == SizingMode::kExact) return Exact{};
  return Capacity{.rows_per_rank = layout == OutputLayout::kExpertBlocks ? 0 : rows_per_rank};
}

/// Sets both, with one number of rows: of a rank, or of an expert's block.
inline void set_layout(DispatcherConfig& config, OutputLayout layout, SizingMode sizing, std::int64_t capacity_rows,
                       std::int32_t alignment = 1) {
  config.layout = layout_of(layout, alignment, capacity_rows);
  config.sizing = sizing_of(sizing, layout, capacity_rows);
}

}  // namespace epistle::testing
