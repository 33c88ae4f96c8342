#include "dispatch/cuda/device/call_words.hpp"

#include <array>
#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "dispatch/cuda/engine/call_names.hpp"

namespace epistle::cuda {
namespace {

using Outcome = Verdict::Outcome;

constexpr std::uint32_t kEpoch = 0xfffffff0;
constexpr std::uint32_t kPrepared = 0x1234567;

std::uint64_t word(DeviceCall call, std::uint32_t prepared = kPrepared) { return call_word(kEpoch, call, prepared); }

std::vector<DeviceCall> all_calls() {
  std::vector<DeviceCall> calls;
  for (std::uint32_t call = 1; call < static_cast<std::uint32_t>(DeviceCall::kNumCalls); ++call) {
    calls.push_back(static_cast<DeviceCall>(call));
  }
  return calls;
}

Outcome outcome(const std::vector<std::uint64_t>& words, int own) {
  return judge(words.data(), static_cast<int>(words.size()), own).outcome;
}

TEST(CallWords, KeepTheirParts) {
  for (const DeviceCall call : all_calls()) {
    for (const std::uint64_t bit : {std::uint64_t{0}, kCopiesBit}) {
      const std::uint64_t made = word(call) | bit;
      EXPECT_EQ(epoch_of(made), kEpoch);
      EXPECT_EQ(call_of(made), call);
      EXPECT_EQ(handle_of(made), kPrepared & 0xffffffU);
      EXPECT_EQ(copies(made), bit != 0);
      EXPECT_EQ(rejects(made), call == DeviceCall::kRejected);
    }
  }
}

TEST(CallWords, EveryPairOfCalls) {
  for (const DeviceCall a : all_calls()) {
    for (const DeviceCall b : all_calls()) {
      const std::vector<std::uint64_t> words = {word(a), word(b)};
      const bool refused = a == DeviceCall::kRejected || b == DeviceCall::kRejected;
      const auto is_backward = [](DeviceCall call) {
        return call == DeviceCall::kDispatchBackward || call == DeviceCall::kDispatchBackwardWithWeights ||
               call == DeviceCall::kDispatchBackwardAnyWeights;
      };
      const bool any = a == DeviceCall::kDispatchBackwardAnyWeights || b == DeviceCall::kDispatchBackwardAnyWeights;
      const Outcome expected = refused                                               ? Outcome::kRejected
                               : a == b || (any && is_backward(a) && is_backward(b)) ? Outcome::kAgreed
                                                                                     : Outcome::kMismatch;
      EXPECT_EQ(outcome(words, 0), expected) << name_of(a) << " and " << name_of(b);
      EXPECT_EQ(outcome(words, 1), expected) << name_of(a) << " and " << name_of(b);
    }
  }
}

TEST(CallWords, TheOutcomeIsTheSameForAll) {
  // All groups of four ranks.
  const std::vector<DeviceCall> calls = all_calls();
  std::array<std::size_t, 4> pick{};
  while (true) {
    std::vector<std::uint64_t> words;
    for (const std::size_t idx : pick) words.push_back(word(calls[idx]));
    const Verdict first = judge(words.data(), 4, 0);
    for (int own = 1; own < 4; ++own) {
      const Verdict verdict = judge(words.data(), 4, own);
      ASSERT_EQ(verdict.outcome, first.outcome);
      if (first.outcome == Outcome::kRejected) {
        ASSERT_EQ(verdict.peer, first.peer);
      } else if (first.outcome == Outcome::kMismatch) {
        ASSERT_FALSE(same_call(verdict.word, verdict.peer_word));
        ASSERT_EQ(words[static_cast<std::size_t>(verdict.rank)], verdict.word);
        ASSERT_EQ(words[static_cast<std::size_t>(verdict.peer)], verdict.peer_word);
      }
    }
    std::size_t at = 0;
    while (at < pick.size() && ++pick[at] == calls.size()) pick[at++] = 0;
    if (at == pick.size()) return;
  }
}

TEST(CallWords, HandlesMustBeOfTheSamePrepare) {
  const std::vector<std::uint64_t> words = {word(DeviceCall::kCombine, 7), word(DeviceCall::kCombine, 8)};
  const Verdict verdict = judge(words.data(), 2, 1);
  EXPECT_EQ(verdict.outcome, Outcome::kMismatch);
  const Error error = to_error(verdict, 1, Phase::kCombine);
  EXPECT_EQ(error.code(), ErrorCode::kShapeMismatch);
  EXPECT_EQ(error.context().peer_rank, 0);
  EXPECT_NE(std::string(error.what()).find("rank 1 calls combine (handle 8), rank 0 calls combine (handle 7)"),
            std::string::npos)
      << error.what();
}

TEST(CallWords, HowRowsTravelMayDiffer) {
  const std::vector<std::uint64_t> words = {word(DeviceCall::kDispatch), word(DeviceCall::kDispatch) | kCopiesBit};
  EXPECT_EQ(outcome(words, 0), Outcome::kAgreed);
  EXPECT_EQ(outcome(words, 1), Outcome::kAgreed);
}

TEST(CallWords, WhoGoesWithBothSeesThatTheOthersDiffer) {
  const std::vector<std::uint64_t> words = {word(DeviceCall::kDispatchBackwardAnyWeights),
                                            word(DeviceCall::kDispatchBackward),
                                            word(DeviceCall::kDispatchBackwardWithWeights)};
  const Verdict verdict = judge(words.data(), 3, 0);
  EXPECT_EQ(verdict.outcome, Outcome::kMismatch);
  EXPECT_EQ(verdict.rank, 1);
  EXPECT_EQ(verdict.peer, 2);
}

TEST(CallNames, AreDifferent) {
  std::set<std::string_view> names;
  for (const DeviceCall call : all_calls()) names.insert(name_of(call));
  EXPECT_EQ(names.size(), all_calls().size());
  EXPECT_EQ(name_of(static_cast<DeviceCall>(127)), "an unknown call");
}

}  // namespace
}  // namespace epistle::cuda
