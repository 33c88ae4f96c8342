// Megatron: how ranks are divided, and what overlaps with what.
#include <algorithm>
#include <array>

#include <fmt/format.h>

#include "select/check/check.hpp"
#include "select/rule.hpp"
#include "select/shape_limits.hpp"

namespace epistle::check {
namespace {

constexpr std::string_view kEp = "expert-model-parallel-size";
constexpr std::string_view kEtp = "expert-tensor-parallel-size";
constexpr std::string_view kTp = "tensor-model-parallel-size";
constexpr std::string_view kPp = "pipeline-model-parallel-size";
constexpr std::string_view kCp = "context-parallel-size";

/// 1 where it is not given and nothing else gives it; nothing where it is not known.
std::optional<std::int64_t> megatron_layout_degree(const RunConfig& run, std::string_view name) {
  if (run.find(name) == nullptr) return run.complete ? std::optional<std::int64_t>(1) : std::nullopt;
  return run.number(name);
}

void find_bad_degrees(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  for (const std::string_view name : {kEp, kEtp, kTp, kPp, kCp}) {
    const Setting* const setting = facts.run.find(name);
    if (setting == nullptr || !setting->known_value || setting->values.empty() || is_false(setting->value())) continue;
    const auto number = parse_whole(setting->value());
    if (number && *number >= 1) continue;
    add_finding(findings, rule, *setting,
                fmt::format("{} is '{}'; it must be a whole number of at least 1", setting->flag, setting->value()),
                "give a degree");
  }
}

/// Scripts that convert or serve a checkpoint have the model from there.
bool describes_model(const RunConfig& run) {
  return run.find("num-layers") != nullptr || run.program.find("pretrain") != std::string::npos;
}

void find_megatron_layout_experts_not_divided(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  const Setting* const ep = facts.run.find(kEp);
  if (ep == nullptr || !facts.ep_known || facts.ep < 2) return;
  if (facts.num_experts) {
    if (*facts.num_experts % facts.ep == 0) return;
    add_finding(findings, rule, *ep, fmt::format("{} experts do not divide over EP {}", *facts.num_experts, facts.ep),
                "choose an EP degree that divides the experts");
    return;
  }
  const bool elsewhere = facts.run.find("num-experts") != nullptr || facts.run.has("use-checkpoint-args") ||
                         facts.run.find("yaml-cfg") != nullptr || facts.run.dialect != Dialect::kCommandLine ||
                         !facts.run.complete || !describes_model(facts.run);
  if (elsewhere) return;
  add_finding(findings, rule, *ep, fmt::format("EP {} without --num-experts is refused", facts.ep),
              "add --num-experts");
}

/// Whatever a base recipe says of the other degrees: EP x PP must divide the ranks.
void find_too_few_ranks(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  const RunConfig& run = facts.run;
  const Setting* const ep = run.find(kEp);
  const auto world = run.world_size();
  if (run.complete || ep == nullptr || !world || *world < 1 || !facts.ep_known || facts.ep < 1 || run.assumed_size)
    return;
  const std::int64_t pp = std::max<std::int64_t>(run.number(kPp).value_or(1), 1);
  std::int64_t group = 0;
  if (__builtin_mul_overflow(facts.ep, pp, &group) || *world % group == 0) return;
  add_finding(findings, rule, *ep, fmt::format("{} ranks are no multiple of EP {} x PP {}", *world, facts.ep, pp),
              "change the EP degree or the number of ranks");
}

void find_world_not_divided(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  const RunConfig& run = facts.run;
  const auto world = run.world_size();
  const auto tp = megatron_layout_degree(run, kTp);
  const auto pp = megatron_layout_degree(run, kPp);
  const auto cp = megatron_layout_degree(run, kCp);
  find_too_few_ranks(facts, rule, findings);
  if (!world || !tp || !pp || *world < 1 || *tp < 1 || *pp < 1 || facts.would_run == "none") return;
  // Sizes that whoever starts the script gives are often not those of its defaults.
  const Severity severity = run.assumed_size ? Severity::kInfo : rule.severity;
  const Setting* const ep = run.find(kEp);
  const auto etp = run.find(kEtp) != nullptr ? run.number(kEtp) : tp;
  constexpr std::int64_t kLargest = 1 << 20;
  if (*tp > kLargest || *pp > kLargest || cp.value_or(1) > kLargest || etp.value_or(1) > kLargest ||
      facts.ep > kLargest)
    return;
  if (cp && *cp >= 1 && *world % (*tp * *pp * *cp) != 0) {
    const Setting* const at = run.find(kTp) != nullptr   ? run.find(kTp)
                              : run.find(kPp) != nullptr ? run.find(kPp)
                                                         : run.find(kCp);
    if (at != nullptr) {
      add_finding(findings, rule, *at,
                  fmt::format("{} ranks are no multiple of TP {} x PP {} x CP {}", *world, *tp, *pp, *cp),
                  "change a degree or the number of ranks");
      findings.back().severity = severity;
      return;
    }
  }
  if (ep == nullptr || !facts.ep_known || !etp || *etp < 1) return;
  const std::int64_t group = facts.ep * *etp * *pp;
  if (*world % group == 0) return;
  add_finding(findings, rule, *ep,
              fmt::format("{} ranks are no multiple of EP {} x expert TP {} x PP {}", *world, facts.ep, *etp, *pp),
              "change the EP degree or the number of ranks");
  findings.back().severity = severity;
}

void find_batch_not_divided(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  const RunConfig& run = facts.run;
  const Setting* const global = run.find("global-batch-size");
  const auto batch = run.number("global-batch-size");
  const std::int64_t micro = run.number("micro-batch-size").value_or(0);
  const auto world = run.world_size();
  const auto tp = megatron_layout_degree(run, kTp);
  const auto pp = megatron_layout_degree(run, kPp);
  const auto cp = megatron_layout_degree(run, kCp);
  if (!batch || micro < 1 || !world || !tp || !pp || !cp || facts.would_run == "none" || !run.complete) return;
  if (run.has("decrease-batch-size-if-needed") || run.find("rampup-batch-size") != nullptr) return;
  constexpr std::int64_t kLargest = 1 << 20;
  for (const std::int64_t number : {*batch, micro, *world, *tp, *pp, *cp}) {
    if (number < 1 || number > kLargest) return;
  }
  const std::int64_t model = *tp * *pp * *cp;
  if (*world % model != 0) return;
  const std::int64_t replicas = *world / model;
  if (*batch % (micro * replicas) == 0) return;
  add_finding(
      findings, rule, *global,
      fmt::format("{} samples are no multiple of {} per rank x {} data-parallel ranks ({} ranks / TP {} / PP {} "
                  "/ CP {})",
                  *batch, micro, replicas, *world, *tp, *pp, *cp),
      fmt::format("use a multiple of {}", micro * replicas));
  if (run.assumed_size) findings.back().severity = Severity::kInfo;
}

void find_too_many_tokens(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  const RunConfig& run = facts.run;
  const Setting* const length = run.find("seq-length");
  const auto sequence = run.number("seq-length");
  const std::int64_t micro = run.number("micro-batch-size").value_or(1);
  const auto cp = megatron_layout_degree(run, kCp);
  const auto tp = megatron_layout_degree(run, kTp);
  if (length == nullptr || !sequence || !cp || !tp || *sequence < 1 || micro < 1 || *cp < 1 || *tp < 1) return;
  std::int64_t tokens = 0;
  if (__builtin_mul_overflow(*sequence, micro, &tokens)) return;
  tokens /= *cp;
  if (run.has("sequence-parallel")) tokens /= *tp;
  const bool nccl = facts.would_run == "ncclep" && tokens > limits::kNcclEpMaxTokens;
  const bool spans = facts.ep_known && facts.domain_ranks && facts.ep > *facts.domain_ranks;
  const bool hybrid = facts.would_run == "hybridep" && spans && tokens > limits::kHybridEpMaxTokensMultiDomain;
  if (!nccl && !hybrid) return;
  add_finding(findings, rule, *length,
              fmt::format("{} tokens per rank; {} takes at most {}{}", tokens, facts.would_run,
                          nccl ? limits::kNcclEpMaxTokens : limits::kHybridEpMaxTokensMultiDomain,
                          nccl ? "" : " over several domains"),
              "lower the micro batch, raise the CP degree, or use alltoall");
}

void find_flex_alone(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  const RunConfig& run = facts.run;
  const Setting* const type = run.find("moe-token-dispatcher-type");
  if (type == nullptr || !type->known_value || type->value() != "flex" || !facts.num_experts) return;
  if (!facts.ep_known || facts.ep != 1) return;
  if (run.find(kEp) == nullptr && !run.complete) return;
  const auto tp = run.find(kEtp) != nullptr ? run.number(kEtp) : megatron_layout_degree(run, kTp);
  if (tp != 1) return;
  add_finding(findings, rule, *type, "flex needs experts over several ranks: EP and expert TP are 1, which it refuses",
              "set --expert-model-parallel-size, or --moe-token-dispatcher-type to alltoall or allgather");
}

void find_too_many_choices(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  const Setting* const top_k = facts.run.find("moe-router-topk");
  if (top_k == nullptr || !facts.top_k || !facts.num_experts || *facts.top_k <= *facts.num_experts) return;
  add_finding(findings, rule, *top_k,
              fmt::format("a token cannot go to {} of {} experts", *facts.top_k, *facts.num_experts),
              "choose a top-k of at most the number of experts");
}

void find_no_sequence_parallel(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  const RunConfig& run = facts.run;
  const Setting* const tp = run.find(kTp);
  const bool experts = facts.num_experts || facts.ep > 1;
  if (tp == nullptr || run.number(kTp).value_or(1) < 2 || !experts || !run.complete || run.has("sequence-parallel") ||
      run.only_infers())
    return;
  add_finding(findings, rule, *tp, "experts with tensor parallelism are trained with sequence parallelism only",
              "add --sequence-parallel");
}

// ---- Overlap of expert-parallel communication
// ------------------------------------------------------------------------

void find_overlap_trouble(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  const RunConfig& run = facts.run;
  const Setting* const overlap = run.find("overlap-moe-expert-parallel-comm");
  if (overlap == nullptr || !run.has(overlap->name)) return;
  const auto add = [&](const std::string& message, const std::string& fix) {
    add_finding(findings, rule, *overlap, fmt::format("{}: {}", overlap->flag, message), fix);
  };
  if (facts.ep_known && facts.ep < 2 && (run.complete || run.find(kEp) != nullptr))
    add("there is no expert parallelism to overlap", "set an EP degree above 1, or remove it");
  const bool type_known = run.find("moe-token-dispatcher-type") != nullptr || run.complete;
  if (facts.would_run == "allgather" && type_known)
    add("it works with alltoall and flex only; the run uses allgather", "set --moe-token-dispatcher-type");
  bool stages = false;
  bool denied = false;  // said to be none, where a base might have given some
  for (const std::string_view name : {"num-layers-per-virtual-pipeline-stage", "num-virtual-stages-per-pipeline-rank",
                                      "pipeline-model-parallel-layout", "virtual-pipeline-model-parallel-size"}) {
    const Setting* const setting = run.find(name);
    const bool none = setting != nullptr && setting->known_value && is_false(setting->value());
    stages = stages || (setting != nullptr && !none);
    denied = denied || none;
  }
  if (run.number(kPp).value_or(1) > 1 && !stages && (run.complete || denied))
    add("with PP above 1 it needs virtual stages",
        "add --num-layers-per-virtual-pipeline-stage or --num-virtual-stages-per-pipeline-rank");
  if (run.text("recompute-granularity") == "full")
    add("full recompute is refused beside it", "use --recompute-granularity selective, or none");
  if (run.find("recompute-method") != nullptr && !is_false(run.find("recompute-method")->value()))
    add("--recompute-method is refused beside it", "remove the recompute method");
  if (run.find("recompute-num-layers") != nullptr && !is_false(run.find("recompute-num-layers")->value()))
    add("--recompute-num-layers is refused beside it", "remove the number of layers");
  if (const Setting* const modules = run.find("recompute-modules")) {
    if (std::find(modules->values.begin(), modules->values.end(), "moe") != modules->values.end())
      add("recompute of moe is refused beside it", "take moe out of --recompute-modules");
  }
  if (run.has("moe-shared-expert-overlap"))
    add("shared-expert overlap is refused beside it", "remove --moe-shared-expert-overlap");
  if (run.complete && !run.has("bf16") && !run.has("fp16")) add("it needs bf16 or fp16", "add --bf16");
  if (run.number("mtp-num-layers").value_or(0) > 1) add("it takes at most one MTP layer", "use --mtp-num-layers 1");
  if (const Setting* const other = run.find("overlap-dispatch-backward-with-experts-wgrad");
      other != nullptr && run.has(other->name))
    add_finding(findings, rule, *other, fmt::format("{} is refused beside {}", other->flag, overlap->flag),
                "keep one of them");
}

void find_delayed_wgrad(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  const Setting* const delay = facts.run.find("delay-wgrad-compute");
  const Setting* const overlap = facts.run.find("overlap-moe-expert-parallel-comm");
  if (delay == nullptr || !facts.run.has(delay->name) || facts.run.has("overlap-moe-expert-parallel-comm")) return;
  if (overlap == nullptr ? !facts.run.complete : !overlap->known_value) return;
  add_finding(findings, rule, *delay,
              fmt::format("{} is refused without --overlap-moe-expert-parallel-comm", delay->flag),
              "add the overlap, or remove it");
}

void find_one_connection(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  const Setting* const connections = facts.run.find_environment("CUDA_DEVICE_MAX_CONNECTIONS");
  if (connections == nullptr || connections->value() != "1" || !facts.run.has("overlap-moe-expert-parallel-comm"))
    return;
  const bool wants_one = facts.run.number(kTp).value_or(1) > 1 || facts.run.number(kCp).value_or(1) > 1;
  add_finding(findings, rule, *connections,
              "with one connection kernels of communication and computation wait for each other: EP overlap wants more",
              wants_one ? "32, or 1 where TP or CP matters more" : "set CUDA_DEVICE_MAX_CONNECTIONS to 32");
  if (wants_one) findings.back().severity = Severity::kInfo;
}

void find_many_connections(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  const RunConfig& run = facts.run;
  const Setting* const connections = run.find_environment("CUDA_DEVICE_MAX_CONNECTIONS");
  if (connections == nullptr || !connections->known_value || connections->value() == "1") return;
  const bool before_blackwell = facts.gpu == GpuClass::kHopper || facts.gpu == GpuClass::kAmpere;
  const bool wants_one = run.number(kTp).value_or(1) > 1 || run.number(kCp).value_or(1) > 1;
  if (!before_blackwell || !wants_one || run.dialect != Dialect::kCommandLine) return;
  for (const std::string_view name : {"overlap-moe-expert-parallel-comm", "use-torch-fsdp2", "use-megatron-fsdp"}) {
    if (run.has(name)) return;
  }
  add_finding(findings, rule, *connections,
              fmt::format("{} connections: before Blackwell, TP or CP above 1 is refused with any number but 1",
                          connections->value()),
              "set CUDA_DEVICE_MAX_CONNECTIONS to 1, or add --overlap-moe-expert-parallel-comm");
}

void find_uneven_tokens(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  const RunConfig& run = facts.run;
  if (facts.would_run != "hybridep" || run.has("moe-hybridep-pad-uneven-dispatch-inputs")) return;
  for (const std::string_view name :
       {"variable-seq-lengths", "use-packed-sequence", "packed-sequence", "rl-use-sequence-packing",
        "dynamic-context-parallel", "hybrid-context-parallel", "sft", "use-dynamic-batch-size", "use-dynamic-bsz"}) {
    const Setting* const setting = run.find(name);
    if (setting == nullptr || !run.has(name)) continue;
    add_finding(findings, rule, *setting,
                fmt::format("{} gives ranks unequal numbers of tokens, with which HybridEP hangs or corrupts silently",
                            setting->flag),
                "add --moe-hybridep-pad-uneven-dispatch-inputs (Megatron core 0.20), or pad to equal counts");
  }
}

// clang-format off
constexpr std::array kMegatronLayoutRules = {
    CheckRule{"degree-value", Engine::kMegatron, Severity::kError, "a degree that is no number", find_bad_degrees, source::kMegatron, source::kMegatronDate},
    CheckRule{"ep-divides-experts", Engine::kMegatron, Severity::kError, "EP does not divide the experts", find_megatron_layout_experts_not_divided, source::kMegatron, source::kMegatronDate},
    CheckRule{"ep-divides-world", Engine::kMegatron, Severity::kError, "degrees do not divide the ranks", find_world_not_divided, source::kMegatron, source::kMegatronDate},
    CheckRule{"batch-divides", Engine::kMegatron, Severity::kError, "a batch that does not divide over the ranks", find_batch_not_divided, source::kMegatron, source::kMegatronDate},
    CheckRule{"too-many-tokens", Engine::kMegatron, Severity::kError, "more tokens per rank than the backend takes", find_too_many_tokens, source::kHybridEp, source::kHybridEpDate},
    CheckRule{"flex-one-rank", Engine::kMegatron, Severity::kError, "flex without ranks to exchange with", find_flex_alone, source::kMegatron, source::kMegatronDate},
    CheckRule{"top-k-experts", Engine::kMegatron, Severity::kError, "more choices than experts", find_too_many_choices, source::kMegatron, source::kMegatronDate},
    CheckRule{"sequence-parallel", Engine::kMegatron, Severity::kError, "experts and TP without sequence parallelism", find_no_sequence_parallel, source::kMegatron, source::kMegatronDate},
    CheckRule{"ep-overlap", Engine::kMegatron, Severity::kError, "EP overlap without what it needs", find_overlap_trouble, source::kMegatron, source::kMegatronDate},
    CheckRule{"delay-wgrad", Engine::kMegatron, Severity::kError, "delayed weight gradients without EP overlap", find_delayed_wgrad, source::kMegatron, source::kMegatronDate},
    CheckRule{"one-connection", Engine::kMegatron, Severity::kWarning, "EP overlap over one connection", find_one_connection, source::kMegatron, source::kMegatronDate},
    CheckRule{"many-connections", Engine::kMegatron, Severity::kError, "TP or CP over several connections before Blackwell", find_many_connections, source::kMegatron, source::kMegatronDate},
    CheckRule{"hybridep-uneven-tokens", Engine::kMegatron, Severity::kError, "HybridEP with unequal token counts", find_uneven_tokens, source::kMegatron, source::kMegatronDate},
};
// clang-format on

}  // namespace

std::span<const CheckRule> megatron_layout_checks() noexcept { return kMegatronLayoutRules; }

}  // namespace epistle::check
