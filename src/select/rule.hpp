// The rules of a selection, as data. A row says when it applies, what it does, and where it was read; the functions in
// it look at facts and at nothing else.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "select/query.hpp"

namespace epistle {

enum class RuleEffect : std::int32_t {
  kScore,   ///< adds points to a backend
  kReject,  ///< the backend cannot run, or would not do what it says
  kAdvise,  ///< what else matters
  kWarn,    ///< a trap
};

struct SelectRule {
  std::string_view id;
  std::string_view condition;  ///< in words
  bool (*applies)(const SelectFacts&);
  RuleEffect effect;
  std::string_view backend;  ///< empty: the query as a whole, or for advice any backend
  int points;                ///< kScore only
  std::string_view text;     ///< {ep}, {hidden}, ... are filled in (fill_text)
  std::string_view source;
  std::string_view date;
};

/// The parts of the table, by topic. all_select_rules joins them.
[[nodiscard]] std::span<const SelectRule> hardware_rules() noexcept;
[[nodiscard]] std::span<const SelectRule> workload_rules() noexcept;
[[nodiscard]] std::span<const SelectRule> limit_rules() noexcept;
[[nodiscard]] std::span<const SelectRule> advice_rules() noexcept;
[[nodiscard]] std::span<const SelectRule> trap_rules() noexcept;

[[nodiscard]] std::vector<SelectRule> all_select_rules();

/// Puts the numbers of the query where `text` names them.
[[nodiscard]] std::string fill_text(std::string_view text, const SelectFacts& facts);

/// Where the tables were read. One name for each, so that all rows of a source say the same.
namespace source {
inline constexpr std::string_view kGuide = "MoE dispatcher selection guide (Megatron-Bridge skills)";
inline constexpr std::string_view kGuideDate = "2026-05";
inline constexpr std::string_view kMegatron = "Megatron-LM, megatron/core, release 0.20.0";
inline constexpr std::string_view kMegatronDate = "2026-08-22";
inline constexpr std::string_view kBridge =
    "Megatron-Bridge, training/flex_dispatcher_backend.py and scripts/performance";
inline constexpr std::string_view kBridgeDate = "2026-08-22";
inline constexpr std::string_view kDeepEp = "DeepEP README and csrc/kernels";
inline constexpr std::string_view kDeepEpDate = "2026-08";
inline constexpr std::string_view kHybridEp = "DeepEP, branch hybrid-ep";
inline constexpr std::string_view kHybridEpDate = "2026-08";
inline constexpr std::string_view kNcclEp = "NCCL EP 0.1, nccl-extensions";
inline constexpr std::string_view kNcclEpDate = "2026-08";
inline constexpr std::string_view kVllm = "vLLM, config/parallel.py";
inline constexpr std::string_view kVllmDate = "2026-09";
inline constexpr std::string_view kSglang = "SGLang 0.5.23, server arguments";
inline constexpr std::string_view kSglangDate = "2026-09";
inline constexpr std::string_view kIssues = "issue threads of Megatron-LM and vLLM";
inline constexpr std::string_view kIssuesDate = "2026-08";
inline constexpr std::string_view kEfa = "step times of Qwen3-30B on 8 H100 nodes over EFA, public issue thread";
inline constexpr std::string_view kEfaDate = "2026-08";
inline constexpr std::string_view kEpistle = "Epistle, docs/results";
inline constexpr std::string_view kEpistleHosts = "Epistle, docs/hybrid.md and docs/deploy.md";
inline constexpr std::string_view kEpistleDate = "2026-11";
}  // namespace source

}  // namespace epistle
