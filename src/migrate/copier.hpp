// The thread that copies weights in the background, in bounded chunks. It is there while a migration runs.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

namespace epistle::migrate {

struct CopyRules {
  std::int64_t chunk_bytes = 0;
  std::int64_t max_bytes_per_s = 0;  ///< 0 = no limit
  bool low_priority = true;
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
  };

  Copier() = default;
  ~Copier() { stop(); }
  Copier(const Copier&) = delete;
  Copier& operator=(const Copier&) = delete;

  /// Begins with the first round, once what went before has stopped.
  void start(Rounds rounds, const CopyRules& rules, Callbacks callbacks);
  /// The next round may be copied. Does not wait.
  void go_on() noexcept;
  /// Copying ends after the chunk at hand. Does not wait.
  void ask_to_stop() noexcept;
  /// The same, and waits for it.
  void stop() noexcept;

  [[nodiscard]] std::int64_t bytes_copied() const noexcept { return bytes_copied_.load(std::memory_order_relaxed); }

 private:
  void run(const Rounds& rounds, const CopyRules& rules, const Callbacks& callbacks);
  [[nodiscard]] bool wait_for_round(std::size_t round_idx) const noexcept;

  // No lock: the thread, of low priority, could be made to wait while it holds one that a step needs.
  std::atomic<std::uint32_t> num_allowed_{0};  // rounds
  std::atomic<bool> is_stopping_{false};
  std::atomic<std::int64_t> bytes_copied_{0};
  std::thread thread_;
};

}  // namespace epistle::migrate
