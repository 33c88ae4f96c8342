#include "balance/fresh_plan.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numeric>
#include <optional>
#include <utility>

#include "balance/component_plan.hpp"
#include "balance/local_search.hpp"
#include "balance/window_search.hpp"
#include "layout/replica_hash.hpp"

namespace epistle::balance {
namespace {

std::int64_t sum_of(std::span<const std::int64_t> values) {
  return std::accumulate(values.begin(), values.end(), std::int64_t{0});
}

std::int64_t with_tolerance(std::int64_t mean, double tolerance) {
  return mean + static_cast<std::int64_t>(static_cast<double>(mean) * tolerance);
}

/// Searches on from `table`. `shares` empty: with the best ones.
SharedPack improve(const SharedPack& start, std::span<const std::int64_t> loads, const FreshRules& rules) {
  ShareState state(start.table, static_cast<std::int32_t>(loads.size()));
  if (start.share.empty()) {
    state.spread(loads);
  } else {
    state.take_shares(loads, start.share);
  }
  const SearchRules search{.goal = with_tolerance(state.mean_load(), rules.tolerance),
                           .max_steps = rules.max_steps,
                           .num_trials = rules.num_trials};
  state.balance(search.goal);
  LocalSearch(state, nullptr, search).run();
  return {.table = state.table(), .share = {state.shares().begin(), state.shares().end()}};
}

/// Loads that are up to a fifth more or less, and more for what changes much from window to window: by the number of
/// the candidate, so that all machines try the same. Their sum stays.
std::vector<std::int64_t> vary(std::span<const std::int64_t> loads, std::span<const double> deviations,
                               std::uint64_t candidate) {
  constexpr double kSpread = 0.4;
  constexpr std::uint64_t kNumCautions = 3;  // deviations that are added: none, one, two
  const auto caution = static_cast<double>(candidate % kNumCautions);
  std::vector<double> varied(loads.size());
  for (std::size_t expert = 0; expert < loads.size(); ++expert) {
    const std::uint64_t bits = hash_key({.token_position = static_cast<std::int64_t>(candidate),
                                         .expert = static_cast<std::int32_t>(expert),
                                         .step_seed = 0});
    // Half of the sum of two uniform numbers: small changes are likelier than large ones.
    constexpr double kUnits = 4294967296.0;
    const double uniform =
        (static_cast<double>(bits >> 32) + static_cast<double>(bits & 0xffffffffU)) / (2.0 * kUnits) - 0.5;
    varied[expert] = static_cast<double>(loads[expert]) * (1.0 + kSpread * uniform) + caution * deviations[expert];
  }
  const double scale =
      static_cast<double>(sum_of(loads)) / std::max(std::accumulate(varied.begin(), varied.end(), 0.0), 1.0);
  std::vector<std::int64_t> units(loads.size());
  std::transform(varied.begin(), varied.end(), units.begin(),
                 [scale](double load) { return static_cast<std::int64_t>(load * scale); });
  return units;
}

/// Standard deviation of every expert's load over the windows, in the units of `loads`.
std::vector<double> deviations_of(std::span<const std::int64_t> loads, const std::vector<std::vector<double>>& parts) {
  const auto total = static_cast<double>(sum_of(loads));
  std::vector<double> deviations(loads.size(), 0.0);
  for (std::size_t expert = 0; expert < loads.size(); ++expert) {
    const double mean = static_cast<double>(loads[expert]) / std::max(total, 1.0);
    double squares = 0.0;
    for (const std::vector<double>& part : parts) squares += (part[expert] - mean) * (part[expert] - mean);
    const double deviation = std::sqrt(squares / static_cast<double>(parts.size())) * total;
    deviations[expert] = std::min(deviation, static_cast<double>(loads[expert]));
  }
  return deviations;
}

/// Each expert's part of every window that has any load.
std::vector<std::vector<double>> parts_of(const std::vector<std::vector<double>>& windows) {
  std::vector<std::vector<double>> parts;
  for (const std::vector<double>& window : windows) {
    const double total = std::accumulate(window.begin(), window.end(), 0.0);
    if (total <= 0.0) continue;
    parts.push_back(window);
    for (double& part : parts.back()) part /= total;
  }
  return parts;
}

/// Mean of mean over largest rank load in the windows; a constant factor is left out.
double score(const SharedPack& pack, std::span<const std::int64_t> loads,
             const std::vector<std::vector<double>>& parts) {
  const std::vector<double> quotas = quotas_of(pack, loads);
  double sum = 0.0;
  for (const std::vector<double>& part : parts) {
    double largest = 0.0;
    for (std::int32_t rank = 0; rank < pack.table.num_ranks(); ++rank) {
      double load = 0.0;
      for (std::int32_t slot = pack.table.begin[static_cast<std::size_t>(rank)];
           slot < pack.table.begin[static_cast<std::size_t>(rank) + 1]; ++slot) {
        const auto s = static_cast<std::size_t>(slot);
        if (pack.table.expert[s] != kEmptySlot)
          load += quotas[s] * part[static_cast<std::size_t>(pack.table.expert[s])];
      }
      largest = std::max(largest, load);
    }
    sum += 1.0 / largest;
  }
  return sum;
}

}  // namespace

SharedPack share_evenly(SlotTable table, std::span<const std::int64_t> loads) {
  SharedPack pack{.table = std::move(table), .share = {}};
  std::vector<std::int32_t> left = pack.table.replica_counts(static_cast<std::int32_t>(loads.size()));
  std::vector<std::int64_t> load_left(loads.begin(), loads.end());
  pack.share.assign(pack.table.expert.size(), 0);
  for (std::size_t slot = 0; slot < pack.share.size(); ++slot) {
    if (pack.table.expert[slot] == kEmptySlot) continue;
    const auto expert = static_cast<std::size_t>(pack.table.expert[slot]);
    pack.share[slot] = load_left[expert] / left[expert]--;
    load_left[expert] -= pack.share[slot];
  }
  return pack;
}

SharedPack share_best(SlotTable table, std::span<const std::int64_t> loads) {
  SharedPack pack = share_evenly(std::move(table), loads);
  ShareState state(pack.table, static_cast<std::int32_t>(loads.size()));
  state.take_shares(loads, pack.share);
  state.balance(0);
  pack.share.assign(state.shares().begin(), state.shares().end());
  return pack;
}

std::vector<std::int64_t> rank_loads_of(const SharedPack& pack) {
  std::vector<std::int64_t> loads;
  for (std::size_t rank = 0; rank + 1 < pack.table.begin.size(); ++rank) {
    const auto first = pack.share.begin() + pack.table.begin[rank];
    const auto end = pack.share.begin() + pack.table.begin[rank + 1];
    loads.push_back(std::accumulate(first, end, std::int64_t{0}));
  }
  return loads;
}

std::vector<double> in_parts_of_mean(std::span<const std::int64_t> rank_loads, const Cluster& cluster) {
  const double mean = static_cast<double>(sum_of(rank_loads)) / cluster.num_holders();
  std::vector<double> parts;
  for (const std::int64_t load : rank_loads) parts.push_back(mean > 0.0 ? static_cast<double>(load) / mean : 0.0);
  return parts;
}

std::int64_t largest_rank_load(const SharedPack& pack) {
  const std::vector<std::int64_t> loads = rank_loads_of(pack);
  return loads.empty() ? 0 : *std::max_element(loads.begin(), loads.end());
}

std::vector<double> quotas_of(const SharedPack& pack, std::span<const std::int64_t> loads) {
  std::vector<double> quotas(pack.share.size(), 0.0);
  const std::vector<std::int32_t> counts = pack.table.replica_counts(static_cast<std::int32_t>(loads.size()));
  for (std::size_t slot = 0; slot < quotas.size(); ++slot) {
    if (pack.table.expert[slot] == kEmptySlot) continue;
    const auto expert = static_cast<std::size_t>(pack.table.expert[slot]);
    quotas[slot] = loads[expert] > 0 ? static_cast<double>(pack.share[slot]) / static_cast<double>(loads[expert])
                                     : 1.0 / counts[expert];
  }
  return quotas;
}

SharedPack plan_for_windows(std::span<const std::int64_t> loads, const std::vector<std::vector<double>>& windows,
                            std::span<const std::int32_t> slots_of_rank, const WindowRules& window_rules,
                            const FreshRules& rules) {
  const std::vector<std::vector<double>> parts = parts_of(windows);
  SharedPack best = plan_flat(loads, slots_of_rank, rules);
  if (parts.size() < 2) return best;
  const std::vector<double> deviations = deviations_of(loads, parts);
  best = share_best(std::move(best.table), loads);
  double best_score = score(best, loads, parts);
  std::vector<std::int64_t> best_loads(loads.begin(), loads.end());
  for (std::int32_t candidate = 1; candidate < window_rules.num_candidates; ++candidate) {
    // From the best so far: it keeps what has helped.
    std::vector<std::int64_t> varied = vary(best_loads, deviations, static_cast<std::uint64_t>(candidate));
    SharedPack pack = share_best(pack_even(varied, slots_of_rank), loads);
    const double its_score = score(pack, loads, parts);
    if (its_score <= best_score) continue;
    best = std::move(pack);
    best_score = its_score;
    best_loads = std::move(varied);
  }
  if (!window_rules.counts_tokens) return best;
  const WindowSearchRules search{.half_life = window_rules.half_life};
  SharedPack found = search_scenarios(std::move(best), loads, draw_scenarios(loads, parts, search), search.max_rounds);
  return share_best(std::move(found.table), loads);
}

SharedPack plan_flat(std::span<const std::int64_t> loads, std::span<const std::int32_t> slots_of_rank,
                     const FreshRules& rules) {
  const std::int64_t num_holders =
      std::count_if(slots_of_rank.begin(), slots_of_rank.end(), [](std::int32_t slots) { return slots > 0; });
  const std::int64_t num_spare = std::accumulate(slots_of_rank.begin(), slots_of_rank.end(), std::int64_t{0}) -
                                 static_cast<std::int64_t>(loads.size());
  const std::int64_t mean = (sum_of(loads) + num_holders - 1) / std::max<std::int64_t>(num_holders, 1);
  if (num_spare >= num_holders) {
    SharedPack pack = pack_shared(loads, slots_of_rank);
    if (largest_rank_load(pack) <= with_tolerance(mean, rules.tolerance)) return pack;
    return improve(pack, loads, rules);
  }
  return improve({.table = pack_even(loads, slots_of_rank), .share = {}}, loads, rules);
}

SharedPack plan_thoroughly(std::span<const std::int64_t> loads, std::span<const std::int32_t> slots_of_rank,
                           const FreshRules& rules) {
  constexpr std::int32_t kMaxRounds = 6;
  SharedPack plan = plan_flat(loads, slots_of_rank, rules);
  const std::int64_t total = sum_of(loads);
  const auto num_holders = static_cast<std::int64_t>(
      std::count_if(slots_of_rank.begin(), slots_of_rank.end(), [](std::int32_t slots) { return slots > 0; }));
  if (total == 0 || largest_rank_load(plan) <= with_tolerance(total / num_holders, rules.tolerance)) return plan;
  std::vector<double> parts(loads.begin(), loads.end());
  for (double& part : parts) part /= static_cast<double>(total);
  const auto keep_better = [&](SharedPack other) {
    if (largest_rank_load(other) < largest_rank_load(plan)) plan = std::move(other);
  };
  const auto search_from = [&](const SharedPack& start) {
    SharedPack found = search_scenarios(start, loads, {parts}, kMaxRounds);
    return improve(share_best(std::move(found.table), loads), loads, rules);
  };
  keep_better(search_from(plan));
  // Where slots are scarce it matters which hot experts share ranks, and a search does not get from one way to another.
  if (std::optional<SlotTable> table = plan_components(loads, slots_of_rank)) {
    const SharedPack start = share_best(std::move(*table), loads);
    keep_better(search_from(start));
    keep_better(start);
  }
  return plan;
}

std::vector<std::int32_t> choose_homes(std::span<const std::int64_t> loads, const Cluster& cluster,
                                       std::int32_t num_groups) {
  const auto num_experts = static_cast<std::int32_t>(loads.size());
  const std::int32_t group_size = num_experts / num_groups;
  const auto num_domains = static_cast<std::size_t>(cluster.num_domains());
  std::vector<std::int64_t> group_load(static_cast<std::size_t>(num_groups), 0);
  for (std::int32_t expert = 0; expert < num_experts; ++expert) {
    group_load[static_cast<std::size_t>(expert / group_size)] += loads[static_cast<std::size_t>(expert)];
  }
  std::vector<std::int32_t> room(num_domains, 0);  // slots
  std::vector<double> weight(num_domains, 0.0);    // ranks that hold something
  for (std::int32_t rank = 0; rank < cluster.num_ranks(); ++rank) {
    const auto domain = static_cast<std::size_t>(cluster.domain_of(rank));
    const std::int32_t slots = cluster.slots_of_rank[static_cast<std::size_t>(rank)];
    room[domain] += slots;
    weight[domain] += slots > 0 ? 1.0 : 0.0;
  }
  // Slots to spare stay in every domain, in proportion: replicas of what it helps with need them.
  const double fill = static_cast<double>(num_experts) / static_cast<double>(cluster.num_slots());
  std::vector<std::int32_t> wanted(num_domains);
  for (std::size_t domain = 0; domain < num_domains; ++domain) {
    wanted[domain] = static_cast<std::int32_t>(std::lround(static_cast<double>(room[domain]) * fill));
  }
  std::vector<std::int32_t> order(static_cast<std::size_t>(num_groups));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) {
    return group_load[static_cast<std::size_t>(a)] > group_load[static_cast<std::size_t>(b)];
  });
  std::vector<std::int64_t> domain_load(num_domains, 0);
  std::vector<std::int32_t> home(loads.size());
  for (const std::int32_t group : order) {
    std::size_t best = num_domains;
    const auto lighter = [&](std::size_t a, std::size_t b) {
      return static_cast<double>(domain_load[a]) * weight[b] < static_cast<double>(domain_load[b]) * weight[a];
    };
    for (const std::vector<std::int32_t>* const limit : {&wanted, &room}) {
      for (std::size_t domain = 0; domain < num_domains && best == num_domains; ++domain) {
        if ((*limit)[domain] < group_size) continue;
        best = domain;
        for (std::size_t other = domain + 1; other < num_domains; ++other) {
          if ((*limit)[other] >= group_size && lighter(other, best)) best = other;
        }
      }
    }
    if (best == num_domains) {
      // No domain has room for a whole group: its experts go where there is any.
      for (std::int32_t expert = group * group_size; expert < (group + 1) * group_size; ++expert) {
        const auto roomiest = static_cast<std::size_t>(std::max_element(room.begin(), room.end()) - room.begin());
        home[static_cast<std::size_t>(expert)] = static_cast<std::int32_t>(roomiest);
        domain_load[roomiest] += loads[static_cast<std::size_t>(expert)];
        --room[roomiest];
        --wanted[roomiest];
      }
      continue;
    }
    std::fill_n(home.begin() + group * group_size, group_size, static_cast<std::int32_t>(best));
    domain_load[best] += group_load[static_cast<std::size_t>(group)];
    room[best] -= group_size;
    wanted[best] -= group_size;
  }
  return home;
}

