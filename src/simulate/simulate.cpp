#include "simulate/simulate.hpp"

#include <algorithm>
#include <cstddef>
#include <utility>

#include <fmt/format.h>

#include "core/reject.hpp"

namespace epistle::simulate {
namespace {

using Counts = std::vector<std::int64_t>;

std::vector<const ExchangeMode*> wanted_modes(const SimulateRequest& request) {
  std::vector<const ExchangeMode*> modes;
  if (request.dispatchers.empty()) {
    for (const ExchangeMode& mode : exchange_modes()) modes.push_back(&mode);
  }
  for (const std::string& name : request.dispatchers) modes.push_back(&find_exchange_mode(name));
  return modes;
}

void check(const SimulateRequest& request) {
  check_cluster(request.cluster);
  const TokenRules& tokens = request.tokens;
  if (tokens.num_ranks < 1 || tokens.num_ranks > kMaxSimulatedRanks) {
    reject(fmt::format("{} ranks; it must be from 1 to {}", tokens.num_ranks, kMaxSimulatedRanks));
  }
  if (tokens.tokens_per_rank < 1) reject("a step needs at least one token per rank");
  if (request.num_steps < 1) reject("there must be at least one step");
  if (request.hidden < 1 || request.expert_ffn < 1) reject("the width of rows and that of experts must be positive");
  if (request.loop.replan_every < 1 || request.loop.window_steps < 1) {
    reject("plans must be at least a step apart and remember at least one");
  }
}

balance::Cluster slots_of(const SimulateRequest& request, std::int32_t num_experts, const RankGrid& grid) {
  balance::Cluster cluster = balance::Cluster::even(
      grid.num_ranks, request.num_slots > 0 ? request.num_slots : num_experts, grid.num_domains());
  if (request.placement) {
    if (request.placement->num_ranks() != grid.num_ranks) {
      reject(fmt::format("the placement is of {} ranks and {} are simulated", request.placement->num_ranks(),
                         grid.num_ranks));
    }
    if (request.num_slots > 0 && request.num_slots != request.placement->num_slots()) {
      reject(fmt::format("the placement has {} slots, not {}", request.placement->num_slots(), request.num_slots));
    }
    for (std::int32_t rank = 0; rank < grid.num_ranks; ++rank) {
      cluster.slots_of_rank[static_cast<std::size_t>(rank)] =
          static_cast<std::int32_t>(request.placement->experts_of(rank).size());
    }
  }
  cluster.domain_of_rank.resize(static_cast<std::size_t>(grid.num_ranks));
  for (std::int32_t rank = 0; rank < grid.num_ranks; ++rank) {
    cluster.domain_of_rank[static_cast<std::size_t>(rank)] = grid.domain_of(rank);
  }
  return cluster;
}

/// Steps of one request.
class Simulation {
 public:
  Simulation(const SimulateRequest& request, const Calibration& calibration,
             const std::function<void(std::int64_t, std::int64_t)>& on_progress)
      : request_(request),
        calibration_(calibration),
        on_progress_(on_progress),
        modes_(wanted_modes(request)),
        source_(request.tokens),
        grid_{request.tokens.num_ranks, request.cluster.gpus_per_domain()},
        traffic_(grid_),
        loop_(loop_rules(), source_.num_experts()),
        counts_(static_cast<std::size_t>(source_.num_experts()), 0) {
    const bool plans = request.loop.policy != balance::Policy::kNone;
    const std::int64_t passes = loop_.needs_counts() ? 2 : 1;
    num_tokens_ = (request.num_steps * passes + (plans ? 1 : 0)) * request.tokens.tokens_per_rank * grid_.num_ranks;
    first_step_ = plans ? 1 : 0;
  }

  SimulateResult run() {
    if (first_step_ > 0) {
      source_.begin_step(0);
      count_experts();
      loop_.end_step(counts_);
    }
    SimulateResult result;
    for (std::int64_t idx = 0; idx < request_.num_steps; ++idx) {
      source_.begin_step(first_step_ + idx);
      if (loop_.needs_counts()) count_experts();
      result.steps.push_back(run_step(idx));
      if (idx + 1 < request_.num_steps) loop_.end_step(counts_);
    }
    result.grid = grid_;
    result.num_experts = source_.num_experts();
    result.top_k = source_.top_k();
    result.num_slots = loop_.placement().num_slots();
    result.placement = loop_.placement();
    result.ranks.assign(traffic_.ranks().begin(), traffic_.ranks().end());
    return result;
  }

 private:
  [[nodiscard]] LoopRules loop_rules() const {
    LoopRules rules = request_.loop;
    const std::int32_t num_experts = source_.num_experts();
    rules.plan.cluster = slots_of(request_, num_experts, grid_);
    if (source_.limits_groups()) rules.plan.num_groups = request_.tokens.num_groups;
    rules.start = request_.placement ? *request_.placement : wrapped_placement(num_experts, rules.plan.cluster);
    return rules;
  }

  void show_progress(std::int64_t tokens) {
    done_ += tokens;
    if (on_progress_) on_progress_(done_, num_tokens_);
  }

  void count_experts() {
    std::fill(counts_.begin(), counts_.end(), 0);
    for (std::int32_t rank = 0; rank < grid_.num_ranks; ++rank) {
      for (const std::int32_t expert : source_.ids(rank)) {
        if (expert >= 0) ++counts_[static_cast<std::size_t>(expert)];
      }
      show_progress(request_.tokens.tokens_per_rank);
    }
  }

