#include "dispatch/link/rank_memory.hpp"

#include <algorithm>
#include <cstdint>

namespace epistle {
namespace {

/// A mapping of nothing is refused by the system, and a plan for no tokens may need nothing.
constexpr std::int64_t kLeastReservedBytes = 4096;

}  // namespace

RankMemory::RankMemory(GroupImpl& group, const BufferPlan& plan) : plan_(&plan), group_(&group) { create(); }

void RankMemory::create() {
  region_ = group_->create_region(std::max(plan_->reserved_bytes(), kLeastReservedBytes));
  const RowDemand& initial = plan_->initial_demand();
  group_->ask_for_memory(plan_->buffer_bytes(initial), Phase::kCreate);
  commit(initial);
  demands_.assign(static_cast<std::size_t>(group_->num_ranks()), initial);
}

void RankMemory::renew() {
  is_empty_ = true;
  committed_ = {};
  region_ = {};
  create();
}

void RankMemory::commit(const RowDemand& demand) {
  RowDemand raised = committed_;
  raised.raise_to(demand);
  const SectionBytes have = plan_->section_bytes(committed_);
  const SectionBytes need = plan_->section_bytes(raised);
  for (const BufferSection section : kBufferSections) {
    // What is needed whatever the demand is not there at first either.
    const std::int64_t begin = is_empty_ ? 0 : have[section];
    if (need[section] <= begin) continue;
    for (std::int32_t copy = 0; copy < plan_->section_copies(section); ++copy) {
      region_.commit(plan_->section_offset(section) + copy * plan_->section_stride(section) + begin,
                     need[section] - begin);
    }
  }
  is_empty_ = false;
  committed_ = raised;
}

bool RankMemory::grow(const std::vector<RowDemand>& demands, const Call& call, Phase phase) {
  // Every rank knows every rank's demand, hence whether somebody has to grow.
  bool someone_grows = false;
  for (std::size_t peer = 0; peer < demands.size() && !someone_grows; ++peer) {
    RowDemand raised = demands_[peer];
    raised.raise_to(demands[peer]);
    if (raised == demands_[peer]) continue;
    someone_grows = plan_->buffer_bytes(raised) > plan_->buffer_bytes(demands_[peer]);
  }
  if (someone_grows) {
    const RowDemand& own = demands[static_cast<std::size_t>(group_->rank())];
    RowDemand raised = committed_;
    raised.raise_to(own);
    group_->ask_for_memory(plan_->buffer_bytes(raised) - plan_->buffer_bytes(committed_), phase);
    group_->take_together(call, phase, [&] { commit(own); });
  }
  for (std::size_t peer = 0; peer < demands.size(); ++peer) demands_[peer].raise_to(demands[peer]);
  return someone_grows;
}

}  // namespace epistle
