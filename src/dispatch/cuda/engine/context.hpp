// What of a dispatcher on a GPU its parts share.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include <cuda_runtime_api.h>

#include "epistle/config.hpp"

#include "dispatch/call/resolved_config.hpp"
#include "dispatch/cuda/device/device_types.hpp"
#include "dispatch/cuda/engine/device_buffers.hpp"
#include "dispatch/cuda/engine/tuning.hpp"
#include "gpu/heap/symmetric_heap.hpp"
#include "group/group_impl.hpp"
#include "layout/buffer_plan.hpp"

namespace epistle::cuda {

struct EngineContext {
  ResolvedConfig config;
  CudaOptions options;
  int device = 0;
  DeviceSource own_memory;  ///< for what no other rank sees
  GroupImpl* group = nullptr;
  BufferPlan plan;
  DeviceControl control;
  DeviceGroup device_group;
  std::shared_ptr<SymmetricHeap> heap;
  int sm_share = 1;         ///< SMs that this rank may use at most
  bool shares_gpu = false;  ///< some ranks of the group share one
  int compute_major = 0;
  // Of the call under way.
  cudaStream_t stream = nullptr;
  int num_sms = 0;
  std::int32_t buffer = 0;      ///< this rank's choice
  bool as_rows_finish = false;  ///< of a sum: rows are taken as their flags say that they are done
  /// Waits until all calls so far are done, and throws what they have found.
  std::function<void()> wait;
  /// An event behind everything that the calls so far have put on the stream. Recorded when it is asked for: a record
  /// behind every call would be a part of that call's time.
  std::function<cudaEvent_t()> last_work;

  [[nodiscard]] int rank() const noexcept { return group->rank(); }
  [[nodiscard]] int num_ranks() const noexcept { return group->num_ranks(); }
  [[nodiscard]] const DispatchLayout& layout() const noexcept { return plan.layout(); }
  [[nodiscard]] bool has_bulk_copies() const noexcept { return compute_major >= kFirstMajorWithBulkCopies; }
  [[nodiscard]] std::byte* own_section(BufferSection section, std::int32_t copy) const noexcept {
    return heap->base(rank()) + plan.section_offset(section) + copy * plan.section_stride(section);
  }
  /// The copy of the call under way; of sections that are there once, that one.
  [[nodiscard]] std::byte* own_section(BufferSection section) const noexcept { return own_section(section, buffer); }
  [[nodiscard]] TuningQuery tuning_query(TunedCall call, std::int64_t num_tokens) const noexcept {
    return {
        .call = call,
        .layout = config.layout,
        .num_tokens = num_tokens,
        .row_bytes = call == TunedCall::kCombine ? layout().params().combine_row_bytes : layout().params().row_bytes,
        .num_ranks = num_ranks(),
        .num_sms = num_sms,
        .sm_share = sm_share,
        .compute_major = compute_major,
        .mover = options.mover};
  }
};

}  // namespace epistle::cuda
