#include <algorithm>
#include <cmath>
#include <utility>

#include <fmt/format.h>

#include "cost/fit/families.hpp"
#include "plan/observations.hpp"
#include "plan/plan.hpp"

namespace epistle {
namespace {

// Efficiencies of what is not calibrated: dense GEMMs, attention and reads of weights (own measurements on H200 and
// published kernels, 2026). Their times are known to a quarter, so they carry that interval.
constexpr double kDenseEfficiency = 0.6;
constexpr double kReadEfficiency = 0.8;
constexpr double kAssumedSpread = 1.25;
constexpr double kRouteStartUs = 6;       // gate GEMM, top-k, counting
constexpr double kAttentionStartUs = 15;  // norms, projections, attention, output: launches of one layer
constexpr double kBf16Size = 2;

double& part(PlanTerm& term, Binding binding) { return term.parts_us[static_cast<std::size_t>(binding)]; }

std::string_view provenance_of(const Calibration& calibration, const std::string& curve, Novelty novelty) {
  if (!calibration.is_measured(curve)) return "prior";
  return novelty == Novelty::kSeen ? "measured here" : "calibrated";
}

/// Evaluates the terms of a layer for one choice.
class PlanEvaluator {
 public:
  PlanEvaluator(const PlanRequest& request, const Calibration& calibration, const PlanChoice& choice,
                const RoutingCounts& counts)
      : request_(request),
        calibration_(calibration),
        choice_(choice),
        model_(request.model),
        cluster_(request.cluster),
        counts_(counts) {
    tokens_ = tokens_per_call(request, choice);
    busiest_ = counts.busiest_factor;
  }

  [[nodiscard]] std::vector<PlanTerm> terms() const {
    std::vector<PlanTerm> all = {route(), attention()};
    if (choice_.tensor_ranks > 1) all.push_back(tensor_parallel());
    if (model_.shared_ffn > 0) all.push_back(dense("shared_experts", model_.shared_ffn * gemm_share(), 1.0));
    if (choice_.mode != nullptr) all.push_back(exchange(true));
    all.push_back(grouped_gemm());
    if (choice_.mode != nullptr) all.push_back(exchange(false));
    return all;
  }

  /// Of a layer without experts.
  [[nodiscard]] PlanTerm dense_layer() const { return dense("dense", model_.dense_ffn, choice_.tensor_ranks); }

 private:
  /// A closed form: the larger of computing and reading, behind a start.
  [[nodiscard]] PlanTerm closed_form(std::string_view name, double start_us, double flops, double read_bytes) const {
    PlanTerm term;
    term.name = name;
    term.provenance = "prior";
    const double compute_us = flops / (kDenseEfficiency * dense_peak_per_us());
    const double read_us = read_bytes / (kReadEfficiency * hbm_per_us());
    part(term, Binding::kLatency) = start_us;
    part(term, compute_us > read_us ? Binding::kCompute : Binding::kWeights) = std::max(compute_us, read_us);
    term.us = start_us + std::max(compute_us, read_us);
    term.low_us = term.us / kAssumedSpread;
    term.high_us = term.us * kAssumedSpread;
    return term;
  }

  [[nodiscard]] PlanTerm route() const {
    const double elements = model_.route_elements();
    return closed_form("route", kRouteStartUs, 2 * elements * tokens_, kBf16Size * elements);
  }

