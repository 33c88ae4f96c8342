// Megatron: which dispatcher really runs, and options that do nothing beside it.
#include <algorithm>
#include <array>
#include <cstddef>

#include <fmt/format.h>

#include "select/check/check.hpp"
#include "select/check/flag_names.hpp"
#include "select/rule.hpp"

namespace epistle::check {
namespace {

Version version_of(const RunFacts& facts) { return facts.options.megatron.value_or(kNewestMegatron); }

/// "did you mean", where a value is close enough.
std::string suggest(const std::vector<std::string_view>& values, std::string_view value) {
  const std::string_view closest = closest_of(values, value);
  if (!closest.empty()) return fmt::format("did you mean {}?", closest);
  std::string list;
  for (const std::string_view one : values) list += (list.empty() ? "" : ", ") + std::string(one);
  return "use one of " + list;
}

void megatron_check_value(const RunFacts& facts, const CheckRule& rule, Findings& findings, std::string_view name,
                          const std::vector<std::string_view>& values) {
  const Setting* const setting = facts.run.find(name);
  if (setting == nullptr || !setting->known_value) return;
  for (const std::string& value : setting->values) {
    if (std::find(values.begin(), values.end(), value) != values.end() || is_false(value)) continue;
    // The parser of the command line refuses every other word; of a field, bridges of single models have their own.
    const bool anything =
        facts.run.is_recipe() && (name == "moe-router-load-balancing-type" || name == "moe-router-dtype");
    if (anything && closest_of(values, value).empty()) continue;
    add_finding(findings, rule, *setting, fmt::format("'{}' is no value of {}", value, setting->flag),
                suggest(values, value));
  }
}

/// alltoall_seq was there in early releases; where it is gone find_deprecated says so.
const std::vector<std::string_view>& dispatcher_types() {
  static const std::vector<std::string_view> types = {"allgather", "alltoall", "flex", "alltoall_seq"};
  return types;
}

void find_wrong_type(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  megatron_check_value(facts, rule, findings, "moe-token-dispatcher-type", dispatcher_types());
  megatron_check_value(facts, rule, findings, "moe-router-dtype", {"fp32", "fp64"});
  megatron_check_value(facts, rule, findings, "moe-dispatch-fwd-dtype", {"bf16", "mxfp8"});
  megatron_check_value(facts, rule, findings, "moe-combine-bwd-dtype", {"bf16", "mxfp8"});
  megatron_check_value(facts, rule, findings, "moe-router-load-balancing-type",
                       {"aux_loss", "seq_aux_loss", "global_aux_loss", "sinkhorn", "quantile_balancing", "none"});
}

void find_megatron_wrong_backend(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  const Setting* const backend = facts.run.find("moe-flex-dispatcher-backend");
  // The option of Megatron-Bridge's scripts; fields that override a recipe are Megatron's.
  const bool bridge =
      facts.run.dialect == Dialect::kBridgeScript && backend != nullptr && backend->flag.starts_with("--");
  std::vector<std::string_view> values = {"deepep", "hybridep"};
  if (!bridge) values.insert(values.end(), {"ncclep", "deepepv2"});
  megatron_check_value(facts, rule, findings, "moe-flex-dispatcher-backend", values);
}

void find_megatron_inert_backend(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  const RunConfig& run = facts.run;
  const Setting* const backend = run.find("moe-flex-dispatcher-backend");
  const Setting* const type = run.find("moe-token-dispatcher-type");
  if (backend == nullptr || !backend->known_value || is_false(backend->value()) ||
      (type != nullptr && !type->known_value))
    return;
  const bool sets_type = run.dialect == Dialect::kBridgeScript && type == nullptr;
  if (sets_type || run.text("moe-token-dispatcher-type") == "flex") return;
  if (type == nullptr && !run.complete && run.dialect == Dialect::kCommandLine) return;
  // A type that is none is refused before that.
  const auto& types = dispatcher_types();
  if (type != nullptr && std::find(types.begin(), types.end(), type->value()) == types.end()) return;
  add_finding(findings, rule, *backend,
              fmt::format("{} {} does nothing: the dispatcher type is {}, so the run uses {}", backend->flag,
                          backend->value(), type == nullptr ? "not given (allgather)" : type->value(),
                          facts.would_run == "unknown" ? "another dispatcher" : facts.would_run),
              type == nullptr ? "add --moe-token-dispatcher-type flex"
                              : "set --moe-token-dispatcher-type to flex, or remove the backend");
  if (type != nullptr || run.dialect != Dialect::kPython) return;
  findings.back() = {.rule = std::string(rule.id),
                     .severity = Severity::kInfo,
                     .line = backend->line,
                     .flag = backend->flag,
                     .message = fmt::format("{} {} does nothing unless the recipe that this one starts from has the "
                                            "dispatcher type flex",
                                            backend->flag, backend->value()),
                     .fix = "set moe_token_dispatcher_type to flex here, or call apply_flex_dispatcher_backend"};
}

void find_default_backend(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  const RunConfig& run = facts.run;
  if (run.text("moe-token-dispatcher-type") != "flex" || run.find("moe-flex-dispatcher-backend") != nullptr) return;
  if (run.has("moe-enable-deepep") || !run.complete) return;
  add_finding(findings, rule, *run.find("moe-token-dispatcher-type"), "flex without a backend takes deepep",
              "say --moe-flex-dispatcher-backend");
}

/// An option of one backend beside another one.
struct BackendOption {
  std::string_view name;
  std::string_view backend;
};

constexpr std::array kBackendOptions = {
    BackendOption{"moe-deepep-num-sms", "deepep"},
    BackendOption{"moe-hybridep-num-sms", "hybridep"},
    BackendOption{"moe-permute-fusion-into-hybridep", "hybridep"},
    BackendOption{"moe-hybridep-pad-uneven-dispatch-inputs", "hybridep"},
    BackendOption{"moe-hybridep-num-blocks-permute", "hybridep"},
    BackendOption{"moe-hybridep-num-blocks-unpermute", "hybridep"},
    BackendOption{"moe-hybridep-num-sms-preprocessing", "hybridep"},
    BackendOption{"moe-ncclep-zero-copy", "ncclep"},
};

void find_foreign_options(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  if (!facts.known_backend()) return;
  for (const BackendOption& option : kBackendOptions) {
    const Setting* const setting = facts.run.find(option.name);
    if (setting == nullptr || facts.would_run == option.backend || is_false(setting->value())) continue;
    add_finding(findings, rule, *setting,
                fmt::format("{} belongs to {}, but the run uses {}", setting->flag, option.backend, facts.would_run),
                "remove it, or choose that backend");
    if (facts.run.dialect == Dialect::kPython) findings.back().severity = Severity::kInfo;
  }
  const Setting* const any = facts.run.find("moe-flex-dispatcher-num-sms");
  const bool flex = facts.would_run == "deepep" || facts.would_run == "hybridep" || facts.would_run == "ncclep";
  if (any == nullptr || flex || is_false(any->value())) return;
  add_finding(findings, rule, *any, fmt::format("{} does nothing: the run uses {}", any->flag, facts.would_run),
              "remove it, or set the type to flex");
}

void find_foreign_environment(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  if (!facts.known_backend() || facts.would_run == "hybridep" || facts.run.dialect != Dialect::kCommandLine) return;
  const Setting* const variable = facts.run.find_environment("NUM_OF_HYBRID_EP_RANKS_PER_NVLINK_DOMAIN");
  if (variable == nullptr) return;
  add_finding(findings, rule, *variable,
              fmt::format("{} is read by HybridEP only; the run uses {}", variable->flag, facts.would_run),
              "remove it");
}

void find_deprecated(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  const bool newest = version_of(facts) >= kOneSmOption;
  for (const std::string_view name : {"moe-deepep-num-sms", "moe-hybridep-num-sms"}) {
    const Setting* const setting = facts.run.find(name);
    if (setting == nullptr || !newest) continue;
    add_finding(findings, rule, *setting, fmt::format("{} is deprecated from Megatron core 0.20 on", setting->flag),
                "use --moe-flex-dispatcher-num-sms with 0.20 or later");
  }
  if (const Setting* const setting = facts.run.find("moe-enable-deepep")) {
    add_finding(findings, rule, *setting, fmt::format("{} is deprecated", setting->flag),
                "use --moe-flex-dispatcher-backend deepep");
  }
  if (const Setting* const setting = facts.run.find("moe-router-padding-for-fp8")) {
    add_finding(findings, rule, *setting, fmt::format("{} is deprecated", setting->flag),
                "use --moe-router-padding-for-quantization");
  }
  if (const Setting* const setting = facts.run.find("moe-router-topk-limited-devices")) {
    add_finding(findings, rule, *setting, fmt::format("{} is deprecated", setting->flag),
                "use --moe-router-group-topk and --moe-router-num-groups");
  }
  if (const Setting* const type = facts.run.find("moe-token-dispatcher-type");
      type != nullptr && type->value() == "alltoall_seq") {
    add_finding(findings, rule, *type, "alltoall_seq is deprecated, and newer releases refuse it", "use alltoall");
    findings.back().severity = Severity::kWarning;
  }
  for (const std::string_view name : {"enable-cuda-graph", "external-cuda-graph"}) {
    const Setting* const setting = facts.run.find(name);
    if (setting == nullptr || !newest) continue;
    add_finding(findings, rule, *setting, fmt::format("{} is deprecated", setting->flag),
                fmt::format("use --cuda-graph-impl {}", name == "enable-cuda-graph" ? "local" : "transformer_engine"));
  }
  const Setting* const scope = facts.run.find("cuda-graph-scope");
  if (scope == nullptr || !newest) return;
  add_finding(findings, rule, *scope, fmt::format("{} is deprecated in Megatron core 0.20", scope->flag),
              "use --cuda-graph-modules with 0.20 or later");
}

void find_megatron_too_new(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  if (!facts.options.megatron || version_of(facts) >= kOneSmOption) return;
  const std::string version = to_string(version_of(facts));
  if (const Setting* const setting = facts.run.find("moe-flex-dispatcher-num-sms")) {
    add_finding(findings, rule, *setting, fmt::format("Megatron core {} has no {}", version, setting->flag),
                "use --moe-deepep-num-sms or --moe-hybridep-num-sms");
  }
  if (const Setting* const backend = facts.run.find("moe-flex-dispatcher-backend");
      backend != nullptr && backend->value() == "ncclep") {
    add_finding(findings, rule, *backend, fmt::format("Megatron core {} has no backend ncclep", version),
                "use 0.20 or later, or another backend");
  }
}

void find_conflicts(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  const RunConfig& run = facts.run;
  const Setting* const old_switch = run.find("moe-enable-deepep");
  if (old_switch != nullptr && run.has("moe-enable-deepep")) {
    if (run.find("moe-token-dispatcher-type") != nullptr ? run.text("moe-token-dispatcher-type", "flex") != "flex"
                                                         : run.complete) {
      add_finding(findings, rule, *old_switch,
                  fmt::format("{} is refused unless the dispatcher type is flex", old_switch->flag),
                  "add --moe-token-dispatcher-type flex");
    }
    const std::string_view backend = run.text("moe-flex-dispatcher-backend", "deepep");
    if (backend != "deepep") {
      add_finding(findings, rule, *old_switch,
                  fmt::format("{} and the backend {} contradict each other", old_switch->flag, backend),
                  "keep one of them");
    }
  }
  const auto deepep = run.number("moe-deepep-num-sms");
  const auto hybridep = run.number("moe-hybridep-num-sms");
  if (version_of(facts) >= kOneSmOption && deepep && hybridep && *deepep != *hybridep &&
      run.find("moe-flex-dispatcher-num-sms") == nullptr) {
    add_finding(findings, rule, *run.find("moe-hybridep-num-sms"),
                fmt::format("{} SMs here and {} for DeepEP: Megatron core 0.20 refuses two counts", *hybridep, *deepep),
                "give --moe-flex-dispatcher-num-sms alone");
  }
}

void find_ncclep_trouble(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  const RunConfig& run = facts.run;
  for (const std::string_view name : {"moe-dispatch-fwd-dtype", "moe-combine-bwd-dtype"}) {
    const Setting* const setting = run.find(name);
    if (setting == nullptr || setting->value() != "mxfp8" || !facts.known_backend() || facts.would_run == "ncclep")
      continue;
    add_finding(findings, rule, *setting,
                fmt::format("{} mxfp8 is refused with {}: only ncclep has it", setting->flag, facts.would_run),
                "remove it, or use ncclep");
  }
  const Setting* const zero_copy = run.find("moe-ncclep-zero-copy");
  if (zero_copy != nullptr && facts.would_run == "ncclep" && run.complete &&
      run.find("moe-expert-rank-capacity-factor") == nullptr) {
    add_finding(findings, rule, *zero_copy,
                fmt::format("{} is refused without --moe-expert-rank-capacity-factor", zero_copy->flag),
                "add it, or remove zero copy");
  }
  const Setting* const drop_pad = run.find("moe-pad-expert-input-to-capacity");
  if (drop_pad != nullptr && run.has(drop_pad->name) && (facts.would_run == "deepep" || facts.would_run == "ncclep")) {
    add_finding(findings, rule, *drop_pad, fmt::format("{} is refused with {}", drop_pad->flag, facts.would_run),
                "remove it, or use alltoall or hybridep");
  }
  const Setting* const capacity = run.find("moe-expert-rank-capacity-factor");
  if (capacity != nullptr && facts.known_backend() && facts.would_run != "hybridep" && facts.would_run != "ncclep") {
    add_finding(findings, rule, *capacity, fmt::format("{} is refused with {}", capacity->flag, facts.would_run),
                "use hybridep or ncclep, or remove it");
  }
}

void find_capacity_trouble(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  const RunConfig& run = facts.run;
  const Setting* const pad = run.find("moe-pad-expert-input-to-capacity");
  if (pad == nullptr || !run.has(pad->name) || !run.complete || run.find("moe-expert-capacity-factor") != nullptr)
    return;
  add_finding(findings, rule, *pad, fmt::format("{} is refused without --moe-expert-capacity-factor", pad->flag),
              "add the factor, or remove the padding");
}

void find_shared_overlap(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  const Setting* const overlap = facts.run.find("moe-shared-expert-overlap");
  if (overlap == nullptr || !facts.run.has(overlap->name)) return;
  const bool flex = facts.run.text("moe-token-dispatcher-type") == "flex";
  if (flex && facts.options.megatron && *facts.options.megatron < kFlexSharedOverlap) {
    add_finding(findings, rule, *overlap,
                fmt::format("{} works with alltoall only before Megatron core {}; the run uses flex", overlap->flag,
                            to_string(kFlexSharedOverlap)),
                "remove it, or use alltoall");
  }
  if (facts.would_run != "allgather") return;
  if (facts.run.find("moe-token-dispatcher-type") == nullptr && !facts.run.complete) return;
  add_finding(findings, rule, *overlap,
              fmt::format("{} works with alltoall and flex only; the run uses allgather", overlap->flag),
              "set --moe-token-dispatcher-type");
}

void find_router_dtype(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  if (facts.would_run != "deepep" || !facts.run.complete || facts.run.find("moe-router-dtype") != nullptr) return;
  const Setting* const type = facts.run.find("moe-token-dispatcher-type");
  if (type == nullptr) return;
  add_finding(findings, rule, *type,
              "DeepEP takes fp32 probabilities; without --moe-router-dtype fp32 they are converted on the way",
              "add --moe-router-dtype fp32");
}

void find_forced_balance(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  const Setting* const forced = facts.run.find("moe-router-force-load-balancing");
  if (forced == nullptr || !facts.run.has(forced->name)) return;
  add_finding(findings, rule, *forced,
              "forced balance is for benchmarks: its times do not compare with those of dropless routing, and the "
              "model learns nothing",
              "keep one routing mode for all runs that are compared");
}

// clang-format off
constexpr std::array kMegatronRules = {
    CheckRule{"megatron-inert-backend", Engine::kMegatron, Severity::kError, "a backend beside a dispatcher type that is not flex", find_megatron_inert_backend, source::kMegatron, source::kMegatronDate},
    CheckRule{"megatron-wrong-value", Engine::kMegatron, Severity::kError, "a value that the option does not take", find_wrong_type, source::kMegatron, source::kMegatronDate},
    CheckRule{"megatron-wrong-backend", Engine::kMegatron, Severity::kError, "a backend that is none", find_megatron_wrong_backend, source::kMegatron, source::kMegatronDate},
    CheckRule{"megatron-default-backend", Engine::kMegatron, Severity::kInfo, "flex without a backend", find_default_backend, source::kMegatron, source::kMegatronDate},
    CheckRule{"megatron-foreign-option", Engine::kMegatron, Severity::kWarning, "an option of a backend that does not run", find_foreign_options, source::kMegatron, source::kMegatronDate},
    CheckRule{"megatron-foreign-variable", Engine::kMegatron, Severity::kWarning, "a variable of a backend that does not run", find_foreign_environment, source::kHybridEp, source::kHybridEpDate},
    CheckRule{"megatron-deprecated", Engine::kMegatron, Severity::kInfo, "a deprecated option", find_deprecated, source::kMegatron, source::kMegatronDate},
    CheckRule{"megatron-too-new", Engine::kMegatron, Severity::kError, "an option of a later release", find_megatron_too_new, source::kMegatron, source::kMegatronDate},
    CheckRule{"megatron-conflict", Engine::kMegatron, Severity::kError, "options that contradict each other", find_conflicts, source::kMegatron, source::kMegatronDate},
    CheckRule{"megatron-refused", Engine::kMegatron, Severity::kError, "options that the dispatcher refuses", find_ncclep_trouble, source::kMegatron, source::kMegatronDate},
    CheckRule{"megatron-capacity", Engine::kMegatron, Severity::kError, "padding to no capacity", find_capacity_trouble, source::kMegatron, source::kMegatronDate},
    CheckRule{"megatron-shared-overlap", Engine::kMegatron, Severity::kError, "shared-expert overlap with a dispatcher that has none", find_shared_overlap, source::kMegatron, source::kMegatronDate},
    CheckRule{"megatron-router-dtype", Engine::kMegatron, Severity::kInfo, "DeepEP without fp32 probabilities", find_router_dtype, source::kMegatron, source::kMegatronDate},
    CheckRule{"megatron-forced-balance", Engine::kMegatron, Severity::kInfo, "forced balance", find_forced_balance, source::kGuide, source::kGuideDate},
};
// clang-format on

}  // namespace

std::span<const CheckRule> megatron_checks() noexcept { return kMegatronRules; }

}  // namespace epistle::check
