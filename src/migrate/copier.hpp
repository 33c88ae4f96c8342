// Copies weights in bounded chunks: a thread in the background, which is there while a migration runs, or whoever calls
// copy_some() between two steps.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

#include "epistle/error.hpp"

#include "migrate/weight_memory.hpp"

namespace epistle::migrate {

struct CopyRules {
  std::int64_t chunk_bytes = 0;
  std::int64_t max_bytes_per_s = 0;  ///< 0 = no limit
  bool has_thread = true;            ///< otherwise copy_some() does it
};

struct CopyJob {
  const std::byte* source = nullptr;
  std::byte* destination = nullptr;
  std::int64_t num_bytes = 0;
};

class Copier {
 public:
  using Rounds = std::vector<std::vector<CopyJob>>;
  struct Callbacks {
    std::function<void(std::size_t round_idx)> on_first_chunk;  ///< or where none is to come
    std::function<void(std::size_t round_idx)> on_copied;
    std::function<void(std::size_t round_idx, const Error& error)> on_failure;  ///< of a copy, which is the last one
  };

  Copier() = default;
  ~Copier() { stop(); }
  Copier(const Copier&) = delete;
  Copier& operator=(const Copier&) = delete;

  /// Begins with the first round, once what went before has stopped. `memory` outlives the copier.
  void start(Rounds rounds, const CopyRules& rules, WeightMemory& memory, Callbacks callbacks);
  /// Without a thread: copies at most `max_bytes` of the round that is allowed, and returns.
  void copy_some(std::int64_t max_bytes);
  /// The next round may be copied. Does not wait.
  void go_on() noexcept;
  /// Copying ends after the chunk at hand. Does not wait.
  void ask_to_stop() noexcept;
  /// The same, and waits for it.
  void stop() noexcept;

  [[nodiscard]] std::int64_t bytes_copied() const noexcept { return bytes_copied_.load(std::memory_order_relaxed); }

 private:
  /// What is to be copied, and how far it is.
  struct Work {
    Rounds rounds;
    CopyRules rules;
    WeightMemory* memory = nullptr;
    Callbacks callbacks;
    std::size_t round_idx = 0;
    std::size_t job_idx = 0;
    std::int64_t done = 0;  ///< of the job
    bool is_first = true;   ///< no chunk of the round has been copied
  };
  void run(Work& work);
  void run_to_the_end(Work& work) noexcept;
  [[nodiscard]] std::int64_t copy_chunk(Work& work, std::int64_t max_bytes);
  void finish_round(Work& work) const;
  [[nodiscard]] bool wait_for_round(std::size_t round_idx) const noexcept;

  // No lock: the thread, of low priority, could be made to wait while it holds one that a step needs.
  std::atomic<std::uint32_t> num_allowed_{0};  // rounds
  std::atomic<bool> is_stopping_{false};
  std::atomic<std::int64_t> bytes_copied_{0};
  std::thread thread_;
  Work work_;  // without a thread
};

}  // namespace epistle::migrate
