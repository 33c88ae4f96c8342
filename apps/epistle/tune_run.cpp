#include "tune_run.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <utility>

#include <fmt/format.h>

#include "epistle/error.hpp"

#include "bench_flow.hpp"
#include "topology/machine.hpp"

namespace epistle::cli {
namespace {

constexpr std::int64_t kMaxValidatedTokens = 64;  // the other ranks wait for the one that runs alone
constexpr std::array<std::int64_t, 7> kCrossoverTokens = {1, 4, 16, 64, 128, 256, 512};
constexpr std::int32_t kJointFactor = 2;  // the check of the best has more rounds than a step on the way

class Tuner {
 public:
  Tuner(Group& group, const BenchPlan& plan, const BenchOptions& options, TunePolicy policy, Progress& progress)
      : group_(group), plan_(plan), options_(options), policy_(policy), progress_(progress) {}

  TuneResult run();

 private:
  void validate_part(int num_ranks);
  [[nodiscard]] int domain_ranks() const;
  void validate_together();
  [[nodiscard]] KnobLimits limits() const;
  void turn(std::string_view name);
  void try_value(TunedKnob& tuned, std::size_t value_idx);
  void check_best();
  void find_crossover();
  [[nodiscard]] BenchResult measure(const BenchPlan& plan, const std::vector<Contender>& contenders,
                                    std::int32_t num_rounds, bool verify);
  [[nodiscard]] static const PairTimes* find_chain(const BenchResult& result, const std::string& name);