  [[nodiscard]] PlanTerm attention() const {
    const double weight_size = std::max(weight_bytes_per_element(request_.precision), 1.0);
    // The ranks of a TP group share the tokens of all of them and the heads: each does its share of both.
    const bool decode = request_.workload == Workload::kDecode;
    // Of tokens that are read together each sees half of the others, on average.
    const double context = decode ? request_.context_tokens : request_.context_tokens / 2;
    double elements = model_.attention_elements();
    double read_bytes = elements * weight_size / choice_.tensor_ranks;
    for (const AttentionLayers& layers : model_.attention) {
      const double seen = layers.seen_tokens(context);
      const double kept = layers.kept_tokens(context);
      const double scores = decode ? layers.decode_score_elements : layers.score_elements;
      elements += layers.num_layers * (seen * scores + kept * layers.index_score_elements);
      if (!decode) continue;
      const double cached = seen * layers.cached_elements(choice_.tensor_ranks) + kept * layers.index_elements;
      read_bytes += layers.num_layers * tokens_ * cached * kBf16Size;
    }
    if (decode) read_bytes += 2 * tokens_ * state_bytes_per_sequence(model_);  // states are written as well
    // Of a layer on average.
    return closed_form("attention", kAttentionStartUs, 2 * tokens_ * elements / model_.num_layers,
                       read_bytes / model_.num_layers);
  }

  [[nodiscard]] PlanTerm dense(std::string_view name, double ffn, double shards) const {
    const double elements = 3 * model_.hidden * ffn;
    const double weight_size = std::max(weight_bytes_per_element(request_.precision), 1.0);
    return closed_form(name, 0.0, 2 * elements * tokens_, elements * weight_size / shards);
  }

  /// Tokens of a TP group gathered before attention, and its sums scattered behind.
  [[nodiscard]] PlanTerm tensor_parallel() const {
    const double bytes = tokens_ * choice_.tensor_ranks * model_.hidden * kBf16Size;
    const ExchangeWork base = exchange_base(cluster_, choice_.tensor_ranks, cluster_.gpus_per_domain());
    const ExchangeWork work = collective_work(base, choice_.tensor_ranks, bytes);
    PlanTerm term;
    term.name = "tensor_parallel";
    term.curve = "all_gather";
    for (const char* const curve : {"all_gather", "reduce_scatter"}) {
      add_exchange(term, curve, collective_observation(cluster_, choice_.tensor_ranks, bytes, work), work);
    }
    return term;
  }

  [[nodiscard]] PlanTerm exchange(bool dispatch) const {
    const ExchangeMode& mode = *choice_.mode;
    PlanTerm term;
    term.name = dispatch ? "dispatch" : "combine";
    term.curve = std::string(dispatch ? mode.dispatch_curve : mode.combine_curve);
    const double ranks = choice_.num_ranks;
    const double hidden = model_.routed_hidden;
    const ExchangeWork base = exchange_base(cluster_, ranks, cluster_.gpus_per_domain());
    if (mode.kind == ExchangeKind::kAllToAll || mode.kind == ExchangeKind::kGather) {
      const bool gather = mode.kind == ExchangeKind::kGather;
      const double rows = gather ? tokens_ * ranks : busiest_ * tokens_ * model_.top_k;
      const double bytes = rows * hidden * kBf16Size;
      const ExchangeWork work = collective_work(base, ranks, bytes);
      add_exchange(term, term.curve, collective_observation(cluster_, ranks, bytes, work), work);
      if (!gather) {
        // Rows are permuted before and behind: read and written once each.
        const double copy_us = 2 * bytes / (kReadEfficiency * hbm_per_us());
        part(term, Binding::kWeights) += copy_us;
        term.us += copy_us;
        term.low_us += copy_us / kAssumedSpread;
        term.high_us += copy_us * kAssumedSpread;
      }
      return term;
    }
    const bool fp8 = dispatch && request_.precision != ExpertType::kBf16;
    const double row_bytes = exchange_row_bytes(hidden, fp8);
    const double experts = model_.num_experts;
    const ExchangeShape shape{.tokens_per_rank = tokens_,
                              .num_ranks = ranks,
                              .top_k = static_cast<double>(model_.top_k),
                              .distinct_ranks = counts_.distinct_ranks,
                              .distinct_domains = counts_.distinct_domains,
                              .row_bytes = row_bytes,
                              .busiest_factor = busiest_};
    const double sms = choice_.num_sms > 0 ? choice_.num_sms : cluster_.num_sms();
    ExchangeWork work;
    if (mode.kind == ExchangeKind::kLowLatency) {
      work = low_latency_work(base, shape);
    } else if (mode.kind == ExchangeKind::kThroughput) {
      work = throughput_work(base, shape, sms);
    } else {
      work = one_sided_work(base, shape, sms);
    }
    const ExchangeSetting setting{
        .tokens = tokens_, .num_ranks = ranks, .num_sms = sms, .row_bytes = row_bytes, .num_experts = experts};
    add_exchange(term, term.curve, exchange_observation(cluster_, mode, setting, work), work);
    return term;
  }

