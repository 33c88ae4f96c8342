#include "dispatch/cuda/low_latency/row_flags.hpp"

#include "dispatch/cuda/engine/buffer_carver.hpp"

namespace epistle::cuda {
namespace {

std::int64_t num_flags(const device::RowFlags& shape) noexcept {
  return std::int64_t{shape.num_ranks} * shape.num_local_experts;
}

}  // namespace

RowFlagMemory::RowFlagMemory(const EngineContext& context) {
  const DispatchLayout& layout = context.layout();
  shape_.num_ranks = context.num_ranks();
  shape_.num_local_experts = layout.partition().num_local_experts(context.rank());
  const bool blocks = layout.params().layout == OutputLayout::kExpertBlocks;
  shape_.num_rows = layout.params().capacity_rows * (blocks ? shape_.num_local_experts : 1);
  shape_.failed = &context.device_group.local->failed;
  const std::int64_t buffers = context.config.num_buffers;
  for (const bool placing : {false, true}) {
    BufferCarver carver(memory_.get());
    carver.take(arrivals_, buffers * num_flags(shape_));
    carver.take(parts_, num_flags(shape_));
    carver.take(done_, buffers * shape_.num_rows);
    carver.take(numbers_, buffers);
    if (!placing) memory_ = allocate_on(context.device, carver.num_bytes());
  }
}

device::RowFlags RowFlagMemory::of_buffer(std::int32_t buffer) const noexcept {
  if (memory_ == nullptr) return {};
  device::RowFlags flags = shape_;
  flags.number = numbers_ + buffer;
  flags.arrivals = arrivals_ + buffer * num_flags(shape_);
  flags.done = done_ + buffer * shape_.num_rows;
  return flags;
}

LineFlags RowFlagMemory::for_dispatch(std::int32_t buffer) const noexcept {
  if (memory_ == nullptr) return {};
  return {.number = numbers_ + buffer, .arrivals = arrivals_ + buffer * num_flags(shape_), .parts = parts_};
}

}  // namespace epistle::cuda