  Group& group_;
  const BenchPlan& plan_;
  const BenchOptions& options_;
  TunePolicy policy_;
  Progress& progress_;
  TuneResult result_;
  std::int64_t compute_units_ = 0;  ///< beside each pair, from the first measurement on
  double relative_ = 1.0;           ///< metric of the settings chosen so far, over that of the defaults
};

Contender contender(std::string name, const ProfileSettings& settings) {
  return {.name = std::move(name),
          .dispatcher = settings.dispatcher,
          .host = settings.host,
          .cuda = settings.cuda,
          .num_buffers = settings.num_buffers};
}

TuneResult Tuner::run() {
  result_.defaults = default_settings(plan_);
  result_.settings = result_.defaults;
  validate_part(1);
  if (domain_ranks() > 1 && domain_ranks() < group_.size()) validate_part(domain_ranks());
  validate_together();
  for (const std::string_view name : knob_names(plan_.spec.device)) turn(name);
  check_best();
  find_crossover();
  return std::move(result_);
}

int Tuner::domain_ranks() const { return plan_.spec.domain_size > 0 ? plan_.spec.domain_size : plan_.num_ranks; }

/// First one rank by itself, and of several domains then one: what fails there fails everywhere, and is easiest to
/// understand. Rank 0 does it, with threads for ranks.
void Tuner::validate_part(int num_ranks) {
  std::optional<Error> failure;
  if (group_.rank() == 0) {
    BenchOptions alone = options_;
    alone.num_tokens = {
        std::min(kMaxValidatedTokens, *std::max_element(plan_.tokens_per_rank.begin(), plan_.tokens_per_rank.end()))};
    alone.tokens_spread = 0.0;
    // A capacity was meant for the whole group.
    if (plan_.resolved.layout == OutputLayout::kExpertBlocks) {
      alone.overflow = "drop";
    } else {
      alone.sizing = "exact";
      alone.capacity_rows = 0;
      alone.overflow.clear();
    }
    alone.no_zero_padding = false;
    alone.num_iterations = 1;
    alone.num_warmups = 0;
    alone.gemm = false;
    alone.domain_size = num_ranks;
    const std::string name = num_ranks == 1 ? "one rank alone" : "the ranks of one domain";
    try {
      BenchPlan plan = make_bench_plan(alone, num_ranks, GroupKind::kThreads);
      add_expectation(alone, plan);
      plan.spec.contenders = {contender("default", result_.defaults)};
      const auto play = [&](Group& part) {
        const BenchResult result = run_planned(part, plan, progress_);
        if (part.rank() == 0 && plan.spec.expectation != nullptr && !result.verified) {
          failure = Error(ErrorCode::kVerificationFailed, fmt::format("{}: {}", name, result.mismatch));
        }
      };
      run_thread_ranks(num_ranks, play, {.domain_size = num_ranks});
    } catch (const Error& error) {
      failure = error;
    }
  }
  const int failed = failure ? 1 : 0;
  std::vector<int> all(static_cast<std::size_t>(group_.size()));
  group_.all_gather(&failed, sizeof(failed), all.data());
  if (failure) throw Error(*failure);
  if (all.front() != 0) throw Error(ErrorCode::kPeerRejected, "rank 0 does not get through by itself; it says why");
}

void Tuner::validate_together() {
  result_.first = measure(plan_, {contender("default", result_.defaults)}, plan_.spec.num_iterations, true);
  if (plan_.spec.expectation != nullptr && !result_.first.verified) {
    throw Error(ErrorCode::kVerificationFailed, "all ranks together: " + result_.first.mismatch);
  }
  compute_units_ = result_.first.compute_units;
}

BenchResult Tuner::measure(const BenchPlan& plan, const std::vector<Contender>& contenders, std::int32_t num_rounds,
                           bool verify) {
  BenchPlan step = plan;
  // The same work beside all that is compared in the end.
  if (compute_units_ > 0 && &plan == &plan_) step.spec.compute_units = compute_units_;
  step.spec.contenders = contenders;
  step.spec.num_iterations = num_rounds;
  if (!verify) step.spec.expectation = nullptr;
  return run_planned(group_, step, progress_);
}

const PairTimes* Tuner::find_chain(const BenchResult& result, const std::string& name) {
  const auto found = std::find_if(result.chains.begin(), result.chains.end(),
                                  [&](const PairTimes& chain) { return chain.dispatcher == name; });
  return found == result.chains.end() ? nullptr : &*found;
}

KnobLimits Tuner::limits() const {
  KnobLimits limits{.dispatchers = {}, .device = plan_.spec.device, .min_buffers = plan_.spec.num_in_flight};
  for (const Contender& one : plan_.spec.contenders) limits.dispatchers.push_back(one.dispatcher);
  // One more worker than a fair share shows what a further one would cost.
  limits.max_workers = std::max(2, machine_info().num_usable_processing_units / group_.size());
  if (result_.first.cuda) {
    const CudaRun& run = *result_.first.cuda;
    limits.max_sms = run.num_sms * run.num_used_gpus / group_.size();
  }
  return limits;
}

void Tuner::turn(std::string_view name) {
  TunedKnob tuned{.knob = make_knob(name, result_.settings, limits()), .trials = {}, .stop = "all values were tried"};
  for (std::size_t idx = 0; idx < tuned.knob.values.size(); ++idx) {
    try_value(tuned, idx);
    if (idx + 1 == tuned.knob.values.size() || !stops(tuned.knob, tuned.trials)) continue;
    tuned.stop = fmt::format("{} values in a row were not faster than the one before", kPatience);
    break;
  }
  if (!tuned.trials.empty()) {
    tuned.chosen_idx = choose(tuned.knob, tuned.trials, policy_);
    const KnobTrial& chosen = tuned.trials[tuned.chosen_idx];
    result_.settings = tuned.knob.values[chosen.value_idx].settings;
    relative_ = chosen.relative;
  }
  result_.knobs.push_back(std::move(tuned));
}

/// Beside the settings chosen so far and, of a knob that costs, the value before it.
void Tuner::try_value(TunedKnob& tuned, std::size_t value_idx) {
  const KnobValue& value = tuned.knob.values[value_idx];
  std::vector<Contender> contenders = {contender("chosen", result_.settings), contender("value", value.settings)};
  if (tuned.knob.costs && !tuned.trials.empty()) {
    contenders.push_back(contender("before", tuned.knob.values[tuned.trials.back().value_idx].settings));
  }
  const BenchResult result = measure(plan_, contenders, plan_.spec.num_iterations, false);
  const PairTimes* const chosen = find_chain(result, "chosen");
  const PairTimes* const own = find_chain(result, "value");
  const PairTimes* const before = tuned.knob.costs ? find_chain(result, "before") : chosen;
  if (own == nullptr || chosen == nullptr) {
    for (const Unavailable& unavailable : result.unavailable) {
      tuned.unavailable.push_back({.name = value.text, .reason = unavailable.reason});
    }
    return;
  }
  KnobTrial trial{.value_idx = value_idx, .period_us = own->time_us};
  const Device device = plan_.spec.device;
  const bool is_chosen = settings_json(value.settings, device) == settings_json(result_.settings, device);
  trial.relative =
      is_chosen ? relative_ : relative_ * metric_us(own->time_us, policy_) / metric_us(chosen->time_us, policy_);
  trial.verdict =
      before == nullptr || tuned.trials.empty() ? "-" : verdict(paired_difference(before->samples_us, own->samples_us));
  for (const DispatcherSummary& summary : result.dispatchers) {
    if (summary.dispatcher == "value") trial.bytes = summary.max_buffer_bytes;
  }
  tuned.trials.push_back(trial);
}

/// What was found step by step has to stand beside the defaults once more, verified, before it is taken.
void Tuner::check_best() {
  result_.last = measure(plan_, {contender("default", result_.defaults), contender("tuned", result_.settings)},
                         kJointFactor * plan_.spec.num_iterations, true);
  if (plan_.spec.expectation != nullptr && !result_.last.verified) {
    throw Error(ErrorCode::kVerificationFailed, "the tuned settings: " + result_.last.mismatch);
  }
  const PairTimes* const defaults = find_chain(result_.last, "default");
  const PairTimes* const tuned = find_chain(result_.last, "tuned");
  if (defaults == nullptr || tuned == nullptr) {
    throw Error(ErrorCode::kOutOfMemory,
                "default and tuned settings cannot live at once: " + result_.last.unavailable.front().reason);
  }
  result_.difference = paired_difference(defaults->samples_us, tuned->samples_us);
  result_.ratio = tuned->time_us.median / defaults->time_us.median;
  const std::string_view found = verdict(result_.difference);
  const bool saves = result_.settings.cuda.num_sms > 0 && result_.defaults.cuda.num_sms == 0;
  const Device device = plan_.spec.device;
  // The same settings in turns differ by noise.
  result_.found_defaults = settings_json(result_.settings, device) == settings_json(result_.defaults, device);
  // Not slower is enough for settings that save SMs; all others must be faster.
  const bool is_better = found == "faster" || (saves && found == "no difference shown");
  result_.kept_defaults = result_.found_defaults || !is_better;
  if (result_.kept_defaults) result_.settings = result_.defaults;
}

void Tuner::find_crossover() {
  // A capacity was meant for the tokens of the plan.
  const bool limited =
      plan_.resolved.sizing == SizingMode::kCapacity || plan_.resolved.layout == OutputLayout::kExpertBlocks;
  for (const std::int64_t num_tokens : kCrossoverTokens) {
    if (limited && num_tokens > plan_.spec.config.max_tokens && num_tokens > kCrossoverTokens.front()) return;
    BenchOptions few = options_;
    few.num_tokens = {num_tokens};
    few.tokens_spread = 0.0;
    few.dispatchers = {"low_latency", "direct"};
    few.gemm = false;  // at which size one overtakes the other is a matter of the calls alone
    BenchPlan plan = make_bench_plan(few, group_.size(), group_.kind());
    if (plan.spec.contenders.size() < 2) {
      const Unavailable& missing = plan.unavailable.front();
      if (result_.crossover.empty()) result_.no_crossover = fmt::format("{}: {}", missing.name, missing.reason);
      return;
    }
    std::vector<Contender> contenders;
    for (const Contender& one : plan.spec.contenders) {
      ProfileSettings settings = result_.settings;
      settings.dispatcher = one.dispatcher;
      contenders.push_back(contender(one.name, settings));
    }
    const BenchResult result = measure(plan, contenders, plan_.spec.num_iterations, false);
    const PairTimes* const low_latency = find_chain(result, "low_latency");
    const PairTimes* const direct = find_chain(result, "direct");
    if (low_latency == nullptr || direct == nullptr) {
      if (result_.crossover.empty()) result_.no_crossover = result.unavailable.front().reason;
      return;
    }
    result_.crossover.push_back({.num_tokens = num_tokens,
                                 .low_latency_us = low_latency->time_us,
                                 .direct_us = direct->time_us,
                                 .verdict = verdict(paired_difference(low_latency->samples_us, direct->samples_us))});
  }
}

}  // namespace

ProfileSettings default_settings(const BenchPlan& plan) {
  const Contender& first = plan.spec.contenders.front();
  return {.dispatcher = first.dispatcher,
          .host = first.host,
          .cuda = first.cuda,
          .num_buffers = num_buffers_of(first, plan.spec)};
}

TuneResult run_tune(Group& group, const BenchPlan& plan, const BenchOptions& options, TunePolicy policy,
                    Progress& progress) {
  return Tuner(group, plan, options, policy, progress).run();
}

}  // namespace epistle::cli
