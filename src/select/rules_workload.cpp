// What model, precision, phase and fabric say about the order of candidates.
#include <array>

#include "select/rule.hpp"

namespace epistle {
namespace {

using namespace source;

bool workload_is(const SelectFacts& facts, ModelFamily family) { return facts.query.model.family == family; }
bool workload_nvl72(const SelectFacts& facts) { return facts.gpu == GpuClass::kBlackwellNvl72; }
bool hopper(const SelectFacts& facts) { return facts.gpu == GpuClass::kHopper; }
bool tight(const SelectFacts& facts) { return facts.query.memory_tight || facts.eight_bit(); }
bool on_efa(const SelectFacts& facts) { return facts.query.fabric == Fabric::kEfa && facts.num_domains > 1; }

/// From here on DeepSeek-V3 counts as large.
constexpr int kLargeScaleEp = 32;
constexpr int kFamily = 20;

// clang-format off
constexpr std::array kWorkloadRules = {
    // The table by model family.
    SelectRule{"model-dsv3-nvl72", "DeepSeek-V3 at EP 32 or more on NVL72", [](const SelectFacts& f) { return workload_is(f, ModelFamily::kDeepSeekV3) && workload_nvl72(f) && f.query.ep >= kLargeScaleEp; },
        RuleEffect::kScore, "hybridep", kFamily,
        "DeepSeek-V3 at scale on GB200 or GB300: the choice matters more as EP and PP grow", kGuide, kGuideDate},
    SelectRule{"model-dsv3-hopper", "DeepSeek-V3 at EP 32 or more on Hopper", [](const SelectFacts& f) { return workload_is(f, ModelFamily::kDeepSeekV3) && hopper(f) && f.query.ep >= kLargeScaleEp; },
        RuleEffect::kScore, "deepep", kFamily,
        "DeepSeek-V3 at scale on H100: the choice matters more as EP and PP grow", kGuide, kGuideDate},
    SelectRule{"model-qwen3-235b-nvl72", "Qwen3-235B on NVL72", [](const SelectFacts& f) { return workload_is(f, ModelFamily::kQwen3Large) && workload_nvl72(f); },
        RuleEffect::kScore, "hybridep", kFamily,
        "Qwen3-235B on GB200: modestly faster than alltoall, and clearly less memory", kGuide, kGuideDate},
    SelectRule{"model-qwen3-235b-hopper", "Qwen3-235B on Hopper", [](const SelectFacts& f) { return workload_is(f, ModelFamily::kQwen3Large) && hopper(f); },
        RuleEffect::kScore, "deepep", kFamily, "Qwen3-235B on H100", kGuide, kGuideDate},
    SelectRule{"model-qwen3-30b", "Qwen3-30B", [](const SelectFacts& f) { return workload_is(f, ModelFamily::kQwen3Small) && f.gpu != GpuClass::kUnknown; },
        RuleEffect::kScore, "deepep", kFamily,
        "Qwen3-30B gains from DeepEP too, though the gap is smaller", kGuide, kGuideDate},
    SelectRule{"model-qwen3-next-close", "Qwen3-Next in bf16 with memory to spare", [](const SelectFacts& f) { return workload_is(f, ModelFamily::kQwen3Next) && !tight(f); },
        RuleEffect::kScore, "alltoall", 18,
        "Qwen3-Next in bf16 is a close race between alltoall and HybridEP: measure, do not assume", kGuide, kGuideDate},
    SelectRule{"model-qwen3-next-tight", "Qwen3-Next in fp8 or short of memory", [](const SelectFacts& f) { return workload_is(f, ModelFamily::kQwen3Next) && tight(f); },
        RuleEffect::kScore, "hybridep", kFamily,
        "Qwen3-Next in fp8 or short of memory: HybridEP is the stronger one", kGuide, kGuideDate},
    SelectRule{"model-vlm-simple", "a vision-language model", [](const SelectFacts& f) { return workload_is(f, ModelFamily::kVision); },
        RuleEffect::kScore, "alltoall", 100,
        "vision workloads are sensitive to memory and to the host's own work: start simple", kGuide, kGuideDate},
    SelectRule{"model-vlm-test-hybridep", "a vision-language model on NVL72", [](const SelectFacts& f) { return workload_is(f, ModelFamily::kVision) && workload_nvl72(f); },
        RuleEffect::kScore, "hybridep", 10,
        "then test HybridEP on GB200-class systems", kGuide, kGuideDate},
    SelectRule{"model-few-experts", "16 experts or fewer, top-2 or less", [](const SelectFacts& f) { return f.query.model.num_experts <= 16 && f.query.model.top_k <= 2; },
        RuleEffect::kScore, "alltoall", 45,
        "with {experts} experts and top-{top_k} (as Mixtral) alltoall is as good or better", kIssues, kIssuesDate},

    // Memory.
    SelectRule{"memory-hybridep", "short of memory on NVL72", [](const SelectFacts& f) { return f.query.memory_tight && workload_nvl72(f); },
        RuleEffect::kScore, "hybridep", 10,
        "takes less memory, which can justify it where the speed alone does not", kGuide, kGuideDate},

    // WorkPhase.
    SelectRule{"phase-decode-nvl72", "decode on NVL72 above EP 8", [](const SelectFacts& f) { return f.low_latency && workload_nvl72(f) && f.query.ep > 8; },
        RuleEffect::kScore, "deepep", 30,
        "vLLM and SGLang run DeepEP's low-latency kernels on NVL72", kVllm, kVllmDate},
    SelectRule{"phase-allgather-b200", "inference on B200 at EP 8 or less", [](const SelectFacts& f) { return !f.training() && f.gpu == GpuClass::kBlackwell && f.query.ep > 1 && f.query.ep <= 8; },
        RuleEffect::kScore, "allgather", 90,
        "all-gather and reduce-scatter was faster than DeepEP on 4 B200 in vLLM: no expert-parallel all-to-all is the answer",
        kIssues, kIssuesDate},
    SelectRule{"phase-allgather-nvl72", "inference on NVL72 at EP 8 or less", [](const SelectFacts& f) { return !f.training() && workload_nvl72(f) && f.query.ep > 1 && f.query.ep <= 8; },
        RuleEffect::kScore, "allgather", 90,
        "one-sided dispatch brought nothing over all-gather and reduce-scatter with 8 ranks on GB300", kIssues, kIssuesDate},
    SelectRule{"phase-decode-epistle", "decode in one domain of Hopper", [](const SelectFacts& f) { return f.low_latency && hopper(f) && f.num_domains == 1; },
        RuleEffect::kScore, "epistle", 5,
        "its low_latency dispatcher is one kernel each way and replays in a graph", kEpistle, kEpistleDate},

    // Fabric.
    SelectRule{"fabric-efa-deepep", "EFA, several domains", on_efa, RuleEffect::kScore, "deepep", -80,
        "on EFA a Qwen3-30B step took 6.6% longer than with alltoall at EP 16 and 86% longer at EP 32 (NVSHMEM)", kEfa, kEfaDate},
    SelectRule{"fabric-efa-uccl", "EFA, several domains", on_efa, RuleEffect::kScore, "uccl", -20,
        "on EFA a Qwen3-30B step took 72% longer than with alltoall at EP 16 and 187% longer at EP 32", kEfa, kEfaDate},
    SelectRule{"fabric-efa-alltoall", "EFA, several domains", on_efa, RuleEffect::kScore, "alltoall", 20,
        "the fastest measured on EFA: 8.60 s per step at EP 16, 9.24 s at EP 32", kEfa, kEfaDate},
};
// clang-format on

}  // namespace

std::span<const SelectRule> workload_rules() noexcept { return kWorkloadRules; }

}  // namespace epistle
