#include "dispatch/cuda/engine/device_experts.hpp"

#include <algorithm>
#include <cstddef>
#include <span>
#include <type_traits>
#include <utility>

#include "dispatch/cuda/engine/context.hpp"
#include "dispatch/cuda/engine/sizes.hpp"
#include "dispatch/cuda/quotas/batch_quotas.hpp"
#include "gpu/cuda_error.hpp"
#include "gpu/stream.hpp"

namespace epistle::cuda {

DeviceExperts::DeviceExperts(const EngineContext& context)
    : device_(context.device), num_experts_(context.config.num_experts) {
  const ResolvedConfig& config = context.config;
  const int num_ranks = context.num_ranks();
  memory_ = context.own_memory.carve([&](BufferCarver& carver) {
    carve_placement(carver, config, num_ranks, tables_);
    table_bytes_ = carver.num_bytes();
    carver.take(counters_, std::int64_t{2} * num_experts_);
  });
  counts_read_ = PinnedMemory(num_experts_ * static_cast<std::int64_t>(sizeof(std::int64_t)));
  if (!config.places_experts()) return;
  const DeviceGuard guard(device_);
  check_cuda(load_batch_quotas({.slots = {},
                                .num_experts = config.num_experts,
                                .num_ranks = num_ranks,
                                .slots_per_rank = config.slots_per_rank}),
             "loading the kernel that shares out a batch");
  staging_ = PinnedMemory(table_bytes_);
  sent_ = Event(EventKind::kOrder);
  placed_ = PlacedExperts(config.placement, config, num_ranks, context.rank());
  cudaStream_t stream = private_stream(device_);
  send(stream);
  sent_.wait("bringing a placement to the GPU");
}

void DeviceExperts::set(PlacedExperts placed, cudaStream_t stream) {
  // The staging memory may still be read by the last change.
  sent_.wait("waiting for the last placement to reach the GPU");
  placed_ = std::move(placed);
  send(stream);
}

void DeviceExperts::send(cudaStream_t stream) {
  // Where a table lies in the staging memory.
  const auto copy = [this](const auto* target, const auto& values) {
    using Value = std::remove_cvref_t<decltype(*target)>;
    const std::ptrdiff_t offset = reinterpret_cast<const std::byte*>(target) - memory_.get();
    std::copy(values.begin(), values.end(), reinterpret_cast<Value*>(staging_.get() + offset));
  };
  copy(tables_.policy, std::span(&placed_.policy(), 1));
  copy(tables_.replica_begin, placed_.replica_begin());
  copy(tables_.entries, placed_.entries());
  copy(tables_.expert_of_slot, placed_.expert_of_slot());
  check_cuda(cudaMemcpyAsync(memory_.get(), staging_.get(), static_cast<std::size_t>(table_bytes_),
                             cudaMemcpyHostToDevice, stream),
             "bringing a placement to the GPU");
  sent_.record(stream);
}

std::vector<std::int64_t> DeviceExperts::read(const unsigned long long* counters) const {
  const DeviceGuard guard(device_);
  const std::lock_guard lock(reading_);
  cudaStream_t stream = private_stream(device_);
  const auto* counts = reinterpret_cast<const std::int64_t*>(counts_read_.get());
  check_cuda(cudaMemcpyAsync(counts_read_.get(), counters, static_cast<std::size_t>(num_experts_) * sizeof(*counts),
                             cudaMemcpyDeviceToHost, stream),
             "reading the tokens of experts");
  check_cuda(cudaStreamSynchronize(stream), "reading the tokens of experts");
  return {counts, counts + num_experts_};
}

}  // namespace epistle::cuda