namespace {

/// What every domain is to serve of every expert.
class DomainLoads {
 public:
  DomainLoads(std::span<const std::int64_t> loads, const Cluster& cluster, const std::vector<std::int32_t>& home)
      : num_experts_(loads.size()),
        num_domains_(static_cast<std::size_t>(cluster.num_domains())),
        load_(num_experts_ * num_domains_, kAbsent),
        total_(num_domains_, 0),
        aim_(num_domains_, 0),
        spare_(num_domains_, 0) {
    for (std::size_t expert = 0; expert < num_experts_; ++expert) {
      const auto domain = static_cast<std::size_t>(home[expert]);
      at(domain, expert) = loads[expert];
      total_[domain] += loads[expert];
      --spare_[domain];
    }
    const std::int64_t all = sum_of(loads);
    const std::int32_t num_holders = cluster.num_holders();
    std::vector<std::int64_t> holders(num_domains_, 0);
    for (std::int32_t rank = 0; rank < cluster.num_ranks(); ++rank) {
      const auto domain = static_cast<std::size_t>(cluster.domain_of(rank));
      const std::int32_t slots = cluster.slots_of_rank[static_cast<std::size_t>(rank)];
      spare_[domain] += slots;
      holders[domain] += slots > 0 ? 1 : 0;
    }
    for (std::size_t domain = 0; domain < num_domains_; ++domain) {
      aim_[domain] = static_cast<std::int64_t>(static_cast<double>(all) * static_cast<double>(holders[domain]) /
                                               static_cast<double>(num_holders));
    }
  }

