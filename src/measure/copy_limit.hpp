// The memory-copy limit of this machine, for the ranks and threads of a run: the yardstick for bandwidths.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "epistle/group.hpp"

namespace epistle {

struct CopyLimitOptions {
  std::int64_t working_set_bytes = 0;  ///< per rank, source and target together
  std::int32_t num_workers = 1;        ///< threads per rank
  std::int32_t num_iterations = 15;
  std::function<void(std::int64_t done, std::int64_t total)> on_iteration = {};  ///< may be empty
};

struct CopyLimit {
  double bytes_per_s = 0.0;  ///< read plus written, all ranks together; the faster of the two methods
  std::string method;        ///< "memcpy" or "streaming" (non-temporal stores)
  double memcpy_bytes_per_s = 0.0;
  double streaming_bytes_per_s = 0.0;
  std::int64_t working_set_bytes = 0;
};

/// Collective: all ranks copy private memory at the same time. Medians.
[[nodiscard]] CopyLimit measure_copy_limit(Group& group, const CopyLimitOptions& options);

}  // namespace epistle
