// A control group with less memory than is asked for: an error with the numbers on all ranks, and no process killed.
#include <chrono>
#include <cstdint>
#include <functional>
#include <string>
#include <tuple>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "epistle/dispatcher.hpp"
#include "epistle/dispatcher_info.hpp"
#include "epistle/group.hpp"

#include "multiprocess/reporting_children.hpp"
#include "support/control_group.hpp"
#include "support/dispatcher_names.hpp"
#include "support/process_ranks.hpp"
#include "support/round_trip.hpp"

namespace epistle::testing {
namespace {

constexpr std::int64_t kLimitBytes = std::int64_t{128} << 20;
constexpr std::chrono::milliseconds kTimeout{20'000};
constexpr std::int32_t kTopK = 8;

DispatcherConfig config_for(int num_ranks, std::int64_t max_tokens) {
  return {.hidden = 4096, .num_experts = kTopK * num_ranks, .top_k = kTopK, .max_tokens = max_tokens};
}

/// The largest capacity, in powers of two, with which the ranks share no more than `num_bytes`.
DispatcherConfig config_that_takes(const std::string& dispatcher, int num_ranks, std::int64_t num_bytes) {
  DispatcherConfig fits = config_for(num_ranks, 8);
  for (std::int64_t rows = 8;; rows *= 2) {
    DispatcherConfig config = config_for(num_ranks, rows);
    config.sizing = Capacity{.rows_per_rank = rows};
    const MemoryPlan plan = find_dispatcher(dispatcher).memory(config, num_ranks);
    if (plan.initial_bytes(MemoryKind::kShared) * num_ranks > num_bytes) return fits;
    fits = config;
  }
}

/// With so many tokens on every rank, the rows alone need twice what there is.
std::int64_t too_many_tokens(int num_ranks) {
  const std::int64_t bytes_per_token = 2 * kTopK * config_for(num_ranks, 1).hidden * 2;  // bf16, received and sent back
  return 2 * kLimitBytes / num_ranks / bytes_per_token;
}

/// Rounds of one dispatcher with exact sizing, whose memory grows with the rows it gets.
Round round_of(int num_ranks, std::int64_t num_tokens) {
  Scenario scenario;
  scenario.config = config_for(num_ranks, too_many_tokens(num_ranks));
  scenario.config.layout = ExpertMajor{};
  scenario.tokens_per_rank.assign(static_cast<std::size_t>(num_ranks), num_tokens);
  scenario.missing_probability = 0.0;
  return {scenario, 0};
}

void demand(bool holds, const std::string& message) {
  if (!holds) throw Error(ErrorCode::kVerificationFailed, message);
}

void demand_out_of_memory(const Outcome& outcome) {
  demand(outcome.has_value(), "more memory than there is was given");
  const std::string message(outcome->message());
  const bool is_told = outcome->code() == ErrorCode::kOutOfMemory &&
                       message.find(fmt::format("of the {} bytes of this control group are available", kLimitBytes)) !=
                           std::string::npos;
  demand(is_told, outcome->what());
}

/// What one rank goes through.
void stay_below_the_limit(Group& group, const std::string& dispatcher, const Round& few, const Round& many) {
  const int num_ranks = group.size();
  const auto create = [&](std::int64_t num_bytes) {
    const DispatcherConfig config = config_that_takes(dispatcher, num_ranks, num_bytes);
    return outcome_of([&] { (void)Dispatcher(group, dispatcher, config); });
  };
  demand_out_of_memory(create(kLimitBytes * 4));
  const Outcome fitting = create(kLimitBytes / 8 * 5);
  demand(!fitting, fitting ? fitting->what() : "");
  Subject subject(group, dispatcher, few.scenario().config);
  RankInputs too_many(many, group.rank());
  for (int repeat = 0; repeat < 2; ++repeat) {
    const Mismatch mismatch = round_trip(subject, few);
    demand(!mismatch, mismatch.value_or(""));
    demand_out_of_memory(outcome_of([&] { (void)subject.prepare(too_many.prepare()); }));
  }
}

class MemoryLimit : public ::testing::TestWithParam<std::tuple<std::string, int, GroupKind>> {};

TEST_P(MemoryLimit, WhatDoesNotFitIsAnErrorOnAllRanks) {
  const auto& [dispatcher, num_ranks, kind] = GetParam();
  const test::ControlGroup limited(kLimitBytes);
  if (!limited.missing().empty()) GTEST_SKIP() << limited.missing();
  const Round few = round_of(num_ranks, 2);
  const Round many = round_of(num_ranks, too_many_tokens(num_ranks));
  std::vector<ReportingChildren::Body> bodies;
  const auto add_body = [&](const std::function<void()>& body) {
    bodies.emplace_back([&limited, body](ChildReport&) {
      limited.enter();
      body();
    });
  };
  const auto body = [&, &name = dispatcher](Group& group) { stay_below_the_limit(group, name, few, many); };
  const std::string job = unique_job();
  if (kind == GroupKind::kThreads) {
    add_body([&, num_ranks = num_ranks] { run_thread_ranks(num_ranks, body, {.timeout = kTimeout}); });
  } else {
    for (int rank = 0; rank < num_ranks; ++rank) {
      add_body([&, rank, num_ranks = num_ranks] {
        Group group = join_process_group({.rank = rank, .num_ranks = num_ranks, .job = job}, {.timeout = kTimeout});
        body(group);
        group.barrier();
      });
    }
  }
  ReportingChildren children(bodies);
  for (std::size_t idx = 0; idx < children.size(); ++idx) {
    EXPECT_EQ(children.wait(idx), 0) << "process " << idx << " did not come to its end";
    const ChildReport& report = children.report(idx);
    EXPECT_FALSE(report.threw) << "process " << idx << ": " << report.message;
    EXPECT_TRUE(report.returned) << "process " << idx;
  }
  EXPECT_EQ(limited.num_kills(), 0);
}

std::string name_of(const ::testing::TestParamInfo<MemoryLimit::ParamType>& param_info) {
  const auto& [dispatcher, num_ranks, kind] = param_info.param;
  return fmt::format("{}_{}{}", dispatcher, num_ranks, kind == GroupKind::kThreads ? "Threads" : "Processes");
}

INSTANTIATE_TEST_SUITE_P(All, MemoryLimit,
                         ::testing::Combine(::testing::ValuesIn(fast_dispatcher_names()), ::testing::Values(2, 8),
                                            ::testing::Values(GroupKind::kThreads, GroupKind::kProcesses)),
                         name_of);

}  // namespace
}  // namespace epistle::testing
