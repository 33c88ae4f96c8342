// Bad inputs of one rank: it says what is wrong, the others say which rank, nothing is sent, and the dispatcher works
// on.
#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "epistle/dispatcher.hpp"

#include "support/bad_rank.hpp"
#include "support/dispatcher_names.hpp"
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
  expect_rejected(outcomes, code, [&](std::size_t rank, const Error& error) {
    EXPECT_EQ(error.context().rank, static_cast<int>(rank));
    EXPECT_NE(error.context().phase, Phase::kNone);
    if (rank == kBadRank) {
      expect_message(error, parts);
    } else {
      expect_message(error, {"rank " + std::to_string(kBadRank), parts.front()});
    }
  });
}

class DispatcherErrors : public ::testing::TestWithParam<std::string> {
 protected:
  CallOutcomes call(const std::function<void(const Caller&)>& body, const Scenario& scenario = small_scenario()) {
    return call_on_all_ranks(GetParam(), scenario, body);
  }

  /// prepare, with the request of the bad rank changed.
  void expect_bad_request(const std::function<void(PrepareRequest&)>& change, const std::vector<std::string>& parts) {
    const auto outcomes = call([&](const Caller& caller) {
      PrepareRequest request = caller.inputs.prepare();
      if (caller.rank == kBadRank) change(request);
      (void)caller.subject.dispatcher().prepare(request);
    });
    expect_rejection(outcomes, ErrorCode::kInvalidArgument, parts);
  }

  /// prepare, with the ids of the bad rank changed.
  template <typename Id>
  void expect_bad_ids(const std::function<void(std::vector<Id>&)>& change, const std::vector<std::string>& parts) {
    const Round round(small_scenario(), 0);
    const RoutingTable& table = round.table(kBadRank);
    std::vector<Id> ids(table.expert_ids.begin(), table.expert_ids.end());
    change(ids);
    expect_bad_request(
        [&](PrepareRequest& request) {
          request.expert_ids = {ids.data(), table.num_tokens, table.top_k};
        },
        parts);
  }

