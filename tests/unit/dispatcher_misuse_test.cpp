// Calls in a wrong order, with wrong buffers, or that the configuration does not allow.
#include <functional>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "epistle/dispatcher.hpp"

#include "support/bad_rank.hpp"
#include "support/round_trip.hpp"

namespace epistle::testing {
namespace {

Scenario expert_scenario() {
  Scenario scenario = small_scenario();
  scenario.config.top_k = 3;
  scenario.config.layout = OutputLayout::kExpertMajor;
  return scenario;
}

/// One rank's buffers for a whole round trip.
struct Buffers {
  explicit Buffers(const Caller& caller, const Handle& handle)
      : payload(caller.play.payload(caller.rank)),
        rows(caller.play.values(3, caller.rank, handle.output().num_rows)),
        out(static_cast<std::size_t>(caller.num_tokens() * caller.play.combine_row_bytes())),
        num_tokens(caller.num_tokens()) {}

  [[nodiscard]] Payload payload_view() const { return {.rows = payload.data(), .num_tokens = num_tokens}; }
  [[nodiscard]] std::int64_t out_bytes() const { return static_cast<std::int64_t>(out.size()); }

  std::vector<std::byte> payload;
  std::vector<std::byte> rows;
  std::vector<std::byte> out;
  std::int64_t num_tokens;
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

/// `outcomes` of a call in which kBadRank gave an output that is one byte too small.
void expect_too_small(const CallOutcomes& outcomes) {
  for (std::size_t rank = 0; rank < outcomes.by_rank.size(); ++rank) {
    ASSERT_TRUE(outcomes.by_rank[rank].has_value());
    const Error& error = *outcomes.by_rank[rank];
    if (rank == kBadRank) {
      EXPECT_EQ(error.code(), ErrorCode::kBufferTooSmall);
    } else {
      EXPECT_EQ(error.code(), ErrorCode::kPeerRejected);
      EXPECT_EQ(error.context().peer_rank, kBadRank);
    }
    EXPECT_NE(std::string(error.what()).find("out has 511 bytes; 8 tokens of 64 bytes need 512"), std::string::npos)
        << error.what();
  }
}

TEST_P(DispatcherMisuse, OutputTooSmallForCombine) {
  const auto outcomes = call([](const Caller& caller) {
    const Handle handle = caller.dispatcher.prepare(caller.view());
    Buffers buffers(caller, handle);
    const std::int64_t short_by = caller.rank == kBadRank ? 1 : 0;
    caller.dispatcher.combine(handle, buffers.rows.data(), buffers.out.data(), buffers.out_bytes() - short_by);
  });
  expect_too_small(outcomes);
  expect_usable(outcomes);
}

TEST_P(DispatcherMisuse, OutputTooSmallForCombineReceive) {
  const auto outcomes = call([](const Caller& caller) {
    const Handle handle = caller.dispatcher.prepare(caller.view());
    Buffers buffers(caller, handle);
    const std::int64_t short_by = caller.rank == kBadRank ? 1 : 0;
    caller.dispatcher.combine_send(handle, buffers.rows.data());
    caller.dispatcher.combine_receive(handle, buffers.out.data(), buffers.out_bytes() - short_by);
  });
  expect_too_small(outcomes);
  expect_usable(outcomes);
}

TEST_P(DispatcherMisuse, NoOutputForCombine) {
  const auto outcomes = call([](const Caller& caller) {
    const Handle handle = caller.dispatcher.prepare(caller.view());
    Buffers buffers(caller, handle);
    caller.dispatcher.combine(handle, buffers.rows.data(), caller.rank == kBadRank ? nullptr : buffers.out.data(),
                              buffers.out_bytes());
  });
  ASSERT_TRUE(outcomes.by_rank[kBadRank].has_value());
  EXPECT_EQ(outcomes.by_rank[kBadRank]->code(), ErrorCode::kBufferTooSmall);
  expect_usable(outcomes);
}

TEST_P(DispatcherMisuse, NoRowsForCombine) {
  const auto outcomes = call([](const Caller& caller) {
    const Handle handle = caller.dispatcher.prepare(caller.view());
    Buffers buffers(caller, handle);
    caller.dispatcher.combine(handle, caller.rank == kBadRank ? nullptr : buffers.rows.data(), buffers.out.data(),
                              buffers.out_bytes());
  });
  ASSERT_TRUE(outcomes.by_rank[kBadRank].has_value());
  EXPECT_EQ(outcomes.by_rank[kBadRank]->code(), ErrorCode::kInvalidArgument);
  ASSERT_TRUE(outcomes.by_rank[0].has_value());
  EXPECT_EQ(outcomes.by_rank[0]->code(), ErrorCode::kPeerRejected);
  EXPECT_EQ(outcomes.by_rank[0]->context().peer_rank, kBadRank);
  expect_usable(outcomes);
}

// ---- Order of calls -------------------------------------------------------------------------------------------------

TEST_P(DispatcherMisuse, ReceiveWithoutSend) {
  // Nothing is exchanged, so only the rank that makes the call knows; it can make the right one instead.
  const auto outcomes = call([](const Caller& caller) {
    const Handle handle = caller.dispatcher.prepare(caller.view());
    (void)caller.dispatcher.dispatch_receive(handle);
  });
  expect_on_all(outcomes, ErrorCode::kInvalidArgument, "dispatch_receive needs the dispatch_send");
  const auto of_combine = call([](const Caller& caller) {
    const Handle handle = caller.dispatcher.prepare(caller.view());
    Buffers buffers(caller, handle);
    caller.dispatcher.combine_receive(handle, buffers.out.data(), buffers.out_bytes());
  });
  expect_on_all(of_combine, ErrorCode::kInvalidArgument, "combine_receive needs the combine_send");
}

TEST_P(DispatcherMisuse, SendTwiceOnOneRank) {
  const auto outcomes = call([](const Caller& caller) {
    const Handle handle = caller.dispatcher.prepare(caller.view());
    Buffers buffers(caller, handle);
    caller.dispatcher.dispatch_send(handle, buffers.payload_view());
    // Everything sent must have arrived before the bad call of the other rank lets anyone go on.
    if (caller.rank != kBadRank) (void)caller.dispatcher.dispatch_receive(handle);
    const Outcome outcome = outcome_of([&] {
      if (caller.rank == kBadRank) {
        caller.dispatcher.dispatch_send(handle, buffers.payload_view());
      } else {
        caller.dispatcher.combine_send(handle, buffers.rows.data());
      }
    });
    if (caller.rank == kBadRank) (void)caller.dispatcher.dispatch_receive(handle);
    std::vector<std::vector<std::byte>> payloads;
    for (int peer = 0; peer < caller.group.size(); ++peer) payloads.push_back(caller.play.payload(peer));
    const Mismatch mismatch =
        check_rows(caller.play, caller.rank, handle.output().rows, caller.play.row_bytes(), payloads, "dispatch");
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
    const Handle handle = caller.dispatcher.prepare(caller.view());
    Buffers buffers(caller, handle);
    caller.dispatcher.dispatch_send(handle, buffers.payload_view());
    const Outcome outcome = outcome_of([&] { (void)caller.dispatcher.prepare(caller.view()); });
    (void)caller.dispatcher.dispatch_receive(handle);
    if (outcome) throw Error(*outcome);
  });
  expect_on_all(outcomes, ErrorCode::kInvalidArgument, "a send half is open");
}

TEST_P(DispatcherMisuse, DifferentCalls) {
  const auto outcomes = call([](const Caller& caller) {
    const Handle handle = caller.dispatcher.prepare(caller.view());
    Buffers buffers(caller, handle);
    if (caller.rank == kBadRank) {
      caller.dispatcher.combine(handle, buffers.rows.data(), buffers.out.data(), buffers.out_bytes());
    } else {
      (void)caller.dispatcher.dispatch(handle, buffers.payload_view());
    }
  });
  expect_on_all(outcomes, ErrorCode::kShapeMismatch, "rank 0 calls dispatch (dispatcher 1, handle 1");
  for (const Outcome& outcome : outcomes.by_rank) EXPECT_EQ(outcome->context().peer_rank, kBadRank);
}

TEST_P(DispatcherMisuse, PrepareWhereOthersDispatch) {
  const auto outcomes = call([](const Caller& caller) {
    const Handle handle = caller.dispatcher.prepare(caller.view());
    Buffers buffers(caller, handle);
    if (caller.rank == kBadRank) {
      (void)caller.dispatcher.prepare(caller.view());
    } else {
      (void)caller.dispatcher.dispatch(handle, buffers.payload_view());
    }
  });
  expect_on_all(outcomes, ErrorCode::kShapeMismatch, "rank 1 calls prepare");
}

TEST_P(DispatcherMisuse, DifferentHandles) {
  const auto outcomes = call([](const Caller& caller) {
    const Handle first = caller.dispatcher.prepare(caller.view());
    const Handle second = caller.dispatcher.prepare(caller.view());
    Buffers buffers(caller, first);
    (void)caller.dispatcher.dispatch(caller.rank == kBadRank ? first : second, buffers.payload_view());
  });
  expect_on_all(outcomes, ErrorCode::kShapeMismatch, "handle 1");
}

TEST_P(DispatcherMisuse, GradientsOfTheWeightsOnSomeRanksOnly) {
  const auto outcomes = call([](const Caller& caller) {
    const Handle handle = caller.dispatcher.prepare(caller.view());
    Buffers buffers(caller, handle);
    const std::vector<float> grad_weights(static_cast<std::size_t>(handle.output().num_rows) + 1);
    std::vector<float> grad_topk(static_cast<std::size_t>(caller.num_tokens() * 3));
    const bool gives = caller.rank != kBadRank;
    caller.dispatcher.dispatch_backward(handle, buffers.rows.data(), gives ? grad_weights.data() : nullptr,
                                        buffers.out.data(), buffers.out_bytes(), gives ? grad_topk.data() : nullptr);
  });
  expect_on_all(outcomes, ErrorCode::kShapeMismatch, "gradients of the weights");
  const auto half = call([](const Caller& caller) {
    const Handle handle = caller.dispatcher.prepare(caller.view());
    Buffers buffers(caller, handle);
    const std::vector<float> grad_weights(static_cast<std::size_t>(handle.output().num_rows) + 1);
    caller.dispatcher.dispatch_backward(handle, buffers.rows.data(), grad_weights.data(), buffers.out.data(),
                                        buffers.out_bytes(), nullptr);
  });
  expect_on_all(half, ErrorCode::kInvalidArgument, "give both or neither");
}

// ---- Limits of the configuration ------------------------------------------------------------------------------------

TEST_P(DispatcherMisuse, CapacityExceeded) {
  Scenario scenario = expert_scenario();
  scenario.config.sizing = Sizing::kCapacity;
  scenario.config.capacity_rows = 25;
  scenario.missing_probability = 0.9;  // for the round trip afterwards
  const auto outcomes = call(
      [](const Caller& caller) {
        std::vector<std::int32_t> ids(static_cast<std::size_t>(caller.num_tokens() * 3), kNoExpert);
        for (std::size_t token = 0; token < static_cast<std::size_t>(caller.num_tokens()); ++token) {
          ids[token * 3] = 5;                              // all tokens to one expert of rank 2: exactly its capacity
          if (caller.rank == 0 && token == 0) ids[1] = 6;  // and one row more
        }
        RoutingView view = caller.view();
        view.expert_ids = ids.data();
        const Outcome outcome = outcome_of([&] { (void)caller.dispatcher.prepare(view); });
        ids.assign(ids.size(), kNoExpert);
        EXPECT_EQ(caller.dispatcher.prepare(view).stats().received_rows, 0);
        if (outcome) throw Error(*outcome);
      },
      scenario);
  expect_on_all(outcomes, ErrorCode::kCapacityExceeded,
                "rank 2 would receive 1 rows more than its 25 rows of capacity");
}

TEST_P(DispatcherMisuse, RawRowsAreNotCombined) {
  Scenario scenario = expert_scenario();
  scenario.config.dtype = DType::kRaw;
  const auto outcomes = call(
      [](const Caller& caller) {
        const Handle handle = caller.dispatcher.prepare(caller.view());
        std::vector<std::byte> bytes(4096);
        caller.dispatcher.combine(handle, bytes.data(), bytes.data(), 4096);
      },
      scenario);
  expect_on_all(outcomes, ErrorCode::kUnsupported, "combine_hidden");
}

INSTANTIATE_TEST_SUITE_P(All, DispatcherMisuse, ::testing::Values("direct", "alltoall", "reference"),
                         [](const auto& param_info) { return param_info.param; });

}  // namespace
}  // namespace epistle::testing
