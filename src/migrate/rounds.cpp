#include "migrate/rounds.hpp"

#include <algorithm>
#include <optional>
#include <utility>

#include "epistle/error.hpp"

namespace epistle::migrate {
namespace {

/// Follows the planner's copies and keeps track of what lies where.
class RoundPlanner {
 public:
  RoundPlanner(const Places& now, std::int32_t spare) : round_{.pulls = {}, .after = now}, spare_(spare) {
    open_round();
  }

  void take(const balance::CopyStep& step) {
    const auto rank = static_cast<std::size_t>(step.destination.rank);
    Held& destination = held_at(step.destination);
    if (step.source.rank == step.destination.rank) {
      // What is here already only gets another name.
      Held& source = held_at(step.source);
      destination = source;
      if (step.source.local_slot == balance::kStagingSlot) source = {};
      return;
    }
    // What arrives in this round cannot be passed on in it.
    if (is_arriving(step.source) || take_from_.at(rank).empty()) close_round();
    if (take_from_[rank].empty()) throw Error(ErrorCode::kInvalidArgument, "a rank has no spare place for weights");
    const std::int32_t place = take_from_[rank].back();
    take_from_[rank].pop_back();
    round_.pulls.push_back({.expert = step.expert,
                            .source = {.rank = step.source.rank, .local_slot = held_at(step.source).place},
                            .destination = {.rank = step.destination.rank, .local_slot = place}});
    destination = {.expert = step.expert, .place = place};
  }

  [[nodiscard]] std::vector<Round> finish(const balance::SlotTable& target, const Places& before) {
    // Slots that the target leaves empty, which takes no copy.
    for (std::int32_t rank = 0; rank < target.num_ranks(); ++rank) {
      const auto wanted = target.experts_of(rank);
      std::vector<Held>& slots = round_.after.slots[static_cast<std::size_t>(rank)];
      for (std::size_t slot = 0; slot < slots.size(); ++slot) {
        if (wanted[slot] == balance::kEmptySlot) slots[slot] = {};
      }
    }
    const Places& last = rounds_.empty() ? before : rounds_.back().after;
    if (!round_.pulls.empty() || round_.after.slots != last.slots) close_round();
    return std::move(rounds_);
  }

 private:
  [[nodiscard]] Held& held_at(const SlotRef& ref) {
    const auto rank = static_cast<std::size_t>(ref.rank);
    if (ref.local_slot == balance::kStagingSlot) return round_.after.staged[rank];
    return round_.after.slots[rank][static_cast<std::size_t>(ref.local_slot)];
  }

  [[nodiscard]] bool is_arriving(const SlotRef& source) {
    const std::int32_t place = held_at(source).place;
    return std::any_of(round_.pulls.begin(), round_.pulls.end(), [&](const Pull& pull) {
      return pull.destination == SlotRef{.rank = source.rank, .local_slot = place};
    });
  }

  void close_round() {
    rounds_.push_back(round_);
    round_.pulls.clear();
    open_round();
  }

  /// Free is what nothing in force lies in.
  void open_round() {
    const std::size_t num_ranks = round_.after.slots.size();
    take_from_.assign(num_ranks, {});
    for (std::size_t rank = 0; rank < num_ranks; ++rank) {
      const std::vector<Held>& slots = round_.after.slots[rank];
      for (auto place = static_cast<std::int32_t>(slots.size()) + spare_ - 1; place >= 0; --place) {
        const auto lies_in = [place](const Held& held) { return held.place == place; };
        if (lies_in(round_.after.staged[rank]) || std::any_of(slots.begin(), slots.end(), lies_in)) continue;
        take_from_[rank].push_back(place);
      }
    }
  }

  std::vector<Round> rounds_;
  Round round_;  // `after` is as if its pulls were done
  std::int32_t spare_;
  std::vector<std::vector<std::int32_t>> take_from_;  // [num_ranks]; places free since the round began
};

}  // namespace

Places Places::from(const balance::SlotTable& table) {
  Places places;
  places.staged.resize(static_cast<std::size_t>(table.num_ranks()));
  for (std::int32_t rank = 0; rank < table.num_ranks(); ++rank) {
    std::vector<Held>& slots = places.slots.emplace_back();
    for (const std::int32_t expert : table.experts_of(rank)) {
      const auto place = static_cast<std::int32_t>(slots.size());
      slots.push_back(expert == balance::kEmptySlot ? Held{} : Held{.expert = expert, .place = place});
    }
  }
  return places;
}

std::vector<Held> Places::usable_of(std::int32_t rank) const {
  std::vector<Held> usable;
  const auto add = [&](const Held& held) {
    const bool is_known =
        std::any_of(usable.begin(), usable.end(), [&](const Held& other) { return other.expert == held.expert; });
    if (held.expert != balance::kEmptySlot && !is_known) usable.push_back(held);
  };
  for (const Held& held : slots[static_cast<std::size_t>(rank)]) add(held);
  add(staged[static_cast<std::size_t>(rank)]);
  return usable;
}

Placement Places::placement(std::int32_t num_experts, std::uint64_t generation) const {
  std::vector<std::vector<std::int32_t>> slot_experts(slots.size());
  for (std::size_t rank = 0; rank < slots.size(); ++rank) {
    for (const Held& held : usable_of(static_cast<std::int32_t>(rank))) slot_experts[rank].push_back(held.expert);
  }
  return {num_experts, slot_experts, generation};
}

std::vector<Round> plan_rounds(const Places& now, const balance::SlotTable& target,
                               const std::vector<balance::CopyStep>& steps, std::int32_t spare) {
  RoundPlanner planner(now, spare);
  for (const balance::CopyStep& step : steps) planner.take(step);
  return planner.finish(target, now);
}

}  // namespace epistle::migrate
