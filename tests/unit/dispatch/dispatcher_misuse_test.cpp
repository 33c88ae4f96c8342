// Calls in a wrong order, with wrong buffers, or that the configuration does not allow.
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "epistle/device/row_flags.hpp"
#include "epistle/dispatcher.hpp"

#include "support/bad_rank.hpp"
#include "support/dispatcher_names.hpp"
#include "support/round_trip.hpp"

namespace epistle::testing {
namespace {

Scenario expert_scenario() {
  Scenario scenario = small_scenario();
  scenario.config.top_k = 3;
  scenario.config.layout = ExpertMajor{};
  return scenario;
}

/// One rank's expert outputs and room for its sums.
struct Buffers {
  Buffers(const Caller& caller, const Handle& handle)
      : rows(caller.inputs.output_rows(handle.description().num_rows,
                                       caller.round.values(3, caller.rank, handle.description().num_rows))),
        out(caller.inputs.sums()) {}

  [[nodiscard]] CombineRequest combine(const Handle& handle) {
    return {.handle = handle, .rows = rows.view(), .out = out.view()};
  }

  RowsBuffer rows;
  RowsBuffer out;
};

class DispatcherMisuse : public ::testing::TestWithParam<std::string> {
 protected:
  CallOutcomes call(const std::function<void(const Caller&)>& body, const Scenario& scenario = expert_scenario()) {
    return call_on_all_ranks(GetParam(), scenario, body);
  }

  static void expect_usable(const CallOutcomes& outcomes) {
    for (std::size_t rank = 0; rank < outcomes.afterwards.size(); ++rank) {
      EXPECT_FALSE(outcomes.afterwards[rank].has_value()) << "rank " << rank << ": " << *outcomes.afterwards[rank];
    }
  }

