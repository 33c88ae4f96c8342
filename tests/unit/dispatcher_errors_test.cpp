// Bad inputs of one rank: it says what is wrong, the others say which rank, nothing is sent, and the dispatcher works
// on.
#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "epistle/dispatcher.hpp"

#include "support/bad_rank.hpp"
#include "support/round_trip.hpp"

namespace epistle::testing {
namespace {

void expect_message(const Error& error, const std::vector<std::string>& parts) {
  for (const std::string& part : parts) {
    EXPECT_NE(std::string(error.what()).find(part), std::string::npos)
        << "'" << part << "' is not in: " << error.what();
  }
}

/// The bad rank throws `code` with `parts` in its message, the others kPeerRejected that names it and repeats the first
/// part; and everybody can go on.
void expect_rejection(const CallOutcomes& outcomes, ErrorCode code, const std::vector<std::string>& parts) {
  for (std::size_t rank = 0; rank < outcomes.by_rank.size(); ++rank) {
    SCOPED_TRACE("rank " + std::to_string(rank));
    const Outcome& outcome = outcomes.by_rank[rank];
    ASSERT_TRUE(outcome.has_value());
    EXPECT_EQ(outcome->context().rank, static_cast<int>(rank));
    EXPECT_NE(outcome->context().phase, Phase::kNone);
    if (rank == kBadRank) {
      EXPECT_EQ(outcome->code(), code) << outcome->what();
      expect_message(*outcome, parts);
    } else {
      EXPECT_EQ(outcome->code(), ErrorCode::kPeerRejected) << outcome->what();
      EXPECT_EQ(outcome->context().peer_rank, kBadRank);
      expect_message(*outcome, {"rank " + std::to_string(kBadRank), parts.front()});
    }
    EXPECT_FALSE(outcomes.afterwards[rank].has_value()) << *outcomes.afterwards[rank];
  }
}

class DispatcherErrors : public ::testing::TestWithParam<std::string> {
 protected:
  CallOutcomes call(const std::function<void(const Caller&)>& body, const Scenario& scenario = small_scenario()) {
    return call_on_all_ranks(GetParam(), scenario, body);
  }

  /// prepare, with the view of the bad rank changed.
  void expect_bad_view(const std::function<void(RoutingView&)>& change, const std::vector<std::string>& parts) {
    const auto outcomes = call([&](const Caller& caller) {
      RoutingView view = caller.view();
      if (caller.rank == kBadRank) change(view);
      (void)caller.dispatcher.prepare(view);
    });
    expect_rejection(outcomes, ErrorCode::kInvalidArgument, parts);
  }

  /// prepare, with the ids of the bad rank changed.
  template <typename Id>
  void expect_bad_ids(const std::function<void(std::vector<Id>&)>& change, const std::vector<std::string>& parts) {
    const Play play(small_scenario(), 0);
    std::vector<Id> ids(play.table(kBadRank).expert_ids.begin(), play.table(kBadRank).expert_ids.end());
    change(ids);
    expect_bad_view(
        [&](RoutingView& view) {
          view.expert_ids = ids.data();
          view.id_type = sizeof(Id) == sizeof(std::int64_t) ? IdType::kInt64 : IdType::kInt32;
        },
        parts);
  }

