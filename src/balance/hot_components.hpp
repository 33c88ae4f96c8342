// Where slots are scarce: how the hottest experts can be put together, so that no rank has more than a given load.
//
// Ranks and experts are the nodes of a graph whose edges are the slots. A component of N ranks, n slots each, and M
// experts has at most n N edges and at least N + M - 1, so M <= (n - 1) N + 1; and n N - M of its slots are more than
// one for each of its experts, N - 1 or more. Over all components these are as many as the cluster has slots more than
// experts. With a largest load of T a component that holds hot experts needs N T at least for them and for its other
// experts, which are at best the coolest; and the coolest are there once only, for all components together.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace epistle::balance {

/// Slots of every rank that has any; nothing where they differ.
[[nodiscard]] std::optional<std::int32_t> even_slots(std::span<const std::int32_t> slots_of_rank);

/// Hot experts that share ranks with each other, and with no others that are hot.
struct HotComponent {
  std::vector<std::size_t> experts;  ///< by number
  std::int64_t num_ranks = 0;
  std::int64_t num_others = 0;  ///< experts that are put to them, as many as there are slots for
};

class HotComponents {
 public:
  HotComponents(std::span<const std::int64_t> loads, std::int64_t num_ranks, std::int64_t slots_per_rank);

  enum class Answer : std::int32_t { kNo, kYes, kUnknown };
  /// Whether some way may keep all ranks at or below `largest`: kNo is a proof, kYes comes with the way, whose others
  /// may be too heavy still. kUnknown where `max_steps` of the search were not enough.
  [[nodiscard]] Answer find(double largest, std::int64_t max_steps, std::vector<HotComponent>& way) const;

  [[nodiscard]] double total() const { return sum_of_coolest_.back(); }
  /// Numbers of experts, the hottest first.
  [[nodiscard]] std::span<const std::size_t> by_heat() const { return by_heat_; }

 private:
  struct Search;
  /// The hottest ones, as many as are looked at together.
  [[nodiscard]] std::size_t num_hot(double largest) const;

  std::int64_t num_ranks_;
  std::int64_t slots_per_rank_;
  std::int64_t num_extra_;  // slots more than experts
  std::vector<std::size_t> by_heat_;
  std::vector<double> load_;            // by heat
  std::vector<double> sum_of_coolest_;  // [num_experts + 1]
};

}  // namespace epistle::balance
