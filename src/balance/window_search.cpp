#include "balance/window_search.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numeric>
#include <utility>

#include "balance/fresh_plan.hpp"
#include "layout/replica_hash.hpp"

namespace epistle::balance {
namespace {

using Values = std::vector<double>;

// The largest of some numbers is nearly the 16th root of the sum of their 16th powers, which tells of the second
// largest as well, and takes no function but the square root: the same bits wherever IEEE arithmetic is.
constexpr int kNumSquares = 4;

double raised(double value) {
  for (int square = 0; square < kNumSquares; ++square) value *= value;
  return value;
}

double root_of(double value) {
  for (int square = 0; square < kNumSquares; ++square) value = std::sqrt(value);
  return value;
}

/// Of variance 1, nearly normal: the sum of four uniform numbers of 16 bits.
double draw(std::int64_t scenario, std::int32_t source) {
  constexpr std::uint64_t kSeed = 0x6c6f616473ULL;
  constexpr double kUnits = 65536.0;
  constexpr double kNumParts = 4.0;
  std::uint64_t bits = hash_key({.token_position = scenario, .expert = source, .step_seed = kSeed});
  double sum = 0.0;
  for (int part = 0; part < 4; ++part, bits >>= 16U) sum += (static_cast<double>(bits & 0xffffU) + 0.5) / kUnits;
  return (sum - kNumParts / 2.0) * std::sqrt(12.0 / kNumParts);
}

void make_parts(Values& values) {
  const double sum = std::accumulate(values.begin(), values.end(), 0.0);
  for (double& value : values) value = sum > 0.0 ? value / sum : 0.0;
}

/// Weights of windows, of sum 1.
Values weights_of(std::size_t num_windows, double half_life) {
  Values weights(num_windows);
  const double fade = half_life > 0.0 ? std::exp2(-1.0 / half_life) : 1.0;
  double weight = 1.0;
  for (std::size_t window = num_windows; window > 0; --window, weight *= fade) weights[window - 1] = weight;
  make_parts(weights);
  return weights;
}

class ScenarioSearch {
 public:
  ScenarioSearch(SharedPack start, std::span<const std::int64_t> loads, const std::vector<Values>& scenarios)
      : pack_(std::move(start)),
        loads_(loads),
        num_scenarios_(scenarios.size()),
        quota_(quotas_of(pack_, loads)),
        rank_of_(pack_.table.rank_of_slot()),
        need_(loads.size(), Values(scenarios.size())),
        rank_load_(static_cast<std::size_t>(pack_.table.num_ranks()), Values(scenarios.size(), 0.0)),
        power_(rank_load_),
        total_(scenarios.size(), 0.0) {
    // In parts of the mean rank load, so that powers stay near 1.
    const auto num_ranks = static_cast<double>(pack_.table.num_ranks());
    for (std::size_t idx = 0; idx < num_scenarios_; ++idx) {
      for (std::size_t expert = 0; expert < need_.size(); ++expert)
        need_[expert][idx] = scenarios[idx][expert] * num_ranks;
    }
    for (std::size_t slot = 0; slot < quota_.size(); ++slot) {
      if (is_empty(slot)) continue;
      for (std::size_t idx = 0; idx < num_scenarios_; ++idx) load_of(slot)[idx] += quota_[slot] * need_of(slot)[idx];
    }
    for (std::size_t rank = 0; rank < power_.size(); ++rank) {
      for (std::size_t idx = 0; idx < num_scenarios_; ++idx) {
        power_[rank][idx] = raised(rank_load_[rank][idx]);
        total_[idx] += power_[rank][idx];
      }
    }
    value_ = value();
  }

  SharedPack run(std::int32_t max_rounds) && {
    for (std::int32_t round = 0; round < max_rounds; ++round) {
      bool has_changed = shift_quotas();
      has_changed = exchange() || has_changed;
      if (!has_changed) break;
    }
    (void)shift_quotas();
    return share_out();
  }

