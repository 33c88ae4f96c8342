// What else moves the result: the interactions of dispatchers with everything around them.
#include <array>

#include "select/rule.hpp"

namespace epistle {
namespace {

using namespace source;

constexpr auto kAdvise = RuleEffect::kAdvise;

bool training_with_ep(const SelectFacts& f) { return f.training() && f.query.ep > 1; }
bool advice_nvl72(const SelectFacts& f) { return f.gpu == GpuClass::kBlackwellNvl72; }
bool with_ep(const SelectFacts& f) { return f.query.ep > 1; }

// clang-format off
constexpr std::array kAdviceRules = {
    SelectRule{"advice-graph-scopes", "training", training_with_ep, kAdvise, "", 0,
        "CUDA graphs: on dropless MoE the scopes attn, moe_router and moe_preprocess go best with any dispatcher; the scope moe needs "
        "drop and pad", kGuide, kGuideDate},
    SelectRule{"advice-ep-overlap", "training at EP above 8", [](const SelectFacts& f) { return f.training() && f.query.ep > 8; }, kAdvise, "", 0,
        "EP overlap (--overlap-moe-expert-parallel-comm) helps where dispatcher time is still visible after the backend is tuned; it "
        "needs VPP with PP, no full recompute, and no shared-expert overlap", kGuide, kGuideDate},
    SelectRule{"advice-fp8", "8 or 4 bits", [](const SelectFacts& f) { return f.eight_bit() && f.query.ep > 1; }, kAdvise, "", 0,
        "{precision} makes the matrix products shorter, so that communication and the host's own work weigh more: tune the dispatcher "
        "again, do not take over the numbers of bf16", kGuide, kGuideDate},
    SelectRule{"advice-cpu-affinity", "NVL72", advice_nvl72, kAdvise, "", 0,
        "CPU affinity can matter as much as the dispatcher on GB200 and GB300: bind every rank to the cores of its GPU first", kGuide, kGuideDate},
    SelectRule{"advice-pipeline-layout", "training", training_with_ep, kAdvise, "", 0,
        "a poor PP or VPP layout can erase what a dispatcher gains: settle it first, and keep it while comparing", kGuide, kGuideDate},
    SelectRule{"advice-same-stack", "EP", with_ep, kAdvise, "", 0,
        "compare dispatchers on one stack only: container, routing mode, PP layout and graph scope move the result as much as the "
        "dispatcher", kGuide, kGuideDate},
    SelectRule{"advice-topology-sensitive", "HybridEP outside NVL72", [](const SelectFacts& f) { return f.has("hybridep") && f.gpu != GpuClass::kBlackwellNvl72 && f.training(); },
        kAdvise, "hybridep", 0,
        "HybridEP is topology-sensitive: no win in every case outside the hardware that it was made for", kGuide, kGuideDate},
    SelectRule{"advice-tune-sms", "DeepEP or HybridEP", [](const SelectFacts& f) { return f.has("deepep") || f.has("hybridep"); }, kAdvise, "", 0,
        "the default SM counts are a start and rarely the best: sweep them with representative routing", kGuide, kGuideDate},
    SelectRule{"advice-memory-tradeoff", "short of memory", [](const SelectFacts& f) { return f.query.memory_tight; }, kAdvise, "", 0,
        "memory and throughput trade differently by model: a small gain in speed can still be worth its headroom (Qwen3 with HybridEP)",
        kGuide, kGuideDate},
    SelectRule{"advice-availability", "EP", with_ep, kAdvise, "", 0,
        "a configuration that selects a backend proves nothing: package imported, buffer initialised, steady iterations ran. A failed "
        "import is a finding about the environment, never a result", kGuide, kGuideDate},
    SelectRule{"advice-sms-20", "Megatron core 0.20 or later", [](const SelectFacts& f) { return training_with_ep(f) && f.query.megatron >= kOneSmOption; },
        kAdvise, "", 0,
        "Megatron core {megatron}: one option, --moe-flex-dispatcher-num-sms, for all flex backends; unset, DeepEP takes 20 SMs and "
        "HybridEP 24 in one domain, 8 over several. The options --moe-deepep-num-sms and --moe-hybridep-num-sms are deprecated",
        kMegatron, kMegatronDate},
    SelectRule{"advice-sms-old", "Megatron core before 0.20", [](const SelectFacts& f) { return training_with_ep(f) && f.query.megatron < kOneSmOption; },
        kAdvise, "", 0,
        "Megatron core {megatron}: --moe-deepep-num-sms (default 20) and --moe-hybridep-num-sms (default 16; the performance harness "
        "takes 32)", kGuide, kGuideDate},
    SelectRule{"advice-deepep-b200", "B200 or B300, training", [](const SelectFacts& f) { return f.gpu == GpuClass::kBlackwell && f.training(); },
        kAdvise, "deepep", 0,
        "DeepEP on B200 and B300: Megatron-Bridge of 2026 takes it by device name; releases that know compute capability 8 and 9 only "
        "fall back to alltoall there with a warning, so read the log. Megatron-LM itself does not check", kBridge, kBridgeDate},
    SelectRule{"advice-crossover", "inference", [](const SelectFacts& f) { return !f.training() && f.query.ep > 1; }, kAdvise, "", 0,
        "low-latency modes win up to about {crossover} tokens per rank at EP {ep} (H100), throughput modes above", kDeepEp, kDeepEpDate},
    SelectRule{"advice-h20-sms", "fewer than 100 SMs", [](const SelectFacts& f) { return f.gpu == GpuClass::kHopper && f.query.cluster.num_sms() < 100; },
        kAdvise, "", 0,
        "this GPU has {sms} SMs: 20 of them for communication are a quarter of the GPU; sweep from 8", kGuide, kGuideDate},
    SelectRule{"advice-network-rows", "several domains", [](const SelectFacts& f) { return f.num_domains > 1; }, kAdvise, "", 0,
        "a token puts {rows_per_expert} rows on the network where a row goes to every expert, {rows_per_rank} where one goes to every "
        "rank, {rows_per_domain} where one goes to every domain and is passed on there (uniform routing; deepep, hybridep and "
        "epistle's hybrid do)", kEpistleHosts, kEpistleDate},
    SelectRule{"advice-rails", "several domains with a network", [](const SelectFacts& f) { return f.num_domains > 1 && f.query.cluster.num_rails() > 0; },
        kAdvise, "", 0,
        "a domain has {nics} network cards on {rails} rails: bind every rank to the card nearest to its GPU, so that ranks of one "
        "index speak over one rail (NCCL finds it; epistle takes EPISTLE_FABRIC_NICS in that order)", kEpistleHosts, kEpistleDate},
    SelectRule{"advice-validate-phases", "several domains", [](const SelectFacts& f) { return f.num_domains > 1; }, kAdvise, "", 0,
        "validate in phases: one rank, then one domain, then all {domains} domains; network settings (virtual lanes, congestion "
        "control) show only in the last", kDeepEp, kDeepEpDate},
};
// clang-format on

}  // namespace

std::span<const SelectRule> advice_rules() noexcept { return kAdviceRules; }

}  // namespace epistle
