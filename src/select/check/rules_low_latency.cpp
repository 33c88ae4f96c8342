// DeepEP's low-latency kernels: the shapes that they are compiled for, and the tokens that their queues hold.
#include <algorithm>
#include <array>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "select/check/check.hpp"
#include "select/rule.hpp"
#include "select/shape_limits.hpp"

namespace epistle::check {
namespace {

constexpr std::string_view kDepthVariable = "NVSHMEM_QP_DEPTH";

/// Where tokens per rank of a low-latency call are said, by engine.
std::string_view tokens_variable(Engine engine) {
  return engine == Engine::kSglang ? "SGLANG_DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK" : "VLLM_MOE_DP_CHUNK_SIZE";
}

bool runs_low_latency(const RunFacts& facts) {
  if (facts.run.engine == Engine::kVllm) return facts.would_run == "deepep_low_latency";
  // "auto" takes them for decode, which a prefill server has not.
  if (facts.run.engine != Engine::kSglang || facts.would_run != "deepep") return false;
  const std::string_view mode = facts.run.text("deepep-mode", "auto");
  return mode == "low_latency" || (mode == "auto" && facts.run.text("disaggregation-mode") != "prefill");
}

const Setting* low_latency_setting(const RunConfig& run) {
  for (const std::string_view name : {"all2all-backend", "moe-a2a-backend", "enable-deepep-moe"}) {
    if (const Setting* const setting = run.find(name)) return setting;
  }
  return run.find_environment("VLLM_ALL2ALL_BACKEND");
}

void find_low_latency_shape(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  const Setting* const at = low_latency_setting(facts.run);
  if (!runs_low_latency(facts) || at == nullptr) return;
  if (facts.hidden && !limits::is_one_of(limits::kDeepEpLowLatencyHidden, *facts.hidden)) {
    add_finding(findings, rule, *at,
                fmt::format("DeepEP's low-latency kernels take hidden {}; this model has {}",
                            fmt::join(limits::kDeepEpLowLatencyHidden, ", "), *facts.hidden),
                facts.run.engine == Engine::kVllm
                    ? "use allgather_reducescatter or deepep_high_throughput; newer vLLM pads the rows instead"
                    : "use --deepep-mode normal, or --moe-a2a-backend none");
    // vLLM rounds the hidden size up to the next one that there is.
    if (facts.run.engine == Engine::kVllm) findings.back().severity = Severity::kWarning;
  }
  if (facts.top_k && *facts.top_k > limits::kDeepEpLowLatencyMaxTopK) {
    add_finding(findings, rule, *at,
                fmt::format("DeepEP's low-latency kernels take top-k up to {}; this model has {}",
                            limits::kDeepEpLowLatencyMaxTopK, *facts.top_k),
                "use another backend");
  }
}

void find_queue_depth(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  if (!runs_low_latency(facts)) return;
  const Setting* const depth = facts.run.find_environment(kDepthVariable);
  const Setting* const tokens = facts.run.find_environment(tokens_variable(facts.run.engine));
  if ((depth != nullptr && !depth->known_value) || (tokens != nullptr && !tokens->known_value)) return;
  if (depth == nullptr && tokens == nullptr) return;
  const std::int64_t by_default = facts.run.engine == Engine::kSglang ? 128 : 256;
  const auto num_tokens = tokens == nullptr ? std::optional(by_default) : parse_whole(tokens->value());
  const auto entries = depth == nullptr ? std::optional(limits::kNvshmemQueueDepth) : parse_whole(depth->value());
  constexpr std::int64_t kMost = std::int64_t{1} << 40;
  if (!num_tokens || *num_tokens < 1 || *num_tokens > kMost) return;
  const std::int64_t needed = (*num_tokens + 1) * 2;
  if (entries && *entries >= needed) return;
  add_finding(findings, rule, depth != nullptr ? *depth : *tokens,
              fmt::format("{} tokens per rank need NVSHMEM_QP_DEPTH of at least {}; it is {}, and DeepEP asserts that",
                          *num_tokens, needed,
                          depth == nullptr ? fmt::format("not set ({})", limits::kNvshmemQueueDepth)
                                           : std::string(depth->value())),
              fmt::format("export NVSHMEM_QP_DEPTH={}, or lower {}", needed, tokens_variable(facts.run.engine)));
  // Where it is not said, an image may set it, and forks of DeepEP that SGLang is shipped with do not ask.
  if (depth == nullptr)
    findings.back().severity = facts.run.engine == Engine::kSglang ? Severity::kInfo : Severity::kWarning;
}

// clang-format off
constexpr std::array kLowLatencyRules = {
    CheckRule{"low-latency-shape", Engine::kUnknown, Severity::kError, "a shape without low-latency kernels", find_low_latency_shape, source::kDeepEp, source::kDeepEpDate},
    CheckRule{"low-latency-queues", Engine::kUnknown, Severity::kError, "more tokens than a queue of NVSHMEM has entries for", find_queue_depth, source::kDeepEp, source::kDeepEpDate},
};
// clang-format on

}  // namespace

std::span<const CheckRule> low_latency_checks() noexcept { return kLowLatencyRules; }

}  // namespace epistle::check
