#include "migrate/copier.hpp"

#include <algorithm>
#include <chrono>
#include <utility>

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

}  // namespace

void Copier::start(Rounds rounds, const CopyRules& rules, WeightMemory& memory, Callbacks callbacks) {
  stop();
  num_allowed_ = 1;
  is_stopping_ = false;
  bytes_copied_ = 0;
  Work work;
  work.rounds = std::move(rounds);
  work.rules = rules;
  work.memory = &memory;
  work.callbacks = std::move(callbacks);
  if (!rules.has_thread) {
    work_ = std::move(work);
    return;
  }
  thread_ = std::thread([this, work = std::move(work)]() mutable { run_to_the_end(work); });
}

void Copier::copy_some(std::int64_t max_bytes) {
  if (work_.rules.has_thread) return;
  std::int64_t left = max_bytes;
  while (!is_stopping_ && work_.round_idx < work_.rounds.size() &&
         work_.round_idx < num_allowed_.load(std::memory_order_acquire)) {
    if (work_.job_idx == work_.rounds[work_.round_idx].size()) {
      finish_round(work_);
      continue;
    }
    if (left == 0) return;
    left -= copy_chunk(work_, left);
  }
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

/// Of the job at hand; returns how much.
std::int64_t Copier::copy_chunk(Work& work, std::int64_t max_bytes) {
  const CopyJob& job = work.rounds[work.round_idx][work.job_idx];
  const std::int64_t chunk = std::min({work.rules.chunk_bytes, job.num_bytes - work.done, max_bytes});
  work.memory->copy(job.destination + work.done, job.source + work.done, static_cast<std::size_t>(chunk));
  work.done += chunk;
  if (work.done == job.num_bytes) {
    ++work.job_idx;
    work.done = 0;
  }
  bytes_copied_.fetch_add(chunk, std::memory_order_relaxed);
  if (std::exchange(work.is_first, false)) work.callbacks.on_first_chunk(work.round_idx);
  return chunk;
}

void Copier::finish_round(Work& work) const {
  if (std::exchange(work.is_first, true)) work.callbacks.on_first_chunk(work.round_idx);
  work.callbacks.on_copied(work.round_idx);
  ++work.round_idx;
  work.job_idx = 0;
}

void Copier::run_to_the_end(Work& work) noexcept {
  try {
    run(work);
  } catch (const Error& error) {
    work.callbacks.on_failure(work.round_idx, error);
  }
}

void Copier::run(Work& work) {
  work.memory->begin_thread();
  while (work.round_idx < work.rounds.size()) {
    if (!wait_for_round(work.round_idx)) return;
    work.memory->wait_for_free_places();
    Pace pace(work.rules.max_bytes_per_s);
    while (work.job_idx < work.rounds[work.round_idx].size()) {
      if (is_stopping_) return;
      pace.wait(copy_chunk(work, work.rules.chunk_bytes));
    }
    finish_round(work);
  }
}

}  // namespace epistle::migrate
