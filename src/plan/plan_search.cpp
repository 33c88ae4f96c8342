#include "plan/plan_search.hpp"

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <tuple>
#include <utility>

#include <fmt/format.h>

#include "core/reject.hpp"
#include "cost/exchange_counts.hpp"

namespace epistle {
namespace {

constexpr std::int32_t kMaxEpRanks = 512;
constexpr std::int32_t kMaxTensorRanks = 8;

void check_request(const PlanRequest& request) {
  check_cluster(request.cluster);
  if (request.model.num_experts < 1 || request.model.top_k < 1) reject("the model has no experts");
  if (!(request.tokens_per_gpu > 0) && !(request.global_tokens > 0)) reject("a step needs at least one token");
  if (!request.popularity.empty() && request.popularity.size() != static_cast<std::size_t>(request.model.num_experts)) {
    reject(fmt::format("the popularity is of {} experts and the model has {}", request.popularity.size(),
                       request.model.num_experts));
  }
}

std::vector<const ExchangeMode*> allowed_modes(const PlanRequest& request) {
  std::vector<const ExchangeMode*> modes;
  if (request.dispatchers.empty()) {
    for (const ExchangeMode& mode : exchange_modes()) {
      // A bound is nothing that one could run: it is there when asked for. So is what these GPUs cannot run.
      if (mode.kind != ExchangeKind::kFused && !cannot_run(mode, request.cluster)) modes.push_back(&mode);
    }
  }
  for (const std::string& name : request.dispatchers) modes.push_back(&find_exchange_mode(name));
  return modes;
}

/// 0 = all, where there is no choice or fewer than any choice needs.
std::vector<std::int32_t> sms_to_choose(const ExchangeMode& mode, const Cluster& cluster) {
  std::vector<std::int32_t> choices;
  for (const double sms : mode.sms) {
    if (sms <= cluster.num_sms()) choices.push_back(static_cast<std::int32_t>(sms));
  }
  if (choices.empty()) choices.push_back(0);
  return choices;
}

/// Where tokens go, by ranks and redundant experts. It depends on the model, the popularity of its experts and the size
/// of a domain alone, and is most of the work of a search: searches that differ in something else share it.
class RoutingCache {
 public:
  explicit RoutingCache(const PlanRequest& request) : inclusion_(expert_inclusion(request)) {}

  const RoutingCounts& of(const PlanRequest& request, const PlanChoice& choice) {
    const auto key = std::make_pair(choice.num_ranks, choice.num_redundant);
    const auto found = counts_.find(key);
    if (found != counts_.end()) return found->second;
    const std::int32_t domain = request.cluster.gpus_per_domain();
    const RoutingCounts counts{
        .distinct_ranks = distinct(request, choice.num_ranks),
        .distinct_domains = distinct(request, (choice.num_ranks + domain - 1) / domain),
        .busiest_factor = busiest_rank(request, inclusion_, choice.num_ranks, choice.num_redundant)};
    return counts_.emplace(key, counts).first->second;
  }

 private:
  double distinct(const PlanRequest& request, std::int32_t num_groups) {
    const auto found = distinct_.find(num_groups);
    if (found != distinct_.end()) return found->second;
    return distinct_.emplace(num_groups, distinct_groups(request, num_groups)).first->second;
  }

  std::vector<double> inclusion_;
  std::map<std::int32_t, double> distinct_;  // by groups; ranks of one degree are domains of another
  std::map<std::pair<std::int32_t, std::int32_t>, RoutingCounts> counts_;
};

/// Facts depend on less than plans do, so they are found once.
class FactsCache {
 public:
  FactsCache(const PlanRequest& request, RoutingCache& routing) : request_(request), routing_(routing) {}

  const PlanFacts& of(const PlanChoice& choice) {
    const auto key =
        std::make_tuple(choice.mode, choice.num_ranks, tokens_per_call(request_, choice), choice.num_redundant);
    const auto found = facts_.find(key);
    if (found != facts_.end()) return found->second;
    return facts_.emplace(key, plan_facts(request_, choice, routing_.of(request_, choice))).first->second;
  }

