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

std::uint64_t word(DeviceCall call, std::uint32_t prepared = kPrepared, std::int32_t buffer = 0) {
  return call_word(kEpoch, call, prepared, buffer);
}

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
      for (const std::uint32_t prepared : {0U, kPrepared, 0xffffffffU}) {
        for (std::int32_t buffer = 0; buffer < kMaxBuffers; ++buffer) {
          const std::uint64_t made = word(call, prepared, buffer) | bit;
          EXPECT_EQ(epoch_of(made), kEpoch);
          EXPECT_EQ(call_of(made), call);
          EXPECT_EQ(handle_of(made), prepared & 0x1fffffU);
          EXPECT_EQ(buffer_of(made), buffer);
          EXPECT_EQ(copies(made), bit != 0);
          EXPECT_EQ(rejects(made), call == DeviceCall::kRejected);
        }
      }
    }
  }
}

TEST(CallWords, PartsDoNotOverlap) {
  EXPECT_EQ(kHandleMask & kBufferMask, 0U);
  EXPECT_EQ(kChoiceMask, kBufferMask | kCopiesBit);
  EXPECT_EQ(word(DeviceCall::kNone, 0) >> 32, kEpoch);
  EXPECT_EQ(word(DeviceCall::kNone, 0xffffffff) & ~kHandleMask, std::uint64_t{kEpoch} << 32);
  EXPECT_EQ(word(DeviceCall::kNone, 0, kMaxBuffers - 1) & ~kBufferMask, std::uint64_t{kEpoch} << 32);
  // A buffer that does not exist spoils nothing else.
  EXPECT_EQ(call_of(word(DeviceCall::kCombine, 0, kMaxBuffers)), DeviceCall::kCombine);
  EXPECT_EQ(call_of(word(DeviceCall::kCombine, 0, -1)), DeviceCall::kCombine);
  EXPECT_EQ(epoch_of(word(DeviceCall::kCombine, 0, -1)), kEpoch);
  EXPECT_FALSE(copies(word(DeviceCall::kCombine, 0, -1)));
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

TEST(CallWords, EveryRankChoosesItsBuffer) {
  for (const DeviceCall call : all_calls()) {
    if (call == DeviceCall::kRejected) continue;
    std::vector<std::uint64_t> words;
    for (std::int32_t buffer = 0; buffer < kMaxBuffers; ++buffer) words.push_back(word(call, kPrepared, buffer));
    words.push_back(word(call, kPrepared, 3) | kCopiesBit);
    for (const std::uint64_t a : words) {
      for (const std::uint64_t b : words) {
        EXPECT_TRUE(same_but_choices(a, b));
        EXPECT_TRUE(same_call(a, b));
      }
    }
    for (int own = 0; own < static_cast<int>(words.size()); ++own) {
      EXPECT_EQ(outcome(words, own), Outcome::kAgreed) << name_of(call);
    }
  }
}

TEST(CallWords, BuffersHideNoDifference) {
  for (std::int32_t buffer = 0; buffer < kMaxBuffers; ++buffer) {
    const std::uint64_t combine = word(DeviceCall::kCombine, kPrepared, buffer);
    for (const std::uint64_t other :
         {word(DeviceCall::kDispatch, kPrepared, 1), word(DeviceCall::kCombine, kPrepared + 1, 1),
          call_word(kEpoch + 1, DeviceCall::kCombine, kPrepared, 1)}) {
      EXPECT_FALSE(same_but_choices(combine, other));
      EXPECT_FALSE(same_call(combine, other));
      EXPECT_EQ(outcome({combine, other}, 0), Outcome::kMismatch);
      EXPECT_EQ(outcome({combine, other}, 1), Outcome::kMismatch);
    }
    const std::uint64_t refusal = word(DeviceCall::kRejected, 0);
    EXPECT_EQ(outcome({combine, refusal}, 0), Outcome::kRejected);
  }
}

TEST(CallWords, AnyWeightsGoWithOtherBuffers) {
  const std::vector<std::uint64_t> words = {word(DeviceCall::kDispatchBackwardAnyWeights, kPrepared, 1),
                                            word(DeviceCall::kDispatchBackwardWithWeights, kPrepared, 2),
                                            word(DeviceCall::kDispatchBackwardWithWeights, kPrepared, 0)};
  EXPECT_FALSE(same_but_choices(words[0], words[1]));
  for (int own = 0; own < 3; ++own) EXPECT_EQ(outcome(words, own), Outcome::kAgreed);
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
