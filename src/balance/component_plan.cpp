#include "balance/component_plan.hpp"

#include <algorithm>
#include <cstddef>
#include <numeric>
#include <utility>
#include <vector>

#include "balance/fresh_plan.hpp"
#include "balance/hot_components.hpp"

namespace epistle::balance {
namespace {

constexpr std::int64_t kPlanSteps = 3000;  // where a way is found, it mostly takes some hundred
constexpr int kPlanHalvings = 14;          // of the mean
constexpr double kPlanSlacks[] = {1.0, 1.001, 1.003, 1.01};

/// Ranks that share load with each other and with no others.
struct Cell {
  std::vector<std::size_t> hot;  // experts, the hottest first; each has load on some ranks
  std::vector<std::size_t> others;
  std::int64_t num_ranks = 1;
  std::int64_t num_places = 0;  // for others
  double room = 0.0;            // for what is not there yet
};

class CellFiller {
 public:
  CellFiller(std::span<const std::int64_t> loads, const HotComponents& components, std::int64_t num_ranks,
             std::int64_t slots_per_rank)
      : loads_(loads), components_(&components), num_ranks_(num_ranks), slots_per_rank_(slots_per_rank) {}

  /// Empty: there is no place for all.
  [[nodiscard]] std::vector<Cell> fill(const std::vector<HotComponent>& way, double largest) const {
    std::vector<Cell> cells;
    std::vector<char> is_hot(loads_.size(), 0);
    std::int64_t ranks_left = num_ranks_;
    for (const HotComponent& component : way) {
      Cell& cell = cells.emplace_back();
      cell.hot = component.experts;
      cell.num_ranks = component.num_ranks;
      cell.num_places = component.num_others;
      for (const std::size_t expert : cell.hot) is_hot[expert] = 1;
      ranks_left -= cell.num_ranks;
    }
    if (ranks_left < 0) return {};
    std::vector<std::size_t> others;
    for (const std::size_t expert : components_->by_heat()) {
      if (is_hot[expert] == 0) others.push_back(expert);
    }
    if (static_cast<std::size_t>(ranks_left) > others.size()) return {};
    // Ranks that are left have one each of the hottest of the others.
    for (auto idx = std::size_t{0}; idx < static_cast<std::size_t>(ranks_left); ++idx) {
      cells.push_back({.hot = {others[idx]}, .others = {}, .num_places = slots_per_rank_ - 1});
    }
    others.erase(others.begin(), others.begin() + ranks_left);
    for (Cell& cell : cells) {
      cell.room = largest * static_cast<double>(cell.num_ranks);
      for (const std::size_t expert : cell.hot) cell.room -= load_of(expert);
    }
    if (!put_others(others, cells)) return {};
    exchange(cells);
    return cells;
  }

 private:
  [[nodiscard]] double load_of(std::size_t expert) const { return static_cast<double>(loads_[expert]); }

  /// The hottest first, each where places have most room: the coolest go where there is least.
  [[nodiscard]] bool put_others(const std::vector<std::size_t>& others, std::vector<Cell>& cells) const {
    for (const std::size_t expert : others) {
      Cell* best = nullptr;
      double most = 0.0;
      for (Cell& cell : cells) {
        const auto left = cell.num_places - static_cast<std::int64_t>(cell.others.size());
        if (left == 0) continue;
        const double room = cell.room / static_cast<double>(left);
        if (best != nullptr && room <= most) continue;
        best = &cell;
        most = room;
      }
      if (best == nullptr) return false;
      best->others.push_back(expert);
      best->room -= load_of(expert);
    }
    return true;
  }

