// Megatron: CUDA graphs and what they can hold.
#include <algorithm>
#include <array>

#include <fmt/format.h>

#include "select/check/check.hpp"
#include "select/check/flag_names.hpp"
#include "select/rule.hpp"

namespace epistle::check {
namespace {

const Setting* find_scopes(const RunConfig& run) {
  const Setting* const modules = run.find("cuda-graph-modules");
  return modules != nullptr ? modules : run.find("cuda-graph-scope");
}

/// Scopes are separate words, or one with commas.
std::vector<std::string> scopes_of(const Setting& setting) {
  std::vector<std::string> scopes;
  for (std::string_view rest : setting.values) {
    while (!rest.empty()) {
      const std::size_t end = std::min(rest.find_first_of(", []'\""), rest.size());
      if (end > 0) scopes.emplace_back(rest.substr(0, end));
      rest.remove_prefix(std::min(end + 1, rest.size()));
    }
  }
  return scopes;
}

bool holds(const std::vector<std::string>& scopes, std::string_view scope) {
  return std::find(scopes.begin(), scopes.end(), scope) != scopes.end();
}

bool graphs_on(const RunConfig& run) {
  return run.has("cuda-graph-impl") || run.has("enable-cuda-graph") || run.has("external-cuda-graph");
}

bool gives_scopes(const RunConfig& run, std::string_view name) {
  const Setting* const setting = run.find(name);
  return setting != nullptr && !is_false(setting->value()) && !scopes_of(*setting).empty();
}

bool drops_and_pads(const RunConfig& run) {
  return run.has("moe-pad-expert-input-to-capacity") && run.find("moe-expert-capacity-factor") != nullptr;
}

void find_unknown_scopes(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  static const std::vector<std::string_view> kScopes = {"attn",
                                                        "mlp",
                                                        "moe",
                                                        "moe_router",
                                                        "moe_preprocess",
                                                        "mamba",
                                                        "full",
                                                        "full_iteration",
                                                        "full_iteration_inference"};
  const Setting* const setting = find_scopes(facts.run);
  if (setting != nullptr && setting->known_value) {
    for (const std::string& scope : scopes_of(*setting)) {
      if (std::find(kScopes.begin(), kScopes.end(), scope) != kScopes.end() || is_false(scope)) continue;
      const std::string_view closest = closest_of(kScopes, scope);
      add_finding(findings, rule, *setting, fmt::format("'{}' is no graph scope", scope),
                  closest.empty() ? "the scopes are attn, mlp, moe, moe_router, moe_preprocess and mamba"
                                  : fmt::format("did you mean {}?", closest));
    }
  }
  const Setting* const impl = facts.run.find("cuda-graph-impl");
  static const std::vector<std::string_view> kImpls = {"none", "local", "transformer_engine", "full_iteration"};
  if (impl == nullptr || !impl->known_value || impl->values.empty() || is_false(impl->value()) ||
      std::find(kImpls.begin(), kImpls.end(), impl->value()) != kImpls.end())
    return;
  const std::string_view closest = closest_of(kImpls, impl->value());
  add_finding(findings, rule, *impl, fmt::format("'{}' is no value of {}", impl->value(), impl->flag),
              closest.empty() ? "use none, local, transformer_engine or full_iteration"
                              : fmt::format("did you mean {}?", closest));
}

void find_inert_scopes(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  const Setting* const setting = find_scopes(facts.run);
  if (setting == nullptr || graphs_on(facts.run) || is_false(setting->value()) || scopes_of(*setting).empty()) return;
  const Setting* const impl = facts.run.find("cuda-graph-impl");
  if (impl == nullptr && !facts.run.complete) return;
  add_finding(findings, rule, *setting, fmt::format("{} does nothing: CUDA graphs are off", setting->flag),
              "add --cuda-graph-impl transformer_engine or local");
  // Recipes keep the scopes for whoever turns graphs on.
  if (facts.run.dialect == Dialect::kPython) findings.back().severity = Severity::kInfo;
}

void find_scope_conflicts(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  const RunConfig& run = facts.run;
  const Setting* const setting = find_scopes(run);
  if (gives_scopes(run, "cuda-graph-modules") && gives_scopes(run, "cuda-graph-scope")) {
    add_finding(findings, rule, *run.find("cuda-graph-scope"),
                "--cuda-graph-scope and --cuda-graph-modules are refused together", "keep --cuda-graph-modules");
  }
  for (const std::string_view name : {"enable-cuda-graph", "external-cuda-graph"}) {
    const Setting* const old = run.find(name);
    if (old == nullptr || !old->known_value || !run.has(name) || !run.has("cuda-graph-impl")) continue;
    add_finding(findings, rule, *old, fmt::format("{} is refused beside --cuda-graph-impl", old->flag), "remove it");
  }
  if (setting == nullptr || !setting->known_value || !graphs_on(run)) return;
  const std::vector<std::string> scopes = scopes_of(*setting);
  if (run.text("cuda-graph-impl") == "full_iteration" && !scopes.empty() && !holds(scopes, "full_iteration")) {
    add_finding(findings, rule, *setting, "--cuda-graph-impl full_iteration captures all and takes no scopes",
                "remove the scopes");
    return;
  }
  if (holds(scopes, "full") && scopes.size() > 1)
    add_finding(findings, rule, *setting, "the scope full stands alone", "remove the other scopes");
  if (holds(scopes, "moe") && holds(scopes, "moe_router"))
    add_finding(findings, rule, *setting, "the scopes moe and moe_router exclude each other",
                "keep moe_router on dropless MoE");
  if (holds(scopes, "moe_preprocess") && !holds(scopes, "moe_router") && run.text("cuda-graph-impl") != "local") {
    add_finding(findings, rule, *setting, "the scope moe_preprocess needs moe_router", "add moe_router");
  }
}

void find_dropless_capture(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  const RunConfig& run = facts.run;
  const bool experts = facts.num_experts.value_or(0) > 1 || facts.ep > 1;
  if (!experts || !graphs_on(run) || drops_and_pads(run)) return;
  const Setting* const setting = find_scopes(run);
  if (setting != nullptr && !setting->known_value) return;
  // What a recipe starts from may drop and pad; its own scope moe is worth a word all the same.
  if (!run.complete && (setting == nullptr || !holds(scopes_of(*setting), "moe"))) return;
  if (!run.complete && run.dialect != Dialect::kYaml) return;
  const std::vector<std::string> scopes = setting != nullptr ? scopes_of(*setting) : std::vector<std::string>{};
  // What keeps shapes static without padding to a capacity.
  const bool static_shapes = run.find("moe-expert-rank-capacity-factor") != nullptr || run.has("moe-paged-stash");
  const std::string_view impl = run.text("cuda-graph-impl");
  const bool whole =
      impl == "full_iteration" || holds(scopes, "full") || holds(scopes, "full_iteration") || scopes.empty();
  if (whole && static_shapes) return;
  if (whole && run.find("inference-cuda-graph-scope") != nullptr) return;
  if (!whole && !holds(scopes, "moe")) return;
  const Setting* at = setting != nullptr ? setting : run.find("cuda-graph-impl");
  if (at == nullptr)
    at = run.find("enable-cuda-graph") != nullptr ? run.find("enable-cuda-graph") : run.find("external-cuda-graph");
  if (at == nullptr) return;
  add_finding(
      findings, rule, *at,
      fmt::format("a graph over the experts of dropless MoE cannot be captured: {} learns its counts on the host",
                  facts.would_run),
      "use the scopes attn moe_router moe_preprocess, or drop and pad (--moe-expert-capacity-factor with "
      "--moe-pad-expert-input-to-capacity)");
  // Without scopes the run may be one of inference, which pads.
  if ((scopes.empty() && impl == "local") || !run.complete) findings.back().severity = Severity::kWarning;
}

void find_mlp_scope(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  const RunConfig& run = facts.run;
  const Setting* const setting = find_scopes(run);
  if (setting == nullptr || !setting->known_value || !graphs_on(run) || !run.complete || !facts.num_experts) return;
  const std::string_view frequency = run.text("moe-layer-freq", "1");
  if (frequency != "1" || run.find("hybrid-layer-pattern") != nullptr || !holds(scopes_of(*setting), "mlp")) return;
  add_finding(findings, rule, *setting, "the scope mlp is for dense layers, and all layers here have experts",
              "remove mlp");
}

void find_preprocess_copies(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  const RunConfig& run = facts.run;
  const Setting* const setting = find_scopes(run);
  if (setting == nullptr || !setting->known_value || !graphs_on(run) || facts.would_run != "alltoall" ||
      drops_and_pads(run))
    return;
  const bool copies = run.find("moe-expert-capacity-factor") != nullptr || run.has("moe-router-padding-for-fp8");
  if (!copies || !holds(scopes_of(*setting), "moe_preprocess")) return;
  add_finding(findings, rule, *setting,
              "alltoall with a capacity factor or padding for fp8 copies counts to the host in moe_preprocess, which "
              "no graph can hold",
              "remove moe_preprocess");
}

void find_overlap_scopes(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  const RunConfig& run = facts.run;
  const Setting* const setting = find_scopes(run);
  if (setting == nullptr || !setting->known_value || !run.has("overlap-moe-expert-parallel-comm") ||
      run.text("cuda-graph-impl") != "transformer_engine")
    return;
  const auto scopes = scopes_of(*setting);
  if (!holds(scopes, "moe") && !holds(scopes, "mlp")) return;
  add_finding(findings, rule, *setting, "EP overlap takes no graphs over moe or mlp",
              "use attn moe_router moe_preprocess");
}

void find_recompute_scopes(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  const RunConfig& run = facts.run;
  const Setting* const granularity = run.find("recompute-granularity");
  if (granularity == nullptr || !graphs_on(run)) return;
  if (granularity->value() == "full" && run.text("cuda-graph-impl", "none") != "full_iteration" &&
      run.find("cuda-graph-impl") != nullptr) {
    add_finding(findings, rule, *granularity, "full recompute works with --cuda-graph-impl full_iteration only",
                "use selective recompute");
  }
  const Setting* const modules = run.find("recompute-modules");
  const Setting* const scopes = find_scopes(run);
  if (modules == nullptr || scopes == nullptr || run.text("cuda-graph-impl") != "transformer_engine") return;
  if (!holds(modules->values, "moe") || !holds(scopes_of(*scopes), "moe_router")) return;
  add_finding(findings, rule, *modules, "recompute of moe is refused beside a graph of moe_router",
              "take moe out of --recompute-modules");
}

void find_nan_check(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  const RunConfig& run = facts.run;
  const Setting* const impl = run.find("cuda-graph-impl");
  if (impl == nullptr || impl->value() != "full_iteration" || !run.complete ||
      run.has("no-check-for-nan-in-loss-and-grad"))
    return;
  add_finding(findings, rule, *impl, "full_iteration is refused while loss and gradients are checked for NaN",
              "add --no-check-for-nan-in-loss-and-grad");
}

// clang-format off
constexpr std::array kMegatronGraphsRules = {
    CheckRule{"graph-unknown-scope", Engine::kMegatron, Severity::kError, "a graph scope that is none", find_unknown_scopes, source::kMegatron, source::kMegatronDate},
    CheckRule{"graph-inert-scope", Engine::kMegatron, Severity::kWarning, "graph scopes while graphs are off", find_inert_scopes, source::kMegatron, source::kMegatronDate},
    CheckRule{"graph-scope-conflict", Engine::kMegatron, Severity::kError, "graph scopes that exclude each other", find_scope_conflicts, source::kMegatron, source::kMegatronDate},
    CheckRule{"graph-dropless", Engine::kMegatron, Severity::kError, "a graph over dropless experts", find_dropless_capture, source::kMegatron, source::kMegatronDate},
    CheckRule{"graph-mlp-scope", Engine::kMegatron, Severity::kError, "the scope mlp without dense layers", find_mlp_scope, source::kMegatron, source::kMegatronDate},
    CheckRule{"graph-preprocess", Engine::kMegatron, Severity::kError, "host copies in a graph", find_preprocess_copies, source::kMegatron, source::kMegatronDate},
    CheckRule{"graph-overlap", Engine::kMegatron, Severity::kError, "EP overlap with graphs over experts", find_overlap_scopes, source::kMegatron, source::kMegatronDate},
    CheckRule{"graph-recompute", Engine::kMegatron, Severity::kError, "recompute that graphs refuse", find_recompute_scopes, source::kMegatron, source::kMegatronDate},
    CheckRule{"graph-nan-check", Engine::kMegatron, Severity::kError, "a graph of the iteration with checks for NaN", find_nan_check, source::kMegatron, source::kMegatronDate},
};
// clang-format on

}  // namespace

std::span<const CheckRule> megatron_graph_checks() noexcept { return kMegatronGraphsRules; }

}  // namespace epistle::check
