// The memory-copy limit of this machine, for the ranks and threads of a run: the yardstick for bandwidths.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "epistle/group.hpp"

#include "dispatch/host/engine/worker_pool.hpp"
#include "measure/span_timer.hpp"

namespace epistle {

struct CopyLimitOptions {
  std::int64_t working_set_bytes = 0;  ///< per rank, source and target together
  std::int32_t num_workers = 1;        ///< threads per rank
};

struct CopyLimit {
  double bytes_per_s = 0.0;  ///< read plus written, all ranks together; the faster of the two methods
  std::string method;        ///< "memcpy" or "streaming" (non-temporal stores)
  double memcpy_bytes_per_s = 0.0;
  double streaming_bytes_per_s = 0.0;
  std::int64_t working_set_bytes = 0;
};

/// Copies private memory on all ranks at the same time. Samples are taken between the measurements that they are
/// compared with: the bandwidth of a shared machine drifts.
class CopyProbe {
 public:
  /// Collective: the largest working set of any rank is used by all.
  CopyProbe(Group& group, const CopyLimitOptions& options);

  /// Collective: one copy by each method.
  void sample();
  /// The medians of the samples so far.
  [[nodiscard]] CopyLimit limit() const;

 private:
  [[nodiscard]] double bytes_per_s(const std::vector<double>& times_us) const;

  Group* group_;
  SpanTimer timer_;
  host::WorkerPool pool_;
  std::vector<std::byte> source_;
  std::vector<std::byte> target_;
  std::vector<double> memcpy_us_;
  std::vector<double> streaming_us_;
};

}  // namespace epistle