  /// As long as a cell has more than its ranks can take, others of it change places with cooler ones elsewhere.
  void exchange(std::vector<Cell>& cells) const {
    const auto need = [](const Cell& cell) { return -cell.room / static_cast<double>(cell.num_ranks); };
    for (std::size_t turn = 0; turn < loads_.size(); ++turn) {
      Cell& fullest = *std::max_element(cells.begin(), cells.end(),
                                        [&](const Cell& a, const Cell& b) { return need(a) < need(b); });
      if (fullest.room >= 0.0) return;
      struct Exchange {
        std::size_t* own = nullptr;
        std::size_t* other = nullptr;
        Cell* cell = nullptr;
        double need = 0.0;
      };
      Exchange best{.need = need(fullest)};
      for (Cell& cell : cells) {
        if (&cell == &fullest) continue;
        for (std::size_t& own : fullest.others) {
          for (std::size_t& other : cell.others) {
            const double gain = load_of(own) - load_of(other);
            if (gain <= 0.0) continue;
            const double left = std::max((-fullest.room - gain) / static_cast<double>(fullest.num_ranks),
                                         (-cell.room + gain) / static_cast<double>(cell.num_ranks));
            if (left < best.need) best = {.own = &own, .other = &other, .cell = &cell, .need = left};
          }
        }
      }
      if (best.cell == nullptr) return;
      const double gain = load_of(*best.own) - load_of(*best.other);
      std::swap(*best.own, *best.other);
      fullest.room += gain;
      best.cell->room -= gain;
    }
  }

  std::span<const std::int64_t> loads_;
  const HotComponents* components_;
  std::int64_t num_ranks_;
  std::int64_t slots_per_rank_;
};

/// A cell's ranks side by side: each is filled up to their mean, and what a hot expert has beyond it goes on to the
/// next.
class CellRanks {
 public:
  CellRanks(Cell cell, std::span<const std::int64_t> loads, std::int64_t slots_per_rank)
      : cell_(std::move(cell)), loads_(loads), slots_per_rank_(static_cast<std::size_t>(slots_per_rank)) {
    double total = 0.0;
    for (const std::size_t expert : cell_.hot) total += load_of(expert);
    for (const std::size_t expert : cell_.others) total += load_of(expert);
    mean_ = total / static_cast<double>(cell_.num_ranks);
    std::stable_sort(cell_.others.begin(), cell_.others.end(),
                     [&](std::size_t a, std::size_t b) { return loads_[a] > loads_[b]; });
    hot_left_ = load_of(cell_.hot.front());
  }

  /// Experts of every rank, at most as many as it has slots; empty where some found no place.
  [[nodiscard]] std::vector<std::vector<std::size_t>> spread() {
    std::vector<std::vector<std::size_t>> ranks;
    for (std::int64_t rank = 0; rank < cell_.num_ranks; ++rank) {
      ranks.push_back(next_rank(rank + 1 == cell_.num_ranks));
    }
    if (!cell_.others.empty() || hot_ + 1 != cell_.hot.size()) return {};
    return ranks;
  }

 private:
  [[nodiscard]] double load_of(std::size_t expert) const { return static_cast<double>(loads_[expert]); }

  /// From both ends and the middle in turn, so that all ranks get about the same.
  std::size_t take_other(std::size_t turn) {
    const std::size_t size = cell_.others.size();
    const std::size_t at = turn % 3 == 0 ? 0 : turn % 3 == 1 ? size - 1 : size / 2;
    const std::size_t expert = cell_.others[at];
    cell_.others.erase(cell_.others.begin() + static_cast<std::ptrdiff_t>(at));
    return expert;
  }

  void give_back(std::size_t expert) {
    const auto at = std::find_if(cell_.others.begin(), cell_.others.end(),
                                 [&](std::size_t other) { return loads_[other] < loads_[expert]; });
    cell_.others.insert(at, expert);
  }

