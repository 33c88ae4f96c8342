// Megatron: what router, padding and precision ask of each other.
#include <algorithm>
#include <array>

#include <fmt/format.h>

#include "select/check/check.hpp"
#include "select/rule.hpp"

namespace epistle::check {
namespace {

bool is_eight_bit(const RunConfig& run) {
  return run.find("fp8-format") != nullptr || run.find("fp4-format") != nullptr || run.find("fp4") != nullptr;
}

/// What is not given may come from elsewhere.
bool router_is_whole(const RunFacts& facts) {
  return facts.run.complete && !facts.run.has("use-checkpoint-args") && facts.run.find("yaml-cfg") == nullptr;
}

void find_quantized_padding(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  for (const std::string_view name : {"moe-router-padding-for-quantization", "moe-router-padding-for-fp8"}) {
    const Setting* const padding = facts.run.find(name);
    if (padding == nullptr || !facts.run.has(name)) continue;
    if (router_is_whole(facts) && !is_eight_bit(facts.run))
      add_finding(findings, rule, *padding, fmt::format("{} is refused without fp8 or fp4", padding->flag),
                  "add --fp8-format or --fp4-format, or remove the padding");
    const bool by_type = facts.run.find("moe-token-dispatcher-type") != nullptr || facts.run.complete;
    if (by_type && (facts.would_run == "allgather" || facts.would_run == "alltoall_seq"))
      add_finding(findings, rule, *padding, fmt::format("{} is refused with {}", padding->flag, facts.would_run),
                  "use alltoall or flex");
  }
}

void find_top_one(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  const RunConfig& run = facts.run;
  const Setting* const top_k = run.find("moe-router-topk");
  if (top_k == nullptr || run.number("moe-router-topk") != 1 || !router_is_whole(facts)) return;
  if (run.text("moe-router-score-function", "softmax") != "softmax" || run.has("moe-router-pre-softmax") ||
      run.text("moe-router-load-balancing-type") == "sinkhorn")
    return;
  add_finding(findings, rule, *top_k, "top-1 after the selection's softmax has no gradient, and is refused",
              "add --moe-router-pre-softmax");
}

void find_router_groups(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  const RunConfig& run = facts.run;
  const Setting* const chosen = run.find("moe-router-group-topk");
  if (chosen == nullptr || !chosen->known_value || is_false(chosen->value())) return;
  const Setting* const groups = run.find("moe-router-num-groups");
  if (groups == nullptr) {
    if (router_is_whole(facts))
      add_finding(findings, rule, *chosen, fmt::format("{} is refused without --moe-router-num-groups", chosen->flag),
                  "add the number of groups");
    return;
  }
  const auto num_groups = run.number("moe-router-num-groups");
  const auto num_chosen = run.number("moe-router-group-topk");
  if (!num_groups || *num_groups < 1 || !num_chosen) return;
  if (*num_chosen > *num_groups)
    add_finding(findings, rule, *chosen, fmt::format("{} of {} groups cannot be chosen", *num_chosen, *num_groups),
                "choose at most as many groups as there are");
  if (facts.num_experts && *facts.num_experts % *num_groups != 0)
    add_finding(findings, rule, *groups,
                fmt::format("{} experts do not divide into {} groups", *facts.num_experts, *num_groups),
                "choose a number of groups that divides the experts");
}

void find_expert_bias(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  const Setting* const bias = facts.run.find("moe-router-enable-expert-bias");
  if (bias == nullptr || !facts.run.has(bias->name)) return;
  const Setting* const score = facts.run.find("moe-router-score-function");
  if (score == nullptr ? !router_is_whole(facts) : !score->known_value) return;
  const std::string_view function = score == nullptr ? std::string_view("softmax") : score->value();
  if (function == "sigmoid" || function == "sqrtsoftplus") return;
  add_finding(findings, rule, *bias, fmt::format("{} is refused with the score function {}", bias->flag, function),
              "add --moe-router-score-function sigmoid");
}

void find_fused_path(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  const RunConfig& run = facts.run;
  if (!router_is_whole(facts)) return;
  const bool fuser = run.has("use-transformer-engine-op-fuser");
  for (const std::string_view name : {"moe-dispatch-fwd-dtype", "moe-combine-bwd-dtype"}) {
    const Setting* const setting = run.find(name);
    if (setting == nullptr || setting->value() != "mxfp8" || facts.would_run != "ncclep") continue;
    if (fuser && run.has("moe-grouped-gemm")) continue;
    add_finding(findings, rule, *setting,
                fmt::format("{} mxfp8 is refused without the fused grouped products", setting->flag),
                "add --use-transformer-engine-op-fuser and --moe-grouped-gemm");
  }
  const Setting* const capacity = run.find("moe-expert-rank-capacity-factor");
  if (capacity == nullptr || facts.would_run != "hybridep" || fuser || run.has("moe-use-grouped-tensor")) return;
  add_finding(findings, rule, *capacity,
              fmt::format("{} with hybridep is refused without the fused or grouped path", capacity->flag),
              "add --use-transformer-engine-op-fuser or --moe-use-grouped-tensor");
}

void find_recompute_trouble(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  const RunConfig& run = facts.run;
  const Setting* const granularity = run.find("recompute-granularity");
  const bool experts = facts.num_experts || facts.ep > 1;
  if (granularity == nullptr || !experts || !router_is_whole(facts)) return;
  const Setting* const layers = run.find("recompute-num-layers");
  if (granularity->value() == "selective" && layers != nullptr)
    add_finding(findings, rule, *layers, fmt::format("{} is refused beside selective recompute", layers->flag),
                "remove it");
  if (granularity->value() == "full" && run.find("recompute-method") == nullptr)
    add_finding(findings, rule, *granularity, "full recompute is refused without --recompute-method",
                "add --recompute-method uniform or block");
}

// clang-format off
constexpr std::array kMegatronRouterRules = {
    CheckRule{"router-padding", Engine::kMegatron, Severity::kError, "padding for a precision that is not there", find_quantized_padding, source::kMegatron, source::kMegatronDate},
    CheckRule{"router-top-one", Engine::kMegatron, Severity::kError, "top-1 without a gradient", find_top_one, source::kMegatron, source::kMegatronDate},
    CheckRule{"router-groups", Engine::kMegatron, Severity::kError, "groups of experts that do not add up", find_router_groups, source::kMegatron, source::kMegatronDate},
    CheckRule{"router-expert-bias", Engine::kMegatron, Severity::kError, "an expert bias with scores that take none", find_expert_bias, source::kMegatron, source::kMegatronDate},
    CheckRule{"megatron-fused-path", Engine::kMegatron, Severity::kError, "what only the fused products take", find_fused_path, source::kMegatron, source::kMegatronDate},
    CheckRule{"recompute-options", Engine::kMegatron, Severity::kError, "recompute options that contradict each other", find_recompute_trouble, source::kMegatron, source::kMegatronDate},
};
// clang-format on

}  // namespace

std::span<const CheckRule> megatron_router_checks() noexcept { return kMegatronRouterRules; }

}  // namespace epistle::check