 private:
  [[nodiscard]] bool is_empty(std::size_t slot) const { return pack_.table.expert[slot] == kEmptySlot; }
  [[nodiscard]] const Values& need_of(std::size_t slot) const {
    return need_[static_cast<std::size_t>(pack_.table.expert[slot])];
  }
  [[nodiscard]] Values& load_of(std::size_t slot) { return rank_load_[static_cast<std::size_t>(rank_of_[slot])]; }

  [[nodiscard]] double value() const {
    double sum = 0.0;
    for (const double total : total_) sum += root_of(total);
    return sum;
  }

  [[nodiscard]] bool holds(std::int32_t rank, std::int32_t expert) const {
    const std::span<const std::int32_t> held = pack_.table.experts_of(rank);
    return std::find(held.begin(), held.end(), expert) != held.end();
  }

  /// What the value becomes when more_[] of the load of `from` goes to `to`.
  [[nodiscard]] double value_with(std::int32_t from, std::int32_t to) const {
    const auto a = static_cast<std::size_t>(from);
    const auto b = static_cast<std::size_t>(to);
    double sum = 0.0;
    for (std::size_t idx = 0; idx < num_scenarios_; ++idx) {
      const double others = std::max(total_[idx] - power_[a][idx] - power_[b][idx], 0.0);
      sum += root_of(others + raised(rank_load_[a][idx] - more_[idx]) + raised(rank_load_[b][idx] + more_[idx]));
    }
    return sum;
  }

  void move(std::int32_t from, std::int32_t to) {
    const auto a = static_cast<std::size_t>(from);
    const auto b = static_cast<std::size_t>(to);
    for (std::size_t idx = 0; idx < num_scenarios_; ++idx) {
      rank_load_[a][idx] -= more_[idx];
      rank_load_[b][idx] += more_[idx];
      power_[a][idx] = raised(rank_load_[a][idx]);
      power_[b][idx] = raised(rank_load_[b][idx]);
      // Anew each time, or what is rounded adds up.
      total_[idx] = 0.0;
      for (const Values& power : power_) total_[idx] += power[idx];
    }
    value_ = value();
  }

  /// Does what more_ says if that is better.
  bool try_move(std::int32_t from, std::int32_t to) {
    constexpr double kLeastGain = 1e-7;  // per scenario: below it a search goes on for nothing
    if (value_with(from, to) >= value_ - kLeastGain * static_cast<double>(num_scenarios_)) return false;
    move(from, to);
    return true;
  }

  /// Between replicas of one expert.
  bool shift_quotas() {
    bool has_changed = false;
    for (const double step : {0.1, 0.03, 0.01}) {
      for (std::size_t from = 0; from < quota_.size(); ++from) {
        for (std::size_t to = 0; to < quota_.size(); ++to) {
          if (from == to || is_empty(from) || pack_.table.expert[from] != pack_.table.expert[to]) continue;
          const double part = std::min(step, quota_[from]);
          if (part <= 0.0) break;
          more_.resize(num_scenarios_);
          for (std::size_t idx = 0; idx < num_scenarios_; ++idx) more_[idx] = part * need_of(from)[idx];
          if (!try_move(rank_of_[from], rank_of_[to])) continue;
          quota_[from] -= part;
          quota_[to] += part;
          has_changed = true;
        }
      }
    }
    return has_changed;
  }

  /// Experts of two slots, with their quotas.
  bool exchange() {
    bool has_changed = false;
    for (std::size_t slot = 0; slot < quota_.size(); ++slot) {
      for (std::size_t other = slot + 1; other < quota_.size(); ++other) {
        const std::int32_t expert = pack_.table.expert[slot];
        const std::int32_t its = pack_.table.expert[other];
        const std::int32_t rank = rank_of_[slot];
        const std::int32_t its_rank = rank_of_[other];
        if (rank == its_rank || expert == its || is_empty(slot) || is_empty(other)) continue;
        more_.resize(num_scenarios_);
        for (std::size_t idx = 0; idx < num_scenarios_; ++idx) {
          more_[idx] = quota_[slot] * need_of(slot)[idx] - quota_[other] * need_of(other)[idx];
        }
        if (holds(its_rank, expert) || holds(rank, its) || !try_move(rank, its_rank)) continue;
        std::swap(pack_.table.expert[slot], pack_.table.expert[other]);
        std::swap(quota_[slot], quota_[other]);
        has_changed = true;
      }
    }
    return has_changed;
  }

