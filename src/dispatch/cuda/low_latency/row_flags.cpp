#include "dispatch/cuda/low_latency/row_flags.hpp"

#include "dispatch/cuda/engine/buffer_carver.hpp"

namespace epistle::cuda {
RowFlagMemory::RowFlagMemory(const EngineContext& context)
    : shape_(shape_of_flags(context.layout(), context.layout().partition().num_local_experts(context.rank()))) {
  shape_.failed = &context.device_group.local->failed;
  memory_ = context.own_memory.carve(
      [&](BufferCarver& carver) { carve_row_flags(carver, shape_, context.config.num_buffers, arrays_); });
}

device::RowFlags RowFlagMemory::of_buffer(std::int32_t buffer) const noexcept {
  if (memory_ == nullptr) return {};
  device::RowFlags flags = shape_;
  flags.number = arrays_.numbers + buffer;
  flags.arrivals = arrays_.arrivals + buffer * num_flags(shape_);
  flags.done = arrays_.done + buffer * shape_.num_rows;
  return flags;
}

LineFlags RowFlagMemory::for_dispatch(std::int32_t buffer) const noexcept {
  if (memory_ == nullptr) return {};
  return {.number = arrays_.numbers + buffer,
          .arrivals = arrays_.arrivals + buffer * num_flags(shape_),
          .parts = arrays_.parts};
}

}  // namespace epistle::cuda
