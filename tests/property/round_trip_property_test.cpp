// Random scenarios against the oracle, over thread groups.
#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include <rapidcheck.h>

#include <gtest/gtest.h>

#include "epistle/group.hpp"

#include "support/dispatcher_names.hpp"
#include "support/placements.hpp"
#include "support/player.hpp"
#include "support/property.hpp"
#include "support/sanitizers.hpp"
#include "support/scenario_text.hpp"

namespace epistle::testing {
namespace {

// Elements (rows of all ranks times their length) of one scenario: bounds its time. The rows are drawn first and the
// row size is cut to what is left.
constexpr std::int64_t kMaxElements = kInstrumented ? 20'000 : 100'000;
constexpr int kNumRoundTrips = kInstrumented ? 200 : 3000;

/// Elements of a row: the shortest, the 2880 of gpt-oss, or any number that makes a multiple of 16 bytes.
std::int64_t any_row_elements(DType dtype, std::int64_t max_elements) {
  constexpr std::int64_t kAwkwardHidden = 2880;
  const std::int64_t step = kRowAlignmentBytes / dtype_bytes(dtype);
  const std::int64_t largest = std::max<std::int64_t>(max_elements / step, 1);
  const std::int64_t drawn = *rc::gen::weightedOneOf<std::int64_t>(
      {{1, rc::gen::just<std::int64_t>(1)},
       {4, rc::gen::inRange<std::int64_t>(1, std::min<std::int64_t>(largest, 64) + 1)},
       {2, rc::gen::just(kAwkwardHidden / step)}});
  return std::min(drawn, largest) * step;
}

/// Layout and sizing. Returns the rows of all ranks together, at most.
std::int64_t draw_layout(DispatcherConfig& config, std::int64_t num_ranks, std::int64_t num_assignments) {
  const auto layout =
      *rc::gen::element(OutputLayout::kTokenMajor, OutputLayout::kExpertMajor, OutputLayout::kExpertBlocks);
  const std::int32_t alignment = *rc::gen::element(1, 2, 8, 16, 100);
  const auto sizing = *rc::gen::element(SizingMode::kExact, SizingMode::kCapacity);
  config.overflow = *rc::gen::element(OverflowPolicy::kError, OverflowPolicy::kDrop);
  const std::int64_t num_groups = config.slots_per_rank > 0 ? config.slots_per_rank * num_ranks : config.num_experts;
  const bool blocks = layout == OutputLayout::kExpertBlocks;
  const bool pads = layout == OutputLayout::kExpertMajor;
  if (sizing == SizingMode::kExact && !blocks) {
    set_layout(config, layout, sizing, 0, alignment);
    return num_assignments + (pads ? num_groups * (alignment - 1) : 0);
  }
  // Room for all, so that nothing can overflow; with kDrop also too little of it.
  std::int64_t room = blocks ? config.max_tokens * num_ranks : num_assignments + num_groups * alignment;
  room = std::max<std::int64_t>(room, 1);
  const bool tight =
      config.overflow == OverflowPolicy::kDrop && *rc::gen::weightedElement<bool>({{3, true}, {1, false}});
  const std::int64_t rows = tight ? *rc::gen::inRange<std::int64_t>(1, std::max<std::int64_t>(room / 4, 2)) : room;
  set_layout(config, layout, sizing, rows, alignment);
  return rows * (blocks ? num_groups : num_ranks);
}

Scenario any_scenario() {
  Scenario scenario;
  DispatcherConfig& config = scenario.config;
  const int num_ranks = *rc::gen::weightedOneOf<int>({{3, rc::gen::inRange(1, 6)}, {1, rc::gen::inRange(6, 17)}});
  config.num_experts = *rc::gen::weightedOneOf<std::int32_t>(
      {{1, rc::gen::inRange<std::int32_t>(1, num_ranks + 1)}, {4, rc::gen::inRange<std::int32_t>(1, 70)}});
  config.top_k = *rc::gen::inRange<std::int32_t>(1, std::min(22, config.num_experts) + 1);
  const std::int64_t most_tokens = std::max<std::int64_t>(2, 600 / (num_ranks * config.top_k));
  std::int64_t num_tokens = 0;
  for (int rank = 0; rank < num_ranks; ++rank) {
    scenario.tokens_per_rank.push_back(*rc::gen::weightedOneOf<std::int64_t>(
        {{1, rc::gen::just<std::int64_t>(0)}, {4, rc::gen::inRange<std::int64_t>(0, most_tokens + 1)}}));
    num_tokens += scenario.tokens_per_rank.back();
    config.max_tokens = std::max(config.max_tokens, scenario.tokens_per_rank.back());
  }
  config.max_tokens += *rc::gen::element<std::int64_t>(0, 3);

  scenario.num_rounds = *rc::gen::inRange(1, 3);
  scenario.placement_seed = *rc::gen::weightedOneOf<std::uint64_t>(
      {{3, rc::gen::just<std::uint64_t>(0)}, {1, rc::gen::inRange<std::uint64_t>(1, 1'000'000)}});
  scenario.placed_later = *rc::gen::weightedElement<bool>({{3, false}, {1, true}});
  scenario.seed_in_memory = *rc::gen::arbitrary<bool>();
  place_experts(scenario);
  const std::int64_t num_rows = draw_layout(config, num_ranks, num_tokens * config.top_k);
  const std::int64_t max_elements = kMaxElements / std::max<std::int64_t>(num_rows, 1);

  config.input =
      *rc::gen::element(DType::kBf16, DType::kBf16, DType::kFp16, DType::kFp32, DType::kFp8E4m3, DType::kRaw);
  config.hidden = any_row_elements(config.input, max_elements);
  if (config.input == DType::kBf16 && *rc::gen::arbitrary<bool>()) {
    config.wire = Fp8Blocks{.scales = *rc::gen::element(ScaleFormat::kFp32, ScaleFormat::kUe8m0),
                            .powers_of_two = *rc::gen::arbitrary<bool>(),
                            .order = *rc::gen::element(ScaleOrder::kRows, ScaleOrder::kColumns)};
  }
  if (config.input == DType::kRaw) config.raw_scale_bytes = *rc::gen::element<std::int64_t>(0, 1, 4, 28);
  // Also the default type of expert outputs, with the payload's width, or (raw payloads) no combine at all.
  config.expert_output =
      *rc::gen::element<std::optional<DType>>(std::nullopt, DType::kBf16, DType::kFp16, DType::kFp32);
  if (config.expert_output) config.expert_output_hidden = any_row_elements(*config.expert_output, max_elements);
  config.order = *rc::gen::element(SumOrder::kHierarchical, SumOrder::kFlat, SumOrder::kDeepEpV2);
  config.apply_weights = *rc::gen::arbitrary<bool>();
  config.num_buffers = *rc::gen::weightedElement<std::int32_t>({{3, 1}, {1, 2}, {1, 3}});

  scenario.num_workers = *rc::gen::inRange(1, 4);
  scenario.strided = *rc::gen::weightedElement<bool>({{2, false}, {1, true}});
  scenario.counted = *rc::gen::weightedElement<double>({{5, -1.0}, {1, 0.0}, {1, 0.5}, {1, 1.0}});
  scenario.seed = *rc::gen::arbitrary<std::uint64_t>();
  scenario.missing_probability = *rc::gen::element(0.0, 0.1, 0.6, 1.0);
  scenario.hot_experts = *rc::gen::arbitrary<bool>();
  scenario.odd_values = *rc::gen::arbitrary<bool>();
  scenario.id_type = *rc::gen::element(IdType::kInt32, IdType::kInt64);
  scenario.stage_combine = *rc::gen::arbitrary<bool>();
  return scenario;
}

/// Declares domains of a size that divides the ranks, and sums by them.
void spread_over_domains(Scenario& scenario) {
  std::vector<int> sizes;
  for (int size = 1; size <= scenario.num_ranks(); ++size) {
    if (scenario.num_ranks() % size == 0) sizes.push_back(size);
  }
  scenario.domain_size = *rc::gen::elementOf(sizes);
  scenario.config.order = SumOrder::kDomains;
}

void check_against_oracle(const std::string& dispatcher) {
  Scenario scenario = any_scenario();
  const bool over_domains = *rc::gen::weightedElement<bool>({{2, false}, {1, true}});
  if (over_domains || find_dispatcher(dispatcher).capabilities().joins_domains) spread_over_domains(scenario);
  RC_LOG() << dispatcher << ": " << to_text(scenario) << std::endl;
  const std::vector<Mismatch> mismatches = play_over_threads(dispatcher, scenario);
  for (std::size_t rank = 0; rank < mismatches.size(); ++rank) {
    if (mismatches[rank]) RC_FAIL(fmt::format("rank {}: {}", rank, *mismatches[rank]));
  }
}

class RoundTripProperty : public ::testing::TestWithParam<std::string> {};

TEST_P(RoundTripProperty, MatchesTheOracle) {
  // The oracle is slow; what `auto` does has been done by others.
  const int share = GetParam() == "reference" ? 2 : GetParam() == "auto" ? 5 : 1;
  check_property(kNumRoundTrips / share, [] { check_against_oracle(GetParam()); });
}

INSTANTIATE_TEST_SUITE_P(All, RoundTripProperty, ::testing::ValuesIn(dispatcher_names()),
                         [](const auto& param_info) { return param_info.param; });

}  // namespace
}  // namespace epistle::testing
