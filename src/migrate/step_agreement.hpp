// At which of the calls of advance() to switch, where steps take no barrier on the host: on GPUs kernels wait for each
// other, and the hosts run ahead of them, each as far as it likes. Nobody waits for it.
//
// Rank 0 proposes a call that lies ahead of what any rank has come to. A rank that meets the proposal before that call
// accepts it. The first rank that comes to that call resolves it for all: the switch is on if all have accepted. A rank
// that was beyond it already has not, so the proposal is off, and rank 0 makes another, further ahead.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "group/barrier.hpp"

namespace epistle::migrate {

/// A call of advance(), counted since the round began. Later proposals are greater.
class Proposal {
 public:
  static constexpr std::uint64_t kMaxStep = (std::uint64_t{1} << 28U) - 1;
  static constexpr std::uint64_t kMaxAttempt = (std::uint64_t{1} << 12U) - 1;
  static constexpr std::uint64_t kMaxRound = (std::uint64_t{1} << 23U) - 1;

  constexpr Proposal() = default;
  constexpr explicit Proposal(std::uint64_t word) noexcept : word_(word) {}
  constexpr Proposal(std::uint64_t round, std::uint64_t attempt, std::uint64_t step) noexcept
      : word_((round & kMaxRound) << 40U | attempt << 28U | step) {}

  [[nodiscard]] constexpr std::uint64_t word() const noexcept { return word_; }
  [[nodiscard]] constexpr std::uint64_t round() const noexcept { return word_ >> 40U; }
  [[nodiscard]] constexpr std::uint64_t attempt() const noexcept { return word_ >> 28U & kMaxAttempt; }
  [[nodiscard]] constexpr std::uint64_t step() const noexcept { return word_ & kMaxStep; }
  friend constexpr auto operator<=>(const Proposal&, const Proposal&) = default;

 private:
  std::uint64_t word_ = 0;  // none
};

/// In shared memory, one of each rank; what concerns all is in that of rank 0. Zero-filled is the initial state.
class StepWords {
 public:
  void pass(std::uint64_t step) noexcept { passed_.store(step, std::memory_order_release); }
  [[nodiscard]] std::uint64_t passed() const noexcept { return passed_.load(std::memory_order_acquire); }
  void accept(Proposal proposal) noexcept { accepted_.store(proposal.word(), std::memory_order_release); }
  [[nodiscard]] bool has_accepted(Proposal proposal) const noexcept {
    return accepted_.load(std::memory_order_acquire) == proposal.word();
  }

  // Of rank 0.

  void propose(Proposal proposal) noexcept { proposal_.store(proposal.word(), std::memory_order_release); }
  [[nodiscard]] Proposal proposal() const noexcept { return Proposal(proposal_.load(std::memory_order_acquire)); }

  /// It was resolved, and nobody switches there.
  [[nodiscard]] bool is_off(Proposal proposal) const noexcept {
    return outcome_.load(std::memory_order_acquire) == proposal.word();
  }
  /// The first that resolves a proposal does so for all: returns whether it is on.
  bool resolve(Proposal proposal, bool is_on) noexcept {
    std::uint64_t word = outcome_.load(std::memory_order_acquire);
    while (last_resolved(word) < proposal) {
      const std::uint64_t resolved = proposal.word() | (is_on ? kOn : 0);
      if (outcome_.compare_exchange_weak(word, resolved, std::memory_order_acq_rel)) return is_on;
    }
    const Proposal last = last_resolved(word);
    // Another attempt is made only where this one was off, another round begins only where it was on.
    return last == proposal ? (word & kOn) != 0 : last.round() > proposal.round();
  }

 private:
  static constexpr std::uint64_t kOn = std::uint64_t{1} << 63U;
  [[nodiscard]] static Proposal last_resolved(std::uint64_t word) noexcept { return Proposal(word & ~kOn); }

  alignas(kCacheLineBytes) std::atomic<std::uint64_t> proposal_;
  alignas(kCacheLineBytes) std::atomic<std::uint64_t> outcome_;
  alignas(kCacheLineBytes) std::atomic<std::uint64_t> passed_;
  std::atomic<std::uint64_t> accepted_;
};

/// One rank's side of it.
class StepAgreement {
 public:
  enum class Answer : std::int32_t { kGoOn, kSwitchHere };

  /// A round begins, at the same place on all ranks; this one has not reported its weights.
  void begin(std::uint64_t round, StepWords& own) noexcept {
    round_ = round & Proposal::kMaxRound;
    step_ = 0;
    accepted_ = {};
    own.pass(0);
  }

  /// Of rank 0, whenever all have the weights: proposes unless something is proposed already.
  /// `words_of(rank)` are those of a rank. Returns true where it has.
  template <typename WordsOf>
  bool propose(int num_ranks, const WordsOf& words_of) {
    StepWords& shared = words_of(0);
    const Proposal last = shared.proposal();
    const bool is_first = last.round() != round_;
    if (!is_first && (!shared.is_off(last) || last.attempt() == Proposal::kMaxAttempt)) return false;
    const std::uint64_t attempt = is_first ? 1 : last.attempt() + 1;
    std::uint64_t furthest = step_;
    for (int rank = 0; rank < num_ranks; ++rank) furthest = std::max(furthest, words_of(rank).passed());
    // Twice as far ahead each time, so that one is met in time however far hosts run ahead.
    const std::uint64_t margin = std::uint64_t{kFirstMargin} << std::min<std::uint64_t>(attempt - 1, kMaxDoublings);
    if (furthest + margin > Proposal::kMaxStep) return false;
    shared.propose({round_, attempt, furthest + margin});
    return true;
  }

  /// At every advance(), after propose(). `is_decided`: others have come to the switch of this round already.
  template <typename WordsOf>
  Answer pass(int rank, int num_ranks, bool is_decided, const WordsOf& words_of) {
    StepWords& shared = words_of(0);
    const Proposal proposal = shared.proposal();
    if (proposal.round() == round_ && proposal != accepted_) {
      if (step_ < proposal.step()) {
        accepted_ = proposal;
        words_of(rank).accept(proposal);
      } else {
        (void)shared.resolve(proposal, false);
      }
    }
    if (accepted_.round() != round_ || accepted_.step() != step_) return Answer::kGoOn;
    if (is_decided) return Answer::kSwitchHere;
    bool all = true;
    for (int other = 0; other < num_ranks; ++other) all = all && words_of(other).has_accepted(accepted_);
    return shared.resolve(accepted_, all) ? Answer::kSwitchHere : Answer::kGoOn;
  }

  /// Before all else in an advance().
  void count(StepWords& own) noexcept { own.pass(++step_); }

 private:
  static constexpr int kFirstMargin = 2;
  static constexpr std::uint64_t kMaxDoublings = 16;

  std::uint64_t round_ = 0;
  std::uint64_t step_ = 0;
  Proposal accepted_;
};

}  // namespace epistle::migrate
