// prepare by the exchange for few tokens: at its limits, and where some rank, or the routing, is not for it. Every
// round is that of the oracle, whichever way the rows get their places.
#include "dispatch/cuda/device/few_tokens.hpp"

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "support/cuda_devices.hpp"
#include "support/cuda_play.hpp"
#include "support/named_scenarios.hpp"
#include "support/placements.hpp"

namespace epistle::testing {
namespace {

constexpr std::int64_t kMost = FewTokens::kMaxTokens;

NamedScenario with_tokens(const std::string& name, std::vector<std::int64_t> tokens_per_rank) {
  Scenario scenario;
  scenario.config = small_config();
  scenario.config.hidden = 16;
  for (const std::int64_t tokens : tokens_per_rank) {
    scenario.config.max_tokens = std::max(scenario.config.max_tokens, tokens);
  }
  scenario.tokens_per_rank = std::move(tokens_per_rank);
  scenario.num_rounds = 3;
  const auto rows = scenario.config.max_tokens * scenario.num_ranks();
  set_layout(scenario.config, OutputLayout::kTokenMajor, SizingMode::kCapacity, rows);
  return {name, scenario};
}

std::vector<NamedScenario> few_tokens_scenarios() {
  std::vector<NamedScenario> all;
  all.push_back(with_tokens("OneToken", {1, 1}));
  all.push_back(with_tokens("AsManyAsThereMayBe", {kMost, kMost, 1, 0}));
  all.push_back(with_tokens("OneMoreThanThereMayBe", {kMost + 1, kMost + 1}));
  all.push_back(with_tokens("FewBesideMany", {3 * kMost / 2, 3, 0, kMost}));
  all.push_back(with_tokens("OneRank", {700}));
  all.push_back(with_tokens("AsManyRanksAsThereMayBe", {5, 64, 65, 33, 0, 1000, 31, 1}));
  all.push_back(with_tokens("MoreRanksThanThereMayBe", {5, 64, 65, 33, 0, 100, 31, 1, 9}));
  const auto change = [&](const std::string& name, std::vector<std::int64_t> tokens, const auto& what) {
    all.push_back(with_tokens(name, std::move(tokens)));
    what(all.back().scenario);
  };
  change("RanksWithoutExperts", {100, 200, 0, 300}, [](Scenario& s) {
    s.config.num_experts = 3;
    s.config.top_k = 2;
  });
  change("EveryExpert", {90, 1000}, [](Scenario& s) {
    s.config.num_experts = 33;
    s.config.top_k = 32;
  });
  change("SomeOfTheTokensGiven", {300, 64}, [](Scenario& s) { s.counted = 0.4; });
  change("TooManyRowsAreDropped", {400, 500}, [](Scenario& s) {
    s.config.overflow = OverflowPolicy::kDrop;
    set_layout(s.config, OutputLayout::kTokenMajor, SizingMode::kCapacity, 600);
  });
  change("ExactSizing", {200, 50},
         [](Scenario& s) { set_layout(s.config, OutputLayout::kTokenMajor, SizingMode::kExact, 0); });
  change("FlatSums", {200, 50, 400}, [](Scenario& s) { s.config.order = SumOrder::kFlat; });
  change("PlacedExperts", {200, 50, 400}, [](Scenario& s) {
    s.placement_seed = 7;
    place_experts(s);
  });
  return all;
}

class CudaFewTokens : public OnGpu<::testing::TestWithParam<NamedScenario>> {};

TEST_P(CudaFewTokens, ArePlacedAsByTheOracle) {
  const Scenario& scenario = GetParam().scenario;
  if (const std::string reason = cannot_play("direct", scenario); !reason.empty()) GTEST_SKIP() << reason;
  for (const bool split_halves : {false, true}) {
    for (const int num_sms : {0, 1, 3}) {
      SCOPED_TRACE("num_sms " + std::to_string(num_sms) + (split_halves ? ", halves" : ""));
      expect_play("direct", scenario, on_cuda({.num_sms = num_sms}, split_halves));
      if (HasFailure()) return;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, CudaFewTokens, ::testing::ValuesIn(few_tokens_scenarios()),
                         [](const auto& param_info) { return param_info.param.name; });

}  // namespace
}  // namespace epistle::testing
