#include "dispatch/host/engine/rank_memory.hpp"

namespace epistle::host {

RankMemory::RankMemory(GroupImpl& group, const DispatchLayout& layout)
    : layout_(layout), group_(&group), region_(group.create_region(layout.reserved_bytes())) {
  for (std::int32_t idx = 0; idx < kNumBufferSections; ++idx) {
    const auto section = static_cast<BufferSection>(idx);
    offsets_[static_cast<std::size_t>(idx)] = layout_.section_offset(section);
    // Where there is one copy, it is that of every buffer.
    strides_[static_cast<std::size_t>(idx)] = layout_.section_copies(section) > 1 ? layout_.section_stride(section) : 0;
  }
  const RowDemand initial = layout_.initial_demand();
  group_->ask_for_memory(layout_.buffer_bytes(initial), Phase::kCreate);
  commit(initial);
  demands_.assign(static_cast<std::size_t>(group.num_ranks()), initial);
}

void RankMemory::commit(const RowDemand& demand) {
  RowDemand raised = committed_;
  raised.raise_to(demand);
  for (std::int32_t idx = 0; idx < kNumBufferSections; ++idx) {
    const auto wanted = static_cast<BufferSection>(idx);
    // The control section is needed whatever the demand.
    const bool empty = wanted == BufferSection::kControl && !control_committed_;
    const std::int64_t have = empty ? 0 : layout_.section_bytes(wanted, committed_);
    const std::int64_t need = layout_.section_bytes(wanted, raised);
    if (need <= have) continue;
    for (std::int32_t copy = 0; copy < layout_.section_copies(wanted); ++copy) {
      const std::int64_t begin =
          offsets_[static_cast<std::size_t>(idx)] + copy * strides_[static_cast<std::size_t>(idx)];
      region_.commit(begin + have, need - have);
    }
  }
  control_committed_ = true;
  committed_ = raised;
}

void RankMemory::grow(const std::vector<RowDemand>& demands, const Call& call, Phase phase) {
  // Every rank knows every rank's demand, hence whether somebody has to grow.
  bool someone_grows = false;
  for (std::size_t peer = 0; peer < demands.size(); ++peer) {
    RowDemand raised = demands_[peer];
    raised.raise_to(demands[peer]);
    someone_grows = someone_grows || layout_.buffer_bytes(raised) > layout_.buffer_bytes(demands_[peer]);
  }
  if (someone_grows) {
    const RowDemand& own = demands[static_cast<std::size_t>(group_->rank())];
    RowDemand raised = committed_;
    raised.raise_to(own);
    group_->ask_for_memory(layout_.buffer_bytes(raised) - layout_.buffer_bytes(committed_), phase);
    group_->take_together(call, phase, [&] { commit(own); });
  }
  for (std::size_t peer = 0; peer < demands.size(); ++peer) demands_[peer].raise_to(demands[peer]);
}

}  // namespace epistle::host
