// The scenarios that every dispatcher plays on every device.
#pragma once

#include <algorithm>
#include <functional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "layout/dispatch_layout.hpp"
#include "support/placements.hpp"
#include "support/scenario.hpp"

namespace epistle::testing {

struct NamedScenario {
  std::string name;
  Scenario scenario;
};

inline DispatcherConfig small_config() {
  DispatcherConfig config;
  config.hidden = 64;
  config.num_experts = 8;
  config.top_k = 3;
  config.max_tokens = 40;
  return config;
}

class ScenarioList {
 public:
  void add(const std::string& name, const std::function<void(Scenario&)>& change) {
    Scenario scenario;
    scenario.config = small_config();
    scenario.tokens_per_rank = {20, 40, 0, 7};
    change(scenario);
    all_.push_back({name, scenario});
  }
  /// With replicas, uneven and empty ranks; every round has another placement.
  void add_placed(const std::string& name, const std::function<void(Scenario&)>& change) {
    add("Placed" + name, [&](Scenario& s) {
      s.placement_seed = all_.size();
      change(s);
      place_experts(s);
    });
  }
  [[nodiscard]] std::vector<NamedScenario> take() { return std::move(all_); }

 private:
  std::vector<NamedScenario> all_;
};

/// Layouts, sizes and payloads.
inline void add_layouts(ScenarioList& list) {
  list.add("TokenMajor", [](Scenario&) {});
  list.add("TokenMajorFlat", [](Scenario& s) { s.config.order = SumOrder::kFlat; });
  list.add("TokenMajorUnweighted", [](Scenario& s) { s.config.apply_weights = false; });
  list.add("TokenMajorFp16Odd", [](Scenario& s) {
    s.config.input = DType::kFp16;
    s.odd_values = true;
  });
  list.add("TokenMajorFp32Workers", [](Scenario& s) {
    s.config.input = DType::kFp32;
    s.num_workers = 3;
    s.stage_combine = true;
  });
  list.add("TokenMajorFp8", [](Scenario& s) {
    s.config.input = DType::kFp8E4m3;
    s.config.hidden = 144;  // 1.125 blocks of scales
  });
  list.add("TokenMajorCapacityDrop", [](Scenario& s) {
    s.config.sizing = Capacity{.rows_per_rank = 25};
    s.config.overflow = OverflowPolicy::kDrop;
  });
  list.add("ExpertMajor", [](Scenario& s) { s.config.layout = ExpertMajor{}; });
  list.add("ExpertMajorAlignedFlat", [](Scenario& s) {
    s.config.layout = ExpertMajor{.alignment = 16};
    s.config.order = SumOrder::kFlat;
    s.id_type = IdType::kInt64;
  });
  list.add("ExpertMajorUnweightedFp16Odd", [](Scenario& s) {
    s.config.layout = ExpertMajor{};
    s.config.input = DType::kFp16;
    s.config.apply_weights = false;
    s.odd_values = true;
  });
  list.add("ExpertMajorFp8Workers", [](Scenario& s) {
    s.config.layout = ExpertMajor{.alignment = 8};
    s.config.input = DType::kFp8E4m3;
    s.config.expert_output = DType::kFp16;
    s.num_workers = 2;
  });
  list.add("ExpertMajorCapacityDrop", [](Scenario& s) {
    s.config.layout = ExpertMajor{.alignment = 4};
    s.config.sizing = Capacity{.rows_per_rank = 40};
    s.config.overflow = OverflowPolicy::kDrop;
    s.hot_experts = true;
  });
  list.add("ExpertMajorCapacityRoomy", [](Scenario& s) {
    s.config.layout = ExpertMajor{};
    s.config.sizing = Capacity{.rows_per_rank = 300};
  });
  list.add("ExpertBlocksDrop", [](Scenario& s) {
    s.config.layout = ExpertBlocks{.rows_per_expert = 13};
    s.config.overflow = OverflowPolicy::kDrop;
    s.hot_experts = true;
  });
  list.add("ExpertBlocksCapacity", [](Scenario& s) {
    s.config.layout = ExpertBlocks{.rows_per_expert = 160};
    s.config.sizing = Capacity{};
    s.config.order = SumOrder::kFlat;
  });
}

/// Rows of bf16 that become fp8 on their way.
inline void add_quantised(ScenarioList& list) {
  list.add("TokenMajorQuantised", [](Scenario& s) {
    s.config.hidden = 392;  // 3.0625 blocks of scales, and no multiple of 16 bytes when it travels
    s.config.wire = Fp8Blocks{};
  });
  list.add("TokenMajorQuantisedPowersStridedWorkers", [](Scenario& s) {
    s.config.hidden = 256;
    s.config.wire = Fp8Blocks{.powers_of_two = true};
    s.strided = true;
    s.num_workers = 3;
  });
  list.add("TokenMajorQuantisedUe8m0CapacityDrop", [](Scenario& s) {
    s.config.hidden = 520;  // five exponents, three bytes of nothing
    s.config.wire = Fp8Blocks{.scales = ScaleFormat::kUe8m0};
    s.config.sizing = Capacity{.rows_per_rank = 25};
    s.config.overflow = OverflowPolicy::kDrop;
  });
  list.add("ExpertMajorQuantisedFp16Outputs", [](Scenario& s) {
    s.config.hidden = 136;
    s.config.wire = Fp8Blocks{};
    s.config.layout = ExpertMajor{.alignment = 8};
    s.config.expert_output = DType::kFp16;
    s.config.num_buffers = 2;
    s.num_rounds = 3;
  });
  list.add("ExpertMajorQuantisedUe8m0Capacity", [](Scenario& s) {
    s.config.hidden = 128;
    s.config.wire = Fp8Blocks{.scales = ScaleFormat::kUe8m0};
    s.config.layout = ExpertMajor{.alignment = 4};
    s.config.sizing = Capacity{.rows_per_rank = 300};
    s.counted = 0.5;
  });
  list.add("ExpertBlocksQuantisedPowersCapacity", [](Scenario& s) {
    s.config.wire = Fp8Blocks{.powers_of_two = true};
    s.config.layout = ExpertBlocks{.rows_per_expert = 160};
    s.config.sizing = Capacity{};
    s.config.order = SumOrder::kFlat;
    s.stage_combine = true;
  });
  list.add("TokenMajorQuantisedColumns", [](Scenario& s) {
    s.config.hidden = 392;
    s.config.wire = Fp8Blocks{.order = ScaleOrder::kColumns};
    s.num_workers = 2;
  });
  list.add("ExpertMajorQuantisedUe8m0Columns", [](Scenario& s) {
    s.config.hidden = 1032;  // nine exponents in three words
    s.config.wire = Fp8Blocks{.scales = ScaleFormat::kUe8m0, .order = ScaleOrder::kColumns};
    s.config.layout = ExpertMajor{.alignment = 16};
    s.config.num_buffers = 2;
    s.num_rounds = 3;
  });
  list.add("ExpertMajorQuantisedColumnsCapacityDrop", [](Scenario& s) {
    s.config.hidden = 136;
    s.config.wire = Fp8Blocks{.powers_of_two = true, .order = ScaleOrder::kColumns};
    s.config.layout = ExpertMajor{.alignment = 4};
    s.config.sizing = Capacity{.rows_per_rank = 42};  // columns of 44
    s.config.overflow = OverflowPolicy::kDrop;
    s.hot_experts = true;
  });
  list.add("ExpertBlocksQuantisedUe8m0ColumnsCapacity", [](Scenario& s) {
    s.config.hidden = 640;
    s.config.wire = Fp8Blocks{.scales = ScaleFormat::kUe8m0, .order = ScaleOrder::kColumns};
    s.config.layout = ExpertBlocks{.rows_per_expert = 161};
    s.config.sizing = Capacity{};
    s.counted = 0.5;
  });
  list.add("ExpertBlocksQuantisedDrop", [](Scenario& s) {
    s.config.hidden = 1032;
    s.config.wire = Fp8Blocks{.scales = ScaleFormat::kUe8m0};
    s.config.layout = ExpertBlocks{.rows_per_expert = 13};
    s.config.overflow = OverflowPolicy::kDrop;
    s.hot_experts = true;
    s.strided = true;
  });
}

/// Orders of sums, strides, buffers and counted tokens.
inline void add_options(ScenarioList& list) {
  list.add("TokenMajorDeepEpV2", [](Scenario& s) { s.config.order = SumOrder::kDeepEpV2; });
  list.add("ExpertMajorDeepEpV2", [](Scenario& s) {
    s.config.layout = ExpertMajor{.alignment = 8};
    s.config.order = SumOrder::kDeepEpV2;
  });
  list.add("ExpertMajorDeepEpV2CapacityDrop", [](Scenario& s) {
    s.config.layout = ExpertMajor{};
    s.config.order = SumOrder::kDeepEpV2;
    s.config.sizing = Capacity{.rows_per_rank = 40};
    s.config.overflow = OverflowPolicy::kDrop;
    s.hot_experts = true;
  });
  list.add("TokenMajorStrided", [](Scenario& s) { s.strided = true; });
  list.add("TokenMajorStridedFp8Staged", [](Scenario& s) {
    s.config.input = DType::kFp8E4m3;
    s.config.hidden = 528;  // five columns of scales
    s.strided = true;
    s.stage_combine = true;
    s.id_type = IdType::kInt64;
  });
  list.add("ExpertMajorStridedFp32Staged", [](Scenario& s) {
    s.config.layout = ExpertMajor{.alignment = 4};
    s.config.input = DType::kFp32;
    s.strided = true;
    s.stage_combine = true;
  });
  list.add("ExpertBlocksStrided", [](Scenario& s) {
    s.config.layout = ExpertBlocks{.rows_per_expert = 80};
    s.config.sizing = Capacity{};
    s.strided = true;
  });
  list.add("TokenMajorTwoBuffers", [](Scenario& s) {
    s.config.num_buffers = 2;
    s.num_rounds = 3;
  });
  list.add("ExpertMajorThreeBuffersCapacity", [](Scenario& s) {
    s.config.layout = ExpertMajor{.alignment = 4};
    s.config.sizing = Capacity{.rows_per_rank = 300};
    s.config.input = DType::kFp8E4m3;
    s.config.num_buffers = 3;
    s.num_rounds = 3;
  });
  list.add("TokenMajorHalfCounted", [](Scenario& s) {
    s.config.sizing = Capacity{.rows_per_rank = 200};
    s.counted = 0.5;
  });
  list.add("ExpertMajorHalfCounted", [](Scenario& s) {
    s.config.layout = ExpertMajor{.alignment = 4};
    s.counted = 0.5;
  });
  list.add("ExpertBlocksAllCounted", [](Scenario& s) {
    s.config.layout = ExpertBlocks{.rows_per_expert = 80};
    s.counted = 1.0;
  });
  list.add("TokenMajorNoneCounted", [](Scenario& s) { s.counted = 0.0; });
}

/// Raw rows, and numbers of ranks, experts and tokens out of the ordinary.
inline void add_shapes(ScenarioList& list) {
  list.add("Raw", [](Scenario& s) {
    s.config.input = DType::kRaw;
    s.config.hidden = 48;
    s.config.raw_scale_bytes = 7;
  });
  list.add("RawCombined", [](Scenario& s) {
    s.config.input = DType::kRaw;
    s.config.hidden = 48;
    s.config.expert_output = DType::kBf16;
    s.config.expert_output_hidden = 72;
    s.config.layout = ExpertMajor{};
  });
  list.add("Hidden2880TopK22", [](Scenario& s) {
    s.config.hidden = 2880;
    s.config.num_experts = 37;  // not divisible by the ranks
    s.config.top_k = 22;
    s.tokens_per_rank = {5, 0, 9};
    s.config.layout = ExpertMajor{};
  });
  list.add("MoreRanksThanExperts", [](Scenario& s) {
    s.config.num_experts = 3;
    s.tokens_per_rank = {4, 5, 6, 7, 8};
  });
  list.add("OneRank", [](Scenario& s) { s.tokens_per_rank = {33}; });
  list.add("NoTokensAtAll", [](Scenario& s) { s.tokens_per_rank = {0, 0}; });
  list.add("NothingRouted", [](Scenario& s) { s.missing_probability = 1.0; });
  list.add("SixteenRanks", [](Scenario& s) {
    s.config.num_experts = 40;
    s.config.top_k = 8;
    s.tokens_per_rank.assign(16, 6);
  });
}

inline void add_placed(ScenarioList& list) {
  list.add_placed("TokenMajor", [](Scenario& s) { s.num_rounds = 3; });
  list.add_placed("TokenMajorDrop", [](Scenario& s) {
    set_layout(s.config, OutputLayout::kTokenMajor, SizingMode::kCapacity, 14);
    s.config.overflow = OverflowPolicy::kDrop;
    s.config.order = SumOrder::kDeepEpV2;
  });
  list.add_placed("ExpertMajor", [](Scenario& s) {
    set_layout(s.config, OutputLayout::kExpertMajor, SizingMode::kExact, 0, 8);
    s.id_type = IdType::kInt64;
    s.num_rounds = 3;
  });
  list.add_placed("ExpertMajorFlatLater", [](Scenario& s) {
    set_layout(s.config, OutputLayout::kExpertMajor, SizingMode::kExact, 0);
    s.config.order = SumOrder::kFlat;
    s.placed_later = true;
    s.strided = true;
  });
  list.add_placed("ExpertMajorCapacity", [](Scenario& s) {
    set_layout(s.config, OutputLayout::kExpertMajor, SizingMode::kCapacity, 67 * 3 + 8 * 4, 4);
    s.counted = 0.6;
    s.seed_in_memory = true;
  });
  list.add_placed("ExpertMajorDrop", [](Scenario& s) {
    set_layout(s.config, OutputLayout::kExpertMajor, SizingMode::kCapacity, 40, 4);
    s.config.overflow = OverflowPolicy::kDrop;
    s.hot_experts = true;
  });
  list.add_placed("ExpertBlocks", [](Scenario& s) {
    set_layout(s.config, OutputLayout::kExpertBlocks, SizingMode::kCapacity, 67);
    s.seed_in_memory = true;
    s.config.num_buffers = 2;
    s.num_rounds = 3;
  });
  list.add_placed("ExpertBlocksFp8Later", [](Scenario& s) {
    s.config.input = DType::kFp8E4m3;
    s.config.hidden = 256;
    set_layout(s.config, OutputLayout::kExpertBlocks, SizingMode::kExact, 67);
    s.config.order = SumOrder::kDeepEpV2;
    s.placed_later = true;
  });
  list.add_placed("ExpertBlocksDrop", [](Scenario& s) {
    set_layout(s.config, OutputLayout::kExpertBlocks, SizingMode::kCapacity, 9);
    s.config.overflow = OverflowPolicy::kDrop;
    s.hot_experts = true;
  });
}

inline std::vector<NamedScenario> named_scenarios() {
  ScenarioList list;
  add_layouts(list);
  add_quantised(list);
  add_options(list);
  add_shapes(list);
  add_placed(list);
  return list.take();
}

/// The same scenario for `num_ranks` ranks, the tokens per rank repeated in turn. Where nothing may be dropped, the
/// capacity is raised to what that many tokens can need.
inline Scenario with_ranks(Scenario scenario, int num_ranks) {
  const std::vector<std::int64_t> given = scenario.tokens_per_rank;
  DispatcherConfig& config = scenario.config;
  scenario.tokens_per_rank.clear();
  std::int64_t num_tokens = 0;
  for (std::size_t rank = 0; rank < static_cast<std::size_t>(num_ranks); ++rank) {
    scenario.tokens_per_rank.push_back(given[rank % given.size()]);
    num_tokens += scenario.tokens_per_rank.back();
  }
  place_experts(scenario);
  if (config.overflow == OverflowPolicy::kDrop) return scenario;
  const std::int32_t num_local = config.slots_per_rank > 0
                                     ? config.slots_per_rank
                                     : ExpertPartition{config.num_experts, num_ranks}.max_local_experts();
  if (auto* const blocks = std::get_if<ExpertBlocks>(&config.layout)) {
    blocks->rows_per_expert = std::max(blocks->rows_per_expert, num_tokens);
  } else if (auto* const capacity = std::get_if<Capacity>(&config.sizing)) {
    std::int64_t most_rows = num_tokens;
    if (const auto* const major = std::get_if<ExpertMajor>(&config.layout)) {
      most_rows = num_tokens * std::min(config.top_k, num_local) + std::int64_t{num_local} * major->alignment;
    }
    capacity->rows_per_rank = std::max(capacity->rows_per_rank, most_rows);
  }
  return scenario;
}

/// The named scenarios, on `num_ranks` ranks in domains, summed by them.
inline std::vector<NamedScenario> scenarios_in_domains(int num_ranks, int domain_size) {
  std::vector<NamedScenario> scenarios;
  for (const NamedScenario& named : named_scenarios()) {
    // Those that are there for an order of sums would be others' doubles.
    if (named.scenario.config.order == SumOrder::kDeepEpV2) continue;
    Scenario scenario = with_ranks(named.scenario, num_ranks);
    scenario.domain_size = domain_size;
    scenario.config.order = SumOrder::kDomains;
    scenarios.push_back({named.name, scenario});
  }
  return scenarios;
}

}  // namespace epistle::testing
