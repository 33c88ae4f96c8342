// The memory of one dispatcher that all ranks address: where everything lies, and how much of it is there.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "dispatch/call/row_buffer.hpp"
#include "group/group_impl.hpp"
#include "layout/dispatch_layout.hpp"

namespace epistle::host {

class RankMemory {
 public:
  /// Collective.
  RankMemory(GroupImpl& group, const DispatchLayout& layout);

  /// A section of a rank, as this process sees it; of those that are there once per buffer the first.
  [[nodiscard]] std::byte* section(int rank, BufferSection section) const noexcept {
    return region_.base(rank) + offsets_[static_cast<std::size_t>(section)];
  }
  [[nodiscard]] std::byte* section(int rank, BufferSection wanted, std::int32_t buffer) const noexcept {
    return section(rank, wanted) + buffer * strides_[static_cast<std::size_t>(wanted)];
  }

  /// Collective: commits what every rank of `demands` needs more than it has. Costs nothing where no rank does.
  void grow(const std::vector<RowDemand>& demands, const Call& call, Phase phase);

  [[nodiscard]] std::int64_t committed_bytes() const noexcept { return layout_.buffer_bytes(committed_); }
  [[nodiscard]] std::int64_t resident_bytes() const { return region_.resident_bytes(); }
  /// Keeps the memory mapped.
  [[nodiscard]] std::shared_ptr<const void> share() const noexcept { return region_.share(); }

 private:
  void commit(const RowDemand& demand);

  DispatchLayout layout_;
  GroupImpl* group_;
  std::array<std::int64_t, kNumBufferSections> offsets_{};
  std::array<std::int64_t, kNumBufferSections> strides_{};
  SymmetricRegion region_;
  RowDemand committed_;
  bool control_committed_ = false;
  std::vector<RowDemand> demands_;  ///< [num_ranks] that all ranks have agreed to be committed
};

}  // namespace epistle::host
