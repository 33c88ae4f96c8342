#include "migrate/copier.hpp"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <utility>

#include <sched.h>

namespace epistle::migrate {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::uint32_t kAllRounds = 0xffffffffU;

/// Keeps what was copied at or below a rate.
class Pace {
 public:
  explicit Pace(std::int64_t max_bytes_per_s) : max_bytes_per_s_(max_bytes_per_s), start_(Clock::now()) {}

  void wait(std::int64_t num_bytes) {
    if (max_bytes_per_s_ <= 0) return;
    sent_ += num_bytes;
    const double seconds = static_cast<double>(sent_) / static_cast<double>(max_bytes_per_s_);
    std::this_thread::sleep_until(start_ +
                                  std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds)));
  }

 private:
  std::int64_t max_bytes_per_s_;
  Clock::time_point start_;
  std::int64_t sent_ = 0;
};

void take_low_priority() noexcept {
  // Where the system refuses it, the thread runs as others do.
  const sched_param none{};
  (void)::sched_setscheduler(0, SCHED_IDLE, &none);
}

}  // namespace

void Copier::start(Rounds rounds, const CopyRules& rules, Callbacks callbacks) {
  stop();
  num_allowed_ = 1;
  is_stopping_ = false;
  bytes_copied_ = 0;
  thread_ = std::thread([this, rounds = std::move(rounds), rules, callbacks = std::move(callbacks)] {
    if (rules.low_priority) take_low_priority();
    run(rounds, rules, callbacks);
  });
}

void Copier::go_on() noexcept {
  if (is_stopping_) return;
  num_allowed_.fetch_add(1, std::memory_order_acq_rel);
  num_allowed_.notify_one();
}

void Copier::ask_to_stop() noexcept {
  is_stopping_ = true;
  // Wakes it where it waits for a round.
  num_allowed_.store(kAllRounds, std::memory_order_release);
  num_allowed_.notify_one();
}

void Copier::stop() noexcept {
  ask_to_stop();
  if (thread_.joinable()) thread_.join();
}

bool Copier::wait_for_round(std::size_t round_idx) const noexcept {
  std::uint32_t allowed = num_allowed_.load(std::memory_order_acquire);
  while (allowed <= round_idx) {
    num_allowed_.wait(allowed, std::memory_order_acquire);
    allowed = num_allowed_.load(std::memory_order_acquire);
  }
  return !is_stopping_;
}

void Copier::run(const Rounds& rounds, const CopyRules& rules, const Callbacks& callbacks) {
  for (std::size_t round_idx = 0; round_idx < rounds.size(); ++round_idx) {
    if (!wait_for_round(round_idx)) return;
    Pace pace(rules.max_bytes_per_s);
    bool is_first = true;
    for (const CopyJob& job : rounds[round_idx]) {
      for (std::int64_t done = 0; done < job.num_bytes;) {
        if (is_stopping_) return;
        const std::int64_t chunk = std::min(rules.chunk_bytes, job.num_bytes - done);
        std::memcpy(job.destination + done, job.source + done, static_cast<std::size_t>(chunk));
        done += chunk;
        bytes_copied_.fetch_add(chunk, std::memory_order_relaxed);
        if (std::exchange(is_first, false)) callbacks.on_first_chunk(round_idx);
        pace.wait(chunk);
      }
    }
    if (is_first) callbacks.on_first_chunk(round_idx);
    callbacks.on_copied(round_idx);
  }
}

}  // namespace epistle::migrate
