// Quotas of a batch on the host, and what is refused.
#include <functional>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "epistle/dispatcher.hpp"
#include "epistle/error.hpp"
#include "epistle/group.hpp"

#include "support/batch_case.hpp"
#include "support/dispatcher_names.hpp"

namespace epistle::testing {
namespace {

class HostBatchQuotas : public ::testing::TestWithParam<std::string> {};

TEST_P(HostBatchQuotas, RowsGoWhereTheTablesSendThemAndRanksAreAlike) {
  std::vector<std::vector<std::int32_t>> counts(kBatchRanks);
  std::vector<std::vector<std::int64_t>> quotas(kBatchRanks, std::vector<std::int64_t>(kBatchRanks));
  std::vector<std::vector<std::int64_t>> slots(kBatchRanks, std::vector<std::int64_t>(kBatchRanks * 6, -1));
  run_thread_ranks(kBatchRanks, [&](Group& group) {
    const auto rank = static_cast<std::size_t>(group.rank());
    const std::vector<std::int32_t> ids = batch_ids_of(group.rank());
    const std::vector<std::int64_t> tokens = batch_tokens_of_all();
    const std::vector<std::byte> rows(static_cast<std::size_t>(kBatchTokens * 64 * 2));
    Dispatcher moe(group, GetParam(), batch_config());
    moe.set_batch_quotas(
        {.expert_tokens = tokens.data(), .rank_tokens = quotas[rank].data(), .slot_tokens = slots[rank].data()});
    const Received received = moe.dispatch({.expert_ids = {ids.data(), kBatchTokens, kBatchTopK},
                                            .step_seed = kBatchSeed,
                                            .tokens = {.data = rows.data(), .num_rows = kBatchTokens, .hidden = 64}});
    counts[rank].assign(received.expert_counts(), received.expert_counts() + received.description().num_local_experts);
  });
  for (int rank = 0; rank < kBatchRanks; ++rank) {
    SCOPED_TRACE(rank);
    const auto own = static_cast<std::size_t>(rank);
    EXPECT_EQ(counts[own], batch_counts_expected(rank));
    EXPECT_EQ(quotas[own], std::vector<std::int64_t>(kBatchRanks, kBatchTokens * kBatchTopK));
    EXPECT_EQ(slots[own], slots[0]);
    EXPECT_EQ(slots[own][4], 0) << "rank 0 has four slots of six";
  }
}

INSTANTIATE_TEST_SUITE_P(All, HostBatchQuotas, ::testing::ValuesIn(dispatcher_names()),
                         [](const auto& param_info) { return param_info.param; });

/// What one rank throws that sets quotas with a dispatcher of `config`.
ErrorCode refusal(const std::string& name, const DispatcherConfig& config, const std::int64_t* tokens) {
  ErrorCode code = ErrorCode::kOk;
  run_thread_ranks(1, [&](Group& group) {
    Dispatcher moe(group, name, config);
    try {
      moe.set_batch_quotas({.expert_tokens = tokens});
    } catch (const Error& error) {
      code = error.code();
    }
  });
  return code;
}

TEST(HostBatchQuotasRefused, WhatCannotBeSharedOut) {
  const std::int64_t tokens[] = {1, 2};
  DispatcherConfig config{.hidden = 64, .num_experts = 2, .top_k = 1, .max_tokens = 4};
  EXPECT_EQ(refusal("direct", config, tokens), ErrorCode::kInvalidArgument) << "experts are not placed";
  config.placement = Placement(2, {{0, 1}}, 1);
  EXPECT_EQ(refusal("direct", config, tokens), ErrorCode::kOk);
  EXPECT_EQ(refusal("direct", config, nullptr), ErrorCode::kInvalidArgument) << "no tokens";
  config.placement = Placement(2, {{0, 1}}, 1, {.near_first = true});
  EXPECT_EQ(refusal("direct", config, tokens), ErrorCode::kInvalidArgument) << "near ones come first";
}

}  // namespace
}  // namespace epistle::testing
