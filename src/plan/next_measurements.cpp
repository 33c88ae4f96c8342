#include "plan/next_measurements.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string_view>
#include <utility>

#include <fmt/format.h>

#include "plan/exchange_modes.hpp"

namespace epistle {
namespace {

constexpr std::size_t kMostMeasurements = 5;
constexpr std::size_t kLeastMeasurements = 3;
constexpr std::int32_t kMostGpusPerHost = 8;  // of what is sold; ranks of several hosts need a launcher
constexpr double kManyTokens = 4096;          // rates count, and no start

/// The name of a package in epistle compare; empty = it is not one.
std::string_view package_of(const ExchangeMode& mode) {
  if (mode.name == "deepep") return "deepep";
  if (mode.name == "deepep_low_latency") return "deepep-low-latency";
  if (mode.name == "hybrid_ep") return "hybridep";
  return {};
}

bool is_exchange_term(const PlanTerm& term) { return term.name == "dispatch" || term.name == "combine"; }

double exchange_spread_us(const PlanRequest& request, const Plan& plan) {
  double us = 0.0;
  for (const PlanTerm& term : plan.terms) {
    if (is_exchange_term(term)) us += term.high_us - term.low_us;
  }
  return us * request.model.num_moe_layers;
}

/// A run of one exchange.
struct ExchangeRun {
  const ExchangeMode* mode = nullptr;
  std::int32_t num_ranks = 2;
  std::int64_t tokens = 1;
  std::int32_t num_sms = 0;
};

/// Nothing where no command measures it.
std::string command_of(const PlanRequest& request, const ExchangeRun& run, const std::string& file) {
  const PlanModel& model = request.model;
  const bool on_host = is_host(request.cluster);
  // Rows of blocks of 128 travel as fp8 where experts take them so.
  const bool fp8 = request.precision != ExpertType::kBf16;
  const std::string shape = fmt::format(
      "--ranks {} --tokens {} --hidden {} --experts {} --top-k {} --sizing capacity --capacity-rows {}", run.num_ranks,
      run.tokens, std::llround(model.routed_hidden), model.num_experts, model.top_k, run.tokens * run.num_ranks);
  const std::string where = fmt::format("--device {} --group processes", on_host ? "host" : "cuda");
  if (!run.mode->own_name.empty()) {
    return fmt::format("epistle bench {} --dispatcher {} {}{}{} --json {}", where, run.mode->own_name, shape,
                       fp8 ? " --wire fp8" : "", run.num_sms > 0 ? fmt::format(" --sms {}", run.num_sms) : "", file);
  }
  const std::string_view package = package_of(*run.mode);
  if (package.empty() || on_host) return {};
  return fmt::format("epistle compare {} --dispatchers direct,{} --python python3 {} --json {}", where, package, shape,
                     file);
}

class MeasurementList {
 public:
  explicit MeasurementList(const PlanRequest& request) : request_(request) {}

  [[nodiscard]] bool full() const noexcept { return list_.size() == kMostMeasurements; }
  [[nodiscard]] std::size_t size() const noexcept { return list_.size(); }

  void add(ExchangeRun run, double spread_us) {
    const std::int32_t domain = request_.cluster.gpus_per_domain();
    const std::int32_t most = is_host(request_.cluster) ? domain : std::min(domain, kMostGpusPerHost);
    // What crosses domains is measured on several hosts; a part of a domain would say nothing of it.
    if (full() || most < 2 || (run.num_ranks > domain && !run.mode->own_name.empty())) return;
    run.num_ranks = std::clamp(run.num_ranks, 2, most);
    const std::string file = fmt::format("{}-{}ranks-{}tokens{}.json", run.mode->name, run.num_ranks, run.tokens,
                                         run.num_sms > 0 ? fmt::format("-{}sms", run.num_sms) : "");
    const bool there =
        std::any_of(list_.begin(), list_.end(), [&file](const NextMeasurement& other) { return other.file == file; });
    std::string command = command_of(request_, run, file);
    if (there || command.empty()) return;
    list_.push_back(
        {.what = fmt::format("dispatch and combine of {}, {} ranks, {} tokens per rank{}", run.mode->name,
                             run.num_ranks, run.tokens, run.num_sms > 0 ? fmt::format(", {} SMs", run.num_sms) : ""),
         .command = std::move(command),
         .file = file,
         .spread_us = spread_us});
  }

