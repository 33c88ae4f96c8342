// Send and receive halves: what may happen between them, who waits for whom, and who is told of what.
#include <atomic>
#include <chrono>
#include <functional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "epistle/dispatcher.hpp"

#include "support/bad_rank.hpp"
#include "support/dispatcher_names.hpp"
#include "support/round_trip.hpp"

namespace epistle::testing {
namespace {

constexpr const char* kOneStep = "low_latency";

Scenario halves_scenario(SizingMode sizing) {
  Scenario scenario = small_scenario();
  scenario.config.num_buffers = 2;
  set_layout(scenario.config, OutputLayout::kExpertMajor, sizing, /*capacity_rows=*/200, /*alignment=*/4);
  return scenario;
}

Mismatch check_rows(const Caller& caller, const Round& round, const Received& received) {
  return Checker(round).check_received(caller.rank, data_of(received), "rows");
}

void expect_clean(const CallOutcomes& outcomes) {
  for (std::size_t rank = 0; rank < outcomes.by_rank.size(); ++rank) {
    EXPECT_FALSE(outcomes.by_rank[rank].has_value()) << "rank " << rank << ": " << outcomes.by_rank[rank]->what();
    EXPECT_FALSE(outcomes.afterwards[rank].has_value()) << "rank " << rank << ": " << *outcomes.afterwards[rank];
  }
}

class Halves : public ::testing::TestWithParam<std::string> {};

// A caller may have to say where rows will lie before they are there.
TEST_P(Halves, SayWhereTheRowsWillLie) {
  const Scenario scenario = halves_scenario(SizingMode::kCapacity);
  expect_clean(call_on_all_ranks(GetParam(), scenario, [&](const Caller& caller) {
    Dispatcher& dispatcher = caller.subject.dispatcher();
    const Handle handle = caller.prepare();
    Pending pending = dispatcher.dispatch_send(caller.inputs.dispatch(handle));
    const Received ahead = pending.received();
    const Received received = dispatcher.dispatch_receive(std::move(pending));
    EXPECT_EQ(ahead.rows().data, received.rows().data);
    EXPECT_EQ(ahead.num_rows(), received.num_rows());
    EXPECT_EQ(check_rows(caller, caller.round, ahead), std::nullopt);
    EXPECT_THROW(static_cast<void>(Pending().received()), Error);
  }));
}

// Two dispatchers have something on its way at once, and the group is used meanwhile.
TEST_P(Halves, LeaveRoomForOtherCalls) {
  const Scenario scenario = halves_scenario(SizingMode::kExact);
  expect_clean(call_on_all_ranks(GetParam(), scenario, [&](const Caller& caller) {
    Subject other(caller.group, GetParam(), scenario.config);
    const Round other_round(scenario, 5);
    RankInputs other_inputs(other_round, caller.rank);
    const Handle handle = caller.prepare();
    const Handle other_handle = other.prepare(other_inputs.prepare());
    for (int repeat = 0; repeat < 3; ++repeat) {
      Pending pending = caller.subject.dispatcher().dispatch_send(caller.inputs.dispatch(handle));
      Pending other_pending = other.dispatcher().dispatch_send(other_inputs.dispatch(other_handle));
      caller.group.barrier();
      const Received received = caller.subject.dispatcher().dispatch_receive(std::move(pending));
      const Received other_received = other.dispatcher().dispatch_receive(std::move(other_pending));
      EXPECT_EQ(check_rows(caller, caller.round, received), std::nullopt);
      EXPECT_EQ(check_rows(caller, other_round, other_received), std::nullopt);

      caller.subject.write_outputs(received, caller.round.values(7, caller.rank, received.num_rows()));
      other.write_outputs(other_received, other_round.values(8, caller.rank, other_received.num_rows()));
      RowsBuffer out = caller.inputs.sums();
      RowsBuffer other_out = other_inputs.sums();
      pending = caller.subject.dispatcher().combine_send({.received = received, .out = out.view()});
      other_pending = other.dispatcher().combine_send({.received = other_received, .out = other_out.view()});
      caller.group.barrier();
      other.dispatcher().combine_receive(std::move(other_pending));
      caller.subject.dispatcher().combine_receive(std::move(pending));
      EXPECT_EQ(Checker(caller.round).check_sums(7, caller.rank, true, out.compact(), "first"), std::nullopt);
      EXPECT_EQ(Checker(other_round).check_sums(8, caller.rank, true, other_out.compact(), "second"), std::nullopt);
    }
  }));
}

// Rows that become fp8 on their way are what they were when they were sent; two are on their way at once.
TEST_P(Halves, OfQuantisedRows) {
  for (const ScaleOrder order : {ScaleOrder::kRows, ScaleOrder::kColumns}) {
    Scenario scenario = halves_scenario(SizingMode::kCapacity);
    scenario.config.hidden = 264;
    scenario.config.wire = Fp8Blocks{.scales = ScaleFormat::kUe8m0, .order = order};
    expect_clean(call_on_all_ranks(GetParam(), scenario, [&](const Caller& caller) {
      Subject other(caller.group, GetParam(), scenario.config);
      const Round other_round(scenario, 5);
      RankInputs other_inputs(other_round, caller.rank);
      for (int repeat = 0; repeat < 3; ++repeat) {
        Pending pending = caller.subject.dispatcher().dispatch_send(caller.inputs.prepare_and_dispatch());
        Pending other_pending = other.dispatcher().dispatch_send(other_inputs.prepare_and_dispatch());
        caller.group.barrier();
        const Received received = caller.subject.dispatcher().dispatch_receive(std::move(pending));
        const Received other_received = other.dispatcher().dispatch_receive(std::move(other_pending));
        EXPECT_EQ(check_rows(caller, caller.round, received), std::nullopt);
        EXPECT_EQ(check_rows(caller, other_round, other_received), std::nullopt);
      }
    }));
  }
}

// What a rank gathers stays until all have read it, also where a send half lies between two gathers and waits for
// nobody.
TEST_P(Halves, LieBetweenGathers) {
  const Scenario scenario = halves_scenario(SizingMode::kExact);
  expect_clean(call_on_all_ranks(GetParam(), scenario, [&](const Caller& caller) {
    constexpr std::size_t kNumValues = 400;
    const auto num_ranks = static_cast<std::size_t>(caller.group.size());
    std::vector<std::int64_t> all(num_ranks * kNumValues);
    const auto gather = [&](std::int64_t number) {
      const std::vector<std::int64_t> own(kNumValues, number * 100 + caller.rank);
      caller.group.all_gather(own.data(), kNumValues * sizeof(std::int64_t), all.data());
      for (std::size_t idx = 0; idx < all.size(); ++idx) {
        ASSERT_EQ(all[idx], number * 100 + static_cast<std::int64_t>(idx / kNumValues)) << "gather " << number;
      }
    };
    const Handle handle = caller.prepare();
    for (std::int64_t repeat = 0; repeat < 300; ++repeat) {
      gather(2 * repeat);
      Pending pending = caller.subject.dispatcher().dispatch_send(caller.inputs.dispatch(handle));
      gather(2 * repeat + 1);
      (void)caller.subject.dispatcher().dispatch_receive(std::move(pending));
      if (::testing::Test::HasFatalFailure()) return;
    }
  }));
}

INSTANTIATE_TEST_SUITE_P(All, Halves, ::testing::ValuesIn(dispatcher_names()),
                         [](const auto& param_info) { return param_info.param; });

/// Ranks come one behind the other: each when the one before has come back from its call.
class Queue {
 public:
  void call(int rank, const std::function<void()>& body) {
    const auto give_up = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    while (num_done_ < rank && std::chrono::steady_clock::now() < give_up) std::this_thread::yield();
    EXPECT_EQ(num_done_, rank) << "a rank before rank " << rank << " has waited for it";
    body();
    num_done_ = rank + 1;
  }