  [[nodiscard]] std::vector<std::size_t> next_rank(bool is_last) {
    std::vector<std::size_t> experts;
    double room = mean_;
    while (experts.size() + 1 < slots_per_rank_ && !cell_.others.empty()) {
      experts.push_back(take_other(experts.size()));
      room -= load_of(experts.back());
    }
    std::vector<std::size_t> hot = {cell_.hot[hot_]};
    // Where a hot expert ends the next one begins, in a slot that one of the others gives.
    while (!is_last && hot_left_ <= room && hot_ + 1 < cell_.hot.size() && !experts.empty()) {
      room += load_of(experts.back()) - hot_left_;
      give_back(experts.back());
      experts.pop_back();
      hot.push_back(cell_.hot[++hot_]);
      hot_left_ = load_of(hot.back());
    }
    // On the last rank all that are left: as many as have a slot.
    while (is_last && hot_ + 1 < cell_.hot.size()) {
      hot.push_back(cell_.hot[++hot_]);
      if (experts.size() + hot.size() > slots_per_rank_ && !experts.empty()) {
        give_back(experts.back());
        experts.pop_back();
      }
    }
    hot_left_ -= room;
    experts.insert(experts.end(), hot.begin(), hot.end());
    return experts;
  }

  Cell cell_;
  std::span<const std::int64_t> loads_;
  std::size_t slots_per_rank_;
  double mean_ = 0.0;
  std::size_t hot_ = 0;    // the one that comes next
  double hot_left_ = 0.0;  // its load that no rank has
};

/// Nothing where an expert found no place.
std::optional<SlotTable> lay_out_cells(const std::vector<Cell>& cells, std::span<const std::int64_t> loads,
                                       std::span<const std::int32_t> slots_of_rank, std::int64_t slots_per_rank) {
  if (cells.empty()) return std::nullopt;
  SlotTable table = SlotTable::empty({slots_of_rank.begin(), slots_of_rank.end()});
  std::size_t rank = 0;
  for (const Cell& cell : cells) {
    const std::vector<std::vector<std::size_t>> ranks = CellRanks(cell, loads, slots_per_rank).spread();
    if (ranks.empty()) return std::nullopt;
    for (const std::vector<std::size_t>& experts : ranks) {
      while (slots_of_rank[rank] == 0) ++rank;
      if (experts.size() > static_cast<std::size_t>(slots_per_rank)) return std::nullopt;
      auto slot = static_cast<std::size_t>(table.begin[rank]);
      for (const std::size_t expert : experts) table.expert[slot++] = static_cast<std::int32_t>(expert);
      ++rank;
    }
  }
  return table;
}

}  // namespace

std::optional<SlotTable> plan_components(std::span<const std::int64_t> loads,
                                         std::span<const std::int32_t> slots_of_rank) {
  const std::optional<std::int32_t> slots = even_slots(slots_of_rank);
  const auto num_ranks = static_cast<std::int64_t>(
      std::count_if(slots_of_rank.begin(), slots_of_rank.end(), [](std::int32_t num) { return num > 0; }));
  if (!slots || num_ranks * *slots - static_cast<std::int64_t>(loads.size()) >= num_ranks - 1) return std::nullopt;
  const HotComponents components(loads, num_ranks, *slots);
  const CellFiller filler(loads, components, num_ranks, *slots);
  std::vector<HotComponent> way;
  double below = components.total() / static_cast<double>(num_ranks);
  double above = 2.0 * below;
  for (int halving = 0; halving < kPlanHalvings; ++halving) {
    const double between = (below + above) / 2.0;
    const bool is_possible = components.find(between, kPlanSteps, way) == HotComponents::Answer::kYes;
    (is_possible ? above : below) = between;
  }
  // The way that is possible with the least load is the most promising one, and others where all others do not fit.
  std::optional<SlotTable> best;
  std::int64_t least = 0;
  for (const double slack : kPlanSlacks) {
    if (components.find(above * slack, kPlanSteps, way) != HotComponents::Answer::kYes) continue;
    std::optional<SlotTable> table = lay_out_cells(filler.fill(way, above * slack), loads, slots_of_rank, *slots);
    if (!table) continue;
    const std::int64_t largest = largest_rank_load(share_best(*table, loads));
    if (best && largest >= least) continue;
    best = std::move(table);
    least = largest;
  }
  return best;
}

}  // namespace epistle::balance