  /// Domains that have too little take over of the hottest experts of those that have too much.
  void even_out() {
    for (;;) {
      std::size_t from = 0;
      std::size_t to = num_domains_;
      for (std::size_t domain = 0; domain < num_domains_; ++domain) {
        if (surplus(domain) > surplus(from)) from = domain;
        if (spare_[domain] > 0 && (to == num_domains_ || surplus(domain) < surplus(to))) to = domain;
      }
      if (to == num_domains_ || surplus(from) <= 0 || surplus(to) >= 0) return;
      if (!move(from, to, std::min(surplus(from), -surplus(to)))) return;
    }
  }

  [[nodiscard]] bool is_in(std::size_t domain, std::size_t expert) const {
    return load_[domain * num_experts_ + expert] != kAbsent;
  }
  [[nodiscard]] std::int64_t load(std::size_t domain, std::size_t expert) const {
    return load_[domain * num_experts_ + expert];
  }

 private:
  static constexpr std::int64_t kAbsent = -1;

  [[nodiscard]] std::int64_t& at(std::size_t domain, std::size_t expert) {
    return load_[domain * num_experts_ + expert];
  }
  [[nodiscard]] std::int64_t surplus(std::size_t domain) const { return total_[domain] - aim_[domain]; }

  [[nodiscard]] bool move(std::size_t from, std::size_t to, std::int64_t amount) {
    std::size_t hottest = num_experts_;
    for (std::size_t expert = 0; expert < num_experts_; ++expert) {
      if (load(from, expert) > 0 && (hottest == num_experts_ || load(from, expert) > load(from, hottest))) {
        hottest = expert;
      }
    }
    if (hottest == num_experts_) return false;
    amount = std::min(amount, load(from, hottest));
    if (!is_in(to, hottest)) {
      at(to, hottest) = 0;
      --spare_[to];
    }
    at(from, hottest) -= amount;
    at(to, hottest) += amount;
    total_[from] -= amount;
    total_[to] += amount;
    return amount > 0;
  }

