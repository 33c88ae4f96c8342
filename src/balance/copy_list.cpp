#include "balance/copy_list.hpp"

#include <algorithm>
#include <optional>
#include <utility>

#include "epistle/error.hpp"

namespace epistle::balance {
namespace {

/// Does copies and keeps track of where experts are meanwhile.
class CopyPlanner {
 public:
  CopyPlanner(const SlotTable& from, const SlotTable& to, std::int32_t num_experts, const Cluster& cluster,
              std::int64_t expert_bytes)
      : now_(from),
        to_(&to),
        cluster_(&cluster),
        expert_bytes_(expert_bytes),
        rank_of_(from.rank_of_slot()),
        num_live_(from.replica_counts(num_experts)),
        places_(static_cast<std::size_t>(num_experts)),
        staged_(static_cast<std::size_t>(from.num_ranks()), kEmptySlot),
        num_sent_(static_cast<std::size_t>(from.num_ranks()), 0) {
    for (std::int32_t slot = 0; slot < from.num_slots(); ++slot) {
      if (expert_at(slot) != kEmptySlot) places_[static_cast<std::size_t>(expert_at(slot))].push_back(slot);
      const std::int32_t wanted = wanted_at(slot);
      if (wanted != kEmptySlot && wanted != expert_at(slot)) pending_.push_back(slot);
    }
  }

  [[nodiscard]] std::vector<CopyStep> run() {
    while (!pending_.empty()) {
      const std::size_t num_before = pending_.size();
      std::vector<std::int32_t> waiting;
      for (const std::int32_t slot : pending_) {
        if (can_overwrite(slot)) {
          fill(slot);
        } else {
          waiting.push_back(slot);
        }
      }
      pending_ = std::move(waiting);
      // Only rings of experts that take each other's last slot are left: one of them waits aside.
      if (pending_.size() == num_before) stage();
    }
    return std::move(steps_);
  }

 private:
  [[nodiscard]] std::int32_t expert_at(std::int32_t slot) const { return now_.expert[static_cast<std::size_t>(slot)]; }
  [[nodiscard]] std::int32_t wanted_at(std::int32_t slot) const { return to_->expert[static_cast<std::size_t>(slot)]; }
  [[nodiscard]] std::int32_t rank_of(std::int32_t slot) const { return rank_of_[static_cast<std::size_t>(slot)]; }
  [[nodiscard]] SlotRef ref(std::int32_t slot) const {
    return {.rank = rank_of(slot), .local_slot = slot - now_.begin[static_cast<std::size_t>(rank_of(slot))]};
  }

  [[nodiscard]] bool can_overwrite(std::int32_t slot) const {
    const std::int32_t expert = expert_at(slot);
    return expert == kEmptySlot || num_live_[static_cast<std::size_t>(expert)] > 1;
  }

  [[nodiscard]] LinkClass link(std::int32_t from_rank, std::int32_t to_rank) const {
    if (from_rank == to_rank) return LinkClass::kLocal;
    return cluster_->domain_of(from_rank) == cluster_->domain_of(to_rank) ? LinkClass::kDomain
                                                                          : LinkClass::kAcrossDomain;
  }

  /// The nearest copy of an expert, of equal ones that of the rank which has sent least.
  [[nodiscard]] SlotRef find_source(std::int32_t expert, std::int32_t rank) const {
    if (staged_[static_cast<std::size_t>(rank)] == expert) return {.rank = rank, .local_slot = kStagingSlot};
    const auto cost = [&](std::int32_t from_rank) {
      return std::pair(link(from_rank, rank), num_sent_[static_cast<std::size_t>(from_rank)]);
    };
    std::optional<SlotRef> best;
    for (const std::int32_t slot : places_[static_cast<std::size_t>(expert)]) {
      if (!best || cost(rank_of(slot)) < cost(best->rank)) best = ref(slot);
    }
    if (best) return *best;
    for (std::int32_t other = 0; other < now_.num_ranks(); ++other) {
      if (staged_[static_cast<std::size_t>(other)] == expert) return {.rank = other, .local_slot = kStagingSlot};
    }
    throw Error(ErrorCode::kInvalidArgument, "an expert of the new placement has no slot in the current one");
  }

