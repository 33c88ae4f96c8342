// The memory of one dispatcher that all ranks address: where everything lies, and how much of it is there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "dispatch/call/row_buffer.hpp"
#include "group/group_impl.hpp"
#include "layout/buffer_plan.hpp"

namespace epistle {

class RankMemory {
 public:
  /// Collective. The plan outlives the memory.
  RankMemory(GroupImpl& group, const BufferPlan& plan);

  /// Collective: other memory in place of what was taken so far, which goes with its last lease.
  void renew();

  /// A section of a rank, as this process sees it; of those that are there once per buffer the first.
  [[nodiscard]] std::byte* section(int rank, BufferSection section) const noexcept {
    return region_.base(rank) + plan_->section_offset(section);
  }
  [[nodiscard]] std::byte* section(int rank, BufferSection wanted, std::int32_t buffer) const noexcept {
    return section(rank, wanted) + buffer * plan_->section_stride(wanted);
  }

  /// Collective: commits what every rank of `demands` needs more than it has. Costs nothing where no rank does: false.
  bool grow(const std::vector<RowDemand>& demands, const Call& call, Phase phase);

  [[nodiscard]] std::int64_t committed_bytes() const noexcept { return plan_->buffer_bytes(committed_); }
  [[nodiscard]] std::int64_t resident_bytes() const { return is_empty_ ? 0 : region_.resident_bytes(); }
  [[nodiscard]] const SymmetricRegion& region() const noexcept { return region_; }
  /// What is committed of one copy of a section of this rank.
  [[nodiscard]] std::int64_t committed_bytes(BufferSection section) const noexcept {
    return plan_->section_bytes(committed_)[section];
  }
  /// Keeps the memory mapped.
  [[nodiscard]] std::shared_ptr<const void> share() const noexcept { return region_.share(); }

 private:
  void create();
  void commit(const RowDemand& demand);

  const BufferPlan* plan_;
  GroupImpl* group_;
  SymmetricRegion region_;
  RowDemand committed_;
  bool is_empty_ = true;            ///< nothing is committed
  std::vector<RowDemand> demands_;  ///< [num_ranks] that all ranks have agreed to be committed
};

}  // namespace epistle
