// Rows of links in GPU memory that libfabric has registered: what is packed there and what lands there passes by no
// host memory. Where that cannot be, the reason is kept and rows are staged.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "dispatch/cuda/engine/device_buffers.hpp"
#include "dispatch/link/link_traffic.hpp"
#include "dispatch/link/rank_memory.hpp"
#include "group/domain_link.hpp"
#include "group/group_impl.hpp"
#include "layout/buffer_plan.hpp"

namespace epistle::cuda {

/// Collective: why rows of this group's GPUs are staged in host memory; empty where their memory can be registered on
/// all ranks. Throws kUnsupported where EPISTLE_FABRIC_GPU_MEMORY is "direct" and it cannot.
[[nodiscard]] std::string find_lack_of_gpu_memory(GroupImpl& group, DomainLink& link, int device);

/// Goes behind the link, which may still have something under way.
class GpuSections {
 public:
  GpuSections(DomainLink& link, const BufferPlan& plan, int device);

  /// Collective: as large as `memory` is. Nothing is under way, and no GPU works on what links bring or take.
  void grow(GroupImpl& group, const RankMemory& memory);

  [[nodiscard]] const GpuPlaces& places() const noexcept { return places_; }
  [[nodiscard]] std::byte* section(BufferSection section) const noexcept {
    return places_.sections[static_cast<std::size_t>(section)];
  }

  /// Before a kernel reads what has landed: what a card has written may still be on its way into the GPU's memory.
  void settle() const;

 private:
  struct Section {
    DeviceBuffer memory;
    std::int64_t num_bytes = 0;
  };
  [[nodiscard]] bool enlarge(BufferSection section, std::int64_t num_bytes);
  [[nodiscard]] GpuSpan span_of(BufferSection section) const noexcept;

  DomainLink& link_;
  const BufferPlan& plan_;
  int device_;
  bool must_flush_;
  std::array<Section, kNumBufferSections> sections_;
  GpuPlaces places_;
};

}  // namespace epistle::cuda