 private:
  const PlanRequest& request_;
  RoutingCache& routing_;
  std::map<std::tuple<const ExchangeMode*, std::int32_t, double, std::int32_t>, PlanFacts> facts_;
};

/// EP degrees to look at, the smallest first: with a number of GPUs its divisors; else powers of two, parts of a
/// domain, and whole domains by twos and threes.
std::vector<std::int32_t> degrees_to_choose(const PlanRequest& request) {
  const std::int32_t most = std::min(kMaxEpRanks, request.model.num_experts);
  std::set<std::int32_t> degrees;
  if (request.num_gpus > 0) {
    for (std::int32_t ranks = 1; ranks <= std::min(most, request.num_gpus); ++ranks) {
      if (request.num_gpus % ranks == 0) degrees.insert(ranks);
    }
    return {degrees.begin(), degrees.end()};
  }
  const std::int32_t domain = request.cluster.gpus_per_domain();
  for (std::int32_t ranks = 1; ranks <= most; ranks *= 2) degrees.insert(ranks);
  for (std::int32_t ranks = 1; ranks <= std::min(most, domain); ++ranks) {
    if (domain % ranks == 0) degrees.insert(ranks);
  }
  for (const std::int32_t group : {domain, 3 * domain}) {
    for (std::int32_t ranks = group; ranks <= most; ranks *= 2) degrees.insert(ranks);
  }
  return {degrees.begin(), degrees.end()};
}

/// Further copies of experts. They help where some are hotter than others, and where ranks could not hold equally many
/// otherwise: then as many as make them equal.
std::vector<std::int32_t> redundancy_to_choose(const PlanRequest& request, std::int32_t ranks) {
  const std::int32_t rest = request.model.num_experts % ranks;
  if (rest == 0 && request.popularity.empty()) return {0};
  return {0, ranks - rest};
}

/// Calls `visit` with every choice.
template <typename Visit>
void for_each_choice(const PlanRequest& request, Visit visit) {
  const std::vector<const ExchangeMode*> modes = allowed_modes(request);
  for (const std::int32_t ranks : degrees_to_choose(request)) {
    for (std::int32_t tensor = 1; tensor <= std::min({kMaxTensorRanks, ranks, request.cluster.gpus_per_domain()});
         tensor *= 2) {
      if (ranks % tensor != 0) continue;
      PlanChoice choice;
      choice.num_ranks = ranks;
      choice.tensor_ranks = tensor;
      choice.num_replicas = request.num_gpus > 0 ? request.num_gpus / ranks : 1;
      if (ranks == 1) {
        visit(choice);
        continue;
      }
      for (const std::int32_t redundant : redundancy_to_choose(request, ranks)) {
        choice.num_redundant = redundant;
        for (const ExchangeMode* const mode : modes) {
          choice.mode = mode;
          for (const std::int32_t num_sms : sms_to_choose(*mode, request.cluster)) {
            choice.num_sms = num_sms;
            for (const bool two_batches : {false, true}) {
              if (two_batches && mode->kind == ExchangeKind::kFused) continue;
              choice.two_batches = two_batches;
              visit(choice);
            }
          }
        }
      }
    }
  }
}

double score(const PlanRequest& request, const Plan& plan) {
  return request.objective == Objective::kLatency ? plan.step_us : -plan.tokens_per_s_per_gpu;
}

std::vector<Plan> search_with(const PlanRequest& request, const Calibration& calibration, RoutingCache& routing) {
  check_request(request);
  FactsCache facts(request, routing);
  std::vector<Plan> plans;
  for_each_choice(request, [&](const PlanChoice& choice) {
    plans.push_back(evaluate_plan(request, calibration, choice, facts.of(choice)));
  });
  std::vector<std::pair<std::tuple<std::size_t, double, std::string>, std::size_t>> order;
  for (std::size_t idx = 0; idx < plans.size(); ++idx) {
    order.push_back({{plans[idx].refusals.size(), score(request, plans[idx]), plans[idx].choice.name()}, idx});
  }
  std::sort(order.begin(), order.end());
  std::vector<Plan> ranked;
  for (const auto& [key, idx] : order) ranked.push_back(std::move(plans[idx]));
  return ranked;
}

std::optional<Plan> find_best(const PlanRequest& request, const Calibration& calibration, RoutingCache& routing) {
  std::vector<Plan> plans = search_with(request, calibration, routing);
  if (plans.empty() || !plans.front().refusals.empty()) return std::nullopt;
  return std::move(plans.front());
}

double exchange_us(const Plan& plan) {
  double us = 0.0;
  for (const PlanTerm& term : plan.terms) {
    if (term.name == "dispatch" || term.name == "combine") us += term.us;
  }
  return us;
}

PlanRequest scaled(PlanRequest request, ClusterField field, double factor) {
  request.cluster.constant(field).value *= factor;
  return request;
}

PlanRequest with_tokens(PlanRequest request, double factor) {
  request.tokens_per_gpu *= factor;
  request.global_tokens *= factor;
  return request;
}

/// Popularity raised to a power: steeper or flatter by as much.
PlanRequest with_skew(PlanRequest request, double exponent) {
  request.popularity = zipf_popularity(request.model.num_experts, exponent);
  return request;
}

}  // namespace

std::vector<Plan> search_plans(const PlanRequest& request, const Calibration& calibration) {
  check_request(request);
  RoutingCache routing(request);
  return search_with(request, calibration, routing);
}

std::vector<PlanFlip> find_flips(const PlanRequest& request, const Calibration& calibration, const Plan& best) {
  std::vector<std::pair<std::string, PlanRequest>> changes;
  for (const double factor : {0.5, 2.0}) {
    changes.emplace_back(fmt::format("link bandwidth x {}", factor),
                         scaled(request, ClusterField::kLinkBytesPerS, factor));
    changes.emplace_back(fmt::format("network bandwidth x {}", factor),
                         scaled(request, ClusterField::kNicBytesPerS, factor));
  }
  for (const double factor : {0.25, 4.0}) {
    changes.emplace_back(fmt::format("tokens x {}", factor), with_tokens(request, factor));
  }
  for (const double exponent : {0.0, 0.8}) {
    changes.emplace_back(fmt::format("routing skew zipf {}", exponent), with_skew(request, exponent));
  }
  std::vector<PlanFlip> flips;
  RoutingCache asked(request);
  for (auto& [assumption, changed] : changes) {
    std::optional<RoutingCache> other;
    if (changed.popularity != request.popularity) other.emplace(changed);
    const std::optional<Plan> plan = find_best(changed, calibration, other ? *other : asked);
    PlanFlip flip{.assumption = assumption, .best = "none fits", .step_us = 0, .flips = true};
    if (plan) {
      flip.best = plan->choice.name();
      flip.step_us = plan->step_us;
      flip.flips = plan->choice.num_ranks != best.choice.num_ranks ||
                   plan->choice.tensor_ranks != best.choice.tensor_ranks || plan->choice.mode != best.choice.mode;
    }
    flips.push_back(std::move(flip));
  }
  return flips;
}

std::vector<FlipCell> map_flips(const PlanRequest& request, const Calibration& calibration) {
  std::vector<FlipCell> cells;
  RoutingCache routing(request);
  for (const double network : {0.25, 0.5, 1.0, 2.0, 4.0}) {
    for (const double tokens : {0.25, 0.5, 1.0, 2.0, 4.0}) {
      const PlanRequest changed = with_tokens(scaled(request, ClusterField::kNicBytesPerS, network), tokens);
      FlipCell cell{
          .tokens_factor = tokens, .network_factor = network, .best = "none fits", .num_ranks = 0, .step_us = 0};
      if (const std::optional<Plan> plan = find_best(changed, calibration, routing)) {
        cell.best = plan->choice.name();
        cell.num_ranks = plan->choice.num_ranks;
        cell.step_us = plan->step_us;
      }
      cells.push_back(std::move(cell));
    }
  }
  return cells;
}

std::vector<CrossoverPoint> find_crossovers(const PlanRequest& request, const Calibration& calibration,
                                            const Plan& best) {
  std::vector<CrossoverPoint> points;
  if (best.choice.mode == nullptr) return points;
  constexpr int kMostTokens = 8192;
  for (int count = 1; count <= kMostTokens; count *= 2) {
    const double tokens = count;
    PlanRequest changed = request;
    changed.global_tokens = 0;
    changed.tokens_per_gpu = tokens;
    std::optional<CrossoverPoint> fastest;
    for (const ExchangeMode* const mode : allowed_modes(request)) {
      PlanChoice choice = best.choice;
      choice.mode = mode;
      choice.two_batches = false;
      choice.num_sms = sms_to_choose(*mode, request.cluster).back();
      const PlanFacts facts = plan_facts(changed, choice, best.counts);
      const Plan plan = evaluate_plan(changed, calibration, choice, facts);
      if (facts.buffers.refusal || (mode->max_tokens > 0 && tokens > mode->max_tokens) ||
          (mode->one_domain && choice.num_ranks > request.cluster.gpus_per_domain())) {
        continue;
      }
      if (!fastest || exchange_us(plan) < fastest->exchange_us) {
        fastest = {.tokens = tokens, .mode = mode->name, .exchange_us = exchange_us(plan)};
      }
    }
    if (fastest && (points.empty() || points.back().mode != fastest->mode)) points.push_back(*fastest);
  }
  return points;
}

std::vector<SmPoint> vary_sms(const PlanRequest& request, const Calibration& calibration, const Plan& best) {
  std::vector<SmPoint> points;
  if (best.choice.mode == nullptr || best.choice.mode->kind != ExchangeKind::kThroughput) return points;
  const PlanFacts facts = plan_facts(request, best.choice, best.counts);
  for (const std::int32_t sms : {4, 8, 16, 24, 32, 64}) {
    if (sms > request.cluster.num_sms()) continue;
    PlanChoice choice = best.choice;
    choice.num_sms = sms;
    const Plan plan = evaluate_plan(request, calibration, choice, facts);
    SmPoint point{.num_sms = sms, .exchange_us = exchange_us(plan), .us_per_sm = 0};
    if (!points.empty()) {
      point.us_per_sm = (points.back().exchange_us - point.exchange_us) / (sms - points.back().num_sms);
    }
    points.push_back(point);
  }
  return points;
}

}  // namespace epistle
