// What one rank puts into a benchmark of the CUDA device, and what it got, on the GPU and as host copies.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include <cuda_runtime_api.h>

#include "epistle/dispatcher.hpp"

#include "measure/bench_inputs.hpp"
#include "measure/cuda/device_memory.hpp"

namespace epistle {

/// Routing, payload and room for the sums in GPU memory.
class DeviceInputs {
 public:
  /// On the current device. Waits for the copies. Keeps no reference.
  DeviceInputs(cudaStream_t stream, const RoutingTable& table, BenchInputs& inputs);

  [[nodiscard]] RoutingView routing() const noexcept { return routing_; }
  [[nodiscard]] Payload payload() const noexcept { return payload_; }
  [[nodiscard]] void* out() const noexcept { return out_.as(); }
  [[nodiscard]] std::int64_t out_bytes() const noexcept { return out_.num_bytes(); }

 private:
  DeviceMemory expert_ids_;
  DeviceMemory weights_;
  DeviceMemory rows_;
  DeviceMemory scales_;
  DeviceMemory out_;
  RoutingView routing_;
  Payload payload_;
};

/// A DispatchOutput in host memory.
class HostOutput {
 public:
  /// Copies all that `device` points to, and waits.
  HostOutput(cudaStream_t stream, const DispatchOutput& device, const DispatcherConfig& config);

  [[nodiscard]] const DispatchOutput& output() const noexcept { return output_; }

 private:
  std::vector<std::byte> rows_;
  std::vector<std::byte> scales_;
  std::vector<std::int32_t> src_rank_;
  std::vector<std::int32_t> src_token_;
  std::vector<std::int32_t> local_expert_ids_;
  std::vector<float> weights_;
  std::vector<std::int64_t> expert_counts_;
  std::vector<std::int64_t> expert_begin_;
  std::vector<std::int64_t> expert_dropped_;
  DispatchOutput output_;
};

}  // namespace epistle