  /// All ranks throw `code` with `part` in the message, and can go on.
  static void expect_on_all(const CallOutcomes& outcomes, ErrorCode code, const std::string& part) {
    for (std::size_t rank = 0; rank < outcomes.by_rank.size(); ++rank) {
      SCOPED_TRACE("rank " + std::to_string(rank));
      const Outcome& outcome = outcomes.by_rank[rank];
      ASSERT_TRUE(outcome.has_value());
      EXPECT_EQ(outcome->code(), code) << outcome->what();
      EXPECT_NE(std::string(outcome->what()).find(part), std::string::npos) << outcome->what();
    }
    expect_usable(outcomes);
  }
};

/// `outcomes` of a call in which kBadRank gave an output that is one row too small.
void expect_too_small(const CallOutcomes& outcomes) {
  expect_rejected(outcomes, ErrorCode::kBufferTooSmall, [](std::size_t, const Error& error) {
    EXPECT_NE(std::string(error.what()).find("out has 7 rows; 8 tokens need as many rows"), std::string::npos)
        << error.what();
  });
}

TEST_P(DispatcherMisuse, OutputTooSmallForCombine) {
  const auto outcomes = call([](const Caller& caller) {
    const Handle handle = caller.prepare();
    Buffers buffers(caller, handle);
    CombineRequest request = buffers.combine(handle);
    if (caller.rank == kBadRank) --request.out.num_rows;
    caller.subject.dispatcher().combine(request);
  });
  expect_too_small(outcomes);
}

TEST_P(DispatcherMisuse, OutputTooSmallForCombineSend) {
  const auto outcomes = call([](const Caller& caller) {
    const Handle handle = caller.prepare();
    Buffers buffers(caller, handle);
    CombineRequest request = buffers.combine(handle);
    if (caller.rank == kBadRank) --request.out.num_rows;
    caller.subject.dispatcher().combine_receive(caller.subject.dispatcher().combine_send(request));
  });
  expect_too_small(outcomes);
}

TEST_P(DispatcherMisuse, NoOutputForCombine) {
  const auto outcomes = call([](const Caller& caller) {
    const Handle handle = caller.prepare();
    Buffers buffers(caller, handle);
    CombineRequest request = buffers.combine(handle);
    if (caller.rank == kBadRank) request.out.data = nullptr;
    caller.subject.dispatcher().combine(request);
  });
  ASSERT_TRUE(outcomes.by_rank[kBadRank].has_value());
  const Error& own = *outcomes.by_rank[kBadRank];
  EXPECT_EQ(own.code(), ErrorCode::kBufferTooSmall);
  EXPECT_NE(std::string(own.what()).find("out.data is null; 8 tokens need as many rows"), std::string::npos)
      << own.what();
  expect_usable(outcomes);
}

TEST_P(DispatcherMisuse, NoRowsForCombine) {
  const auto outcomes = call([](const Caller& caller) {
    const Handle handle = caller.prepare();
    Buffers buffers(caller, handle);
    CombineRequest request = buffers.combine(handle);
    if (caller.rank == kBadRank) request.rows.data = nullptr;
    caller.subject.dispatcher().combine(request);
  });
  expect_rejected(outcomes, ErrorCode::kInvalidArgument);
}

TEST_P(DispatcherMisuse, RowsAsTheyFinishWhereNobodyRaisesFlags) {
  const auto outcomes = call([](const Caller& caller) {
    const Handle handle = caller.prepare();
    Buffers buffers(caller, handle);
    CombineRequest request = buffers.combine(handle);
    request.as_rows_finish = true;
    caller.subject.dispatcher().combine(request);
  });
  expect_on_all(outcomes, ErrorCode::kUnsupported, "CudaOptions::row_flags");
}

TEST_P(DispatcherMisuse, FlagsOfRowsWhereNobodyRaisesThem) {
  const auto outcomes = call([](const Caller& caller) {
    static_cast<void>(caller.subject.dispatch(caller.inputs.dispatch(caller.prepare())).row_flags());
  });
  expect_on_all(outcomes, ErrorCode::kUnsupported, "CudaOptions::row_flags");
}

TEST_P(DispatcherMisuse, OutputOfAnotherShapeForCombine) {
  for (const auto& change : std::vector<std::function<void(CombineRequest&)>>{
           [](CombineRequest& request) { request.out.hidden = 16; },
           [](CombineRequest& request) { request.out.dtype = DType::kFp32; },
           [](CombineRequest& request) { request.out.stride = 8; },
           [](CombineRequest& request) { request.rows.hidden = 16; },
           [](CombineRequest& request) { ++request.rows.num_rows; }}) {
    const auto outcomes = call([&](const Caller& caller) {
      const Handle handle = caller.prepare();
      Buffers buffers(caller, handle);
      CombineRequest request = buffers.combine(handle);
      if (caller.rank == kBadRank) change(request);
      caller.subject.dispatcher().combine(request);
    });
    ASSERT_TRUE(outcomes.by_rank[kBadRank].has_value());
    EXPECT_EQ(outcomes.by_rank[kBadRank]->code(), ErrorCode::kInvalidArgument) << outcomes.by_rank[kBadRank]->what();
    expect_usable(outcomes);
  }
}

// ---- Order of calls -------------------------------------------------------------------------------------------------

TEST_P(DispatcherMisuse, ReceiveWithoutSend) {
  // Nothing is exchanged, so only the rank that makes the call knows; it can make the right one instead.
  const auto outcomes = call([](const Caller& caller) {
    const Handle handle = caller.prepare();
    (void)caller.subject.dispatcher().dispatch_receive(Pending());
  });
  expect_on_all(outcomes, ErrorCode::kInvalidArgument, "dispatch_receive needs the Pending");
  const auto of_combine = call([](const Caller& caller) { caller.subject.dispatcher().combine_receive(Pending()); });
  expect_on_all(of_combine, ErrorCode::kInvalidArgument, "combine_receive needs the Pending");
}

TEST_P(DispatcherMisuse, ReceiveOfTheOtherHalf) {
  const auto outcomes = call([](const Caller& caller) {
    Dispatcher& dispatcher = caller.subject.dispatcher();
    const Handle handle = caller.prepare();
    Buffers buffers(caller, handle);
    const Received received = dispatcher.dispatch(caller.inputs.dispatch(handle));
    Pending pending = dispatcher.combine_send(buffers.combine(handle));
    const Outcome outcome = outcome_of([&] { (void)dispatcher.dispatch_receive(Pending()); });
    dispatcher.combine_receive(std::move(pending));
    if (outcome) throw Error(*outcome);
  });
  expect_on_all(outcomes, ErrorCode::kInvalidArgument, "dispatch_receive needs the Pending");
}

TEST_P(DispatcherMisuse, SendTwiceOnOneRank) {
  const auto outcomes = call([](const Caller& caller) {
    Dispatcher& dispatcher = caller.subject.dispatcher();
    const Handle handle = caller.prepare();
    Buffers buffers(caller, handle);
    Pending pending = dispatcher.dispatch_send(caller.inputs.dispatch(handle));
    Received received;
    // Everything sent must have arrived before the bad call of the other rank lets anyone go on.
    if (caller.rank != kBadRank) received = dispatcher.dispatch_receive(std::move(pending));
    const Outcome outcome = outcome_of([&] {
      if (caller.rank == kBadRank) {
        (void)dispatcher.dispatch_send(caller.inputs.dispatch(handle));
      } else {
        // Which half tells of it is the dispatcher's.
        dispatcher.combine_receive(dispatcher.combine_send(buffers.combine(handle)));
      }
    });
    if (caller.rank == kBadRank) received = dispatcher.dispatch_receive(std::move(pending));
    const Mismatch mismatch = Checker(caller.round).check_received(caller.rank, data_of(received), "dispatch");
    EXPECT_FALSE(mismatch.has_value()) << *mismatch;
    if (outcome) throw Error(*outcome);
  });
  for (std::size_t rank = 0; rank < outcomes.by_rank.size(); ++rank) {
    const Outcome& outcome = outcomes.by_rank[rank];
    ASSERT_TRUE(outcome.has_value());
    EXPECT_EQ(outcome->code(), rank == kBadRank ? ErrorCode::kInvalidArgument : ErrorCode::kPeerRejected);
    EXPECT_NE(std::string(outcome->what()).find("receive half of the last dispatch is missing"), std::string::npos)
        << outcome->what();
  }
  expect_usable(outcomes);
}

TEST_P(DispatcherMisuse, PrepareBetweenSendAndReceive) {
  const auto outcomes = call([](const Caller& caller) {
    Dispatcher& dispatcher = caller.subject.dispatcher();
    Pending pending = dispatcher.dispatch_send(caller.inputs.dispatch(caller.prepare()));
    const Outcome outcome = outcome_of([&] { (void)caller.prepare(); });
    (void)dispatcher.dispatch_receive(std::move(pending));
    if (outcome) throw Error(*outcome);
  });
  expect_on_all(outcomes, ErrorCode::kInvalidArgument, "receive half of the last dispatch is missing");
}

TEST_P(DispatcherMisuse, DifferentCalls) {
  const auto outcomes = call([](const Caller& caller) {
    const Handle handle = caller.prepare();
    Buffers buffers(caller, handle);
    if (caller.rank == kBadRank) {
      caller.subject.dispatcher().combine(buffers.combine(handle));
    } else {
      (void)caller.subject.dispatcher().dispatch(caller.inputs.dispatch(handle));
    }
  });
  expect_on_all(outcomes, ErrorCode::kShapeMismatch, "rank 0 calls dispatch (dispatcher 1, handle 1");
  for (const Outcome& outcome : outcomes.by_rank) EXPECT_EQ(outcome->context().peer_rank, kBadRank);
}

TEST_P(DispatcherMisuse, PrepareWhereOthersDispatch) {
  const auto outcomes = call([](const Caller& caller) {
    const Handle handle = caller.prepare();
    if (caller.rank == kBadRank) {
      (void)caller.prepare();
    } else {
      (void)caller.subject.dispatcher().dispatch(caller.inputs.dispatch(handle));
    }
  });
  expect_on_all(outcomes, ErrorCode::kShapeMismatch, "rank 1 calls prepare");
}

TEST_P(DispatcherMisuse, DifferentHandles) {
  const auto outcomes = call([](const Caller& caller) {
    const Handle first = caller.prepare();
    const Handle second = caller.prepare();
    (void)caller.subject.dispatcher().dispatch(caller.inputs.dispatch(caller.rank == kBadRank ? first : second));
  });
  expect_on_all(outcomes, ErrorCode::kShapeMismatch, "handle 1");
}

TEST_P(DispatcherMisuse, GradientsOfTheWeightsOnSomeRanksOnly) {
  const auto give = [](const Caller& caller, bool grad_weights, bool grad_probs) {
    const Handle handle = caller.prepare();
    Buffers buffers(caller, handle);
    const std::vector<float> row_gradients(static_cast<std::size_t>(handle.description().num_rows) + 1);
    std::vector<float> probs(static_cast<std::size_t>(caller.num_tokens() * 3));
    caller.subject.dispatcher().dispatch_backward({.handle = handle,
                                                   .grad_rows = buffers.rows.view(),
                                                   .grad_weights = grad_weights ? row_gradients.data() : nullptr,
                                                   .grad_tokens = buffers.out.view(),
                                                   .grad_probs = grad_probs ? probs.data() : nullptr});
  };
  const auto outcomes = call([&](const Caller& caller) {
    const bool gives = caller.rank != kBadRank;
    give(caller, gives, gives);
  });
  expect_on_all(outcomes, ErrorCode::kShapeMismatch, "gradients of the weights");
  const auto half = call([&](const Caller& caller) { give(caller, true, false); });
  expect_on_all(half, ErrorCode::kInvalidArgument, "give both or neither");
}

TEST_P(DispatcherMisuse, SavedRowsWhereTheGradientsGo) {
  const auto outcomes = call([](const Caller& caller) {
    const Handle handle = caller.prepare();
    Received received = caller.subject.dispatcher().dispatch(caller.inputs.dispatch(handle));
    const Rows outputs = received.expert_outputs();
    received.release();
    Buffers buffers(caller, handle);
    std::vector<float> grad_weights(static_cast<std::size_t>(handle.description().num_rows) + 1);
    (void)caller.subject.dispatcher().combine_backward(
        {.handle = handle, .grad_out = buffers.out.view(), .saved_rows = outputs, .grad_weights = grad_weights.data()});
  });
  expect_on_all(outcomes, ErrorCode::kInvalidArgument, "saved_rows");
}

// ---- Limits of the configuration ------------------------------------------------------------------------------------

TEST_P(DispatcherMisuse, CapacityExceeded) {
  Scenario scenario = expert_scenario();
  scenario.config.sizing = Capacity{.rows_per_rank = 25};
  scenario.missing_probability = 0.9;  // for the round trip afterwards
  const auto outcomes = call(
      [](const Caller& caller) {
        std::vector<std::int32_t> ids(static_cast<std::size_t>(caller.num_tokens() * 3), kNoExpert);
        for (std::size_t token = 0; token < static_cast<std::size_t>(caller.num_tokens()); ++token) {
          ids[token * 3] = 5;                              // all tokens to one expert of rank 2: exactly its capacity
          if (caller.rank == 0 && token == 0) ids[1] = 6;  // and one row more
        }
        const PrepareRequest request{.expert_ids = {ids.data(), caller.num_tokens(), 3}};
        const Outcome outcome = outcome_of([&] { (void)caller.subject.prepare(request); });
        ids.assign(ids.size(), kNoExpert);
        EXPECT_EQ(caller.subject.prepare(request).wait_stats().received_rows, 0);
        if (outcome) throw Error(*outcome);
      },
      scenario);
  expect_on_all(outcomes, ErrorCode::kCapacityExceeded,
                "rank 2 would receive 1 rows more than its 25 rows of capacity");
}

TEST_P(DispatcherMisuse, AllHandlesInUse) {
  Scenario scenario = expert_scenario();
  scenario.config.max_handles = 3;
  const auto outcomes = call(
      [](const Caller& caller) {
        std::vector<Handle> handles;
        for (int idx = 0; idx < 3; ++idx) handles.push_back(caller.prepare());
        const Outcome outcome = outcome_of([&] { (void)caller.prepare(); });
        // Those that there are still work; and a copy holds what the original let go.
        const Handle copy = handles.back();
        handles.pop_back();
        const Outcome copied = outcome_of([&] { (void)caller.prepare(); });
        EXPECT_TRUE(copied.has_value());
        Received received = caller.subject.dispatch(caller.inputs.dispatch(copy));
        const Mismatch mismatch = Checker(caller.round).check_received(caller.rank, data_of(received), "dispatch");
        EXPECT_FALSE(mismatch.has_value()) << *mismatch;
        // One that is given back can be used again.
        handles.pop_back();
        handles.push_back(caller.prepare());
        if (outcome) throw Error(*outcome);
      },
      scenario);
  expect_on_all(outcomes, ErrorCode::kInvalidArgument, "all 3 handles");
}

TEST_P(DispatcherMisuse, LeaseKeepsItsHandleInUse) {
  Scenario scenario = expert_scenario();
  scenario.config.max_handles = 1;
  const auto outcomes = call(
      [](const Caller& caller) {
        Handle handle = caller.prepare();
        Received received = caller.subject.dispatch(caller.inputs.dispatch(handle));
        handle = Handle();
        const Outcome outcome = outcome_of([&] { (void)caller.prepare(); });
        received.release();
        EXPECT_TRUE(caller.prepare().valid());
        if (outcome) throw Error(*outcome);
      },
      scenario);
  expect_on_all(outcomes, ErrorCode::kInvalidArgument, "all 1 handles");
}

TEST_P(DispatcherMisuse, RawRowsAreNotCombined) {
  Scenario scenario = expert_scenario();
  scenario.config.input = DType::kRaw;
  const auto outcomes = call(
      [](const Caller& caller) {
        std::vector<std::byte> bytes(4096);
        const Rows rows{.data = bytes.data(), .num_rows = caller.num_tokens(), .hidden = 32, .dtype = DType::kBf16};
        caller.subject.dispatcher().combine({.handle = caller.prepare(), .rows = rows, .out = rows});
      },
      scenario);
  expect_on_all(outcomes, ErrorCode::kUnsupported, "expert_output_hidden");
}

INSTANTIATE_TEST_SUITE_P(All, DispatcherMisuse, ::testing::ValuesIn(dispatcher_names()),
                         [](const auto& param_info) { return param_info.param; });

}  // namespace
}  // namespace epistle::testing
