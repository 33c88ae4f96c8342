// A split barrier in shared memory: arrive, do something else, wait. Waiting ranks spin briefly and then sleep on a
// futex, so that more ranks than cores work well. Ranks say something as they arrive, and the barrier tells whether all
// have said the same: that costs no cache line more than the barrier itself does.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "group/rank_mask.hpp"

namespace epistle {

inline constexpr std::size_t kCacheLineBytes = 64;

struct alignas(kCacheLineBytes) PaddedCounter {
  std::atomic<std::uint32_t> value;
};
static_assert(std::atomic<std::uint32_t>::is_always_lock_free, "counters are shared between processes");

/// What a rank says as it arrives; 0 = nothing that others could be compared with.
using ArrivalWord = std::uint64_t;
inline constexpr int kArrivalWordBits = 52;

/// What a rank has said of itself.
struct alignas(kCacheLineBytes) Arrival {
  std::atomic<std::uint32_t> value;  ///< the last generation that it has arrived in
  std::array<std::atomic<ArrivalWord>, 2>
      words;  ///< where ranks look at each other: of that and the one before, in turn
};

/// How ranks find out that all have arrived.
enum class BarrierKind : std::int32_t {
  kAtCounter,   ///< all count in one place, and the last one opens the way: few lines, however many ranks
  kAtArrivals,  ///< every rank looks at what each other one says of itself: a line crosses once for each of them, while
                ///< a counter is fetched, and then what it leads to
};

/// Lies in zero-initialised shared memory; followed there by one Arrival per rank.
struct BarrierBlock {
  /// Ranks that arrived in the current generation, above what all of them have said; 0 there once two differ.
  struct alignas(kCacheLineBytes) Arrived {
    std::atomic<std::uint64_t> value;
  };
  struct alignas(kCacheLineBytes) Generation {
    std::atomic<std::uint32_t> value;      ///< completed generations; ranks sleep on it
    std::atomic<std::uint32_t> unanimous;  ///< equals `value` where all said the same in the last one
  };
  static_assert(std::atomic<std::uint64_t>::is_always_lock_free, "counters are shared between processes");

  Arrived arrived;
  Generation generation;
  PaddedCounter num_sleepers;  ///< ranks that sleep or are about to
  PaddedCounter num_events;    ///< ranks that look at arrivals sleep on it: goes on where one is to wake

  [[nodiscard]] Arrival* arrivals() noexcept { return reinterpret_cast<Arrival*>(this + 1); }

  [[nodiscard]] static constexpr std::int64_t bytes(int num_ranks) noexcept {
    return static_cast<std::int64_t>(sizeof(BarrierBlock)) + static_cast<std::int64_t>(sizeof(Arrival)) * num_ranks;
  }
};

/// Sleeps until `*word` is no longer `expected`, a wake-up, or `max_wait_us`; may return early.
void futex_wait(const std::atomic<std::uint32_t>& word, std::uint32_t expected, std::int64_t max_wait_us) noexcept;
void futex_wake_all(std::atomic<std::uint32_t>& word) noexcept;

/// Tells the processor that this is a spin loop.
inline void spin_pause() noexcept {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

/// Which generation of a barrier a rank has arrived in.
using Ticket = std::uint32_t;

/// One rank's end of a barrier. Ranks pass it in the same order; a rank waits before it arrives again.
///
/// Once ranks have been left out (restart), everybody looks at the arrivals of all others (BarrierKind::kAtArrivals): a
/// rank that was left out in the middle of something may still count itself whenever it wakes, and nobody may be
/// misled.
class Barrier {
 public:
  Barrier() = default;
  /// `kind` is the same for all ranks.
  Barrier(BarrierBlock* block, int rank, int num_ranks, BarrierKind kind = BarrierKind::kAtCounter) noexcept
      : block_(block), rank_(rank), num_ranks_(num_ranks), kind_(kind) {}

  /// The generation that the next arrive() is of.
  [[nodiscard]] Ticket next_ticket() const noexcept { return awaited_ + 1; }

  /// Everything this rank wrote before is visible to every rank whose wait for this generation has returned. `word` is
  /// below 2^kArrivalWordBits.
  Ticket arrive(ArrivalWord word = 0) noexcept;

  /// Whether all ranks said the same, and something, in the generation of `ticket`. Known from when it has passed until
  /// this rank arrives again; false later.
  [[nodiscard]] bool was_unanimous(Ticket ticket) const noexcept {
    if (mask_ != nullptr) return false;
    if (kind_ == BarrierKind::kAtArrivals) return ticket == awaited_ && words_agree(ticket);
    // Written before the generation that passed() has acquired; and no later one ends without this rank.
    return block_->generation.unanimous.load(std::memory_order_relaxed) == ticket;
  }

  /// From here on only ranks that are not in `mask`, which outlives the barrier, are waited for, and the generation
  /// that was last passed counts as `passed`, which no member's was above. All members do so alike.
  void restart(const RankMask* mask, Ticket passed) noexcept {
    mask_ = mask;
    kind_ = BarrierKind::kAtArrivals;
    awaited_ = passed;
    restarted_behind_ = passed;
  }

  /// True when all ranks have arrived in the generation of `ticket`.
  [[nodiscard]] bool passed(Ticket ticket) const noexcept {
    if (kind_ == BarrierKind::kAtArrivals) return is_over(ticket) || members_have_arrived(ticket);
    // pairs with the release of the last arrival in arrive()
    const std::uint32_t generation = block_->generation.value.load(std::memory_order_acquire);
    return static_cast<std::int32_t>(generation - ticket) >= 0;
  }

  /// True when `rank` has arrived in the generation of `ticket`, or in a later one.
  [[nodiscard]] bool has_arrived(int rank, Ticket ticket) const noexcept {
    // seq_cst: pairs with sleep(), where an arrival is looked for once more behind the number of sleepers
    const std::uint32_t seen = block_->arrivals()[rank].value.load(std::memory_order_seq_cst);
    return static_cast<std::int32_t>(seen - ticket) >= 0;
  }

  /// Spins until the generation of `ticket` is complete, or for a moment: some microseconds, without reading a clock.
  void spin(Ticket ticket) const noexcept;
  /// Sleeps until the generation of `ticket` is complete or `max_wait_us` is over.
  void sleep(Ticket ticket, std::int64_t max_wait_us) noexcept;

 private:
  /// Of a generation from before the last restart: some members may never have arrived in it.
  [[nodiscard]] bool is_over(Ticket ticket) const noexcept {
    return static_cast<std::int32_t>(restarted_behind_ - ticket) >= 0;
  }
  [[nodiscard]] bool members_have_arrived(Ticket ticket) const noexcept;
  [[nodiscard]] bool words_agree(Ticket ticket) const noexcept;
  void count_arrival(ArrivalWord word) noexcept;
  void tell_of_arrival(ArrivalWord word) noexcept;

  BarrierBlock* block_ = nullptr;
  int rank_ = 0;
  int num_ranks_ = 1;
  BarrierKind kind_ = BarrierKind::kAtCounter;
  Ticket awaited_ = 0;
  const RankMask* mask_ = nullptr;  ///< null until ranks have been left out
  Ticket restarted_behind_ = 0;     ///< since then
};

}  // namespace epistle
