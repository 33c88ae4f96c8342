#include "measure/cuda/stream_gate.hpp"

#include <algorithm>

#include "gpu/cuda_error.hpp"
#include "measure/clock.hpp"
#include "measure/cuda/bench_kernels.hpp"

namespace epistle {
namespace {

// How far in the future streams start. A launch takes 3 to 5 us and a run has up to four; ranks that are threads of one
// process take turns in the driver.
constexpr std::int64_t kLeadNs = 60'000;
constexpr std::int64_t kLeadPerRunNs = 15'000;
constexpr std::int64_t kLeadPerRunOfRankNs = 10'000;

}  // namespace

void StreamGate::hold(int num_runs) {
  const std::int64_t own_ns = steady_now_ns();
  group_.all_gather(&own_ns, sizeof(own_ns), ready_ns_.data());
  const std::int64_t start_ns = *std::max_element(ready_ns_.begin(), ready_ns_.end()) + kLeadNs +
                                num_runs * (kLeadPerRunNs + kLeadPerRunOfRankNs * group_.size());
  cuda::check_cuda(launch_bench_delay(stream_, start_ns - steady_now_ns()), "launch the delay kernel");
}

}  // namespace epistle