  /// Whole units; what is rounded off goes to an expert's last slot.
  SharedPack share_out() {
    std::vector<std::int64_t> left(loads_.begin(), loads_.end());
    std::vector<std::size_t> last(loads_.size(), 0);
    for (std::size_t slot = 0; slot < quota_.size(); ++slot) {
      if (is_empty(slot)) continue;
      const auto expert = static_cast<std::size_t>(pack_.table.expert[slot]);
      const auto wanted = static_cast<std::int64_t>(quota_[slot] * static_cast<double>(loads_[expert]));
      pack_.share[slot] = std::clamp<std::int64_t>(wanted, 0, left[expert]);
      left[expert] -= pack_.share[slot];
      last[expert] = slot;
    }
    for (std::size_t expert = 0; expert < left.size(); ++expert) pack_.share[last[expert]] += left[expert];
    return std::move(pack_);
  }

  SharedPack pack_;
  std::span<const std::int64_t> loads_;
  std::size_t num_scenarios_;
  Values quota_;  // [num_slots]
  std::vector<std::int32_t> rank_of_;
  std::vector<Values> need_;       // [num_experts][num_scenarios]
  std::vector<Values> rank_load_;  // [num_ranks][num_scenarios]
  std::vector<Values> power_;      // of these
  Values total_;                   // [num_scenarios]; sums of powers
  double value_ = 0.0;
  Values more_;  // [num_scenarios]; a change at hand
};

}  // namespace

std::vector<std::vector<double>> draw_scenarios(std::span<const std::int64_t> loads, const std::vector<Values>& parts,
                                                const WindowSearchRules& rules) {
  const std::size_t num_experts = loads.size();
  Values mean(loads.begin(), loads.end());
  make_parts(mean);
  const Values weights = weights_of(parts.size(), rules.half_life);
  Values deviation(num_experts, 0.0);
  for (const Values& part : parts) {
    for (std::size_t expert = 0; expert < num_experts; ++expert) {
      deviation[expert] += (part[expert] - mean[expert]) * (part[expert] - mean[expert]);
    }
  }
  for (double& value : deviation) value = std::sqrt(value / static_cast<double>(parts.size()));
  std::vector<Values> scenarios(static_cast<std::size_t>(rules.num_scenarios), mean);
  for (std::size_t idx = 0; idx < scenarios.size(); ++idx) {
    const auto number = static_cast<std::int64_t>(idx);
    for (std::size_t window = 0; window < parts.size(); ++window) {
      const double factor =
          rules.spread * std::sqrt(weights[window]) * draw(number, static_cast<std::int32_t>(num_experts + window));
      for (std::size_t expert = 0; expert < num_experts; ++expert) {
        scenarios[idx][expert] += factor * (parts[window][expert] - mean[expert]);
      }
    }
    for (std::size_t expert = 0; expert < num_experts; ++expert) {
      const double own = rules.own_spread * deviation[expert] * draw(number, static_cast<std::int32_t>(expert));
      scenarios[idx][expert] = std::max(scenarios[idx][expert] + own, 0.0);
    }
    make_parts(scenarios[idx]);
  }
  return scenarios;
}

SharedPack search_scenarios(SharedPack start, std::span<const std::int64_t> loads, const std::vector<Values>& scenarios,
                            std::int32_t max_rounds) {
  if (scenarios.empty()) return start;
  return ScenarioSearch(std::move(start), loads, scenarios).run(max_rounds);
}

}  // namespace epistle::balance
