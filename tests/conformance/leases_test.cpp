// Leases on received rows: how many there are, what they hold, and what they survive.
#include <cstddef>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "epistle/dispatcher.hpp"

#include "support/bad_rank.hpp"
#include "support/dispatcher_names.hpp"
#include "support/round_trip.hpp"

namespace epistle::testing {
namespace {

Scenario leased_scenario(std::int32_t num_buffers) {
  Scenario scenario = small_scenario();
  scenario.config.layout = ExpertMajor{.alignment = 4};
  scenario.config.input = DType::kFp8E4m3;
  scenario.config.num_buffers = num_buffers;
  return scenario;
}

/// Runs `body` on every rank with a dispatcher of its own; what it returns is a failure of the test.
void on_all_ranks(const std::string& dispatcher, const Scenario& scenario,
                  const std::function<Mismatch(const Caller&)>& body) {
  std::vector<Mismatch> found(scenario.tokens_per_rank.size());
  const auto outcomes = call_on_all_ranks(
      dispatcher, scenario, [&](const Caller& caller) { found[static_cast<std::size_t>(caller.rank)] = body(caller); });
  for (std::size_t rank = 0; rank < found.size(); ++rank) {
    SCOPED_TRACE("rank " + std::to_string(rank));
    EXPECT_FALSE(outcomes.by_rank[rank].has_value()) << outcomes.by_rank[rank]->what();
    EXPECT_FALSE(found[rank].has_value()) << *found[rank];
    EXPECT_FALSE(outcomes.afterwards[rank].has_value()) << "afterwards: " << *outcomes.afterwards[rank];
  }
}

Mismatch expect_all_leased(const Outcome& outcome, const std::string& num_buffers) {
  if (!outcome) return "one call more than there are buffers went through";
  EPISTLE_RETURN_MISMATCH(expect_equal(outcome->code() == ErrorCode::kInvalidArgument, true, outcome->what()));
  const std::string message = outcome->what();
  const bool is_told = message.find("all " + num_buffers + " are leased") != std::string::npos &&
                       message.find("num_buffers") != std::string::npos;
  return expect_equal(is_told, true, message);
}

/// The received rows of `round`, as they must be.
Mismatch check_rows_of(const Caller& caller, const Round& round, const Received& received, const std::string& what) {
  return Checker(round).check_received(caller.rank, caller.subject.read(received).data(), what);
}

class Leases : public ::testing::TestWithParam<std::string> {};

TEST_P(Leases, OneMoreThanThereAreIsRefused) {
  for (const std::int32_t num_buffers : {1, 2, 3}) {
    SCOPED_TRACE(std::to_string(num_buffers) + " buffers");
    on_all_ranks(GetParam(), leased_scenario(num_buffers), [&](const Caller& caller) -> Mismatch {
      Dispatcher& dispatcher = caller.subject.dispatcher();
      const Handle handle = caller.prepare();
      std::vector<Received> leases;
      for (std::int32_t idx = 0; idx < num_buffers; ++idx) {
        leases.push_back(dispatcher.dispatch(caller.inputs.dispatch(handle)));
      }
      const std::string count = std::to_string(num_buffers);
      EPISTLE_RETURN_MISMATCH(
          expect_all_leased(outcome_of([&] { (void)dispatcher.dispatch(caller.inputs.dispatch(handle)); }), count));
      EPISTLE_RETURN_MISMATCH(expect_all_leased(
          outcome_of([&] { (void)dispatcher.dispatch_send(caller.inputs.dispatch(handle)); }), count));
      EPISTLE_RETURN_MISMATCH(expect_all_leased(
          outcome_of([&] { (void)dispatcher.dispatch(caller.inputs.prepare_and_dispatch()); }), count));
      RowsBuffer gradients = caller.inputs.sums();
      EPISTLE_RETURN_MISMATCH(expect_all_leased(
          outcome_of([&] { (void)dispatcher.combine_backward({.handle = handle, .grad_out = gradients.view()}); }),
          count));
      // What the refused calls left alone is there, and combining it needs no buffer more.
      for (const Received& received : leases) {
        EPISTLE_RETURN_MISMATCH(check_rows_of(caller, caller.round, received, "leased rows"));
        EPISTLE_RETURN_MISMATCH(
            check_combine(caller.subject, Checker(caller.round), caller.inputs, received, 5, false));
      }
      // One that is given back is enough.
      leases.front().release();
      const Received again = dispatcher.dispatch(caller.inputs.dispatch(handle));
      return check_rows_of(caller, caller.round, again, "rows in a buffer that was given back");
    });
  }
}

TEST_P(Leases, OfOneRankOnlyIsToldToAll) {
  const auto outcomes = call_on_all_ranks(GetParam(), leased_scenario(1), [](const Caller& caller) {
    Dispatcher& dispatcher = caller.subject.dispatcher();
    const Handle handle = caller.prepare();
    Received received = dispatcher.dispatch(caller.inputs.dispatch(handle));
    if (caller.rank != kBadRank) received.release();
    (void)dispatcher.dispatch(caller.inputs.dispatch(handle));
  });
  expect_rejected(outcomes, ErrorCode::kInvalidArgument);
}

TEST_P(Leases, CopiesShareOne) {
  on_all_ranks(GetParam(), leased_scenario(1), [](const Caller& caller) -> Mismatch {
    Dispatcher& dispatcher = caller.subject.dispatcher();
    const Handle handle = caller.prepare();
    Received first = dispatcher.dispatch(caller.inputs.dispatch(handle));
    const Received copy = first;
    first.release();
    EPISTLE_RETURN_MISMATCH(expect_equal(first.valid(), false, "valid after release()"));
    EPISTLE_RETURN_MISMATCH(check_rows_of(caller, caller.round, copy, "rows of the copy"));
    EPISTLE_RETURN_MISMATCH(
        expect_all_leased(outcome_of([&] { (void)dispatcher.dispatch(caller.inputs.dispatch(handle)); }), "1"));
    const Received moved = std::move(copy);  // of a const: another copy
    return check_rows_of(caller, caller.round, moved, "rows of a copy of the copy");
  });
}

TEST_P(Leases, OverwrittenLeaseIsGivenBackOnlyAfterTheCall) {
  // `received = dispatch()` asks for a second buffer before it lets the first go.
  on_all_ranks(GetParam(), leased_scenario(1), [](const Caller& caller) -> Mismatch {
    Dispatcher& dispatcher = caller.subject.dispatcher();
    const Handle handle = caller.prepare();
    Received received = dispatcher.dispatch(caller.inputs.dispatch(handle));
    EPISTLE_RETURN_MISMATCH(
        expect_all_leased(outcome_of([&] { received = dispatcher.dispatch(caller.inputs.dispatch(handle)); }), "1"));
    return check_rows_of(caller, caller.round, received, "rows after the refused call");
  });
}

TEST_P(Leases, RowsStayWhileOthersAreReceived) {
  on_all_ranks(GetParam(), leased_scenario(2), [](const Caller& caller) -> Mismatch {
    Subject& subject = caller.subject;
    const Handle handle = caller.prepare();
    const Received first = subject.dispatch(caller.inputs.dispatch(handle));
    const Checker checker(caller.round);
    const auto outputs = caller.round.values(31, caller.rank, first.num_rows());
    subject.write_outputs(first, outputs);
    // Other routings, dispatches, combines and gradients go through the second buffer.
    for (int idx = 1; idx < 4; ++idx) {
      const Round other(caller.round.scenario(), idx);
      const Checker other_checker(other);
      RankInputs inputs(other, caller.rank);
      const Handle other_handle = subject.prepare(inputs.prepare());
      Received second = subject.dispatch(inputs.dispatch(other_handle));
      EPISTLE_RETURN_MISMATCH(check_rows_of(caller, other, second, "rows in the second buffer"));
      EPISTLE_RETURN_MISMATCH(check_combine(subject, other_checker, inputs, second, 32, idx % 2 == 0));
      EPISTLE_RETURN_MISMATCH(check_backward(subject, other_checker, inputs, other_handle, second));
      EPISTLE_RETURN_MISMATCH(check_rows_of(caller, caller.round, first, "rows in the first buffer"));
    }
    // So do the expert outputs in it.
    RowsBuffer out = caller.inputs.sums();
    subject.combine({.received = first, .out = out.view()});
    return checker.check_sums(31, caller.rank, true, out.compact(), "combine from the first buffer");
  });
}

TEST_P(Leases, SavedRowsOfALeaseYieldGradients) {
  on_all_ranks(GetParam(), leased_scenario(2), [](const Caller& caller) -> Mismatch {
    constexpr Round::ValueStream kSaved = 41;
    constexpr Round::ValueStream kGradients = 42;
    Subject& subject = caller.subject;
    const Checker checker(caller.round);
    const Handle handle = caller.prepare();
    const Received saved = subject.dispatch(caller.inputs.dispatch(handle));
    subject.write_outputs(saved, caller.round.values(kSaved, caller.rank, saved.num_rows()));
    RowsBuffer grad_out = caller.inputs.output_rows(caller.num_tokens(),
                                                    caller.round.values(kGradients, caller.rank, caller.num_tokens()));
    std::vector<float> grad_weights(static_cast<std::size_t>(saved.num_rows()) + 1);
    const Received gradients = subject.combine_backward({.handle = handle,
                                                         .grad_out = grad_out.view(),
                                                         .saved_rows = saved.expert_outputs(),
                                                         .grad_weights = grad_weights.data()});
    const ReceivedCopy rows = subject.read(gradients);
    EPISTLE_RETURN_MISMATCH(expect_equal(gradients.scales().data == nullptr, true, "gradients have no scales"));
    EPISTLE_RETURN_MISMATCH(
        expect_equal(gradients.rows().data == gradients.expert_outputs().data, true, "gradients lie with the outputs"));
    return checker.check_row_gradients(caller.rank, {.gradients = kGradients,
                                                     .saved = kSaved,
                                                     .description = rows.data().description,
                                                     .rows = rows.data().row_data(),
                                                     .grad_weights = grad_weights.data()});
  });
}

TEST_P(Leases, GradientsAreNotOverwrittenByRowsOfYourOwn) {
  on_all_ranks(GetParam(), leased_scenario(1), [](const Caller& caller) -> Mismatch {
    Subject& subject = caller.subject;
    const Handle handle = caller.prepare();
    RowsBuffer grad_out = caller.inputs.sums();
    Received gradients = subject.dispatcher().combine_backward({.handle = handle, .grad_out = grad_out.view()});
    RowsBuffer rows =
        caller.inputs.output_rows(gradients.num_rows(), caller.round.values(5, caller.rank, gradients.num_rows()));
    RowsBuffer out = caller.inputs.sums();
    const auto combine = [&] {
      subject.dispatcher().combine({.handle = handle, .rows = rows.view(), .out = out.view()});
    };
    EPISTLE_RETURN_MISMATCH(expect_all_leased(outcome_of(combine), "1"));
    gradients.release();
    const Outcome outcome = outcome_of(combine);
    return expect_equal(outcome.has_value(), false, outcome ? outcome->what() : "");
  });
}

TEST_P(Leases, TwoMicroBatchesInHalves) {
  on_all_ranks(GetParam(), leased_scenario(2), [](const Caller& caller) -> Mismatch {
    Dispatcher& dispatcher = caller.subject.dispatcher();
    const Round other(caller.round.scenario(), 1);
    RankInputs other_inputs(other, caller.rank);
    const Handle handle = caller.prepare();
    const Handle other_handle = dispatcher.prepare(other_inputs.prepare());
    Pending pending = dispatcher.dispatch_send(caller.inputs.dispatch(handle));
    const Received first = dispatcher.dispatch_receive(std::move(pending));
    pending = dispatcher.dispatch_send(other_inputs.dispatch(other_handle));
    EPISTLE_RETURN_MISMATCH(check_rows_of(caller, caller.round, first, "rows while others are on their way"));
    const Received second = dispatcher.dispatch_receive(std::move(pending));
    EPISTLE_RETURN_MISMATCH(check_rows_of(caller, caller.round, first, "rows of the first micro-batch"));
    return check_rows_of(caller, other, second, "rows of the second micro-batch");
  });
}

TEST_P(Leases, OutliveTheirDispatcher) {
  const Scenario scenario = leased_scenario(2);
  std::vector<Mismatch> found(scenario.tokens_per_rank.size());
  run_thread_ranks(scenario.num_ranks(), [&](Group& group) {
    const Round round(scenario, 0);
    RankInputs inputs(round, group.rank());
    std::optional<Dispatcher> dispatcher(std::in_place, group, GetParam(), scenario.config);
    const Handle handle = dispatcher->prepare(inputs.prepare());
    const Received received = dispatcher->dispatch(inputs.dispatch(handle));
    group.barrier();
    dispatcher.reset();
    // Another one takes whatever memory it can get.
    Dispatcher next(group, GetParam(), scenario.config);
    (void)next.dispatch(inputs.prepare_and_dispatch());
    HostMemory memory;
    const ReceivedCopy copy(memory, data_of(received), round.config().top_k);
    auto& mismatch = found[static_cast<std::size_t>(group.rank())];
    mismatch = Checker(round).check_received(group.rank(), copy.data(), "rows of a dispatcher that is gone");
    if (!mismatch) mismatch = Checker(round).check_description(group.rank(), received.handle().description());
  });
  for (const Mismatch& mismatch : found) EXPECT_FALSE(mismatch.has_value()) << *mismatch;
}

TEST_P(Leases, DispatcherCanBeMoved) {
  const Scenario scenario = leased_scenario(1);
  run_thread_ranks(scenario.num_ranks(), [&](Group& group) {
    const Round round(scenario, 0);
    RankInputs inputs(round, group.rank());
    Dispatcher made(group, GetParam(), scenario.config);
    const Handle handle = made.prepare(inputs.prepare());
    Dispatcher moved = std::move(made);
    std::vector<Dispatcher> kept;
    kept.push_back(std::move(moved));
    const Received received = kept.front().dispatch(inputs.dispatch(handle));
    const Mismatch mismatch = Checker(round).check_received(group.rank(), data_of(received), "dispatch");
    EXPECT_FALSE(mismatch.has_value()) << *mismatch;
  });
}

INSTANTIATE_TEST_SUITE_P(All, Leases, ::testing::ValuesIn(dispatcher_names()),
                         [](const auto& param_info) { return param_info.param; });

}  // namespace
}  // namespace epistle::testing