  /// dispatch, with the request of the bad rank changed.
  void expect_bad_dispatch(const std::function<void(DispatchRequest&)>& change, const std::vector<std::string>& parts,
                           const Scenario& scenario = small_scenario()) {
    const auto outcomes = call(
        [&](const Caller& caller) {
          DispatchRequest request = caller.inputs.dispatch(caller.prepare());
          if (caller.rank == kBadRank) change(request);
          (void)caller.subject.dispatcher().dispatch(request);
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
  expect_bad_request([](PrepareRequest& request) { request.expert_ids.num_tokens = 13; },
                     {"13 tokens", "0 to 12 (max_tokens)"});
  expect_bad_request([](PrepareRequest& request) { request.expert_ids.num_tokens = -1; }, {"-1 tokens"});
}

TEST_P(DispatcherErrors, TopKOfTheIdsDiffers) {
  expect_bad_request([](PrepareRequest& request) { request.expert_ids.top_k = 1; }, {"top_k 1", "dispatcher 2"});
}

TEST_P(DispatcherErrors, NoIds) {
  expect_bad_request([](PrepareRequest& request) { request.expert_ids.data = nullptr; }, {"expert_ids.data is null"});
}

TEST_P(DispatcherErrors, StridesShorterThanARow) {
  expect_bad_request([](PrepareRequest& request) { request.expert_ids.stride = 1; }, {"expert_ids.stride is 1"});
  expect_bad_request([](PrepareRequest& request) { request.expert_ids.stride = -2; }, {"expert_ids.stride is -2"});
  expect_bad_request([](PrepareRequest& request) { request.weights.stride = 1; }, {"weights.stride is 1"});
}

// ---- Payload --------------------------------------------------------------------------------------------------------

TEST_P(DispatcherErrors, TokensOfAnotherNumber) {
  expect_bad_dispatch([](DispatchRequest& request) { --request.tokens.num_rows; },
                      {"tokens has 7 rows; 8 are expected"});
}

TEST_P(DispatcherErrors, TokensOfAnotherShapeOrType) {
  expect_bad_dispatch([](DispatchRequest& request) { request.tokens.hidden = 16; },
                      {"16 elements of bf16; 32 of bf16 are expected"});
  expect_bad_dispatch([](DispatchRequest& request) { request.tokens.dtype = DType::kFp16; },
                      {"32 elements of fp16; 32 of bf16 are expected"});
  expect_bad_dispatch([](DispatchRequest& request) { request.tokens.stride = 31; }, {"tokens.stride is 31"});
}

TEST_P(DispatcherErrors, NoRows) {
  expect_bad_dispatch([](DispatchRequest& request) { request.tokens.data = nullptr; }, {"tokens.data is null"});
}

TEST_P(DispatcherErrors, ScalesWhereThereAreNone) {
  expect_bad_dispatch([](DispatchRequest& request) { request.scales.data = request.tokens.data; },
                      {"scales.data is given", "0 bytes of scales"});
}

Scenario fp8_scenario() {
  Scenario scenario = small_scenario();
  scenario.config.input = DType::kFp8E4m3;
  return scenario;
}

TEST_P(DispatcherErrors, MissingScales) {
  expect_bad_dispatch([](DispatchRequest& request) { request.scales = {}; },
                      {"scales.data is null", "4 bytes of scales"}, fp8_scenario());
}

TEST_P(DispatcherErrors, ScalesOfAnotherShapeOrFormat) {
  expect_bad_dispatch([](DispatchRequest& request) { request.scales.num_columns = 2; },
                      {"scales are [8, 2]; [8, 1] are expected"}, fp8_scenario());
  expect_bad_dispatch([](DispatchRequest& request) { request.scales.num_rows = 5; },
                      {"scales are [5, 1]; [8, 1] are expected"}, fp8_scenario());
  expect_bad_dispatch([](DispatchRequest& request) { request.scales.format = ScaleFormat::kUe8m0; },
                      {"scales are ", "fp8"}, fp8_scenario());
  expect_bad_dispatch([](DispatchRequest& request) { request.scales.column_stride = -1; }, {"strides of", "-1"},
                      fp8_scenario());
}

TEST_P(DispatcherErrors, ScalesWhereTheDispatcherMakesThem) {
  Scenario scenario = small_scenario();
  scenario.config.wire = Fp8Blocks{};
  expect_bad_dispatch([](DispatchRequest& request) { request.scales.data = request.tokens.data; },
                      {"scales.data is given", "computes the scales itself"}, scenario);
  expect_bad_dispatch([](DispatchRequest& request) { request.tokens.dtype = DType::kFp8E4m3; },
                      {"32 elements of fp8", "32 of bf16 are expected"}, scenario);
}

TEST_P(DispatcherErrors, ScalesInBlocks) {
  expect_bad_dispatch([](DispatchRequest& request) { request.scales.rows_per_block = 4; },
                      {"scales.rows_per_block is 4"}, fp8_scenario());
}

// ---- What only a GPU has --------------------------------------------------------------------------------------------

TEST_P(DispatcherErrors, NumberOfSmsOnTheHost) {
  expect_bad_request([](PrepareRequest& request) { request.num_sms = 4; }, {"num_sms", "host"});
  expect_bad_dispatch([](DispatchRequest& request) { request.num_sms = 4; }, {"num_sms", "host"});
}

// ---- Handles --------------------------------------------------------------------------------------------------------

TEST_P(DispatcherErrors, HandleThatWasMovedFrom) {
  const auto outcomes = call([](const Caller& caller) {
    Handle handle = caller.prepare();
    Handle taken;
    if (caller.rank == kBadRank) taken = std::move(handle);
    (void)caller.subject.dispatcher().dispatch(caller.inputs.dispatch(handle));
  });
  expect_rejection(outcomes, ErrorCode::kHandleMismatch, {"handle is empty", "prepare"});
}

TEST_P(DispatcherErrors, HandleOfAnotherDispatcher) {
  const auto outcomes = call([&](const Caller& caller) {
    Dispatcher other(caller.group, GetParam(), caller.round.scenario().config);
    const Handle foreign = other.prepare(caller.inputs.prepare());
    const Handle handle = caller.prepare();
    const std::int64_t num_rows = handle.description().num_rows;
    RowsBuffer rows = caller.inputs.output_rows(num_rows, caller.round.values(3, caller.rank, num_rows));
    RowsBuffer out = caller.inputs.sums();
    caller.subject.dispatcher().combine(
        {.handle = caller.rank == kBadRank ? foreign : handle, .rows = rows.view(), .out = out.view()});
  });
  expect_rejection(outcomes, ErrorCode::kHandleMismatch, {"another dispatcher", GetParam()});
}

TEST_P(DispatcherErrors, EmptyHandleTellsNothing) {
  const Handle handle;
  const Received received;
  EXPECT_FALSE(handle.valid());
  EXPECT_FALSE(received.valid());
  EXPECT_FALSE(received.handle().valid());
  for (const auto& read : std::vector<std::function<void()>>{
           [&] { (void)handle.wait_stats(); }, [&] { (void)handle.try_stats(); }, [&] { (void)handle.description(); },
           [&] { (void)received.rows(); }, [&] { (void)received.scales(); }, [&] { (void)received.expert_outputs(); },
           [&] { (void)received.description(); }}) {
    const Outcome outcome = outcome_of(read);
    ASSERT_TRUE(outcome.has_value());
    EXPECT_EQ(outcome->code(), ErrorCode::kHandleMismatch);
  }
}

// ---- Allowed --------------------------------------------------------------------------------------------------------

TEST_P(DispatcherErrors, NanWeightsAreCarriedThrough) {
  const auto outcomes = call([](const Caller& caller) {
    const std::vector<float> weights(caller.round.table(caller.rank).weights.size(), NAN);
    PrepareRequest request = caller.inputs.prepare();
    request.weights = weights.data();
    const Handle handle = caller.subject.prepare(request);
    const RowDescription& description = handle.description();
    for (std::int64_t row = 0; row < description.num_rows; ++row) {
      for (int position = 0; position < 2; ++position) {
        const bool is_here = description.local_experts[row * 2 + position] >= 0;
        EXPECT_EQ(std::isnan(description.weights[row * 2 + position]), is_here);
      }
    }
    RowsBuffer rows = caller.inputs.output_rows(
        description.num_rows,
        std::vector<std::byte>(static_cast<std::size_t>(description.num_rows * caller.round.output_row_bytes())));
    RowsBuffer out = caller.inputs.sums();
    caller.subject.combine({.handle = handle, .rows = rows.view(), .out = out.view()});
    std::vector<std::byte> expected;
    for (std::int64_t idx = 0; idx < caller.num_tokens() * 32; ++idx) {
      expected.insert(expected.end(), {std::byte{0xc0}, std::byte{0x7f}});  // the canonical NaN of bf16
    }
    EXPECT_EQ(out.compact(), expected);
  });
  for (std::size_t rank = 0; rank < outcomes.by_rank.size(); ++rank) {
    EXPECT_FALSE(outcomes.by_rank[rank].has_value()) << outcomes.by_rank[rank]->what();
    EXPECT_FALSE(outcomes.afterwards[rank].has_value()) << *outcomes.afterwards[rank];
  }
}

// A number that stands in memory is not an argument: whatever it is, no more tokens than there are ids take part.
TEST_P(DispatcherErrors, CountedTokensThatAreNotThereAreLeftOut) {
  const auto outcomes = call([](const Caller& caller) {
    PrepareRequest request = caller.inputs.prepare();
    const std::int32_t too_many = 1'000'000;
    request.num_tokens = &too_many;
    const Handle all = caller.subject.prepare(request);
    const Mismatch mismatch = Checker(caller.round).check_description(caller.rank, all.description());
    EXPECT_FALSE(mismatch.has_value()) << *mismatch;
    EXPECT_EQ(all.wait_stats().num_tokens, caller.num_tokens());
    const std::int32_t negative = -1;
    request.num_tokens = &negative;
    const Handle none = caller.subject.prepare(request);
    EXPECT_EQ(none.wait_stats().num_tokens, 0);
    EXPECT_EQ(none.description().num_rows, 0);
  });
  for (std::size_t rank = 0; rank < outcomes.by_rank.size(); ++rank) {
    EXPECT_FALSE(outcomes.by_rank[rank].has_value()) << outcomes.by_rank[rank]->what();
    EXPECT_FALSE(outcomes.afterwards[rank].has_value()) << *outcomes.afterwards[rank];
  }
}

INSTANTIATE_TEST_SUITE_P(All, DispatcherErrors, ::testing::ValuesIn(dispatcher_names()),
                         [](const auto& param_info) { return param_info.param; });

}  // namespace
}  // namespace epistle::testing
