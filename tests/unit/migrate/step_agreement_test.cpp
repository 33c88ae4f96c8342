// Ranks that count their steps: whatever order they take them in, all switch at the same one.
#include "migrate/step_agreement.hpp"

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include <gtest/gtest.h>

#include "routing/philox.hpp"

namespace epistle::migrate {
namespace {

constexpr int kAgreeingRanks = 4;

struct AgreeingRank {
  StepAgreement agreement;
  std::int64_t step = 0;
  std::vector<std::int64_t> switched_at;
};

/// Plays ranks of which a random one takes the next step, never more than `most_ahead` ahead of the last.
class Play {
 public:
  explicit Play(std::uint64_t seed, std::int64_t most_ahead) : stream_(seed, RandomAddress{}), most_ahead_(most_ahead) {
    for (int rank = 0; rank < kAgreeingRanks; ++rank) ranks_[at(rank)].agreement.begin(1, words_[at(rank)]);
  }

  void run(std::size_t num_rounds) {
    for (int turn = 0; turn < 200'000 && !all_have(num_rounds); ++turn) {
      const int rank = next_rank();
      if (ranks_[at(rank)].switched_at.size() < num_rounds) take_step(rank);
    }
    for (const AgreeingRank& rank : ranks_) {
      ASSERT_EQ(rank.switched_at.size(), num_rounds);
      EXPECT_EQ(rank.switched_at, ranks_[0].switched_at);
    }
  }

 private:
  static std::size_t at(int rank) { return static_cast<std::size_t>(rank); }
  [[nodiscard]] bool all_have(std::size_t num_rounds) const {
    for (const AgreeingRank& rank : ranks_) {
      if (rank.switched_at.size() < num_rounds) return false;
    }
    return true;
  }
  /// One rank for a while: that is how hosts run ahead.
  [[nodiscard]] int next_rank() {
    if (stream_.below(8) == 0) favourite_ = static_cast<int>(stream_.below(kAgreeingRanks));
    std::int64_t last = ranks_[0].step;
    int last_rank = 0;
    for (int rank = 1; rank < kAgreeingRanks; ++rank) {
      if (ranks_[at(rank)].step >= last) continue;
      last = ranks_[at(rank)].step;
      last_rank = rank;
    }
    return ranks_[at(favourite_)].step - last > most_ahead_ ? last_rank : favourite_;
  }
  void take_step(int number) {
    const auto words = [this](int rank) -> StepWords& { return words_[at(rank)]; };
    AgreeingRank& rank = ranks_[at(number)];
    const std::uint64_t round = rank.switched_at.size() + 1;
    ++rank.step;
    rank.agreement.count(words_[at(number)]);
    // Weights of a round are there only when all have begun it.
    bool all_there = true;
    for (const AgreeingRank& other : ranks_) all_there = all_there && other.switched_at.size() + 1 >= round;
    if (number == 0 && all_there) (void)rank.agreement.propose(kAgreeingRanks, words);
    const bool is_decided = num_decided_ >= round;
    if (rank.agreement.pass(number, kAgreeingRanks, is_decided, words) != StepAgreement::Answer::kSwitchHere) return;
    num_decided_ = std::max(num_decided_, round);
    rank.switched_at.push_back(rank.step);
    rank.agreement.begin(round + 1, words_[at(number)]);
  }

  PhiloxStream stream_;
  std::int64_t most_ahead_;
  int favourite_ = 0;
  std::uint64_t num_decided_ = 0;
  std::array<StepWords, kAgreeingRanks> words_{};
  std::array<AgreeingRank, kAgreeingRanks> ranks_{};
};

TEST(StepAgreement, AllRanksSwitchAtTheSameStepsInWhateverOrderTheyTakeThem) {
  for (std::uint64_t seed = 0; seed < 300; ++seed) {
    SCOPED_TRACE(seed);
    Play play(seed, static_cast<std::int64_t>(seed % 4 == 0 ? 1000 : seed % 40));
    play.run(3);
    if (::testing::Test::HasFatalFailure()) return;
  }
}

TEST(StepAgreement, ProposalThatARankWasBeyondIsOff) {
  std::array<StepWords, 2> words{};
  const auto words_of = [&](int rank) -> StepWords& { return words[static_cast<std::size_t>(rank)]; };
  StepAgreement first;
  StepAgreement second;
  first.begin(1, words[0]);
  second.begin(1, words[1]);
  first.count(words[0]);
  ASSERT_TRUE(first.propose(2, words_of));
  const Proposal proposal = words[0].proposal();
  // The second rank comes by only after the step that was proposed.
  for (std::uint64_t step = 0; step < proposal.step(); ++step) second.count(words[1]);
  second.count(words[1]);
  EXPECT_EQ(second.pass(1, 2, false, words_of), StepAgreement::Answer::kGoOn);
  EXPECT_EQ(first.pass(0, 2, false, words_of), StepAgreement::Answer::kGoOn);
  while (true) {
    first.count(words[0]);
    EXPECT_EQ(first.pass(0, 2, false, words_of), StepAgreement::Answer::kGoOn);
    if (words[0].is_off(proposal)) break;
  }
  EXPECT_TRUE(first.propose(2, words_of));
  EXPECT_GT(words[0].proposal().step(), proposal.step() + 1);
}

}  // namespace
}  // namespace epistle::migrate