  /// Adds a forecast to a term, split as the curve splits it; what the busiest rank adds is the straggler's.
  void add_exchange(PlanTerm& term, const std::string& curve, const Observation& wanted,
                    const ExchangeWork& work) const {
    const Forecast forecast = add_forecast(term, curve, wanted);
    const ExchangeTimes times =
        exchange_time(work, exchange_terms(calibration_.curves().at(curve).constants_at(wanted.point.path)));
    const double parts = times.fixed_us + std::max({times.sm_us, times.link_us, times.network_us});
    const double scale = parts > 0 ? forecast.us / parts : 0.0;
    const double moving_us = scale * (parts - times.fixed_us);
    const double straggler_us = moving_us * (1.0 - 1.0 / std::max(busiest_, 1.0));
    part(term, Binding::kLatency) += scale * times.fixed_us;
    part(term, Binding::kStraggler) += straggler_us;
    Binding binding = Binding::kLink;
    if (times.sm_us >= std::max(times.link_us, times.network_us)) binding = Binding::kSm;
    if (times.network_us > std::max(times.link_us, times.sm_us)) binding = Binding::kNetwork;
    part(term, binding) += moving_us - straggler_us;
  }

  Forecast add_forecast(PlanTerm& term, const std::string& curve, const Observation& wanted) const {
    const Forecast forecast = calibration_.predict(curve, wanted);
    term.us += forecast.us;
    term.low_us += forecast.low_us;
    term.high_us += forecast.high_us;
    term.provenance = provenance_of(calibration_, curve, forecast.novelty);
    return forecast;
  }

  [[nodiscard]] PlanTerm grouped_gemm() const {
    GemmShape shape{.global_tokens = tokens_ * choice_.num_ranks,
                    .num_ranks = static_cast<double>(choice_.num_ranks),
                    .num_experts = static_cast<double>(model_.num_experts + choice_.num_redundant),
                    .top_k = static_cast<double>(model_.top_k),
                    .hidden = model_.routed_hidden,
                    .expert_ffn = model_.expert_ffn * gemm_share(),
                    .busiest_factor = busiest_,
                    .type = request_.precision};
    const GemmWork work = gemm_work(cluster_, shape);
    PlanTerm term;
    term.name = "grouped_gemm";
    term.curve = fmt::format("gemm {}", to_string(request_.precision));
    const Forecast forecast = add_forecast(term, term.curve, gemm_observation(shape, work));
    const GemmTerms terms = gemm_terms(calibration_.curves().at(term.curve).constants_at({}));
    const GemmTimes times = gemm_time(work, terms);
    shape.busiest_factor = 1.0;
    const double even_us = gemm_time(gemm_work(cluster_, shape), terms).total_us;
    const double scale = forecast.us / times.total_us;
    part(term, Binding::kStraggler) = scale * std::max(times.total_us - even_us, 0.0);
    part(term, Binding::kLatency) = scale * std::min(times.fixed_us, even_us);
    const bool computes = times.compute_us > times.weights_us + times.activations_us;
    part(term, computes ? Binding::kCompute : Binding::kWeights) =
        std::max(forecast.us - part(term, Binding::kStraggler) - part(term, Binding::kLatency), 0.0);
    return term;
  }