  void add_step(std::int32_t expert, const SlotRef& source, const SlotRef& destination) {
    const LinkClass over = link(source.rank, destination.rank);
    steps_.push_back(
        {.expert = expert, .source = source, .destination = destination, .bytes = expert_bytes_, .link = over});
    if (over != LinkClass::kLocal) ++num_sent_[static_cast<std::size_t>(source.rank)];
  }

  void fill(std::int32_t slot) {
    const std::int32_t wanted = wanted_at(slot);
    const std::int32_t old = expert_at(slot);
    const SlotRef source = find_source(wanted, rank_of(slot));
    add_step(wanted, source, ref(slot));
    if (source.local_slot == kStagingSlot && source.rank == rank_of(slot)) {
      staged_[static_cast<std::size_t>(source.rank)] = kEmptySlot;
      --num_live_[static_cast<std::size_t>(wanted)];
    }
    if (old != kEmptySlot) {
      --num_live_[static_cast<std::size_t>(old)];
      std::erase(places_[static_cast<std::size_t>(old)], slot);
    }
    now_.expert[static_cast<std::size_t>(slot)] = wanted;
    ++num_live_[static_cast<std::size_t>(wanted)];
    places_[static_cast<std::size_t>(wanted)].push_back(slot);
  }

  void stage() {
    for (const std::int32_t slot : pending_) {
      std::int32_t& staged = staged_[static_cast<std::size_t>(rank_of(slot))];
      if (staged != kEmptySlot) continue;
      const std::int32_t wanted = wanted_at(slot);
      add_step(wanted, find_source(wanted, rank_of(slot)), {.rank = rank_of(slot), .local_slot = kStagingSlot});
      staged = wanted;
      ++num_live_[static_cast<std::size_t>(wanted)];
      return;
    }
    throw Error(ErrorCode::kInvalidArgument, "the placements cannot be led into each other");
  }

  SlotTable now_;
  const SlotTable* to_;
  const Cluster* cluster_;
  std::int64_t expert_bytes_;
  std::vector<std::int32_t> rank_of_;
  std::vector<std::int32_t> num_live_;  // [num_experts]; staged ones as well
  std::vector<std::vector<std::int32_t>> places_;
  std::vector<std::int32_t> staged_;  // [num_ranks]
  std::vector<std::int64_t> num_sent_;
  std::vector<std::int32_t> pending_;
  std::vector<CopyStep> steps_;
};

}  // namespace

std::string_view to_string(LinkClass link) noexcept {
  switch (link) {
    case LinkClass::kLocal:
      return "local";
    case LinkClass::kDomain:
      return "domain";
    case LinkClass::kAcrossDomain:
      return "across";
  }
  return "unknown";
}

void keep_slots(const SlotTable& from, SlotTable& to, std::vector<std::int64_t>& share) {
  for (std::int32_t rank = 0; rank < from.num_ranks(); ++rank) {
    const auto first = static_cast<std::size_t>(from.begin[static_cast<std::size_t>(rank)]);
    const auto end = static_cast<std::size_t>(from.begin[static_cast<std::size_t>(rank) + 1]);
    for (std::size_t slot = first; slot < end; ++slot) {
      const std::int32_t expert = from.expert[slot];
      if (expert == kEmptySlot || to.expert[slot] == expert) continue;
      const auto begin = to.expert.begin();
      const auto found =
          std::find(begin + static_cast<std::ptrdiff_t>(first), begin + static_cast<std::ptrdiff_t>(end), expert);
      const auto other = static_cast<std::size_t>(found - begin);
      // A second replica of a rank stays where it is: its slot holds the expert already.
      if (other == end || from.expert[other] == expert) continue;
      std::swap(to.expert[slot], to.expert[other]);
      std::swap(share[slot], share[other]);
    }
  }
}

std::vector<CopyStep> list_copies(const SlotTable& from, const SlotTable& to, std::int32_t num_experts,
                                  const Cluster& cluster, std::int64_t expert_bytes) {
  return CopyPlanner(from, to, num_experts, cluster, expert_bytes).run();
}

CopySummary summarize(const std::vector<CopyStep>& steps) {
  CopySummary summary;
  for (const CopyStep& step : steps) {
    if (step.link == LinkClass::kLocal) continue;
    ++summary.num_copies;
    summary.bytes += step.bytes;
    if (step.link == LinkClass::kAcrossDomain) summary.bytes_across_domains += step.bytes;
  }
  return summary;
}

}  // namespace epistle::balance
