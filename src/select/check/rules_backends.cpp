// What DeepEP, HybridEP and NCCL EP take: ranks, shapes, domains, SMs, GPUs. For whichever engine runs them.
#include <algorithm>
#include <array>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "select/check/check.hpp"
#include "select/rule.hpp"
#include "select/shape_limits.hpp"

namespace epistle::check {
namespace {

constexpr std::string_view kDomainVariable = "NUM_OF_HYBRID_EP_RANKS_PER_NVLINK_DOMAIN";
/// No GPU of today has more that a dispatcher runs on (MI300X apart, where none of these do).
constexpr std::int64_t kMostSms = 160;
/// GPUs of one host of a GB200 or GB300 NVL72.
constexpr std::int64_t kGpusPerTray = 4;
/// More than a third of an H100: sweeps end well below.
constexpr std::int64_t kManySms = 48;

bool runs_deepep(const RunFacts& facts) {
  return facts.would_run.starts_with("deepep") && facts.would_run != "deepep_v2" && facts.would_run != "deepepv2";
}
bool runs_hybridep(const RunFacts& facts) { return facts.would_run == "hybridep"; }

/// Where to point for a run's choice of backend.
const Setting* backend_setting(const RunConfig& run) {
  for (const std::string_view name : {"moe-flex-dispatcher-backend", "all2all-backend", "moe-a2a-backend",
                                      "enable-deepep-moe", "moe-enable-deepep", "moe-token-dispatcher-type"}) {
    if (const Setting* const setting = run.find(name)) return setting;
  }
  return run.find_environment("VLLM_ALL2ALL_BACKEND");
}

const Setting* ep_setting(const RunConfig& run) {
  for (const std::string_view name :
       {"expert-model-parallel-size", "ep-size", "tp-size", "data-parallel-size", "tensor-parallel-size"}) {
    if (const Setting* const setting = run.find(name)) return setting;
  }
  return backend_setting(run);
}

/// Of Megatron the tokens cross the ranks of expert TP, too.
std::optional<std::int64_t> group_size(const RunFacts& facts) {
  if (!facts.ep_known) return std::nullopt;
  if (facts.run.engine != Engine::kMegatron) return facts.ep;
  const std::string_view name = facts.run.find("expert-tensor-parallel-size") != nullptr ? "expert-tensor-parallel-size"
                                                                                         : "tensor-model-parallel-size";
  if (facts.run.find(name) == nullptr) return facts.ep;
  const auto tp = facts.run.number(name);
  std::int64_t size = 0;
  if (!tp || *tp < 1 || __builtin_mul_overflow(*tp, facts.ep, &size)) return std::nullopt;
  return size;
}

std::optional<std::int64_t> domain_variable(const RunFacts& facts) {
  const Setting* const variable = facts.run.find_environment(kDomainVariable);
  if (variable == nullptr || !variable->known_value) return std::nullopt;
  return parse_whole(variable->value());
}

// ---- DeepEP
// ----------------------------------------------------------------------------------------------------------

void find_deepep_ranks(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  const auto size = group_size(facts);
  const Setting* const at = ep_setting(facts.run);
  // The low-latency kernels take any number of ranks.
  if (!runs_deepep(facts) || !size || *size < 2 || at == nullptr || facts.would_run == "deepep_low_latency") return;
  if (facts.run.text("deepep-mode") == "low_latency") return;
  if (limits::is_one_of(limits::kDeepEpRanks, static_cast<std::int32_t>(std::min<std::int64_t>(*size, 1 << 20))))
    return;
  add_finding(
      findings, rule, *at,
      fmt::format("DeepEP has kernels for 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 144 and 160 ranks, not for {}", *size),
      "choose one of these, or another backend");
}

void find_deepep_experts(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  const Setting* const at = ep_setting(facts.run);
  if (facts.run.engine == Engine::kMegatron || !runs_deepep(facts) || at == nullptr || !facts.num_experts ||
      !facts.ep_known || facts.ep < 2)
    return;
  const RedundantExperts redundant = redundant_experts(facts.run);
  const std::int64_t slots = *facts.num_experts + redundant.count;
  if (!redundant.known || slots % facts.ep == 0) return;
  add_finding(findings, rule, redundant.setting != nullptr ? *redundant.setting : *at,
              fmt::format("{} experts do not divide over EP {}", slots, facts.ep),
              "choose an EP degree that divides them, or add redundant experts");
}

void find_deepep_gpu(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  const Setting* const at = backend_setting(facts.run);
  if (!facts.gpu || !runs_deepep(facts) || at == nullptr) return;
  const std::string& title = facts.options.cluster->title;
  if (facts.gpu == GpuClass::kAmd)
    add_finding(findings, rule, *at, fmt::format("DeepEP is made for NVIDIA GPUs; this is {}", title),
                "use mori or all-gather");
  if (facts.gpu == GpuClass::kPcie)
    add_finding(findings, rule, *at, fmt::format("DeepEP needs NVLink; {} has none", title), "use alltoall");
  if (facts.gpu == GpuClass::kBlackwellNvl72 && facts.run.engine == Engine::kMegatron) {
    add_finding(findings, rule, *at,
                fmt::format("Megatron-Bridge takes DeepEP on Ampere, Hopper, B200 and B300 only; on {} it falls back "
                            "to alltoall or refuses",
                            title),
                "use hybridep");
  }
}

// ---- HybridEP
// --------------------------------------------------------------------------------------------------------

void find_hybridep_gpu(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  const Setting* const at = backend_setting(facts.run);
  if (!facts.gpu || !runs_hybridep(facts) || at == nullptr) return;
  if (facts.gpu != GpuClass::kAmd && facts.gpu != GpuClass::kPcie && facts.gpu != GpuClass::kAmpere) return;
  add_finding(findings, rule, *at,
              fmt::format("HybridEP needs sm_90 or later and NVLink; this is {}", facts.options.cluster->title),
              "use alltoall");
}

void find_hybridep_hidden(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  if (!runs_hybridep(facts) || !facts.hidden || *facts.hidden < 1) return;
  const Setting* at = facts.run.find("hidden-size");
  if (facts.run.find("moe-latent-size") != nullptr) at = facts.run.find("moe-latent-size");
  if (at == nullptr) at = backend_setting(facts.run);
  if (at == nullptr) return;
  if (facts.fp8 && *facts.hidden % limits::kHybridEpHiddenFp8 != 0) {
    add_finding(findings, rule, *at,
                fmt::format("HybridEP takes fp8 with a hidden size that is a multiple of 512; it is {}", *facts.hidden),
                "use bf16, or alltoall");
  } else if (*facts.hidden % limits::kHybridEpHiddenBf16 != 0) {
    add_finding(findings, rule, *at,
                fmt::format("HybridEP takes a hidden size that is a multiple of 16; it is {}", *facts.hidden),
                "use alltoall");
  }
}

void find_domain_value(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  const Setting* const variable = facts.run.find_environment(kDomainVariable);
  if (variable == nullptr || !runs_hybridep(facts) || !variable->known_value) return;
  const auto domain = domain_variable(facts);
  if (!domain || *domain < 1 || *domain > limits::kHybridEpMaxDomainRanks) {
    add_finding(findings, rule, *variable,
                fmt::format("{} is '{}'; a domain has 1 to {} ranks", kDomainVariable, variable->value(),
                            limits::kHybridEpMaxDomainRanks),
                "set it to the ranks of the NVLink domain");
    return;
  }
  const auto group = group_size(facts);
  if (group && *group > 0 && *group % *domain != 0) {
    add_finding(findings, rule, *variable,
                fmt::format("the EP group of {} is no multiple of {}={}", *group, kDomainVariable, *domain),
                fmt::format("set it to the ranks of one domain: min(EP, 8) on HGX, EP on NVL72"));
    return;
  }
  if (!group || !facts.domain_ranks) return;
  const std::int64_t real = ranks_per_domain(*group, *facts.domain_ranks);
  if (real == *domain) return;
  add_finding(findings, rule, *variable,
              fmt::format("{}={}, but {} ranks of the EP group of {} share an NVLink domain: slow, wrong or a deadlock",
                          kDomainVariable, *domain, real, *group),
              fmt::format("set it to {}", real));
}

void find_mnnvl(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  const Setting* const mnnvl = facts.run.find_environment("USE_MNNVL");
  const auto domain = domain_variable(facts);
  if (!runs_hybridep(facts)) return;
  constexpr std::int64_t kHost = 8;
  const bool rack = facts.gpu == GpuClass::kBlackwellNvl72;
  const auto group = group_size(facts);
  if (rack && mnnvl != nullptr && mnnvl->value() == "0" && group && *group > kGpusPerTray) {
    add_finding(findings, rule, *mnnvl,
                fmt::format("USE_MNNVL=0, but the {} ranks of the EP group reach each other over hosts by NVLink on {}",
                            *group, facts.options.cluster->title),
                "set USE_MNNVL=1");
    return;
  }
  // Where the machine is known to have no such domain, the domain itself is what is wrong.
  if ((rack || !facts.gpu) && domain && *domain > kHost && *domain <= limits::kHybridEpMaxDomainRanks &&
      (mnnvl == nullptr || mnnvl->value() == "0")) {
    const Setting& at = mnnvl != nullptr ? *mnnvl : *facts.run.find_environment(kDomainVariable);
    add_finding(findings, rule, at, fmt::format("a domain of {} ranks spans hosts, which needs USE_MNNVL=1", *domain),
                "set USE_MNNVL=1 on NVL72, or the domain to 8");
  }
  if (mnnvl == nullptr || mnnvl->value() != "1" || !facts.gpu || facts.gpu == GpuClass::kBlackwellNvl72) return;
  add_finding(findings, rule, *mnnvl,
              fmt::format("USE_MNNVL=1, but {} has no NVLink between hosts", facts.options.cluster->title),
              "set USE_MNNVL=0");
}

void find_hybridep_experts(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  const Setting* const at = ep_setting(facts.run);
  if (!runs_hybridep(facts) || at == nullptr || !facts.num_experts || !facts.ep_known || facts.ep < 1 ||
      *facts.num_experts % facts.ep != 0)
    return;
  const auto domain = domain_variable(facts) ? domain_variable(facts) : facts.domain_ranks;
  if (!domain || *domain < 1) return;
  const std::int64_t experts = *facts.num_experts / facts.ep * std::min(*domain, facts.ep);
  if (experts % limits::kHybridEpExpertsPerDomain == 0) return;
  add_finding(
      findings, rule, *at,
      fmt::format("HybridEP wants experts per rank times ranks per domain to be a multiple of 4; it is {}", experts),
      "choose another EP degree");
}

void find_multinode(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  const Setting* const at = backend_setting(facts.run);
  const auto group = group_size(facts);
  const auto domain = domain_variable(facts) ? domain_variable(facts) : facts.domain_ranks;
  if (!runs_hybridep(facts) || at == nullptr || !group || !domain || *group <= *domain) return;
  const Setting* const flag = facts.run.find_environment("HYBRID_EP_MULTINODE");
  if (flag != nullptr && flag->value() == "0") {
    add_finding(findings, rule, *flag, "HYBRID_EP_MULTINODE=0, but the EP group spans several domains",
                "build HybridEP with HYBRID_EP_MULTINODE=1");
    findings.back().severity = Severity::kError;
    return;
  }
  add_finding(findings, rule, *at,
              fmt::format("EP over {} ranks in domains of {}: HybridEP must have been built with "
                          "HYBRID_EP_MULTINODE=1, which nothing here can tell",
                          *group, *domain),
              "check how it was built");
}

// ---- NCCL EP
// ---------------------------------------------------------------------------------------------------------

void find_ncclep_limits(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  const auto group = group_size(facts);
  const Setting* const at = ep_setting(facts.run);
  if (facts.would_run != "ncclep" || at == nullptr) return;
  if (group && *group > limits::kNcclEpMaxRanks)
    add_finding(findings, rule, *at, fmt::format("NCCL EP takes at most 64 ranks; here are {}", *group),
                "use hybridep or alltoall");
  const Setting* const top_k = facts.run.find("moe-router-topk");
  if (top_k != nullptr && facts.top_k && *facts.top_k > limits::kNcclEpMaxTopK) {
    add_finding(findings, rule, *top_k, fmt::format("NCCL EP takes top-k up to 9; it is {}", *facts.top_k),
                "use another backend");
  }
}

// ---- SMs
// -------------------------------------------------------------------------------------------------------------

void check_sms(const RunFacts& facts, const CheckRule& rule, Findings& findings, const Setting& setting,
               std::int64_t sms) {
  const std::int64_t most = facts.options.cluster ? facts.options.cluster->num_sms() : kMostSms;
  const auto add = [&](Severity severity, const std::string& message, const std::string& fix) {
    add_finding(findings, rule, setting, message, fix);
    findings.back().severity = severity;
  };
  if (sms < 1) {
    add(Severity::kError, fmt::format("{} SMs", sms), "give an even number, 20 to start from");
  } else if (sms > most) {
    add(Severity::kError, fmt::format("{} SMs are more than the {} of the GPU", sms, most),
        "start from 20 for DeepEP, 16 to 32 for HybridEP");
  } else if (sms % 2 != 0) {
    add(runs_deepep(facts) ? Severity::kError : Severity::kWarning,
        fmt::format("{} SMs: the number must be even for DeepEP, and odd ones are no use elsewhere", sms),
        fmt::format("use {} or {}", std::max<std::int64_t>(sms - 1, 2), sms + 1));
  } else if (sms > kManySms) {
    add(Severity::kInfo, fmt::format("{} SMs are taken from the experts; what is gained ends far below", sms),
        "sweep 16 to 32");
  }
}

void find_sms(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  for (const std::string_view name : {"moe-flex-dispatcher-num-sms", "moe-deepep-num-sms", "moe-hybridep-num-sms"}) {
    const Setting* const setting = facts.run.find(name);
    if (setting == nullptr || !setting->known_value || setting->values.empty() || is_false(setting->value())) continue;
    if (const auto sms = parse_whole(setting->value())) {
      check_sms(facts, rule, findings, *setting, *sms);
    } else {
      add_finding(findings, rule, *setting, fmt::format("'{}' is no number of SMs", setting->value()),
                  "give an even number");
    }
  }
  const Setting* const variable = facts.run.find_environment("SGLANG_DEEPEP_V2_NUM_SMS");
  if (variable == nullptr || !variable->known_value) return;
  if (const auto sms = parse_whole(variable->value()); sms && *sms != 0)
    check_sms(facts, rule, findings, *variable, *sms);
}

/// SGLang's --deepep-config: {"normal_dispatch": {"num_sms": 96, ...}, "normal_combine": {...}}, or a file's name.
void find_deepep_config(const RunFacts& facts, const CheckRule& rule, Findings& findings) {
  const Setting* const setting = facts.run.find("deepep-config");
  if (setting == nullptr || !setting->known_value || !setting->value().starts_with('{')) return;
  const nlohmann::json config = json_of(*setting);
  if (config.is_discarded() || !config.is_object()) {
    add_finding(findings, rule, *setting, fmt::format("the value of {} is not JSON", setting->flag),
                "quote it for the shell, and check its brackets");
    return;
  }
  for (const char* const part : {"normal_dispatch", "normal_combine"}) {
    const auto found = config.find(part);
    if (found == config.end()) {
      add_finding(findings, rule, *setting, fmt::format("{} has no {}", setting->flag, part),
                  "give normal_dispatch and normal_combine");
      continue;
    }
    if (!found->is_object() || !found->contains("num_sms") || !found->at("num_sms").is_number_integer()) continue;
    const auto sms = found->at("num_sms").get<std::int64_t>();
    if (sms >= 1 && sms % 2 == 0 && sms <= kMostSms) continue;
    add_finding(findings, rule, *setting, fmt::format("{} has num_sms {}; it must be even and fit the GPU", part, sms),
                "give an even number");
  }
}

// clang-format off
constexpr std::array kBackendsRules = {
    CheckRule{"deepep-ranks", Engine::kUnknown, Severity::kError, "DeepEP with a number of ranks that it has no kernels for", find_deepep_ranks, source::kDeepEp, source::kDeepEpDate},
    CheckRule{"deepep-experts", Engine::kUnknown, Severity::kError, "DeepEP with experts that do not divide", find_deepep_experts, source::kDeepEp, source::kDeepEpDate},
    CheckRule{"deepep-gpu", Engine::kUnknown, Severity::kError, "DeepEP on a GPU that it does not run on", find_deepep_gpu, source::kBridge, source::kBridgeDate},
    CheckRule{"hybridep-gpu", Engine::kUnknown, Severity::kError, "HybridEP on a GPU that it does not run on", find_hybridep_gpu, source::kHybridEp, source::kHybridEpDate},
    CheckRule{"hybridep-hidden", Engine::kUnknown, Severity::kError, "HybridEP with a hidden size that it does not take", find_hybridep_hidden, source::kHybridEp, source::kHybridEpDate},
    CheckRule{"hybridep-domain", Engine::kUnknown, Severity::kError, "a domain size that does not divide or match", find_domain_value, source::kHybridEp, source::kHybridEpDate},
    CheckRule{"hybridep-mnnvl", Engine::kUnknown, Severity::kError, "NVLink over hosts set against the domain", find_mnnvl, source::kBridge, source::kBridgeDate},
    CheckRule{"hybridep-experts", Engine::kUnknown, Severity::kError, "experts of a domain that are no multiple of 4", find_hybridep_experts, source::kHybridEp, source::kHybridEpDate},
    CheckRule{"hybridep-multinode-build", Engine::kUnknown, Severity::kInfo, "HybridEP over several domains", find_multinode, source::kHybridEp, source::kHybridEpDate},
    CheckRule{"ncclep-limits", Engine::kUnknown, Severity::kError, "NCCL EP beyond its limits", find_ncclep_limits, source::kNcclEp, source::kNcclEpDate},
    CheckRule{"num-sms", Engine::kUnknown, Severity::kError, "a number of SMs that is odd, too high, or none", find_sms, source::kDeepEp, source::kDeepEpDate},
    CheckRule{"deepep-config", Engine::kUnknown, Severity::kError, "a configuration of DeepEP that cannot be read", find_deepep_config, source::kSglang, source::kSglangDate},
};
// clang-format on

}  // namespace

std::span<const CheckRule> backend_checks() noexcept { return kBackendsRules; }

}  // namespace epistle::check