  /// Sends the tokens of one rank.
  void route(std::int32_t rank, balance::SlotChoice& choice) {
    const std::span<const std::int32_t> ids = source_.ids(rank);
    const auto top_k = static_cast<std::size_t>(source_.top_k());
    std::int64_t position = rank * request_.tokens.tokens_per_rank;
    for (std::size_t begin = 0; begin < ids.size(); begin += top_k, ++position) {
      targets_.clear();
      for (const std::int32_t expert : ids.subspan(begin, top_k)) {
        if (expert < 0) continue;
        const ReplicaEntry& replica = choice.choose({.expert = expert, .token_position = position, .src_rank = rank});
        targets_.push_back(replica.rank);
        ++counts_[static_cast<std::size_t>(expert)];
        ++slot_rows_[static_cast<std::size_t>(replica.slot)];
      }
      traffic_.add_token(rank, targets_);
    }
    show_progress(request_.tokens.tokens_per_rank);
  }

  StepResult run_step(std::int64_t idx) {
    StepResult step;
    step.step = idx;
    step.copies = loop_.copies();
    balance::SlotChoice choice = loop_.begin_step(static_cast<std::uint64_t>(idx), counts_);
    std::fill(counts_.begin(), counts_.end(), 0);
    slot_rows_.assign(loop_.placement().expert.size(), 0);
    traffic_.clear();
    for (std::int32_t rank = 0; rank < grid_.num_ranks; ++rank) route(rank, choice);
    step.closed_forms = closed_forms(source_, request_.tokens, loop_.placement(), grid_);
    describe(step);
    return step;
  }

  void describe(StepResult& step) const {
    step.num_tokens = traffic_.num_tokens();
    step.distinct_ranks = traffic_.distinct_ranks();
    step.distinct_domains = traffic_.distinct_domains();
    const balance::SlotTable& placement = loop_.placement();
    std::vector<ExpertRows> rows(static_cast<std::size_t>(grid_.num_ranks));
    std::int64_t most = -1;
    for (std::int32_t rank = 0; rank < grid_.num_ranks; ++rank) {
      const auto r = static_cast<std::size_t>(rank);
      const std::int64_t assignments = traffic_.ranks()[r].assignments;
      step.num_assignments += assignments;
      rows[r].rows = static_cast<double>(assignments);
      rows[r].active_experts = static_cast<double>(std::count_if(slot_rows_.begin() + placement.begin[r],
                                                                 slot_rows_.begin() + placement.begin[r + 1],
                                                                 [](std::int64_t count) { return count > 0; }));
      if (assignments <= most) continue;
      most = assignments;
      step.busiest_rank = rank;
    }
    if (step.num_assignments > 0) {
      step.busiest_rank_factor =
          static_cast<double>(most) * grid_.num_ranks / static_cast<double>(step.num_assignments);
    }
    const ModeRules rules{.cluster = &request_.cluster,
                          .calibration = &calibration_,
                          .hidden = request_.hidden,
                          .expert_ffn = request_.expert_ffn,
                          .num_experts = static_cast<double>(source_.num_experts()),
                          .top_k = static_cast<double>(source_.top_k()),
                          .tokens_per_rank = static_cast<double>(request_.tokens.tokens_per_rank),
                          .precision = request_.precision,
                          .num_sms = request_.num_sms};
    const GemmLoad gemms = time_gemms(rules, step.num_tokens, rows);
    for (const ExchangeMode* const mode : modes_) step.modes.push_back(time_mode(rules, *mode, traffic_, gemms));
  }

  const SimulateRequest& request_;
  const Calibration& calibration_;
  const std::function<void(std::int64_t, std::int64_t)>& on_progress_;
  std::vector<const ExchangeMode*> modes_;
  TokenSource source_;
  RankGrid grid_;
  TrafficCounter traffic_;
  PlacementLoop loop_;
  Counts counts_;     // [num_experts]
  Counts slot_rows_;  // [num_slots]
  std::vector<std::int32_t> targets_;
  std::int64_t first_step_ = 0;
  std::int64_t num_tokens_ = 0;  // that are generated in all
  std::int64_t done_ = 0;
};

}  // namespace

balance::SlotTable wrapped_placement(std::int32_t num_experts, const balance::Cluster& cluster) {
  balance::SlotTable table = balance::SlotTable::empty(cluster.slots_of_rank);
  if (table.num_slots() <= num_experts) return balance::SlotTable::trivial(num_experts, cluster.slots_of_rank);
  for (std::int32_t slot = 0; slot < table.num_slots(); ++slot) {
    table.expert[static_cast<std::size_t>(slot)] = slot % num_experts;
  }
  for (const std::int32_t num_slots : cluster.slots_of_rank) {
    if (num_slots <= num_experts) continue;
    reject(fmt::format("a rank has {} slots for {} experts; give fewer slots", num_slots, num_experts));
  }
  return table;
}

SimulateResult simulate(const SimulateRequest& request, const Calibration& calibration,
                        const std::function<void(std::int64_t, std::int64_t)>& on_progress) {
  check(request);
  return Simulation(request, calibration, on_progress).run();
}

}  // namespace epistle::simulate
