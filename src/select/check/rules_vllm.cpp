// vLLM.
#include <algorithm>
#include <array>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "select/check/check.hpp"
#include "select/check/flag_names.hpp"
#include "select/engine_backends.hpp"
#include "select/rule.hpp"

namespace epistle::check {
namespace {

std::vector<std::string_view> names_of_vllm() {
  std::vector<std::string_view> names;
  for (const EngineBackend& backend : vllm_backends()) names.push_back(backend.name);
  return names;
}

const Setting* find_backend_setting(const RunConfig& run) {
  const Setting* const setting = run.find("all2all-backend");
  return setting != nullptr ? setting : run.find_environment("VLLM_ALL2ALL_BACKEND");
}

void find_vllm_wrong_backend(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  const Setting* const setting = find_backend_setting(facts.run);
  if (setting == nullptr || !setting->known_value || setting->values.empty()) return;
  if (find_engine_backend(vllm_backends(), setting->value()) != nullptr) return;
  const std::string_view closest = closest_of(names_of_vllm(), setting->value());
  std::string fix = closest.empty() ? "use allgather_reducescatter, deepep_high_throughput or deepep_low_latency"
                                    : fmt::format("did you mean {}?", closest);
  if (setting->value() == "deepep") fix = "use deepep_high_throughput (prefill) or deepep_low_latency (decode)";
  add_finding(findings, rule, *setting, fmt::format("'{}' is no all-to-all backend of vLLM", setting->value()), fix);
}

void find_dead_backend(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  const Setting* const setting = find_backend_setting(facts.run);
  const EngineBackend* const backend =
      setting == nullptr ? nullptr : find_engine_backend(vllm_backends(), setting->value());
  if (backend == nullptr || !backend->is_gone(facts.options.vllm)) return;
  const std::string from = to_string(*backend->until);
  if (!backend->is_alias) {
    add_finding(findings, rule, *setting, fmt::format("vLLM {} and later refuse {}", from, backend->name),
                fmt::format("say {}", backend->now));
    if (facts.options.vllm) findings.back().severity = Severity::kError;
    return;
  }
  add_finding(findings, rule, *setting,
              fmt::format("{} is an old name: from vLLM {} on the run uses {}", backend->name, from, backend->now),
              fmt::format("say {}, or choose another", backend->now));
  // The same thing under another name.
  if (backend->name.starts_with("flashinfer")) findings.back().severity = Severity::kInfo;
}

void find_vllm_inert_backend(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  const RunConfig& run = facts.run;
  const Setting* const setting = find_backend_setting(run);
  if (setting == nullptr) return;
  if (!run.has("enable-expert-parallel")) {
    if (!run.complete) return;
    add_finding(findings, rule, *setting,
                fmt::format("{} does nothing without --enable-expert-parallel", setting->flag),
                "add --enable-expert-parallel, or remove the backend");
    return;
  }
  if (facts.would_run != "none" || !run.complete) return;
  add_finding(findings, rule, *setting,
              fmt::format("{} does nothing without data parallelism: the ranks of one TP group have the same tokens",
                          setting->flag),
              "add --data-parallel-size, or remove the backend");
  // The default, said aloud, is no mistake.
  findings.back().severity = setting->value() == "allgather_reducescatter" ? Severity::kInfo : Severity::kWarning;
}

void find_old_variable(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  const Setting* const variable = facts.run.find_environment("VLLM_ALL2ALL_BACKEND");
  if (variable == nullptr) return;
  if (facts.options.vllm && *facts.options.vllm < kVllmBackendOption) return;
  const Setting* const option = facts.run.find("all2all-backend");
  if (option != nullptr && option->value() != variable->value()) {
    add_finding(
        findings, rule, *variable,
        fmt::format("{} says {}, but {} says {}", variable->flag, variable->value(), option->flag, option->value()),
        "keep the option");
    return;
  }
  add_finding(findings, rule, *variable, "VLLM_ALL2ALL_BACKEND is deprecated, and newer releases do not read it",
              fmt::format("use --all2all-backend {}", variable->value()));
}

void find_vllm_too_new(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  if (!facts.options.vllm) return;
  const std::string version = to_string(*facts.options.vllm);
  const Setting* const option = facts.run.find("all2all-backend");
  if (option != nullptr && *facts.options.vllm < kVllmBackendOption)
    add_finding(findings, rule, *option, fmt::format("vLLM {} has no {}", version, option->flag),
                fmt::format("set VLLM_ALL2ALL_BACKEND={}", option->value()));
  const Setting* const setting = find_backend_setting(facts.run);
  const EngineBackend* const backend =
      setting == nullptr ? nullptr : find_engine_backend(vllm_backends(), setting->value());
  if (backend == nullptr || !backend->is_too_new(facts.options.vllm)) return;
  add_finding(findings, rule, *setting, fmt::format("vLLM {} has no backend {}", version, backend->name),
              fmt::format("use {} or later, or another backend", to_string(backend->since)));
}

void find_microbatches(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  const RunConfig& run = facts.run;
  const Setting* setting = run.find("enable-dbo");
  if (setting == nullptr || !run.has("enable-dbo")) {
    setting = run.find("ubatch-size");
    if (setting == nullptr || run.number("ubatch-size").value_or(0) < 2) return;
  }
  constexpr std::array<std::string_view, 3> kAble = {"deepep_low_latency", "deepep_high_throughput", "nixl_ep"};
  const Setting* const given = find_backend_setting(run);
  if (given != nullptr && !given->known_value) return;
  const std::string_view backend = given == nullptr ? std::string_view("allgather_reducescatter") : given->value();
  if (std::find(kAble.begin(), kAble.end(), backend) != kAble.end()) return;
  if (facts.gpu == GpuClass::kAmd && backend == "allgather_reducescatter") return;
  add_finding(
      findings, rule, *setting,
      fmt::format("{} works with deepep_low_latency, deepep_high_throughput and nixl_ep only; the backend is {}",
                  setting->flag, backend),
      "choose one of these, or remove it");
}

void find_eplb_trouble(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  const RunConfig& run = facts.run;
  const Setting* const eplb = run.find("enable-eplb");
  const bool on = eplb != nullptr && run.has("enable-eplb");
  if (on && run.complete && !run.has("enable-expert-parallel"))
    add_finding(findings, rule, *eplb, "--enable-eplb is refused without --enable-expert-parallel",
                "add --enable-expert-parallel");
  if (on && run.has("enable-expert-parallel") && facts.ep_known && facts.ep < 2 && run.complete)
    add_finding(findings, rule, *eplb, "--enable-eplb is refused on one rank", "add tensor or data parallelism");
  const RedundantExperts redundant = redundant_experts(run);
  if (redundant.count > 0 && !on && run.complete) {
    add_finding(findings, rule, *redundant.setting, "redundant experts are refused without --enable-eplb",
                "add --enable-eplb");
  }
  const Setting* const elastic = run.find("enable-elastic-ep");
  if (elastic != nullptr && run.has("enable-elastic-ep") && !on && run.complete)
    add_finding(findings, rule, *elastic, "--enable-elastic-ep is refused without --enable-eplb", "add --enable-eplb");
}

void find_eplb_split(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  const RunConfig& run = facts.run;
  // Of DeepEP's backends the same is said with or without a balancer.
  if (!run.has("enable-eplb") || facts.would_run.starts_with("deepep") || !facts.num_experts || !facts.ep_known ||
      facts.ep < 2)
    return;
  const RedundantExperts redundant = redundant_experts(run);
  const std::int64_t slots = *facts.num_experts + redundant.count;
  if (!redundant.known || slots % facts.ep == 0) return;
  add_finding(findings, rule, redundant.setting != nullptr ? *redundant.setting : *run.find("enable-eplb"),
              fmt::format("EPLB wants as many experts on every rank, and {} do not divide over EP {}", slots, facts.ep),
              fmt::format("use {} redundant experts", redundant.count + (facts.ep - slots % facts.ep)));
}

void find_eplb_config(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  const Setting* const setting = facts.run.find("eplb-config");
  if (setting == nullptr || !setting->known_value || setting->values.empty()) return;
  const nlohmann::json config = json_of(*setting);
  if (config.is_discarded() || !config.is_object()) {
    add_finding(findings, rule, *setting, "the value of --eplb-config is not JSON",
                "quote it for the shell, and check its brackets");
    return;
  }
  static const std::vector<std::string_view> kFields = {
      "window_size", "step_interval", "num_redundant_experts", "log_balancedness", "log_balancedness_interval",
      "use_async",   "policy",        "communicator"};
  for (const auto& [name, value] : config.items()) {
    if (std::find(kFields.begin(), kFields.end(), name) != kFields.end()) continue;
    const std::string_view closest = closest_of(kFields, name);
    add_finding(findings, rule, *setting, fmt::format("'{}' is no field of --eplb-config", name),
                closest.empty() ? "remove it" : fmt::format("did you mean {}?", closest));
  }
  const auto asynchronous = config.find("use_async");
  const auto communicator = config.find("communicator");
  const bool async = asynchronous == config.end() || !asynchronous->is_boolean() || asynchronous->get<bool>();
  const std::string name =
      communicator != config.end() && communicator->is_string() ? communicator->get<std::string>() : "";
  if (async && (name == "torch_nccl" || name == "pynccl"))
    add_finding(findings, rule, *setting, fmt::format("the communicator {} is refused with asynchronous EPLB", name),
                "use torch_gloo or nixl, or use_async false");
}

void find_vllm_graphs(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  if (facts.would_run != "deepep_high_throughput") return;
  const Setting* const setting = find_backend_setting(facts.run);
  if (setting == nullptr) return;
  const Setting* const config = facts.run.find("compilation-config");
  const bool wants = config != nullptr && config->value().find("FULL") != std::string_view::npos;
  add_finding(findings, rule, wants ? *config : *setting, "deepep_high_throughput turns CUDA graphs off",
              "for decode use deepep_low_latency");
  findings.back().severity = wants ? Severity::kWarning : Severity::kInfo;
}

void find_dp_trouble(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  const auto dp = facts.run.number("data-parallel-size");
  const auto local = facts.run.number("data-parallel-size-local");
  const Setting* const setting = facts.run.find("data-parallel-size-local");
  if (!dp || !local || *local <= *dp) return;
  add_finding(findings, rule, *setting, fmt::format("{} local replicas of {} in all", *local, *dp),
              "the local number is at most --data-parallel-size");
}

void find_backend_gpu(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  const Setting* const setting = find_backend_setting(facts.run);
  if (!facts.gpu || setting == nullptr || facts.gpu == GpuClass::kUnknown) return;
  const bool amd = facts.gpu == GpuClass::kAmd;
  const bool mori = facts.would_run.starts_with("mori");
  const bool nvidia_only = facts.would_run.starts_with("flashinfer") || facts.would_run == "deepep_v2";
  if (mori && !amd)
    add_finding(findings, rule, *setting,
                fmt::format("MoRI is made for ROCm; this is {}", facts.options.cluster->title),
                "use a DeepEP backend or all-gather");
  if (nvidia_only && (amd || facts.gpu == GpuClass::kPcie))
    add_finding(findings, rule, *setting,
                fmt::format("{} needs NVLink; this is {}", facts.would_run, facts.options.cluster->title),
                "use allgather_reducescatter");
}

// clang-format off
constexpr std::array kVllmRules = {
    CheckRule{"vllm-wrong-backend", Engine::kVllm, Severity::kError, "a backend that is none", find_vllm_wrong_backend, source::kVllm, source::kVllmDate},
    CheckRule{"vllm-dead-backend", Engine::kVllm, Severity::kWarning, "a backend that is gone", find_dead_backend, source::kVllm, source::kVllmDate},
    CheckRule{"vllm-inert-backend", Engine::kVllm, Severity::kError, "a backend without expert parallelism", find_vllm_inert_backend, source::kVllm, source::kVllmDate},
    CheckRule{"vllm-old-variable", Engine::kVllm, Severity::kWarning, "the backend in the environment", find_old_variable, source::kVllm, source::kVllmDate},
    CheckRule{"vllm-too-new", Engine::kVllm, Severity::kError, "an option of a later release", find_vllm_too_new, source::kVllm, source::kVllmDate},
    CheckRule{"vllm-microbatches", Engine::kVllm, Severity::kError, "micro-batches with a backend that has none", find_microbatches, source::kVllm, source::kVllmDate},
    CheckRule{"vllm-eplb", Engine::kVllm, Severity::kError, "load balancing without what it needs", find_eplb_trouble, source::kVllm, source::kVllmDate},
    CheckRule{"vllm-eplb-config", Engine::kVllm, Severity::kError, "a configuration of load balancing that is refused", find_eplb_config, source::kVllm, source::kVllmDate},
    CheckRule{"vllm-eplb-split", Engine::kVllm, Severity::kError, "load balancing of experts that do not divide", find_eplb_split, source::kVllm, source::kVllmDate},
    CheckRule{"vllm-graphs", Engine::kVllm, Severity::kInfo, "a backend that turns graphs off", find_vllm_graphs, source::kVllm, source::kVllmDate},
    CheckRule{"vllm-dp-local", Engine::kVllm, Severity::kError, "more local replicas than there are", find_dp_trouble, source::kVllm, source::kVllmDate},
    CheckRule{"vllm-gpu", Engine::kVllm, Severity::kError, "a backend on a GPU that it does not run on", find_backend_gpu, source::kVllm, source::kVllmDate},
};
// clang-format on

}  // namespace

std::span<const CheckRule> vllm_checks() noexcept { return kVllmRules; }

}  // namespace epistle::check