  /// dispatch, with the payload of the bad rank changed.
  void expect_bad_payload(const std::function<void(Payload&)>& change, const std::vector<std::string>& parts,
                          const Scenario& scenario = small_scenario()) {
    const auto outcomes = call(
        [&](const Caller& caller) {
          const Handle handle = caller.dispatcher.prepare(caller.view());
          const auto rows = caller.play.payload(caller.rank);
          const auto scales = caller.play.scales(caller.rank);
          Payload payload{.rows = rows.data(),
                          .scales = scales.empty() ? nullptr : scales.data(),
                          .num_tokens = caller.num_tokens()};
          if (caller.rank == kBadRank) change(payload);
          (void)caller.dispatcher.dispatch(handle, payload);
        },
        scenario);
    expect_rejection(outcomes, ErrorCode::kInvalidArgument, parts);
  }
};

// ---- Routing --------------------------------------------------------------------------------------------------------

TEST_P(DispatcherErrors, IdBeyondTheLastExpert) {
  expect_bad_ids<std::int32_t>([](auto& ids) { ids[7] = 7; },
                               {"expert id 7 at token 3, position 1", "0 to 6", "-1 means no expert"});
}

TEST_P(DispatcherErrors, IdBelowMinusOne) {
  expect_bad_ids<std::int32_t>([](auto& ids) { ids[0] = -2; }, {"expert id -2 at token 0, position 0", "0 to 6"});
}

TEST_P(DispatcherErrors, WideIdsThatWouldWrap) {
  expect_bad_ids<std::int64_t>([](auto& ids) { ids[2] = std::int64_t{1} << 32; },
                               {"expert id 4294967296 at token 1, position 0"});
  expect_bad_ids<std::int64_t>([](auto& ids) { ids[2] = -(std::int64_t{1} << 32); },
                               {"expert id -4294967296 at token 1, position 0"});
}

TEST_P(DispatcherErrors, IdTwiceInOneToken) {
  expect_bad_ids<std::int32_t>(
      [](auto& ids) {
        ids[4] = 5;
        ids[5] = 5;
      },
      {"expert id 5 stands twice", "token 2", "position 1"});
}

TEST_P(DispatcherErrors, TooManyTokens) {
  expect_bad_view([](RoutingView& view) { view.num_tokens = 13; }, {"13 tokens", "0 to 12 (max_tokens)"});
  expect_bad_view([](RoutingView& view) { view.num_tokens = -1; }, {"-1 tokens"});
}

TEST_P(DispatcherErrors, TopKOfTheViewDiffers) {
  expect_bad_view([](RoutingView& view) { view.top_k = 1; }, {"top_k 1", "dispatcher 2"});
}

TEST_P(DispatcherErrors, NoIds) {
  expect_bad_view([](RoutingView& view) { view.expert_ids = nullptr; }, {"expert_ids is null"});
}

// ---- Payload --------------------------------------------------------------------------------------------------------

TEST_P(DispatcherErrors, PayloadOfAnotherSize) {
  expect_bad_payload([](Payload& payload) { --payload.num_tokens; }, {"payload has 7 tokens", "prepared for 8"});
}

TEST_P(DispatcherErrors, NoRows) {
  expect_bad_payload([](Payload& payload) { payload.rows = nullptr; }, {"payload.rows is null"});
}

TEST_P(DispatcherErrors, ScalesWhereThereAreNone) {
  expect_bad_payload([](Payload& payload) { payload.scales = payload.rows; },
                     {"payload.scales is given", "0 bytes of scales"});
}

TEST_P(DispatcherErrors, MissingScales) {
  Scenario scenario = small_scenario();
  scenario.config.dtype = DType::kFp8E4m3;
  expect_bad_payload([](Payload& payload) { payload.scales = nullptr; },
                     {"payload.scales is null", "4 bytes of scales"}, scenario);
}

// ---- Handles --------------------------------------------------------------------------------------------------------

TEST_P(DispatcherErrors, HandleThatWasMovedFrom) {
  const auto outcomes = call([](const Caller& caller) {
    Handle handle = caller.dispatcher.prepare(caller.view());
    Handle taken;
    if (caller.rank == kBadRank) taken = std::move(handle);
    const auto rows = caller.play.payload(caller.rank);
    (void)caller.dispatcher.dispatch(handle, {.rows = rows.data(), .num_tokens = caller.num_tokens()});
  });
  expect_rejection(outcomes, ErrorCode::kHandleMismatch, {"handle is empty", "prepare"});
}

TEST_P(DispatcherErrors, HandleOfAnotherDispatcher) {
  const auto outcomes = call([&](const Caller& caller) {
    const auto other = make_dispatcher(GetParam(), caller.group, caller.play.config());
    const Handle foreign = other->prepare(caller.view());
    const Handle handle = caller.dispatcher.prepare(caller.view());
    std::vector<std::byte> rows(static_cast<std::size_t>(handle.output().num_rows * caller.play.combine_row_bytes()));
    std::vector<std::byte> out(static_cast<std::size_t>(caller.num_tokens() * caller.play.combine_row_bytes()));
    caller.dispatcher.combine(caller.rank == kBadRank ? foreign : handle, rows.data(), out.data(),
                              static_cast<std::int64_t>(out.size()));
  });
  expect_rejection(outcomes, ErrorCode::kHandleMismatch, {"another dispatcher", GetParam()});
}

TEST_P(DispatcherErrors, EmptyHandleTellsNothing) {
  const Handle handle;
  EXPECT_FALSE(handle.valid());
  for (const auto& read :
       std::vector<std::function<void()>>{[&] { (void)handle.stats(); }, [&] { (void)handle.output(); }}) {
    const Outcome outcome = outcome_of(read);
    ASSERT_TRUE(outcome.has_value());
    EXPECT_EQ(outcome->code(), ErrorCode::kHandleMismatch);
  }
}

// ---- Allowed --------------------------------------------------------------------------------------------------------

TEST_P(DispatcherErrors, NanWeightsAreCarriedThrough) {
  const auto outcomes = call([](const Caller& caller) {
    std::vector<float> weights(caller.play.table(caller.rank).weights.size(), NAN);
    RoutingView view = caller.view();
    view.weights = weights.data();
    const Handle handle = caller.dispatcher.prepare(view);
    const DispatchOutput& output = handle.output();
    for (std::int64_t row = 0; row < output.num_rows; ++row) {
      for (int position = 0; position < 2; ++position) {
        const bool is_here = output.local_expert_ids[row * 2 + position] >= 0;
        EXPECT_EQ(std::isnan(output.weights[row * 2 + position]), is_here);
      }
    }
    std::vector<std::byte> rows(static_cast<std::size_t>(output.num_rows * caller.play.combine_row_bytes()));
    std::vector<std::uint16_t> out(static_cast<std::size_t>(caller.num_tokens() * 32));
    caller.dispatcher.combine(handle, rows.data(), out.data(), caller.num_tokens() * caller.play.combine_row_bytes());
    EXPECT_EQ(out, std::vector<std::uint16_t>(out.size(), 0x7fc0));
  });
  for (std::size_t rank = 0; rank < outcomes.by_rank.size(); ++rank) {
    EXPECT_FALSE(outcomes.by_rank[rank].has_value()) << outcomes.by_rank[rank]->what();
    EXPECT_FALSE(outcomes.afterwards[rank].has_value()) << *outcomes.afterwards[rank];
  }
}

INSTANTIATE_TEST_SUITE_P(All, DispatcherErrors, ::testing::Values("direct", "alltoall", "reference"),
                         [](const auto& param_info) { return param_info.param; });

}  // namespace
}  // namespace epistle::testing
