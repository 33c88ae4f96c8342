// What a plain all-to-all of rows needs besides the collective itself.
#pragma once

#include "cost/fit/calibration.hpp"
#include "topology/cluster.hpp"

namespace epistle {

struct AllToAllCall {
  double num_ranks = 1;
  double num_experts = 1;
  double bytes = 0;  ///< of the rows of a rank
  bool dispatch = true;
};

struct AllToAllExtras {
  Forecast waiting;  ///< counts are exchanged and the host waits for them: only a dispatch does
  Forecast copying;  ///< rows are permuted before and behind: read and written once each
};

[[nodiscard]] AllToAllExtras alltoall_extras(const Calibration& calibration, const Cluster& cluster,
                                             const AllToAllCall& call);

}  // namespace epistle