 private:
  std::atomic<int> num_done_{0};
};

TEST(OneStepHalves, SendWithoutWaiting) {
  for (const SizingMode sizing : {SizingMode::kExact, SizingMode::kCapacity}) {
    Queue dispatches;
    Queue combines;
    expect_clean(call_on_all_ranks(kOneStep, halves_scenario(sizing), [&](const Caller& caller) {
      Dispatcher& dispatcher = caller.subject.dispatcher();
      const Handle handle = caller.prepare();
      Pending pending;
      dispatches.call(caller.rank, [&] {
        // Under static shapes the routing may come with the rows.
        const bool is_static = sizing == SizingMode::kCapacity;
        pending =
            dispatcher.dispatch_send(is_static ? caller.inputs.prepare_and_dispatch() : caller.inputs.dispatch(handle));
      });
      const Received received = dispatcher.dispatch_receive(std::move(pending));
      EXPECT_EQ(check_rows(caller, caller.round, received), std::nullopt);
      caller.subject.write_outputs(received, caller.round.values(7, caller.rank, received.num_rows()));
      RowsBuffer out = caller.inputs.sums();
      combines.call(caller.rank, [&] { pending = dispatcher.combine_send({.received = received, .out = out.view()}); });
      dispatcher.combine_receive(std::move(pending));
      EXPECT_EQ(Checker(caller.round).check_sums(7, caller.rank, true, out.compact(), "combine"), std::nullopt);
    }));
  }
}

// What is found while another call waits for the step belongs to the half that is open.
TEST(OneStepHalves, ReceiveTellsOfARefusalBehindOtherCalls) {
  const auto outcomes = call_on_all_ranks(kOneStep, halves_scenario(SizingMode::kExact), [](const Caller& caller) {
    Dispatcher& dispatcher = caller.subject.dispatcher();
    DispatchRequest request = caller.inputs.dispatch(caller.prepare());
    if (caller.rank == kBadRank) request.tokens.data = nullptr;
    Pending pending;
    const Outcome refused = outcome_of([&] { pending = dispatcher.dispatch_send(request); });
    EXPECT_EQ(refused.has_value(), caller.rank == kBadRank);
    caller.group.barrier();
    caller.group.barrier();
    if (refused) throw Error(*refused);
    (void)dispatcher.dispatch_receive(std::move(pending));
  });
  expect_rejected(outcomes, ErrorCode::kInvalidArgument, [](std::size_t, const Error& error) {
    EXPECT_EQ(error.context().phase, Phase::kDispatch) << error.what();
  });
}

// Rows that came with a routing of which not all know: nothing comes of them.
TEST(OneStepHalves, RoutingWithRowsMeetsOtherCalls) {
  const auto expect_mismatch = [](const std::function<void(const Caller&)>& odd_call) {
    const auto outcomes =
        call_on_all_ranks(kOneStep, halves_scenario(SizingMode::kCapacity), [&](const Caller& caller) {
          const Received before = caller.subject.dispatch(caller.inputs.prepare_and_dispatch());
          const Outcome outcome = outcome_of([&] {
            if (caller.rank == kBadRank) return odd_call(caller);
            (void)caller.subject.dispatch(caller.inputs.prepare_and_dispatch());
          });
          EXPECT_EQ(check_rows(caller, caller.round, before), std::nullopt);
          if (outcome) throw Error(*outcome);
        });
    for (std::size_t rank = 0; rank < outcomes.by_rank.size(); ++rank) {
      SCOPED_TRACE("rank " + std::to_string(rank));
      ASSERT_TRUE(outcomes.by_rank[rank].has_value());
      EXPECT_EQ(outcomes.by_rank[rank]->code(), ErrorCode::kShapeMismatch) << outcomes.by_rank[rank]->what();
      EXPECT_FALSE(outcomes.afterwards[rank].has_value()) << *outcomes.afterwards[rank];
    }
  };
  expect_mismatch([](const Caller& caller) { (void)caller.prepare(); });
  expect_mismatch([](const Caller& caller) { caller.group.barrier(); });
}

}  // namespace
}  // namespace epistle::testing
