// A kernel that takes received rows as their flags rise, and marks outputs as done.
#pragma once

#include <cstddef>
#include <cstdint>

#include <cuda_runtime_api.h>

#include "epistle/device/row_flags.hpp"

namespace epistle::testing {

/// What the waits of one launch have ended with.
struct ConsumerFindings {
  std::uint32_t ends[3];  ///< by RowWait
};

/// Outputs follow from the number of their row, so that they are known without any dispatch.
struct ConsumerArgs {
  device::RowFlags flags;
  const std::byte* rows = nullptr;
  std::int64_t row_bytes = 0;
  const std::byte* scales = nullptr;  ///< in rows; null: none
  std::int64_t scale_bytes = 0;
  const std::int32_t* src_token = nullptr;
  std::byte* outputs = nullptr;  ///< of bf16
  std::int64_t output_hidden = 0;
  std::uint64_t timeout_ns = 0;
  /// Whether rows are marked as done.
  bool marks = true;
  std::int32_t columns_per_part = 0;  ///< 0: a block writes whole rows; else several write one, column by column
  std::uint32_t* counters = nullptr;  ///< [num_ranks, num_local_experts], with columns
  // Results: what was seen when the flags rose.
  device::RowArrival* seen = nullptr;  ///< [num_ranks, num_local_experts]
  std::byte* seen_rows = nullptr;
  std::byte* seen_scales = nullptr;
  std::int32_t* seen_tokens = nullptr;  ///< [num_rows]
  ConsumerFindings* findings = nullptr;
};

/// Before a kernel waits for another rank whose thread may launch one of these for the first time.
cudaError_t load_consumer_kernels();
/// With `blocks` of one SM each.
cudaError_t launch_consumer(const ConsumerArgs& args, int blocks, cudaStream_t stream);
/// The outputs of all rows that some token has come for, without any flag.
cudaError_t launch_outputs(const ConsumerArgs& args, cudaStream_t stream);

}  // namespace epistle::testing
