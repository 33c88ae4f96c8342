// Host memory between links and a GPU: what other domains put rows into, and what rows are packed into for them. The
// GPU reads and writes it at the addresses that the host has.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "dispatch/call/resolved_config.hpp"
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
  [[nodiscard]] std::byte* section(BufferSection section) const noexcept {
    return memory_.section(group_.rank(), section);
  }

 private:
  void register_sections();

  GroupImpl& group_;
  BufferPlan plan_;
  RankMemory memory_;
  std::unique_ptr<DomainLink> link_;
  LinkTraffic traffic_;
  RegisteredMemory registered_;
};

}  // namespace epistle::cuda
