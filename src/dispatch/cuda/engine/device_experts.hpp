// What a GPU knows of experts beyond one call: the placement in force, and how many tokens each was given.
#pragma once

#include <cstdint>
#include <mutex>
#include <vector>

#include <cuda_runtime_api.h>

#include "dispatch/call/placed_experts.hpp"
#include "dispatch/cuda/device/device_types.hpp"
#include "dispatch/cuda/engine/device_buffers.hpp"
#include "gpu/event.hpp"

namespace epistle::cuda {

struct EngineContext;

class DeviceExperts {
 public:
  /// Not collective; the placement of the configuration is there at once.
  explicit DeviceExperts(const EngineContext& context);

  [[nodiscard]] const PlacedExperts& placed() const noexcept { return placed_; }
  [[nodiscard]] const SlotTables& tables() const noexcept { return tables_; }
  [[nodiscard]] unsigned long long* counters() const noexcept { return counters_; }
  [[nodiscard]] unsigned long long* lost_counters() const noexcept { return counters_ + num_experts_; }

  /// What is behind on the stream goes by `placed`. Waits where the last change is still to come on its stream.
  void set(PlacedExperts placed, cudaStream_t stream);
  /// See Dispatcher::expert_tokens().
  [[nodiscard]] std::vector<std::int64_t> tokens() const { return read(counters()); }
  /// See Dispatcher::lost_tokens().
  [[nodiscard]] std::vector<std::int64_t> lost_tokens() const { return read(lost_counters()); }

 private:
  void send(cudaStream_t stream);
  [[nodiscard]] std::vector<std::int64_t> read(const unsigned long long* counters) const;

  int device_;
  std::int32_t num_experts_;
  PlacedExperts placed_;
  DeviceBuffer memory_;
  PinnedMemory staging_;  ///< the tables on their way
  std::int64_t table_bytes_ = 0;
  SlotTables tables_;
  unsigned long long* counters_ = nullptr;  ///< [2, num_experts] tokens that came, and those that were lost
  Event sent_;
  mutable std::mutex reading_;  ///< guards counts_read_
  PinnedMemory counts_read_;
};

}  // namespace epistle::cuda
