// The scenarios that every dispatcher plays on every device.
#pragma once

#include <algorithm>
#include <functional>
#include <string>
#include <variant>
#include <vector>

#include "layout/dispatch_layout.hpp"
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
  add("TokenMajorFlat", [](Scenario& s) { s.config.order = SumOrder::kFlat; });
  add("TokenMajorUnweighted", [](Scenario& s) { s.config.apply_weights = false; });
  add("TokenMajorFp16Odd", [](Scenario& s) {
    s.config.input = DType::kFp16;
    s.odd_values = true;
  });
  add("TokenMajorFp32Workers", [](Scenario& s) {
    s.config.input = DType::kFp32;
    s.num_workers = 3;
    s.stage_combine = true;
  });
  add("TokenMajorFp8", [](Scenario& s) {
    s.config.input = DType::kFp8E4m3;
    s.config.hidden = 144;  // 1.125 blocks of scales
  });
  add("TokenMajorCapacityDrop", [](Scenario& s) {
    s.config.sizing = Capacity{.rows_per_rank = 25};
    s.config.overflow = OverflowPolicy::kDrop;
  });
  add("ExpertMajor", [](Scenario& s) { s.config.layout = ExpertMajor{}; });
  add("ExpertMajorAlignedFlat", [](Scenario& s) {
    s.config.layout = ExpertMajor{.alignment = 16};
    s.config.order = SumOrder::kFlat;
    s.id_type = IdType::kInt64;
  });
  add("ExpertMajorUnweightedFp16Odd", [](Scenario& s) {
    s.config.layout = ExpertMajor{};
    s.config.input = DType::kFp16;
    s.config.apply_weights = false;
    s.odd_values = true;
  });
  add("ExpertMajorFp8Workers", [](Scenario& s) {
    s.config.layout = ExpertMajor{.alignment = 8};
    s.config.input = DType::kFp8E4m3;
    s.config.expert_output = DType::kFp16;
    s.num_workers = 2;
  });
  add("ExpertMajorCapacityDrop", [](Scenario& s) {
    s.config.layout = ExpertMajor{.alignment = 4};
    s.config.sizing = Capacity{.rows_per_rank = 40};
    s.config.overflow = OverflowPolicy::kDrop;
    s.hot_experts = true;
  });
  add("ExpertMajorCapacityRoomy", [](Scenario& s) {
    s.config.layout = ExpertMajor{};
    s.config.sizing = Capacity{.rows_per_rank = 300};
  });
  add("ExpertBlocksDrop", [](Scenario& s) {
    s.config.layout = ExpertBlocks{.rows_per_expert = 13};
    s.config.overflow = OverflowPolicy::kDrop;
    s.hot_experts = true;
  });
  add("ExpertBlocksCapacity", [](Scenario& s) {
    s.config.layout = ExpertBlocks{.rows_per_expert = 160};
    s.config.sizing = Capacity{};
    s.config.order = SumOrder::kFlat;
  });
  add("TokenMajorDeepEpV2", [](Scenario& s) { s.config.order = SumOrder::kDeepEpV2; });
  add("ExpertMajorDeepEpV2", [](Scenario& s) {
    s.config.layout = ExpertMajor{.alignment = 8};
    s.config.order = SumOrder::kDeepEpV2;
  });
  add("ExpertMajorDeepEpV2CapacityDrop", [](Scenario& s) {
    s.config.layout = ExpertMajor{};
    s.config.order = SumOrder::kDeepEpV2;
    s.config.sizing = Capacity{.rows_per_rank = 40};
    s.config.overflow = OverflowPolicy::kDrop;
    s.hot_experts = true;
  });
  add("TokenMajorStrided", [](Scenario& s) { s.strided = true; });
  add("TokenMajorStridedFp8Staged", [](Scenario& s) {
    s.config.input = DType::kFp8E4m3;
    s.config.hidden = 528;  // five columns of scales
    s.strided = true;
    s.stage_combine = true;
    s.id_type = IdType::kInt64;
  });
  add("ExpertMajorStridedFp32Staged", [](Scenario& s) {
    s.config.layout = ExpertMajor{.alignment = 4};
    s.config.input = DType::kFp32;
    s.strided = true;
    s.stage_combine = true;
  });
  add("ExpertBlocksStrided", [](Scenario& s) {
    s.config.layout = ExpertBlocks{.rows_per_expert = 80};
    s.config.sizing = Capacity{};
    s.strided = true;
  });
  add("TokenMajorTwoBuffers", [](Scenario& s) {
    s.config.num_buffers = 2;
    s.num_rounds = 3;
  });
  add("ExpertMajorThreeBuffersCapacity", [](Scenario& s) {
    s.config.layout = ExpertMajor{.alignment = 4};
    s.config.sizing = Capacity{.rows_per_rank = 300};
    s.config.input = DType::kFp8E4m3;
    s.config.num_buffers = 3;
    s.num_rounds = 3;
  });
  add("TokenMajorHalfCounted", [](Scenario& s) {
    s.config.sizing = Capacity{.rows_per_rank = 200};
    s.counted = 0.5;
  });
  add("ExpertMajorHalfCounted", [](Scenario& s) {
    s.config.layout = ExpertMajor{.alignment = 4};
    s.counted = 0.5;
  });
  add("ExpertBlocksAllCounted", [](Scenario& s) {
    s.config.layout = ExpertBlocks{.rows_per_expert = 80};
    s.counted = 1.0;
  });
  add("TokenMajorNoneCounted", [](Scenario& s) { s.counted = 0.0; });
  add("Raw", [](Scenario& s) {
    s.config.input = DType::kRaw;
    s.config.hidden = 48;
    s.config.raw_scale_bytes = 7;
  });
  add("RawCombined", [](Scenario& s) {
    s.config.input = DType::kRaw;
    s.config.hidden = 48;
    s.config.expert_output = DType::kBf16;
    s.config.expert_output_hidden = 72;
    s.config.layout = ExpertMajor{};
  });
  add("Hidden2880TopK22", [](Scenario& s) {
    s.config.hidden = 2880;
    s.config.num_experts = 37;  // not divisible by the ranks
    s.config.top_k = 22;
    s.tokens_per_rank = {5, 0, 9};
    s.config.layout = ExpertMajor{};
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
  if (config.overflow == OverflowPolicy::kDrop) return scenario;
  const std::int32_t num_local = ExpertPartition{config.num_experts, num_ranks}.max_local_experts();
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

}  // namespace epistle::testing
