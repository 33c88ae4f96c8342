// The threads that copy and sum for one rank. Work is cut into equal contiguous ranges, one per worker; the result does
// not depend on their number. Nothing is allocated after construction.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <type_traits>
#include <vector>

namespace epistle::host {

class WorkerPool {
 public:
  /// `num_workers` counts the calling thread, which takes part.
  /// Throws kSystem where threads cannot be started.
  explicit WorkerPool(int num_workers);
  ~WorkerPool();
  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;

  [[nodiscard]] int num_workers() const noexcept { return static_cast<int>(threads_.size()) + 1; }

  /// Calls body(begin, end) for disjoint ranges that cover [0, num_items), and returns when all are done. Everything
  /// the bodies wrote is visible to the caller. `body` must not throw.
  template <typename Body>
  void parallel_for(std::int64_t num_items, const Body& body) {
    if (threads_.empty() || num_items < kMinItemsToShare) {
      body(std::int64_t{0}, num_items);
      return;
    }
    struct Job {
      const Body* body;
      std::int64_t num_items;
      std::int64_t num_workers;
    } job{&body, num_items, num_workers()};
    run(
        [](const void* context, int worker_idx) {
          const Job& shared = *static_cast<const Job*>(context);
          const std::int64_t begin = shared.num_items * worker_idx / shared.num_workers;
          const std::int64_t end = shared.num_items * (worker_idx + 1) / shared.num_workers;
          if (begin < end) (*shared.body)(begin, end);
        },
        &job);
  }

 private:
  using Task = void (*)(const void* context, int worker_idx);

  /// Below this many rows the hand-over costs more than it saves.
  static constexpr std::int64_t kMinItemsToShare = 16;

  void run(Task task, const void* context) noexcept;
  void work(int worker_idx) noexcept;
  void stop() noexcept;

  Task task_ = nullptr;
  const void* context_ = nullptr;
  std::atomic<std::uint32_t> generation_{0};  ///< raised once per job; workers sleep on it
  std::atomic<int> num_running_{0};
  std::atomic<bool> stopping_{false};
  std::vector<std::thread> threads_;
};

}  // namespace epistle::host
