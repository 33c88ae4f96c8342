// What one rank puts into a benchmark of the CUDA device, and what it got, on the GPU and as host copies.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include <cuda_runtime_api.h>

#include "epistle/routing.hpp"

#include "measure/bench_inputs.hpp"
#include "measure/cuda/gpu_memory.hpp"
#include "measure/received_data.hpp"

namespace epistle {

/// Routing, payload and room for the sums in GPU memory.
class DeviceInputs {
 public:
  /// On the current device. Waits for the copies. Keeps no reference.
  DeviceInputs(cudaStream_t stream, const RoutingTable& table, BenchInputs& inputs);

  [[nodiscard]] IdsView ids() const noexcept { return ids_; }
  [[nodiscard]] WeightsView probs() const noexcept { return {weights_.as<float>()}; }
  [[nodiscard]] ConstRows tokens() const noexcept { return tokens_; }
  [[nodiscard]] ScalesView scales() const noexcept { return scales_view_; }
  [[nodiscard]] Rows out_rows() const noexcept { return out_rows_; }
  [[nodiscard]] void* out() const noexcept { return out_.as(); }
  [[nodiscard]] std::int64_t out_bytes() const noexcept { return out_.num_bytes(); }

 private:
  DeviceMemory expert_ids_;
  DeviceMemory weights_;
  DeviceMemory rows_;
  DeviceMemory scales_;
  DeviceMemory out_;
  IdsView ids_;
  ConstRows tokens_;
  ScalesView scales_view_;
  Rows out_rows_;
};

/// Received rows and their description, copied to host memory.
class HostCopy {
 public:
  /// Copies all that `device` points to, and waits. `top_k` of the dispatcher.
  HostCopy(cudaStream_t stream, const ReceivedData& device, std::int32_t top_k);

  [[nodiscard]] const ReceivedData& data() const noexcept { return data_; }

 private:
  std::vector<std::byte> rows_;
  std::vector<std::byte> scales_;
  std::vector<std::int32_t> src_rank_;
  std::vector<std::int32_t> src_token_;
  std::vector<std::int32_t> local_experts_;
  std::vector<std::int32_t> row_expert_;
  std::vector<float> weights_;
  std::vector<std::int32_t> expert_counts_;
  std::vector<std::int32_t> expert_begin_;
  std::vector<std::int32_t> expert_dropped_;
  ReceivedData data_;
};

}  // namespace epistle