  std::vector<NextMeasurement> take() && {
    std::stable_sort(list_.begin(), list_.end(),
                     [](const auto& a, const auto& b) { return a.spread_us > b.spread_us; });
    return std::move(list_);
  }

 private:
  const PlanRequest& request_;
  std::vector<NextMeasurement> list_;
};

std::int64_t whole_tokens(double tokens) { return std::max<std::int64_t>(std::llround(tokens), 1); }

ExchangeRun run_of(const PlanRequest& request, const Plan& plan) {
  return {.mode = plan.choice.mode,
          .num_ranks = plan.choice.num_ranks,
          .tokens = whole_tokens(tokens_per_call(request, plan.choice)),
          .num_sms = plan.choice.num_sms};
}

/// Epistle's own dispatchers at the ranks of `best`, for its tokens, for one and for many: what they cost at the start
/// and for a byte.
void add_own(const PlanRequest& request, const Calibration& calibration, const Plan& best, MeasurementList& list) {
  for (const double tokens : {tokens_per_call(request, best.choice), 1.0, kManyTokens}) {
    for (const std::string_view name : {"low_latency", "direct"}) {
      if (list.size() >= kLeastMeasurements) return;
      PlanRequest changed = request;
      changed.global_tokens = 0;
      changed.tokens_per_gpu = tokens;
      PlanChoice choice = best.choice;
      choice.mode = &find_exchange_mode(name);
      choice.num_ranks = std::clamp(choice.num_ranks, 2, std::max(request.cluster.gpus_per_domain(), 2));
      choice.tensor_ranks = 1;
      choice.num_sms = 0;
      choice.two_batches = false;
      const PlanFacts facts = plan_facts(changed, choice, best.counts);
      if (facts.buffers.refusal) continue;
      const Plan plan = evaluate_plan(changed, calibration, choice, facts);
      list.add(run_of(changed, plan), exchange_spread_us(request, plan));
    }
  }
}

}  // namespace

std::vector<NextMeasurement> next_measurements(const PlanRequest& request, const Calibration& calibration,
                                               std::span<const Plan> plans) {
  MeasurementList list(request);
  if (plans.empty()) return {};
  const Plan& best = plans.front();
  for (const Plan& plan : plans) {
    if (list.full() || !plan.refusals.empty()) break;
    if (plan.choice.mode == nullptr) continue;
    const bool reaches = request.objective == Objective::kLatency
                             ? plan.step_low_us <= best.step_high_us
                             : plan.tokens_per_gpu / plan.step_low_us >= best.tokens_per_gpu / best.step_high_us;
    if (reaches) list.add(run_of(request, plan), exchange_spread_us(request, plan));
  }
  add_own(request, calibration, best, list);
  return std::move(list).take();
}

std::vector<UnmeasuredTerm> unmeasured_terms(const PlanRequest& request, const Plan& plan) {
  std::vector<UnmeasuredTerm> unmeasured;
  for (const PlanTerm& term : plan.terms) {
    if (is_exchange_term(term) || term.provenance == "measured here") continue;
    unmeasured.push_back(
        {.name = std::string(term.name),
         .remedy = term.curve.empty()
                       ? "a closed form with assumed efficiencies, which nothing refits"
                       : fmt::format("rows of '{}' in a table of docs/calibrate.md, from your engine", term.curve),
         .spread_us = (term.high_us - term.low_us) * request.model.num_moe_layers});
  }
  return unmeasured;
}

}  // namespace epistle
