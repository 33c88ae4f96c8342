// The scenarios that every dispatcher plays on every device.
#pragma once

#include <algorithm>
#include <functional>
#include <string>
#include <vector>

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

inline std::vector<NamedScenario> named_scenarios() {
  std::vector<NamedScenario> all;
  const auto add = [&all](const std::string& name, const std::function<void(Scenario&)>& change) {
    Scenario scenario;
    scenario.config = small_config();
    scenario.tokens_per_rank = {20, 40, 0, 7};
    change(scenario);
    all.push_back({name, scenario});
  };
  add("TokenMajor", [](Scenario&) {});
  add("TokenMajorFlat", [](Scenario& s) { s.config.combine = CombineMode::kFlat; });
  add("TokenMajorUnweighted", [](Scenario& s) { s.config.apply_weights = false; });
  add("TokenMajorFp16Odd", [](Scenario& s) {
    s.config.dtype = DType::kFp16;
    s.odd_values = true;
  });
  add("TokenMajorFp32Workers", [](Scenario& s) {
    s.config.dtype = DType::kFp32;
    s.config.num_workers = 3;
    s.stage_combine = true;
  });
  add("TokenMajorFp8", [](Scenario& s) {
    s.config.dtype = DType::kFp8E4m3;
    s.config.hidden = 144;  // 1.125 blocks of scales
  });
  add("TokenMajorCapacityDrop", [](Scenario& s) {
    s.config.sizing = Sizing::kCapacity;
    s.config.capacity_rows = 25;
    s.config.overflow = OverflowPolicy::kDrop;
  });
  add("ExpertMajor", [](Scenario& s) { s.config.layout = OutputLayout::kExpertMajor; });
  add("ExpertMajorAlignedFlat", [](Scenario& s) {
    s.config.layout = OutputLayout::kExpertMajor;
    s.config.alignment = 16;
    s.config.combine = CombineMode::kFlat;
    s.id_type = IdType::kInt64;
  });
  add("ExpertMajorUnweightedFp16Odd", [](Scenario& s) {
    s.config.layout = OutputLayout::kExpertMajor;
    s.config.dtype = DType::kFp16;
    s.config.apply_weights = false;
    s.odd_values = true;
  });
  add("ExpertMajorFp8Workers", [](Scenario& s) {
    s.config.layout = OutputLayout::kExpertMajor;
    s.config.dtype = DType::kFp8E4m3;
    s.config.combine_dtype = DType::kFp16;
    s.config.alignment = 8;
    s.config.num_workers = 2;
  });
  add("ExpertMajorCapacityDrop", [](Scenario& s) {
    s.config.layout = OutputLayout::kExpertMajor;
    s.config.alignment = 4;
    s.config.sizing = Sizing::kCapacity;
    s.config.capacity_rows = 40;
    s.config.overflow = OverflowPolicy::kDrop;
    s.hot_experts = true;
  });
  add("ExpertMajorCapacityRoomy", [](Scenario& s) {
    s.config.layout = OutputLayout::kExpertMajor;
    s.config.sizing = Sizing::kCapacity;
    s.config.capacity_rows = 300;
  });
  add("ExpertSlotsDrop", [](Scenario& s) {
    s.config.layout = OutputLayout::kExpertSlots;
    s.config.capacity_rows = 13;
    s.config.overflow = OverflowPolicy::kDrop;
    s.hot_experts = true;
  });
  add("ExpertSlotsCapacity", [](Scenario& s) {
    s.config.layout = OutputLayout::kExpertSlots;
    s.config.sizing = Sizing::kCapacity;
    s.config.capacity_rows = 160;
    s.config.combine = CombineMode::kFlat;
  });
  add("Raw", [](Scenario& s) {
    s.config.dtype = DType::kRaw;
    s.config.hidden = 48;
    s.config.raw_scale_bytes = 7;
  });
  add("RawCombined", [](Scenario& s) {
    s.config.dtype = DType::kRaw;
    s.config.hidden = 48;
    s.config.combine_dtype = DType::kBf16;
    s.config.combine_hidden = 72;
    s.config.layout = OutputLayout::kExpertMajor;
  });
  add("Hidden2880TopK22", [](Scenario& s) {
    s.config.hidden = 2880;
    s.config.num_experts = 37;  // not divisible by the ranks
    s.config.top_k = 22;
    s.tokens_per_rank = {5, 0, 9};
    s.config.layout = OutputLayout::kExpertMajor;
  });
  add("MoreRanksThanExperts", [](Scenario& s) {
    s.config.num_experts = 3;
    s.tokens_per_rank = {4, 5, 6, 7, 8};
  });
  add("OneRank", [](Scenario& s) { s.tokens_per_rank = {33}; });
  add("NoTokensAtAll", [](Scenario& s) { s.tokens_per_rank = {0, 0}; });
  add("NothingRouted", [](Scenario& s) { s.missing_probability = 1.0; });
  add("SixteenRanks", [](Scenario& s) {
    s.config.num_experts = 40;
    s.config.top_k = 8;
    s.tokens_per_rank.assign(16, 6);
  });
  return all;
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
  if (config.capacity_rows == 0 || config.overflow == OverflowPolicy::kDrop) return scenario;
  const std::int32_t num_local = ExpertPartition{config.num_experts, num_ranks}.max_local_experts();
  std::int64_t most_rows = num_tokens;
  if (config.layout == OutputLayout::kExpertMajor) {
    most_rows =
        num_tokens * std::min(config.top_k, num_local) + static_cast<std::int64_t>(num_local) * config.alignment;
  }
  config.capacity_rows = std::max(config.capacity_rows, most_rows);
  return scenario;
}

}  // namespace epistle::testing
