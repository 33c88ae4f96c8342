#include "plan/alltoall_extras.hpp"

#include "plan/observations.hpp"

namespace epistle {

AllToAllExtras alltoall_extras(const Calibration& calibration, const Cluster& cluster, const AllToAllCall& call) {
  // Own measurements: what exact sizing adds to a dispatch of `direct` on H200 (docs/results), 2026-11.
  constexpr double kHostWaitUs = 15;
  constexpr double kHostWaitFactor = 1.5;
  constexpr double kBytesPerCount = 4;
  constexpr double kReadEfficiency = 0.8;  // as of other copies of a plan
  constexpr double kCopyFactor = 1.25;
  AllToAllExtras extras;
  if (call.dispatch) {
    const ExchangeWork base = exchange_base(cluster, call.num_ranks, cluster.gpus_per_domain());
    const double count_bytes = kBytesPerCount * call.num_experts;
    const ExchangeWork work = collective_work(base, call.num_ranks, count_bytes);
    extras.waiting =
        calibration.predict("alltoall", collective_observation(cluster, call.num_ranks, count_bytes, work));
    extras.waiting.us += kHostWaitUs;
    extras.waiting.low_us += kHostWaitUs / kHostWaitFactor;
    extras.waiting.high_us += kHostWaitUs * kHostWaitFactor;
  }
  const double copy_us = 2 * call.bytes / (kReadEfficiency * cluster.hbm_bytes_per_s() * kBytesPerUsOfBytesPerS);
  extras.copying = {.us = copy_us, .low_us = copy_us / kCopyFactor, .high_us = copy_us * kCopyFactor};
  return extras;
}

}  // namespace epistle
