#include "dispatch/cuda/hybrid/link_buffers.hpp"

#include <fmt/format.h>

#include "dispatch/cuda/hybrid/hybrid_info.hpp"
#include "dispatch/link/link_memory.hpp"
#include "gpu/cuda_error.hpp"
#include "gpu/heap/memory_budget.hpp"

namespace epistle::cuda {

RegisteredMemory::~RegisteredMemory() {
  for (const auto& [begin, num_bytes] : ranges_) warn_cuda(cudaHostUnregister(begin), "letting go of pinned memory");
}

void RegisteredMemory::cover(std::byte* begin, std::int64_t num_bytes) {
  const DeviceGuard guard(device_);
  const auto known = ranges_.find(begin);
  const std::int64_t covered = known != ranges_.end() ? known->second : 0;
  if (num_bytes <= covered) return;
  check_host_memory(num_bytes - covered, "pinned memory for rows between domains");
  if (known != ranges_.end()) {
    ranges_.erase(known);
    check_cuda(cudaHostUnregister(begin), "letting go of pinned memory");
  }
  check_cuda(
      cudaHostRegister(begin, static_cast<std::size_t>(num_bytes), cudaHostRegisterPortable | cudaHostRegisterMapped),
      "pinning memory that rows from other domains land in");
  ranges_.emplace(begin, num_bytes);
  void* seen = nullptr;
  check_cuda(cudaHostGetDevicePointer(&seen, begin, 0), "mapping pinned memory");
  if (seen == begin) return;
  throw Error(ErrorCode::kUnsupported,
              fmt::format("GPU {} sees pinned host memory at other addresses than the host, and dispatcher 'hybrid' "
                          "needs the same; use another GPU, or hybrid on the host",
                          device_));
}

LinkBuffers::LinkBuffers(GroupImpl& group, const ResolvedConfig& config, int device)
    : group_(group),
      device_(device),
      plan_(plan_links(config, group.num_ranks())),
      memory_(group, plan_),
      link_(open_domain_link(group, memory_.region(), LinkRows::kOfGpu)),
      lack_of_gpu_memory_(find_lack_of_gpu_memory(group, *link_, device)),
      traffic_(group, group.gpu_domains(), *link_, plan_, memory_),
      registered_(device) {
  if (lack_of_gpu_memory_.empty()) gpu_ = std::make_unique<GpuSections>(*link_, plan_, device);
  if (gpu_) traffic_.use_gpu(&gpu_->places());
  take_sections();
}

std::string LinkBuffers::describe() const {
  return link_->describe() + (gpu_ ? ", rows from registered GPU memory"
                                   : fmt::format(", rows staged in pinned host memory ({})", lack_of_gpu_memory_));
}

/// Collective: for what is committed. Pinning memory, and giving it back, may wait for the device: the last step also
/// keeps every rank until all have done.
void LinkBuffers::take_sections() {
  if (gpu_) {
    gpu_->grow(group_, memory_);
  } else {
    group_.take_together(kGpuSetUp, Phase::kCreate, [this] { pin_sections(); });
  }
  expose_landing_places(*link_, plan_, memory_);
}

void LinkBuffers::pin_sections() {
  for (const BufferSection section :
       {BufferSection::kSendRows, BufferSection::kSendScales, BufferSection::kStageRows, BufferSection::kStageScales}) {
    registered_.cover(host_section(section), memory_.committed_bytes(section));
  }
}

void LinkBuffers::make_room(const DomainPairs& pairs) {
  std::vector<RowDemand> demands(static_cast<std::size_t>(group_.num_ranks()));
  for (int rank = 0; rank < group_.num_ranks(); ++rank) {
    demands[static_cast<std::size_t>(rank)].send_rows = pairs.num_sent(rank);
    demands[static_cast<std::size_t>(rank)].receive_rows = pairs.num_received(rank);
  }
  if (!memory_.grow(demands, kGpuSetUp, Phase::kLayout)) return;
  take_sections();
}

}  // namespace epistle::cuda