  /// Of the three matrices that curves count, for experts without a gate.
  [[nodiscard]] double gemm_share() const { return model_.expert_matrices / 3.0; }
  [[nodiscard]] double dense_peak_per_us() const {
    return peak_flops_per_us(cluster_, request_.precision == ExpertType::kBf16 ? ExpertType::kBf16 : ExpertType::kFp8);
  }
  [[nodiscard]] double hbm_per_us() const { return cluster_.hbm_bytes_per_s() * kBytesPerUsOfBytesPerS; }

  const PlanRequest& request_;
  const Calibration& calibration_;
  const PlanChoice& choice_;
  const PlanModel& model_;
  const Cluster& cluster_;
  const RoutingCounts& counts_;
  double tokens_ = 0;
  double busiest_ = 1;
};

bool is_exchange(const PlanTerm& term) { return term.name == "dispatch" || term.name == "combine"; }

/// Backward passes: twice the products of GEMMs, and each exchange once more in the other direction.
void add_backward(std::vector<PlanTerm>& terms) {
  for (PlanTerm& term : terms) {
    const double factor = is_exchange(term) || term.name == "tensor_parallel" ? 2.0 : 3.0;
    for (double* const us : {&term.us, &term.low_us, &term.high_us}) *us *= factor;
    for (double& us : term.parts_us) us *= factor;
  }
}

void set_layer_time(Plan& plan, const Cluster& cluster) {
  double exchange_us = 0.0;
  double compute_us = 0.0;
  for (const PlanTerm& term : plan.terms) (is_exchange(term) ? exchange_us : compute_us) += term.us;
  const PlanChoice& choice = plan.choice;
  const bool fused = choice.mode != nullptr && choice.mode->kind == ExchangeKind::kFused;
  if (choice.two_batches) {
    // SMs of the exchange are missing to the GEMMs beside it.
    const double sms = choice.num_sms > 0 ? choice.num_sms : cluster.num_sms() / 4.0;
    const double slowed_us = compute_us / std::max(1.0 - sms / cluster.num_sms(), 0.25);
    plan.layer_us = 2 * std::max(exchange_us, slowed_us);
    plan.hidden_us = 2 * (exchange_us + compute_us) - plan.layer_us;
    for (PlanTerm& term : plan.terms) {
      for (double* const us : {&term.us, &term.low_us, &term.high_us}) *us *= 2;
      for (double& us : term.parts_us) us *= 2;
    }
  } else if (fused) {
    plan.layer_us = std::max(exchange_us, compute_us);
    plan.hidden_us = std::min(exchange_us, compute_us);
  } else {
    plan.layer_us = exchange_us + compute_us;
  }
}

Binding find_binding(const Plan& plan) {
  std::array<double, kNumBindings> sums{};
  for (const PlanTerm& term : plan.terms) {
    for (std::size_t idx = 0; idx < kNumBindings; ++idx) sums[idx] += term.parts_us[idx];
  }
  return static_cast<Binding>(std::max_element(sums.begin(), sums.end()) - sums.begin());
}

void refuse_what_does_not_fit(const PlanRequest& request, const ExchangeBuffers& buffers, Plan& plan) {
  const PlanChoice& choice = plan.choice;
  if (choice.mode != nullptr) {
    const double domain = request.cluster.gpus_per_domain();
    const double tokens = tokens_per_call(request, choice);
    if (choice.mode->one_domain && choice.num_ranks > domain) {
      plan.refusals.push_back(
          fmt::format("{} stays inside a domain of {} GPUs", choice.mode->name, request.cluster.gpus_per_domain()));
    }
    if (choice.mode->max_tokens > 0 && tokens > choice.mode->max_tokens) {
      plan.refusals.push_back(fmt::format("{} takes at most {} tokens per rank, not {}", choice.mode->name,
                                          choice.mode->max_tokens, tokens));
    }
    if (is_host(request.cluster) && choice.mode->own_name.empty()) {
      plan.refusals.push_back(fmt::format("{} needs GPUs", choice.mode->name));
    }
    if (buffers.refusal) plan.refusals.push_back(*buffers.refusal);
  }
  if (choice.num_ranks > request.cluster.gpus_per_domain() && request.cluster.network_bytes_per_s() <= 0) {
    plan.refusals.emplace_back("the cluster has no network between domains");
  }
  if (plan.memory.total() > plan.memory.limit) {
    plan.refusals.push_back(fmt::format("needs {:.1f} GB of memory and may use {:.1f}", plan.memory.total() / 1e9,
                                        plan.memory.limit / 1e9));
  }
  if (request.max_step_us > 0 && plan.step_us > request.max_step_us) {
    plan.refusals.push_back(
        fmt::format("a step takes {:.2f} ms; the limit is {:.2f}", plan.step_us / 1e3, request.max_step_us / 1e3));
  }
}

}  // namespace

std::string_view to_string(Binding binding) noexcept {
  switch (binding) {
    case Binding::kLatency:
      return "latency";
    case Binding::kSm:
      return "SM";
    case Binding::kLink:
      return "NVLink";
    case Binding::kNetwork:
      return "NIC";
    case Binding::kWeights:
      return "weights";
    case Binding::kCompute:
      return "compute";
    case Binding::kStraggler:
      return "straggler";
  }
  return "latency";
}

std::string PlanChoice::name() const {
  std::string text = fmt::format("ep{}-tp{}", num_ranks, tensor_ranks);
  if (num_redundant > 0) text += fmt::format("-red{}", num_redundant);
  text += mode == nullptr ? "-local" : fmt::format("-{}", mode->name);
  if (num_sms > 0) text += fmt::format("-{}sms", num_sms);
  if (two_batches) text += "-2b";
  return text;
}

Plan evaluate_plan(const PlanRequest& request, const Calibration& calibration, const PlanChoice& choice,
                   const PlanFacts& facts) {
  const PlanEvaluator evaluator(request, calibration, choice, facts.counts);
  Plan plan;
  plan.choice = choice;
  plan.terms = evaluator.terms();
  plan.counts = facts.counts;
  if (request.workload == Workload::kTraining) add_backward(plan.terms);
  set_layer_time(plan, request.cluster);
  const PlanModel& model = request.model;
  const double num_dense = model.num_layers - model.num_moe_layers;
  const double halves = choice.two_batches ? 2 : 1;
  double attention_us = 0.0;
  for (const PlanTerm& term : plan.terms) {
    if (term.name == "attention" || term.name == "tensor_parallel") attention_us += term.us;
  }
  const double dense_layer_us = attention_us + halves * evaluator.dense_layer().us;
  plan.step_us = model.num_moe_layers * plan.layer_us + num_dense * dense_layer_us;
  // Errors of a term are the same in every layer, those of two terms are their own.
  double low_square = 0.0;
  double high_square = 0.0;
  double terms_us = 0.0;
  for (const PlanTerm& term : plan.terms) {
    low_square += (term.us - term.low_us) * (term.us - term.low_us);
    high_square += (term.high_us - term.us) * (term.high_us - term.us);
    terms_us += term.us;
  }
  plan.step_low_us = plan.step_us * std::max(1.0 - std::sqrt(low_square) / terms_us, 0.0);
  plan.step_high_us = plan.step_us * (1.0 + std::sqrt(high_square) / terms_us);
  plan.tokens_per_gpu = tokens_per_call(request, choice) * halves;
  plan.tokens_per_s_per_gpu = plan.tokens_per_gpu / plan.step_us * 1e6;
  plan.binding = find_binding(plan);
  plan.memory = memory_ledger(request, choice, facts);
  refuse_what_does_not_fit(request, facts.buffers, plan);
  return plan;
}

}  // namespace epistle
