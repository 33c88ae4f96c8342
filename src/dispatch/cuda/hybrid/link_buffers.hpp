// Memory between links and a GPU: what other domains put rows into, and what rows are packed into for them. It is the
// GPU's own where libfabric registers that, otherwise pinned host memory, which the GPU reads and writes at the
// addresses that the host has. Records that the host reads and writes are in host memory either way.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "dispatch/call/resolved_config.hpp"
#include "dispatch/cuda/hybrid/gpu_sections.hpp"
#include "dispatch/link/link_traffic.hpp"
#include "dispatch/link/rank_memory.hpp"
#include "dispatch/link/route_tables.hpp"
#include "group/domain_link.hpp"
#include "group/group_impl.hpp"
#include "layout/buffer_plan.hpp"

namespace epistle::cuda {

/// Ranges of host memory that a GPU can use.
class RegisteredMemory {
 public:
  explicit RegisteredMemory(int device) noexcept : device_(device) {}
  ~RegisteredMemory();
  RegisteredMemory(const RegisteredMemory&) = delete;
  RegisteredMemory& operator=(const RegisteredMemory&) = delete;

  /// The first `num_bytes` from `begin` on, in place of fewer that were registered before. May wait for the device.
  /// Throws kUnsupported where the GPU would see them at other addresses, kOutOfMemory, kSystem.
  void cover(std::byte* begin, std::int64_t num_bytes);

 private:
  int device_;
  std::map<std::byte*, std::int64_t> ranges_;
};

class LinkBuffers {
 public:
  /// Collective. Throws on all ranks alike.
  LinkBuffers(GroupImpl& group, const ResolvedConfig& config, int device);

  /// Collective: makes room for the pairs of a routing on every rank, where there is less. Nobody may have work on the
  /// memory of links.
  void make_room(const DomainPairs& pairs);

  [[nodiscard]] LinkTraffic& traffic() noexcept { return traffic_; }
  [[nodiscard]] const LinkTraffic& traffic() const noexcept { return traffic_; }
  /// Of rows, as kernels see it.
  [[nodiscard]] std::byte* section(BufferSection section) const noexcept {
    return gpu_ ? gpu_->section(section) : host_section(section);
  }
  /// Of records.
  [[nodiscard]] std::byte* host_section(BufferSection section) const noexcept {
    return memory_.section(group_.rank(), section);
  }
  /// Before a kernel is launched that reads what has landed.
  void settle() const {
    if (gpu_) gpu_->settle();
  }
  /// What rows travel by, and how they get there from a GPU.
  [[nodiscard]] std::string describe() const;

 private:
  void take_sections();
  void pin_sections();

  GroupImpl& group_;
  int device_;
  BufferPlan plan_;
  RankMemory memory_;
  std::unique_ptr<GpuSections> gpu_;  ///< goes after the link that writes there
  std::unique_ptr<DomainLink> link_;
  std::string lack_of_gpu_memory_;  ///< why rows are staged; empty where they are not
  LinkTraffic traffic_;
  RegisteredMemory registered_;
};

}  // namespace epistle::cuda
