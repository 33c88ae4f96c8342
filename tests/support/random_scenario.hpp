// Random scenarios from a seed, for devices on which a case takes too long to be shrunk.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <optional>

#include "support/placements.hpp"
#include "support/scenario.hpp"

namespace epistle::testing {

/// Draws from one seed, always the same.
class Draw {
 public:
  explicit Draw(std::uint64_t seed) : seed_(seed) {}

  [[nodiscard]] std::uint64_t bits() { return mix(seed_, num_drawn_++); }
  [[nodiscard]] std::int64_t between(std::int64_t least, std::int64_t most) {
    return least + static_cast<std::int64_t>(bits() % static_cast<std::uint64_t>(most - least + 1));
  }
  [[nodiscard]] bool one_in(std::int64_t count) { return between(1, count) == 1; }
  template <typename Value>
  [[nodiscard]] Value any_of(std::initializer_list<Value> values) {
    return values.begin()[between(0, static_cast<std::int64_t>(values.size()) - 1)];
  }

 private:
  std::uint64_t seed_;
  std::uint64_t num_drawn_ = 0;
};

struct ScenarioLimits {
  int num_ranks = 0;  ///< 0 = any number from 1 to 8
  std::int64_t max_tokens = 64;
  std::int64_t max_hidden = 1024;
  std::int64_t max_experts = 64;
  std::int64_t max_top_k = 22;
  std::int64_t max_elements = 300'000;  ///< rows of all ranks times their length: bounds the time of a scenario
};

/// Layout and sizing. Returns the rows of all ranks together, at most.
inline std::int64_t draw_layout(Draw& draw, DispatcherConfig& config, int num_ranks, std::int64_t num_assignments) {
  const OutputLayout layout =
      draw.any_of({OutputLayout::kTokenMajor, OutputLayout::kExpertMajor, OutputLayout::kExpertBlocks});
  const std::int32_t alignment = draw.any_of({1, 2, 8, 16, 100, 128, 256});
  const SizingMode sizing = draw.any_of({SizingMode::kExact, SizingMode::kCapacity});
  config.overflow = draw.any_of({OverflowPolicy::kError, OverflowPolicy::kDrop});
  const std::int64_t num_groups =
      config.slots_per_rank > 0 ? std::int64_t{config.slots_per_rank} * num_ranks : config.num_experts;
  const bool blocks = layout == OutputLayout::kExpertBlocks;
  const bool pads = layout == OutputLayout::kExpertMajor;
  if (sizing == SizingMode::kExact && !blocks) {
    set_layout(config, layout, sizing, 0, alignment);
    return num_assignments + (pads ? num_groups * (alignment - 1) : 0);
  }
  // Room for all, so that nothing can overflow; with kDrop also too little of it.
  const std::int64_t room = blocks ? config.max_tokens * num_ranks : num_assignments + num_groups * alignment;
  const bool tight = config.overflow == OverflowPolicy::kDrop && !draw.one_in(4);
  const std::int64_t capacity_rows =
      std::max<std::int64_t>(tight ? draw.between(1, std::max<std::int64_t>(room / 4, 1)) : room, 1);
  set_layout(config, layout, sizing, capacity_rows, alignment);
  return capacity_rows * (blocks ? num_groups : num_ranks);
}

/// A multiple of 8 elements (16 where an element has one byte) up to `most`, short ones more often.
inline std::int64_t draw_row_elements(Draw& draw, DType dtype, std::int64_t most) {
  const std::int64_t step = dtype_bytes(dtype) == 1 ? 16 : 8;
  const std::int64_t largest = std::max<std::int64_t>(most / step, 1);
  return step * (draw.one_in(3) ? draw.between(1, largest) : draw.between(1, std::min<std::int64_t>(largest, 40)));
}

inline Scenario random_scenario(std::uint64_t seed, const ScenarioLimits& limits = {}) {
  Draw draw(seed);
  Scenario scenario;
  DispatcherConfig& config = scenario.config;
  const int num_ranks = limits.num_ranks > 0 ? limits.num_ranks : static_cast<int>(draw.between(1, 8));
  config.num_experts = static_cast<std::int32_t>(draw.between(1, limits.max_experts));
  const std::int64_t largest_top_k = std::min<std::int64_t>(limits.max_top_k, config.num_experts);
  config.top_k = static_cast<std::int32_t>(draw.one_in(4) ? largest_top_k : draw.between(1, largest_top_k));
  std::int64_t num_tokens = 0;
  for (int rank = 0; rank < num_ranks; ++rank) {
    scenario.tokens_per_rank.push_back(draw.one_in(6) ? 0 : draw.between(0, limits.max_tokens));
    num_tokens += scenario.tokens_per_rank.back();
    config.max_tokens = std::max(config.max_tokens, scenario.tokens_per_rank.back());
  }
  config.max_tokens += draw.any_of<std::int64_t>({0, 3});

  scenario.num_rounds = static_cast<int>(draw.between(1, 2));
  if (draw.one_in(3)) {
    scenario.placement_seed = 1 + draw.bits() % 1'000'000;
    scenario.placed_later = draw.one_in(4);
    scenario.seed_in_memory = draw.one_in(2);
    place_experts(scenario);
  }

  const std::int64_t num_rows = draw_layout(draw, config, num_ranks, num_tokens * config.top_k);
  const std::int64_t most_elements =
      std::min(limits.max_hidden, limits.max_elements / std::max<std::int64_t>(num_rows, 1));

  config.input = draw.any_of({DType::kBf16, DType::kFp16, DType::kFp32, DType::kFp8E4m3, DType::kRaw});
  config.hidden = draw_row_elements(draw, config.input, most_elements);
  if (config.input == DType::kRaw) config.raw_scale_bytes = draw.any_of<std::int64_t>({0, 1, 4, 28});
  // Also the default type of expert outputs, with the payload's width, or (raw payloads) no combine at all.
  config.expert_output = draw.any_of<std::optional<DType>>({std::nullopt, DType::kBf16, DType::kFp16, DType::kFp32});
  if (config.expert_output && (config.input == DType::kRaw || draw.one_in(2))) {
    config.expert_output_hidden = draw_row_elements(draw, *config.expert_output, most_elements);
  }
  config.order = draw.any_of({SumOrder::kHierarchical, SumOrder::kFlat, SumOrder::kDeepEpV2});
  config.num_buffers = static_cast<std::int32_t>(draw.one_in(3) ? draw.between(2, 3) : 1);
  config.apply_weights = !draw.one_in(3);

  scenario.seed = draw.bits();
  scenario.missing_probability = draw.any_of({0.0, 0.1, 0.6, 1.0});
  scenario.hot_experts = draw.one_in(2);
  scenario.odd_values = draw.one_in(2);
  scenario.id_type = draw.any_of({IdType::kInt32, IdType::kInt64});
  scenario.stage_combine = draw.one_in(2);
  scenario.strided = draw.one_in(3);
  scenario.counted = draw.one_in(4) ? draw.any_of({0.0, 0.5, 1.0}) : -1.0;
  return scenario;
}

}  // namespace epistle::testing
