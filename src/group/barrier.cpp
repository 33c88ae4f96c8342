#include "group/barrier.hpp"

#include <climits>
#include <ctime>

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace epistle {

namespace {
constexpr std::int64_t kMicrosPerSecond = 1'000'000;
constexpr std::int64_t kNanosPerMicro = 1'000;

constexpr Ticket kFarBehind = Ticket{1} << 30;

constexpr std::uint64_t kOneArrival = std::uint64_t{1} << kArrivalWordBits;

/// `arrived` with one more rank, which says `word`.
std::uint64_t with_arrival(std::uint64_t arrived, ArrivalWord word) noexcept {
  const std::uint64_t num_arrived = arrived / kOneArrival;
  const bool agrees = num_arrived == 0 || arrived % kOneArrival == word;
  return (num_arrived + 1) * kOneArrival + (agrees ? word : 0);
}
}  // namespace

// The futexes are not "private": ranks may be processes.
void futex_wait(const std::atomic<std::uint32_t>& word, std::uint32_t expected, std::int64_t max_wait_us) noexcept {
  timespec timeout{};
  timeout.tv_sec = static_cast<std::time_t>(max_wait_us / kMicrosPerSecond);
  timeout.tv_nsec = static_cast<long>(max_wait_us % kMicrosPerSecond * kNanosPerMicro);
  ::syscall(SYS_futex, &word, FUTEX_WAIT, expected, &timeout, nullptr, 0);
}

void futex_wake_all(std::atomic<std::uint32_t>& word) noexcept {
  ::syscall(SYS_futex, &word, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

Ticket Barrier::arrive(ArrivalWord word) noexcept {
  ++awaited_;
  if (kind_ == BarrierKind::kAtArrivals) {
    // Generations go round: what is over has to stay behind.
    if (awaited_ - restarted_behind_ > kFarBehind) restarted_behind_ = awaited_ - kFarBehind;
    tell_of_arrival(word);
    return awaited_;
  }
  count_arrival(word);
  // For diagnosis only (has_arrived); the order of data is carried by arrived and generation. Stored last: a rank that
  // dies anywhere above is seen as missing, and a barrier that all ranks have marked has passed.
  block_->arrivals()[rank_].value.store(awaited_, std::memory_order_release);
  return awaited_;
}

void Barrier::count_arrival(ArrivalWord word) noexcept {
  // Guessed rather than read, so that the line comes here once, to be written. acq_rel: the last arrival gathers what
  // all others released here, and hands it on through `generation`.
  std::uint64_t before = 0;
  while (!block_->arrived.value.compare_exchange_weak(before, with_arrival(before, word), std::memory_order_acq_rel,
                                                      std::memory_order_relaxed)) {
  }
  const std::uint64_t arrived = with_arrival(before, word);
  if (arrived / kOneArrival == static_cast<std::uint64_t>(num_ranks_)) {
    // Nobody arrives again before the generation moves on, so this can be reset first.
    block_->arrived.value.store(0, std::memory_order_relaxed);
    const bool unanimous = arrived % kOneArrival != 0;
    block_->generation.unanimous.store(unanimous ? awaited_ : awaited_ - 1, std::memory_order_relaxed);
    // seq_cst: pairs with sleep(), where the number of sleepers is raised before the generation is read again. One of
    // the two sides sees the other, so no sleeper is missed.
    block_->generation.value.fetch_add(1, std::memory_order_seq_cst);
    if (block_->num_sleepers.value.load(std::memory_order_seq_cst) != 0) futex_wake_all(block_->generation.value);
  }
}

void Barrier::tell_of_arrival(ArrivalWord word) noexcept {
  Arrival& own = block_->arrivals()[rank_];
  // That of two generations ago: all have arrived since, hence have looked at it.
  own.words[awaited_ & 1].store(word, std::memory_order_relaxed);
  // seq_cst: of two ranks that arrive last, one at least sees that all have; and pairs with sleep(), as in
  // count_arrival()
  own.value.store(awaited_, std::memory_order_seq_cst);
  if (block_->num_sleepers.value.load(std::memory_order_seq_cst) == 0 || !members_have_arrived(awaited_)) return;
  block_->num_events.value.fetch_add(1, std::memory_order_seq_cst);
  futex_wake_all(block_->num_events.value);
}

bool Barrier::members_have_arrived(Ticket ticket) const noexcept {
  for (int peer = 0; peer < num_ranks_; ++peer) {
    // pairs with the store in tell_of_arrival()
    if ((mask_ == nullptr || !mask_->has(peer)) && !has_arrived(peer, ticket)) return false;
  }
  return true;
}

bool Barrier::words_agree(Ticket ticket) const noexcept {
  const Arrival* arrivals = block_->arrivals();
  const ArrivalWord first = arrivals[0].words[ticket & 1].load(std::memory_order_relaxed);
  bool agrees = first != 0;
  for (int peer = 1; peer < num_ranks_; ++peer) {
    agrees = agrees && arrivals[peer].words[ticket & 1].load(std::memory_order_relaxed) == first;
  }
  return agrees;
}

void Barrier::spin(Ticket ticket) const noexcept {
  constexpr int kMaxPauses = 64;
  for (int pause = 0; pause < kMaxPauses && !passed(ticket); ++pause) spin_pause();
}

void Barrier::sleep(Ticket ticket, std::int64_t max_wait_us) noexcept {
  block_->num_sleepers.value.fetch_add(1, std::memory_order_seq_cst);
  const std::atomic<std::uint32_t>& word =
      kind_ == BarrierKind::kAtArrivals ? block_->num_events.value : block_->generation.value;
  const std::uint32_t seen = word.load(std::memory_order_seq_cst);
  if (!passed(ticket)) futex_wait(word, seen, max_wait_us);
  block_->num_sleepers.value.fetch_sub(1, std::memory_order_relaxed);
}

}  // namespace epistle