  std::size_t num_experts_;
  std::size_t num_domains_;
  std::vector<std::int64_t> load_;  // [num_domains, num_experts]
  std::vector<std::int64_t> total_;
  std::vector<std::int64_t> aim_;
  std::vector<std::int32_t> spare_;  // slots
};

}  // namespace

SharedPack plan_by_domain(std::span<const std::int64_t> loads, const Cluster& cluster, std::int32_t num_groups,
                          const FreshRules& rules) {
  DomainLoads domain_loads(loads, cluster, choose_homes(loads, cluster, num_groups));
  domain_loads.even_out();
  SharedPack all{.table = SlotTable::empty(cluster.slots_of_rank), .share = {}};
  all.share.assign(all.table.expert.size(), 0);
  for (std::size_t domain = 0; domain < static_cast<std::size_t>(cluster.num_domains()); ++domain) {
    std::vector<std::int32_t> experts;
    std::vector<std::int64_t> local_loads;
    for (std::size_t expert = 0; expert < loads.size(); ++expert) {
      if (!domain_loads.is_in(domain, expert)) continue;
      experts.push_back(static_cast<std::int32_t>(expert));
      local_loads.push_back(domain_loads.load(domain, expert));
    }
    std::vector<std::size_t> ranks;
    std::vector<std::int32_t> local_slots;
    for (std::int32_t rank = 0; rank < cluster.num_ranks(); ++rank) {
      if (static_cast<std::size_t>(cluster.domain_of(rank)) != domain) continue;
      ranks.push_back(static_cast<std::size_t>(rank));
      local_slots.push_back(cluster.slots_of_rank[static_cast<std::size_t>(rank)]);
    }
    if (experts.empty()) continue;
    const SharedPack local = plan_flat(local_loads, local_slots, rules);
    for (std::size_t rank = 0; rank < ranks.size(); ++rank) {
      const auto target = static_cast<std::size_t>(all.table.begin[ranks[rank]]);
      const auto first = static_cast<std::size_t>(local.table.begin[rank]);
      for (std::size_t slot = 0; slot < static_cast<std::size_t>(local_slots[rank]); ++slot) {
        const std::int32_t expert = local.table.expert[first + slot];
        if (expert == kEmptySlot) continue;
        all.table.expert[target + slot] = experts[static_cast<std::size_t>(expert)];
        all.share[target + slot] = local.share[first + slot];
      }
    }
  }
  const std::int64_t mean = (sum_of(loads) + cluster.num_holders() - 1) / cluster.num_holders();
  if (largest_rank_load(all) <= with_tolerance(mean, rules.tolerance)) return all;
  return improve(all, loads, rules);
}

