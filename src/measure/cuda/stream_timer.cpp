#include "measure/cuda/stream_timer.hpp"

#include <algorithm>
#include <chrono>

#include "gpu/cuda_error.hpp"
#include "measure/cuda/bench_kernels.hpp"

namespace epistle {
namespace {

constexpr double kMicrosPerMilli = 1e3;

// How far in the future streams start. A launch takes 3 to 5 us and a run has up to four; ranks that are threads of one
// process take turns in the driver.
constexpr std::int64_t kLeadNs = 60'000;
constexpr std::int64_t kLeadPerRunNs = 15'000;
constexpr std::int64_t kLeadPerRunOfRankNs = 10'000;

std::int64_t steady_now_ns() {
  // The same clock for all processes of a host.
  const auto since_boot = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::nanoseconds>(since_boot).count();
}

}  // namespace

StreamTimer::StreamTimer(Group& group, cudaStream_t stream, int runs_per_sample)
    : group_(group),
      stream_(stream),
      runs_per_sample_(runs_per_sample),
      ready_ns_(static_cast<std::size_t>(group.size())),
      times_us_(static_cast<std::size_t>(group.size())) {
  cuda::check_cuda(cudaEventCreate(&begin_), "create an event");
  const cudaError_t status = cudaEventCreate(&end_);
  if (status != cudaSuccess) cuda::warn_cuda(cudaEventDestroy(begin_), "destroy an event");
  cuda::check_cuda(status, "create an event");
}

StreamTimer::~StreamTimer() {
  cuda::warn_cuda(cudaEventDestroy(begin_), "destroy an event");
  cuda::warn_cuda(cudaEventDestroy(end_), "destroy an event");
}

void StreamTimer::begin() {
  const std::int64_t own_ns = steady_now_ns();
  group_.all_gather(&own_ns, sizeof(own_ns), ready_ns_.data());
  const std::int64_t start_ns = *std::max_element(ready_ns_.begin(), ready_ns_.end()) + kLeadNs +
                                (runs_per_sample_ + 1) * (kLeadPerRunNs + kLeadPerRunOfRankNs * group_.size());
  cuda::check_cuda(launch_bench_delay(stream_, start_ns - steady_now_ns()), "launch the delay kernel");
}

void StreamTimer::mark() { cuda::check_cuda(cudaEventRecord(begin_, stream_), "record an event"); }

void StreamTimer::end() { cuda::check_cuda(cudaEventRecord(end_, stream_), "record an event"); }

double StreamTimer::slowest_us() {
  float elapsed_ms = 0.0F;
  cuda::check_cuda(cudaEventSynchronize(end_), "wait for an event");
  cuda::check_cuda(cudaEventElapsedTime(&elapsed_ms, begin_, end_), "read the time between events");
  const double own_us = static_cast<double>(elapsed_ms) * kMicrosPerMilli;
  group_.all_gather(&own_us, sizeof(own_us), times_us_.data());
  return *std::max_element(times_us_.begin(), times_us_.end());
}

}  // namespace epistle
