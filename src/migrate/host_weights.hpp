// Weights in a region that all ranks of a host map.
#pragma once

#include <cstddef>

#include "group/group_impl.hpp"
#include "migrate/weight_memory.hpp"

namespace epistle::migrate {

class HostWeights final : public WeightMemory {
 public:
  /// Places begin `offset` bytes into every rank's piece. The region outlives this. `low_priority`: of the thread.
  HostWeights(const SymmetricRegion& region, std::int64_t offset, bool low_priority) noexcept
      : region_(&region), offset_(offset), low_priority_(low_priority) {}

  [[nodiscard]] std::byte* base(int rank) const noexcept override { return region_->base(rank) + offset_; }
  void begin_thread() override;
  /// The host's steps are done when they return.
  void wait_for_free_places() override {}
  void copy(std::byte* destination, const std::byte* source, std::size_t num_bytes) override;
  void free_behind(Stream /*stream*/) override {}

 private:
  const SymmetricRegion* region_;
  std::int64_t offset_;
  bool low_priority_;
};

}  // namespace epistle::migrate