void relabel_ranks(const SlotTable& current, const Cluster& cluster, bool within_domains, SharedPack& pack) {
  const std::int32_t num_ranks = current.num_ranks();
  struct Pair {
    std::int32_t overlap = 0;
    std::int32_t rank = 0;
    std::int32_t planned = 0;
  };
  std::vector<Pair> pairs;
  std::vector<char> holds(
      static_cast<std::size_t>(1 + std::max(*std::max_element(current.expert.begin(), current.expert.end()),
                                            *std::max_element(pack.table.expert.begin(), pack.table.expert.end()))));
  for (std::int32_t rank = 0; rank < num_ranks; ++rank) {
    std::fill(holds.begin(), holds.end(), 0);
    for (const std::int32_t expert : current.experts_of(rank)) {
      if (expert != kEmptySlot) holds[static_cast<std::size_t>(expert)] = 1;
    }
    for (std::int32_t planned = 0; planned < num_ranks; ++planned) {
      if (cluster.slots_of_rank[static_cast<std::size_t>(rank)] !=
          cluster.slots_of_rank[static_cast<std::size_t>(planned)]) {
        continue;
      }
      if (within_domains && cluster.domain_of(rank) != cluster.domain_of(planned)) continue;
      std::int32_t overlap = 0;
      for (const std::int32_t expert : pack.table.experts_of(planned)) {
        if (expert != kEmptySlot) overlap += holds[static_cast<std::size_t>(expert)];
      }
      pairs.push_back({.overlap = overlap, .rank = rank, .planned = planned});
    }
  }
  std::stable_sort(pairs.begin(), pairs.end(), [](const Pair& a, const Pair& b) { return a.overlap > b.overlap; });
  std::vector<std::int32_t> planned_of(static_cast<std::size_t>(num_ranks), -1);
  std::vector<char> is_taken(static_cast<std::size_t>(num_ranks), 0);
  for (const Pair& pair : pairs) {
    std::int32_t& planned = planned_of[static_cast<std::size_t>(pair.rank)];
    if (planned >= 0 || is_taken[static_cast<std::size_t>(pair.planned)] != 0) continue;
    planned = pair.planned;
    is_taken[static_cast<std::size_t>(pair.planned)] = 1;
  }
  const SharedPack old = pack;
  for (std::size_t rank = 0; rank < planned_of.size(); ++rank) {
    const std::int32_t from = old.table.begin[static_cast<std::size_t>(planned_of[rank])];
    const std::int32_t end = old.table.begin[static_cast<std::size_t>(planned_of[rank]) + 1];
    const std::int32_t to = pack.table.begin[rank];
    std::copy(old.table.expert.begin() + from, old.table.expert.begin() + end, pack.table.expert.begin() + to);
    std::copy(old.share.begin() + from, old.share.begin() + end, pack.share.begin() + to);
  }
}

}  // namespace epistle::balance
