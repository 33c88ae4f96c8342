#include "select/flags.hpp"

#include <algorithm>
#include <array>

#include <fmt/format.h>

#include "epistle/config.hpp"
#include "epistle/dispatcher_info.hpp"
#include "epistle/error.hpp"

#include "select/backends.hpp"
#include "select/engine_backends.hpp"
#include "select/shape_limits.hpp"

namespace epistle {
namespace {

constexpr std::string_view kDirect = "direct";
constexpr std::string_view kLowLatency = "low_latency";
constexpr std::string_view kHybrid = "hybrid";
constexpr std::int64_t kTrainingTokens = 4096;
constexpr std::int64_t kDecodeTokens = 128;
constexpr std::int32_t kEpistleSms = 16;
constexpr std::int32_t kManySms = 100;
/// SGLang's own limit for the tokens of a low-latency dispatch.
constexpr std::int64_t kSglangMaxDispatchTokens = 1024;

struct EngineName {
  std::string_view backend;
  std::string_view mode;  ///< empty = any
  std::string_view vllm;
  std::string_view sglang;
};

// The values of --all2all-backend (vLLM, 2026-09) and what SGLang 0.5.23 takes.
constexpr std::array kEngineNames = {
    EngineName{"alltoall", "", "", ""},
    EngineName{"allgather", "", "allgather_reducescatter", "--moe-a2a-backend none"},
    EngineName{"deepep", kLowLatency, "deepep_low_latency", "--moe-a2a-backend deepep --deepep-mode low_latency"},
    EngineName{"deepep", "", "deepep_high_throughput", "--moe-a2a-backend deepep --deepep-mode normal"},
    EngineName{"deepep-v2", "", "deepep_v2", "--moe-a2a-backend deepep_v2"},
    EngineName{"uccl", kLowLatency, "deepep_low_latency", "--moe-a2a-backend deepep --deepep-mode low_latency"},
    EngineName{"uccl", "", "deepep_high_throughput", "--moe-a2a-backend deepep --deepep-mode normal"},
    EngineName{"mori", kLowLatency, "mori_low_latency", "--moe-a2a-backend mori --deepep-mode low_latency"},
    EngineName{"mori", "", "mori_high_throughput", "--moe-a2a-backend mori --deepep-mode normal"},
    EngineName{"nixl", "", "nixl_ep", "--moe-a2a-backend nixl"},
    EngineName{"flashinfer", "", "flashinfer_nvlink_one_sided", "--moe-a2a-backend flashinfer"},
};

std::string megatron_flags(const SelectCandidate& candidate, bool one_sm_option) {
  const SelectBackend& backend = find_backend(candidate.backend);
  if (candidate.backend == "alltoall" || candidate.backend == "allgather") {
    return fmt::format("--moe-token-dispatcher-type {}", candidate.backend);
  }
  if (backend.megatron.empty() || (backend.megatron == "ncclep" && !one_sm_option)) return "";
  std::string flags =
      fmt::format("--moe-token-dispatcher-type flex --moe-flex-dispatcher-backend {}", backend.megatron);
  if (candidate.num_sms > 0) {
    const std::string option =
        one_sm_option ? "--moe-flex-dispatcher-num-sms" : fmt::format("--moe-{}-num-sms", backend.megatron);
    flags += fmt::format(" {} {}", option, candidate.num_sms);
  }
  // Probabilities that are not fp32 are converted on the way, or refused.
  return flags + " --moe-router-dtype fp32";
}

std::string bridge_flags(const SelectCandidate& candidate) {
  if (candidate.backend == "alltoall") return "--moe_flex_dispatcher_backend None";
  const std::string_view value = find_backend(candidate.backend).megatron;
  const bool taken = value == "deepep" || value == "hybridep";
  return taken ? fmt::format("--moe_flex_dispatcher_backend {}", value) : "";
}

const EngineName* find_engine_name(const SelectCandidate& candidate) {
  const auto* const found = std::find_if(kEngineNames.begin(), kEngineNames.end(), [&](const EngineName& row) {
    return row.backend == candidate.backend && (row.mode.empty() || row.mode == candidate.mode);
  });
  return found == kEngineNames.end() ? nullptr : found;
}

void set_sms(SelectCandidate& candidate, const SelectFacts& facts) {
  const bool few = facts.query.cluster.num_sms() < kManySms;
  const bool one_option = facts.query.megatron >= kOneSmOption;
  if (candidate.backend == "deepep" || candidate.backend == "uccl") {
    if (candidate.mode == kLowLatency) return;
    candidate.num_sms = few ? kEpistleSms : limits::kDeepEpDefaultSms;
    candidate.sweep =
        few ? std::vector<std::int32_t>{8, 12, 16, 20} : std::vector<std::int32_t>{12, 16, 20, 24, 28, 32};
  } else if (candidate.backend == "hybridep") {
    const std::int32_t newer = facts.num_domains > 1 ? limits::kHybridEpSmsManyDomains : limits::kHybridEpSmsOneDomain;
    candidate.num_sms = one_option ? newer : limits::kHybridEpSmsOld;
    candidate.sweep = facts.num_domains > 1 && one_option ? std::vector<std::int32_t>{4, 8, 12, 16, 24, 32}
                                                          : std::vector<std::int32_t>{16, 20, 24, 28, 32};
  } else if (candidate.backend == "epistle") {
    candidate.num_sms = kEpistleSms;
    candidate.sweep = {8, 16, 24, 32};
  }
}

void set_environment(SelectCandidate& candidate, const SelectFacts& facts) {
  auto& environment = candidate.environment;
  if (candidate.backend == "hybridep") {
    environment.emplace_back("NUM_OF_HYBRID_EP_RANKS_PER_NVLINK_DOMAIN", std::to_string(facts.domain_ranks));
    environment.emplace_back("USE_MNNVL", facts.gpu == GpuClass::kBlackwellNvl72 ? "1" : "0");
    if (facts.num_domains > 1) environment.emplace_back("HYBRID_EP_MULTINODE", "1");
  }
  const bool deepep = candidate.backend == "deepep" || candidate.backend == "uccl";
  if (deepep && candidate.mode == kLowLatency) {
    const std::int64_t tokens = std::min(facts.query.tokens_per_rank.value_or(kDecodeTokens), kSglangMaxDispatchTokens);
    environment.emplace_back("SGLANG_DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK",
                             std::to_string(std::max<std::int64_t>(tokens, 1)));
  }
}

void set_inference_flags(SelectCandidate& candidate, const EngineName& names, const SelectFacts& facts) {
  const EngineBackend* const vllm = find_engine_backend(vllm_backends(), names.vllm);
  if (vllm != nullptr && vllm->is_in(facts.query.vllm)) {
    const bool by_option = facts.query.vllm.value_or(kVllmBackendOption) >= kVllmBackendOption;
    candidate.flags.vllm = "--enable-expert-parallel";
    if (by_option) {
      candidate.flags.vllm += fmt::format(" --all2all-backend {}", names.vllm);
    } else {
      candidate.environment.emplace_back("VLLM_ALL2ALL_BACKEND", names.vllm);
    }
  }
  constexpr std::string_view kOption = "--moe-a2a-backend ";
  const std::string_view value = names.sglang.substr(std::min(kOption.size(), names.sglang.size()));
  const EngineBackend* const sglang = find_engine_backend(sglang_backends(), value.substr(0, value.find(' ')));
  const bool old = facts.query.sglang && *facts.query.sglang < kSglangBackendOption;
  if (sglang != nullptr && (old || sglang->is_in(facts.query.sglang))) candidate.flags.sglang = names.sglang;
  if (candidate.backend == "deepep-v2" && !candidate.flags.sglang.empty())
    candidate.flags.sglang += fmt::format(" --deepep-v2-mode {}", candidate.mode);
  if (!old) return;
  // Of the backends of today, SGLang had DeepEP then, behind a switch of its own.
  const bool deepep = candidate.backend == "deepep" || candidate.backend == "uccl";
  candidate.flags.sglang = deepep ? fmt::format("--enable-deepep-moe --deepep-mode {}", candidate.mode) : "";
}

/// From the plan that the library allocates by.
std::int64_t epistle_bytes(std::string_view dispatcher, const SelectFacts& facts) {
  DispatcherConfig config;
  config.hidden = facts.query.model.hidden;
  config.num_experts = facts.query.model.num_experts;
  config.top_k = facts.query.model.top_k;
  config.max_tokens =
      facts.query.tokens_per_rank.value_or(facts.query.phase == WorkPhase::kDecode ? kDecodeTokens : kTrainingTokens);
  // Where every routing fits: all ranks may send all that they have to one.
  config.sizing = Capacity{.rows_per_rank = config.max_tokens * facts.query.ep};
  try {
    const MemoryPlan plan =
        find_dispatcher(dispatcher, Device::kCuda).memory(config, facts.query.ep, facts.domain_ranks);
    return plan.largest_bytes(MemoryKind::kShared) + plan.largest_bytes(MemoryKind::kPrivate);
  } catch (const Error&) {
    return -1;  // a shape that it refuses; the rules say which it takes
  }
}

}  // namespace

std::string_view candidate_mode(std::string_view backend, const SelectFacts& facts) {
  if (backend == "epistle" && facts.num_domains > 1) return kHybrid;
  if (backend == "epistle") return facts.low_latency ? kLowLatency : kDirect;
  if (backend == "deepep" || backend == "uccl" || backend == "mori") return facts.low_latency ? kLowLatency : "normal";
  if (backend == "hybridep") return facts.num_domains > 1 ? "multi_domain" : "single_domain";
  if (backend == "ncclep") return facts.low_latency ? kLowLatency : "high_throughput";
  if (backend == "deepep-v2") return facts.num_domains > 1 ? kHybrid : kDirect;
  return "default";
}

void describe_candidate(SelectCandidate& candidate, const SelectFacts& facts) {
  candidate.mode = candidate_mode(candidate.backend, facts);
  set_sms(candidate, facts);
  set_environment(candidate, facts);
  candidate.flags.megatron = megatron_flags(candidate, facts.query.megatron >= kOneSmOption);
  SelectCandidate old = candidate;
  if (candidate.backend == "hybridep") old.num_sms = limits::kHybridEpSmsOld;
  candidate.flags.megatron_old = megatron_flags(old, false);
  candidate.flags.megatron_bridge = bridge_flags(candidate);
  if (const EngineName* const names = find_engine_name(candidate)) set_inference_flags(candidate, *names, facts);
  if (candidate.backend == "epistle") candidate.buffer_bytes = epistle_bytes(candidate.mode, facts);
}

}  // namespace epistle
