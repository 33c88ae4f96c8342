// SGLang.
#include <algorithm>
#include <array>
#include <string>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "select/check/check.hpp"
#include "select/check/flag_names.hpp"
#include "select/engine_backends.hpp"
#include "select/rule.hpp"

namespace epistle::check {
namespace {

std::vector<std::string_view> names_of_sglang() {
  std::vector<std::string_view> names;
  for (const EngineBackend& backend : sglang_backends()) names.push_back(backend.name);
  return names;
}

constexpr std::int64_t kDefaultDispatchTokens = 128;
constexpr std::int64_t kMaxDispatchTokens = 1024;

bool is_a2a(const RunFacts& facts) { return facts.known_backend() && facts.would_run != "none"; }

void sglang_check_value(const RunFacts& facts, const CheckRule& rule, Findings& findings, std::string_view name,
                        const std::vector<std::string_view>& values) {
  const Setting* const setting = facts.run.find(name);
  if (setting == nullptr || !setting->known_value || setting->values.empty()) return;
  if (std::find(values.begin(), values.end(), setting->value()) != values.end()) return;
  const std::string_view closest = closest_of(values, setting->value());
  std::string list;
  for (const std::string_view value : values) list += (list.empty() ? "" : ", ") + std::string(value);
  add_finding(findings, rule, *setting, fmt::format("'{}' is no value of {}", setting->value(), setting->flag),
              closest.empty() ? "use one of " + list : fmt::format("did you mean {}?", closest));
}

void find_wrong_values(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  sglang_check_value(facts, rule, findings, "moe-a2a-backend", names_of_sglang());
  sglang_check_value(facts, rule, findings, "speculative-moe-a2a-backend", names_of_sglang());
  sglang_check_value(facts, rule, findings, "deepep-mode", {"auto", "normal", "low_latency"});
  sglang_check_value(facts, rule, findings, "deepep-v2-mode", {"direct", "hybrid"});
  sglang_check_value(facts, rule, findings, "deepep-dispatcher-output-dtype", {"auto", "bf16", "fp8", "int8", "nvfp4"});
  sglang_check_value(facts, rule, findings, "ep-dispatch-algorithm", {"static", "dynamic", "fake", "lp"});
  sglang_check_value(facts, rule, findings, "elastic-ep-backend", {"none", "mooncake", "nixl"});
}

void find_inert_mode(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  const RunConfig& run = facts.run;
  if ((!run.complete && run.find("moe-a2a-backend") == nullptr) || !facts.known_backend()) return;
  const Setting* const mode = run.find("deepep-mode");
  constexpr std::array<std::string_view, 6> kReadMode = {"deepep", "mori", "mooncake", "nixl", "pplx", "customized"};
  const bool read = std::find(kReadMode.begin(), kReadMode.end(), facts.would_run) != kReadMode.end();
  if (mode != nullptr && !read) {
    add_finding(findings, rule, *mode, fmt::format("{} does nothing: the backend is {}", mode->flag, facts.would_run),
                facts.would_run == "deepep_v2" ? "use --deepep-v2-mode" : "add --moe-a2a-backend deepep");
  }
  const Setting* const config = run.find("deepep-config");
  if (config != nullptr && facts.would_run != "deepep")
    add_finding(findings, rule, *config,
                fmt::format("{} does nothing: the backend is {}", config->flag, facts.would_run),
                "add --moe-a2a-backend deepep");
  const Setting* const topology = run.find("deepep-v2-mode");
  if (topology != nullptr && facts.would_run != "deepep_v2")
    add_finding(findings, rule, *topology,
                fmt::format("{} does nothing: the backend is {}", topology->flag, facts.would_run),
                "add --moe-a2a-backend deepep_v2");
  const Setting* const dtype = run.find("deepep-dispatcher-output-dtype");
  if (dtype != nullptr && facts.would_run == "none")
    add_finding(findings, rule, *dtype, fmt::format("{} does nothing without a backend", dtype->flag),
                "add --moe-a2a-backend deepep");
}

void find_old_switches(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  const bool old_release = facts.options.sglang && *facts.options.sglang < kSglangBackendOption;
  const Setting* const backend = facts.run.find("moe-a2a-backend");
  for (const std::string_view name : {"enable-deepep-moe", "enable-ep-moe"}) {
    const Setting* const setting = facts.run.find(name);
    if (setting == nullptr || old_release) continue;
    add_finding(findings, rule, *setting, fmt::format("{} is gone from newer releases", setting->flag),
                name == "enable-deepep-moe" ? "use --moe-a2a-backend deepep" : "use --ep-size");
  }
  if (backend != nullptr && old_release)
    add_finding(findings, rule, *backend,
                fmt::format("SGLang {} has no {}", to_string(*facts.options.sglang), backend->flag),
                "use --enable-deepep-moe");
}

void find_sglang_too_new(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  const Setting* const setting = facts.run.find("moe-a2a-backend");
  if (setting == nullptr || !facts.options.sglang || *facts.options.sglang < kSglangBackendOption) return;
  const EngineBackend* const backend = find_engine_backend(sglang_backends(), setting->value());
  if (backend == nullptr || !backend->is_too_new(facts.options.sglang)) return;
  add_finding(findings, rule, *setting,
              fmt::format("SGLang {} has no backend {}", to_string(*facts.options.sglang), backend->name),
              fmt::format("use {} or later, or another backend", to_string(backend->since)));
}

void find_sglang_gpu(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  const Setting* const setting = facts.run.find("moe-a2a-backend");
  if (!facts.gpu || setting == nullptr || facts.gpu == GpuClass::kUnknown) return;
  const std::string& title = facts.options.cluster->title;
  const std::string_view backend = facts.would_run;
  const bool amd = facts.gpu == GpuClass::kAmd;
  const bool over_nvlink = backend.starts_with("flashinfer") || backend == "deepep_v2" || backend == "megamoe";
  std::string lack;
  if (backend == "mori" && !amd) lack = fmt::format("MoRI is made for ROCm; this is {}", title);
  if (backend.starts_with("ascend")) lack = fmt::format("{} is made for Ascend; this is {}", backend, title);
  if (over_nvlink && (amd || facts.gpu == GpuClass::kPcie))
    lack = fmt::format("{} needs NVLink; this is {}", backend, title);
  if ((backend.ends_with("megamoe") || backend == "deepep_v2") && facts.gpu == GpuClass::kAmpere)
    lack = fmt::format("{} needs sm_90 or later; this is {}", backend, title);
  if (!lack.empty())
    add_finding(findings, rule, *setting, std::move(lack), "use --moe-a2a-backend none, or one made for this GPU");
}

void find_ep_degree(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  const RunConfig& run = facts.run;
  const Setting* const ep = run.find("ep-size");
  if (ep == nullptr || !ep->known_value) return;
  const auto ep_size = run.number("ep-size");
  const bool tp_known = run.find("tp-size") == nullptr ? run.complete : run.number("tp-size").has_value();
  const std::int64_t tp = run.number("tp-size").value_or(1);
  if (!ep_size || *ep_size < 1) {
    add_finding(findings, rule, *ep,
                fmt::format("{} is '{}'; it must be a whole number of at least 1", ep->flag, ep->value()),
                "give a degree");
    return;
  }
  if (!tp_known || tp < 1) return;
  if (is_a2a(facts) && *ep_size != tp) {
    add_finding(findings, rule, *ep,
                fmt::format("{} {} does nothing: {} sets the EP degree to the TP degree, {}", ep->flag, *ep_size,
                            facts.would_run, tp),
                fmt::format("give --ep-size {}, or change --tp-size", tp));
    findings.back().severity = Severity::kWarning;
  } else if (!is_a2a(facts) && tp % *ep_size != 0) {
    add_finding(findings, rule, *ep, fmt::format("EP {} does not divide TP {}", *ep_size, tp),
                "the EP group is a part of the TP group");
  }
}

void find_nodes(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  const RunConfig& run = facts.run;
  const auto nodes = run.number("nnodes");
  const auto tp = run.number("tp-size");
  const std::int64_t pp = run.number("pp-size").value_or(1);
  std::int64_t ranks = 0;
  if (!nodes || !tp || *nodes < 2 || *tp < 1 || pp < 1 || __builtin_mul_overflow(*tp, pp, &ranks)) return;
  if (ranks % *nodes == 0) return;
  add_finding(findings, rule, *run.find("tp-size"), fmt::format("{} ranks do not divide over {} nodes", ranks, *nodes),
              "choose a TP degree that is a multiple of the nodes");
}

void find_dp_attention(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  const RunConfig& run = facts.run;
  const auto tp = run.number("tp-size");
  for (const std::string_view name : {"dp-size", "attn-dp-size"}) {
    const Setting* const setting = run.find(name);
    const auto dp = run.number(name);
    const bool attention = name == "attn-dp-size" || run.has("enable-dp-attention");
    if (setting == nullptr || !dp || !attention || !tp || *dp < 1 || *tp % *dp == 0) continue;
    add_finding(findings, rule, *setting, fmt::format("with attention DP, TP {} must be a multiple of DP {}", *tp, *dp),
                "choose a DP degree that divides TP");
  }
}

void find_sglang_experts_not_divided(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  const Setting* setting = facts.run.find("ep-num-redundant-experts");
  if (setting == nullptr) setting = facts.run.find("ep-size");
  if (setting == nullptr || !facts.num_experts || !facts.ep_known || facts.ep < 2 ||
      facts.would_run.starts_with("deepep"))
    return;
  const std::int64_t slots = *facts.num_experts + facts.run.number("ep-num-redundant-experts").value_or(0);
  if (slots % facts.ep == 0) return;
  add_finding(findings, rule, *setting, fmt::format("{} experts do not divide over EP {}", slots, facts.ep),
              "choose another EP degree or number of redundant experts");
}

void find_sglang_graphs(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  const RunConfig& run = facts.run;
  const Setting* const mode = run.find("deepep-mode");
  if (mode == nullptr || mode->value() != "normal" || facts.would_run != "deepep") return;
  const Setting* graphs = nullptr;
  for (const std::string_view name : {"cuda-graph-max-bs", "cuda-graph-bs"}) {
    if (run.find(name) != nullptr) graphs = run.find(name);
  }
  const bool off = run.has("disable-cuda-graph") || run.text("disaggregation-mode") == "prefill";
  if (off) return;
  add_finding(findings, rule, graphs != nullptr ? *graphs : *mode, "--deepep-mode normal turns CUDA graphs off",
              "use --deepep-mode auto, or low_latency for decode");
  findings.back().severity = graphs != nullptr ? Severity::kWarning : Severity::kInfo;
}

void find_mode_and_phase(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  const RunConfig& run = facts.run;
  const Setting* const mode = run.find("deepep-mode");
  if (mode == nullptr || facts.would_run != "deepep") return;
  const std::string_view phase = run.text("disaggregation-mode");
  if (phase == "prefill" && mode->value() == "low_latency")
    add_finding(findings, rule, *mode, "low_latency on a prefill server: its buffers hold a decode batch only",
                "use --deepep-mode normal");
  if (phase == "decode" && mode->value() == "normal")
    add_finding(findings, rule, *mode, "normal on a decode server: no CUDA graphs, and slow at few tokens",
                "use --deepep-mode low_latency");
  if (phase == "decode" && mode->value() == "normal") findings.back().severity = Severity::kWarning;
}

/// 0 where none of the values is a number.
std::int64_t largest_number(const Setting& setting) {
  std::int64_t largest = 0;
  if (!setting.known_value) return largest;
  for (const std::string& value : setting.values) largest = std::max(largest, parse_whole(value).value_or(0));
  return largest;
}

void find_dispatch_tokens(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  const RunConfig& run = facts.run;
  const Setting* const variable = run.find_environment("SGLANG_DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK");
  if (variable != nullptr && !variable->known_value) return;
  const auto given =
      variable == nullptr ? std::optional<std::int64_t>(kDefaultDispatchTokens) : parse_whole(variable->value());
  if (variable != nullptr && (!given || *given < 1 || *given > kMaxDispatchTokens)) {
    add_finding(findings, rule, *variable,
                fmt::format("{} is '{}'; it must be 1 to {}", variable->flag, variable->value(), kMaxDispatchTokens),
                "set it to the largest decode batch of a rank");
    return;
  }
  const Setting* const list = run.find("cuda-graph-bs");
  const Setting* const batch = list != nullptr ? list : run.find("cuda-graph-max-bs");
  const std::int64_t largest = batch == nullptr ? 0 : largest_number(*batch);
  const bool low_latency = facts.would_run == "deepep" && run.text("deepep-mode", "auto") != "normal";
  if (batch == nullptr || !given || !low_latency || largest <= *given) return;
  add_finding(
      findings, rule, *batch,
      fmt::format("a batch of {} does not fit the {} tokens per rank of the low-latency buffers", largest, *given),
      fmt::format("set SGLANG_DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK to {}, or lower {}", largest, batch->flag));
  if (largest > kMaxDispatchTokens)
    findings.back().fix = fmt::format("lower {} to {} or less", batch->flag, kMaxDispatchTokens);
}

void find_v2_trouble(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  const RunConfig& run = facts.run;
  if (facts.would_run != "deepep_v2") return;
  const Setting* const nodes = run.find("nnodes");
  if (nodes != nullptr && run.number("nnodes").value_or(1) > 1 && run.text("deepep-v2-mode", "direct") == "direct") {
    add_finding(findings, rule, run.find("deepep-v2-mode") != nullptr ? *run.find("deepep-v2-mode") : *nodes,
                fmt::format("direct is NVLink within a node; here are {} nodes", nodes->value()),
                "add --deepep-v2-mode hybrid");
  }
  for (const std::string_view name :
       {"enable-two-batch-overlap", "enable-single-batch-overlap", "enforce-shared-experts-fusion"}) {
    const Setting* const setting = run.find(name);
    if (setting != nullptr && run.has(name))
      add_finding(findings, rule, *setting, fmt::format("{} is refused with deepep_v2", setting->flag),
                  "remove it, or use deepep");
  }
  const Setting* const runner = run.find("moe-runner-backend");
  if (runner != nullptr && runner->value() != "deep_gemm" && runner->value() != "auto")
    add_finding(findings, rule, *runner,
                fmt::format("deepep_v2 takes --moe-runner-backend deep_gemm, not {}", runner->value()),
                "use deep_gemm or auto");
}

void find_backend_trouble(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  const RunConfig& run = facts.run;
  const Setting* const mode = run.find("deepep-mode");
  const Setting* const runner = run.find("moe-runner-backend");
  if (facts.would_run == "pplx" && mode != nullptr && mode->value() == "normal")
    add_finding(findings, rule, *mode, "pplx has a low-latency mode only", "use low_latency or auto");
  if (facts.would_run == "deepep" && mode != nullptr && mode->value() == "normal" && runner != nullptr &&
      runner->value() == "flashinfer_cutedsl") {
    add_finding(findings, rule, *mode, "flashinfer_cutedsl takes low-latency dispatch only",
                "use --deepep-mode low_latency or auto");
  }
  const Setting* const type = run.find("flashinfer-a2a-dispatch-type");
  if (type != nullptr && type->value() != "auto" && facts.would_run != "flashinfer" && facts.would_run != "unknown")
    add_finding(findings, rule, *type, fmt::format("{} is refused without --moe-a2a-backend flashinfer", type->flag),
                "add the backend, or remove it");
  const Setting* const overlap = run.find("enable-two-batch-overlap");
  if (overlap != nullptr && run.has("enable-two-batch-overlap") && facts.would_run == "none" && run.complete)
    add_finding(findings, rule, *overlap, "two-batch overlap has nothing to overlap without an all-to-all backend",
                "add --moe-a2a-backend deepep, or remove it");
}

// clang-format off
constexpr std::array kSglangRules = {
    CheckRule{"sglang-wrong-value", Engine::kSglang, Severity::kError, "a value that the option does not take", find_wrong_values, source::kSglang, source::kSglangDate},
    CheckRule{"sglang-inert-mode", Engine::kSglang, Severity::kError, "an option of a backend that does not run", find_inert_mode, source::kSglang, source::kSglangDate},
    CheckRule{"sglang-old-switch", Engine::kSglang, Severity::kWarning, "an option of another release", find_old_switches, source::kSglang, source::kSglangDate},
    CheckRule{"sglang-too-new", Engine::kSglang, Severity::kError, "a backend of a later release", find_sglang_too_new, source::kSglang, source::kSglangDate},
    CheckRule{"sglang-gpu", Engine::kSglang, Severity::kError, "a backend on a GPU that it does not run on", find_sglang_gpu, source::kSglang, source::kSglangDate},
    CheckRule{"sglang-ep-degree", Engine::kSglang, Severity::kError, "an EP degree that does not go with TP", find_ep_degree, source::kSglang, source::kSglangDate},
    CheckRule{"sglang-nodes", Engine::kSglang, Severity::kError, "ranks that do not divide over the nodes", find_nodes, source::kSglang, source::kSglangDate},
    CheckRule{"sglang-dp-attention", Engine::kSglang, Severity::kError, "attention DP that does not divide TP", find_dp_attention, source::kSglang, source::kSglangDate},
    CheckRule{"sglang-experts", Engine::kSglang, Severity::kError, "experts that do not divide", find_sglang_experts_not_divided, source::kSglang, source::kSglangDate},
    CheckRule{"sglang-graphs", Engine::kSglang, Severity::kInfo, "a mode that turns graphs off", find_sglang_graphs, source::kSglang, source::kSglangDate},
    CheckRule{"sglang-phase", Engine::kSglang, Severity::kError, "a mode against the phase", find_mode_and_phase, source::kSglang, source::kSglangDate},
    CheckRule{"sglang-dispatch-tokens", Engine::kSglang, Severity::kError, "batches beyond the low-latency buffers", find_dispatch_tokens, source::kSglang, source::kSglangDate},
    CheckRule{"sglang-deepep-v2", Engine::kSglang, Severity::kError, "DeepEP V2 with what it refuses", find_v2_trouble, source::kSglang, source::kSglangDate},
    CheckRule{"sglang-refused", Engine::kSglang, Severity::kError, "options that the backend refuses", find_backend_trouble, source::kSglang, source::kSglangDate},
};
// clang-format on

}  // namespace

std::span<const CheckRule> sglang_checks() noexcept { return kSglangRules; }

}  // namespace epistle::check
