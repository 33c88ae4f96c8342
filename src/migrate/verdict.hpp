// What the ranks of a migration say to each other, in shared memory. It lies at the beginning of every rank's piece;
// what concerns all ranks is in that of rank 0.
#pragma once

#include <atomic>
#include <cstdint>
#include <optional>

#include "group/barrier.hpp"
#include "migrate/step_agreement.hpp"

namespace epistle::migrate {

/// Rounds are numbered from 1 in the life of a store.
using RoundNumber = std::uint32_t;

enum class Verdict : std::int32_t {
  kOpen,
  kSwitch,  ///< the placement of the round comes into force on all ranks
  kStay,    ///< on none
};

/// Zero-filled is the initial state.
class Control {
 public:
  /// This rank has all weights of the rounds up to `round`.
  void report(RoundNumber round) noexcept { copied_.store(round, std::memory_order_release); }
  [[nodiscard]] bool has_copied(RoundNumber round) const noexcept {
    // pairs with report(): who switches sees the weights
    return copied_.load(std::memory_order_acquire) >= round;
  }

  // Of rank 0.

  /// Ranks shall switch between two steps as soon as the next of their collective steps is `ticket` or a later one.
  void announce(RoundNumber round, Ticket ticket) noexcept {
    announced_.store(std::uint64_t{round} << 32U | ticket, std::memory_order_release);
  }
  [[nodiscard]] std::optional<Ticket> announced(RoundNumber round) const noexcept {
    const std::uint64_t word = announced_.load(std::memory_order_acquire);
    if (word >> 32U != round) return std::nullopt;
    return static_cast<Ticket>(word);
  }

  /// For ranks that count their steps: see StepAgreement.
  [[nodiscard]] StepWords& steps() noexcept { return steps_; }

  [[nodiscard]] Verdict verdict(RoundNumber round) const noexcept {
    return verdict_in(verdict_.load(std::memory_order_acquire), round);
  }

  /// The first that decides on a round decides for all: returns what is decided.
  Verdict decide(RoundNumber round, Verdict wanted) noexcept {
    const std::uint64_t decided = std::uint64_t{round} << 1U | (wanted == Verdict::kSwitch ? 1U : 0U);
    std::uint64_t word = verdict_.load(std::memory_order_acquire);
    while (verdict_in(word, round) == Verdict::kOpen) {
      if (verdict_.compare_exchange_weak(word, decided, std::memory_order_acq_rel)) return wanted;
    }
    return verdict_in(word, round);
  }

 private:
  [[nodiscard]] static Verdict verdict_in(std::uint64_t word, RoundNumber round) noexcept {
    const std::uint64_t last = word >> 1U;
    if (last < round) return Verdict::kOpen;
    // A later round is decided on only where this one was switched to.
    if (last > round) return Verdict::kSwitch;
    return (word & 1U) != 0 ? Verdict::kSwitch : Verdict::kStay;
  }

  alignas(kCacheLineBytes) std::atomic<std::uint64_t> announced_;  // round, ticket
  alignas(kCacheLineBytes) std::atomic<std::uint64_t> verdict_;    // round, whether it was switched to
  alignas(kCacheLineBytes) std::atomic<RoundNumber> copied_;
  StepWords steps_;
};
static_assert(std::atomic<std::uint64_t>::is_always_lock_free, "words are shared between processes");

}  // namespace epistle::migrate
