#include "dispatch/cuda/hybrid/gpu_sections.hpp"

#include <algorithm>

#include <cuda_runtime_api.h>

#include <fmt/format.h>

#include "epistle/error.hpp"

#include "core/settings.hpp"
#include "gpu/cuda_error.hpp"

namespace epistle::cuda {
namespace {

constexpr std::array kSent = {BufferSection::kSendRows, BufferSection::kSendScales};
constexpr std::array kLanding = {BufferSection::kStageRows, BufferSection::kStageScales};
// GPU memory is mapped to cards in pages of this size.
constexpr std::int64_t kTrialBytes = 64 << 10;

int attribute_of(int device, cudaDeviceAttr attribute) {
  int value = 0;
  check_cuda(cudaDeviceGetAttribute(&value, attribute, device), "asking what the device does with writes of cards");
  return value;
}

/// Whether what cards have written to the memory of the GPU has to be flushed before its kernels read it.
bool needs_flush(int device) {
  return attribute_of(device, cudaDevAttrGPUDirectRDMASupported) != 0 &&
         attribute_of(device, cudaDevAttrGPUDirectRDMAWritesOrdering) < cudaGPUDirectRDMAWritesOrderingOwner;
}

std::string lack_of_own(DomainLink& link, int device) {
  if (settings().gpu_link() == GpuLinkChoice::kStaged) return "EPISTLE_FABRIC_GPU_MEMORY is staged";
  if (needs_flush(device) && (attribute_of(device, cudaDevAttrGPUDirectRDMAFlushWritesOptions) &
                              cudaFlushGPUDirectRDMAWritesOptionHost) == 0) {
    return fmt::format("GPU {} cannot flush what cards write", device);
  }
  const DeviceBuffer trial = DeviceSource(device).take(kTrialBytes);
  return link.lack_of_gpu_memory({.data = trial.get(), .num_bytes = kTrialBytes, .gpu = device});
}

/// What a rank tells the others.
struct Lack {
  bool insists = false;
  std::array<char, 200> text{};
};

}  // namespace

std::string find_lack_of_gpu_memory(GroupImpl& group, DomainLink& link, int device) {
  Lack own{.insists = settings().gpu_link() == GpuLinkChoice::kDirect, .text = {}};
  const Complaint complaint = attempt([&] {
    const DeviceGuard guard(device);
    const std::string lack = lack_of_own(link, device);
    std::copy_n(lack.begin(), std::min(lack.size(), own.text.size() - 1), own.text.begin());
  });
  const std::vector<Lack> all = group.gather(kGpuSetUp, Phase::kCreate, own, complaint);
  const auto lacking = std::find_if(all.begin(), all.end(), [](const Lack& lack) { return lack.text.front() != 0; });
  if (lacking == all.end()) return {};
  const std::string lack = fmt::format("rank {}: {}", lacking - all.begin(), lacking->text.data());
  if (std::none_of(all.begin(), all.end(), [](const Lack& one) { return one.insists; })) return lack;
  throw Error(
      ErrorCode::kUnsupported,
      fmt::format("EPISTLE_FABRIC_GPU_MEMORY is direct, but GPU memory cannot be registered ({}); use auto, which "
                  "stages rows in host memory, or a libfabric with CUDA (EPISTLE_FABRIC_LIBRARY)",
                  lack),
      {.rank = group.rank(), .phase = Phase::kCreate});
}

GpuSections::GpuSections(DomainLink& link, const BufferPlan& plan, int device)
    : link_(link), plan_(plan), device_(device), must_flush_(needs_flush(device)) {
  places_.offset = plan.reserved_bytes();
}

void GpuSections::grow(GroupImpl& group, const RankMemory& memory) {
  group.take_together(kGpuSetUp, Phase::kLayout, [&] {
    const DeviceGuard guard(device_);
    for (const BufferSection section : kSent) {
      if (enlarge(section, memory.committed_bytes(section))) link_.register_gpu(span_of(section));
    }
    for (const BufferSection section : kLanding) (void)enlarge(section, memory.committed_bytes(section));
  });
  for (const BufferSection section : kLanding) {
    link_.expose_gpu(places_.offset + plan_.section_offset(section), span_of(section));
  }
}

GpuSpan GpuSections::span_of(BufferSection section) const noexcept {
  const Section& own = sections_[static_cast<std::size_t>(section)];
  return {.data = own.memory.get(), .num_bytes = own.num_bytes, .gpu = device_};
}

/// False where it is as large already.
bool GpuSections::enlarge(BufferSection section, std::int64_t num_bytes) {
  Section& own = sections_[static_cast<std::size_t>(section)];
  if (num_bytes <= own.num_bytes) return false;
  if (own.memory != nullptr) link_.withdraw_gpu(own.memory.get());
  own = {};
  own.memory = DeviceSource(device_).take(num_bytes);
  own.num_bytes = num_bytes;
  places_.sections[static_cast<std::size_t>(section)] = own.memory.get();
  return true;
}

void GpuSections::settle() const {
  if (!must_flush_) return;
  const DeviceGuard guard(device_);
  check_cuda(cudaDeviceFlushGPUDirectRDMAWrites(cudaFlushGPUDirectRDMAWritesTargetCurrentDevice,
                                                cudaFlushGPUDirectRDMAWritesToOwner),
             "flushing what a card has written");
}

}  // namespace epistle::cuda
