// What a handle knows on the CUDA device: arrays in device memory, and a summary that the device writes for the host.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include <cuda_runtime_api.h>

#include "epistle/layout.hpp"

#include "dispatch/cuda/engine/device_buffers.hpp"
#include "dispatch/cuda/device/device_types.hpp"
#include "dispatch/call/handle_state.hpp"

namespace epistle::cuda {

class CudaHandleState final : public HandleState {
 public:
  CudaHandleState(int device, const DispatchLayout& layout, int rank);

  void wait_for_counts() override;

  /// Sets the arrays up for a routing of `num_tokens`.
  void begin(std::uint64_t prepare_id, std::int64_t num_tokens);
  /// True when the device has written the summary of the last prepare.
  [[nodiscard]] bool is_complete() const noexcept;
  /// Takes stats and output from the summary.
  void finish();

  /// How to wait for the summary; set by the dispatcher, cleared when it goes.
  std::function<void(CudaHandleState&)> waiter;
  HandleArrays arrays;
  Summary* summary = nullptr;  ///< pinned host memory
  bool checked = true;         ///< what the device found has been looked at
  bool finished = true;

  /// From the summary: pairs that fit [source, destination], output rows, pairs sent to other ranks.
  [[nodiscard]] const std::int32_t* pair_matrix() const noexcept {
    return reinterpret_cast<const std::int32_t*>(summary + 1);
  }
  [[nodiscard]] std::int64_t output_rows(int rank) const noexcept { return pair_matrix()[ranks_ * ranks_ + rank]; }
  [[nodiscard]] std::int64_t other_pairs(int rank) const noexcept {
    return pair_matrix()[ranks_ * (ranks_ + 1) + rank];
  }

 private:
  DispatchLayout layout_;
  int rank_;
  int ranks_;
  DeviceBuffer memory_;
  PinnedMemory pinned_;
};

}  // namespace epistle::cuda
