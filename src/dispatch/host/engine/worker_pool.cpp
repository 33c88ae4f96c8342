#include "dispatch/host/engine/worker_pool.hpp"

#include <system_error>

#include <fmt/format.h>

#include "epistle/error.hpp"

namespace epistle::host {

WorkerPool::WorkerPool(int num_workers) {
  threads_.reserve(static_cast<std::size_t>(num_workers - 1));
  try {
    for (int worker_idx = 1; worker_idx < num_workers; ++worker_idx) {
      threads_.emplace_back([this, worker_idx] { work(worker_idx); });
    }
  } catch (const std::system_error& error) {
    const std::size_t num_started = threads_.size();
    stop();
    throw Error(ErrorCode::kSystem,
                fmt::format("worker thread {} of {} cannot be started: {}; take fewer workers, or raise the limit on "
                            "processes (ulimit -u)",
                            num_started + 1, num_workers - 1, error.what()));
  }
}

WorkerPool::~WorkerPool() { stop(); }

void WorkerPool::stop() noexcept {
  stopping_.store(true, std::memory_order_relaxed);
  // pairs with the acquire in work()
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void WorkerPool::run(Task task, const void* context) noexcept {
  task_ = task;
  context_ = context;
  num_running_.store(static_cast<int>(threads_.size()), std::memory_order_relaxed);
  // Publishes task_, context_ and num_running_; pairs with the acquire in work().
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  task(context, 0);
  // pairs with the release decrement of every worker
  for (int running = num_running_.load(std::memory_order_acquire); running != 0;
       running = num_running_.load(std::memory_order_acquire)) {
    num_running_.wait(running, std::memory_order_acquire);
  }
}

void WorkerPool::work(int worker_idx) noexcept {
  std::uint32_t seen = 0;
  for (;;) {
    generation_.wait(seen, std::memory_order_acquire);
    ++seen;
    if (stopping_.load(std::memory_order_relaxed)) return;
    task_(context_, worker_idx);
    if (num_running_.fetch_sub(1, std::memory_order_release) == 1) num_running_.notify_one();
  }
}

}  // namespace epistle::host
