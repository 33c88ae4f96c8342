// What hardware and EP degree say about the order of candidates.
#include <array>

#include "select/rule.hpp"

namespace epistle {
namespace {

using namespace source;

bool hardware_is(const SelectFacts& facts, GpuClass gpu) { return facts.gpu == gpu; }
bool sm90_domain(const SelectFacts& facts) { return hardware_is(facts, GpuClass::kHopper) && facts.num_domains == 1; }

constexpr int kFirstChoice = 50;
constexpr int kDecides = 100;

// clang-format off
constexpr std::array kHardwareRules = {
    SelectRule{"base-alltoall", "always", [](const SelectFacts&) { return true; }, RuleEffect::kScore, "alltoall", 20,
        "needs nothing but NCCL: the easiest path to correctness and for debugging, and the baseline of every comparison",
        kGuide, kGuideDate},
    SelectRule{"base-allgather", "always", [](const SelectFacts&) { return true; }, RuleEffect::kScore, "allgather", 10,
        "all-gather and reduce-scatter moves every row to every rank and needs nothing but NCCL",
        kVllm, kVllmDate},

    // The table by hardware.
    SelectRule{"hw-hopper-deepep", "Hopper (H100, H200, H20)", [](const SelectFacts& f) { return hardware_is(f, GpuClass::kHopper); },
        RuleEffect::kScore, "deepep", kFirstChoice,
        "the strong default for expert parallelism across nodes on Hopper", kGuide, kGuideDate},
    SelectRule{"hw-blackwell-deepep", "B200 or B300", [](const SelectFacts& f) { return hardware_is(f, GpuClass::kBlackwell); },
        RuleEffect::kScore, "deepep", kFirstChoice,
        "a good first choice on B200 and B300 unless a path of the platform's own is there", kGuide, kGuideDate},
    SelectRule{"hw-nvl72-hybridep", "GB200 or GB300 NVL72", [](const SelectFacts& f) { return hardware_is(f, GpuClass::kBlackwellNvl72); },
        RuleEffect::kScore, "hybridep", kFirstChoice,
        "knows the NVLink domain of 72 GPUs, and takes less memory", kGuide, kGuideDate},
    SelectRule{"hw-unknown-alltoall", "a GPU of which nothing is known", [](const SelectFacts& f) { return hardware_is(f, GpuClass::kUnknown); },
        RuleEffect::kScore, "alltoall", kDecides,
        "unknown hardware or first bring-up: correctness first, with what runs everywhere", kGuide, kGuideDate},
    SelectRule{"hw-unknown-try-deepep", "a GPU of which nothing is known", [](const SelectFacts& f) { return hardware_is(f, GpuClass::kUnknown); },
        RuleEffect::kScore, "deepep", 15,
        "the one flex backend to try once alltoall is correct", kGuide, kGuideDate},
    SelectRule{"hw-unknown-try-hybridep", "a GPU of which nothing is known, and no DeepEP",
        [](const SelectFacts& f) { return hardware_is(f, GpuClass::kUnknown) && !f.has("deepep"); },
        RuleEffect::kScore, "hybridep", 12, "the one flex backend to try once alltoall is correct", kGuide, kGuideDate},
    SelectRule{"hw-ampere-deepep", "Ampere", [](const SelectFacts& f) { return hardware_is(f, GpuClass::kAmpere); },
        RuleEffect::kScore, "deepep", 12,
        "runs on sm_80 with DISABLE_SM90_FEATURES=1, without its fp8 and low-latency kernels: measure it against alltoall",
        kDeepEp, kDeepEpDate},
    SelectRule{"hw-pcie-alltoall", "no NVLink", [](const SelectFacts& f) { return hardware_is(f, GpuClass::kPcie); },
        RuleEffect::kScore, "alltoall", kFirstChoice,
        "without NVLink the dispatchers that store into a peer's memory have no path; NCCL has one", kDeepEp, kDeepEpDate},
    SelectRule{"hw-amd-alltoall", "AMD", [](const SelectFacts& f) { return hardware_is(f, GpuClass::kAmd); },
        RuleEffect::kScore, "alltoall", 30, "RCCL is there on every ROCm machine: bring-up first", kGuide, kGuideDate},
    SelectRule{"hw-amd-mori", "AMD, inference", [](const SelectFacts& f) { return hardware_is(f, GpuClass::kAmd) && !f.training(); },
        RuleEffect::kScore, "mori", 60, "the expert-parallel kernels of ROCm, in vLLM and SGLang", kVllm, kVllmDate},

    // Candidates for a measured comparison, below what needs no package.
    SelectRule{"ab-hybridep", "Hopper, B200 or B300", [](const SelectFacts& f) { return hardware_is(f, GpuClass::kHopper) || hardware_is(f, GpuClass::kBlackwell); },
        RuleEffect::kScore, "hybridep", 15,
        "a candidate for a matched comparison; topology-sensitive, and no sure win outside NVL72", kGuide, kGuideDate},
    SelectRule{"ab-deepep-v2", "Hopper or Blackwell, inference",
        [](const SelectFacts& f) { return !f.training() && f.gpu >= GpuClass::kHopper && f.gpu <= GpuClass::kBlackwellNvl72; },
        RuleEffect::kScore, "deepep-v2", 16, "a candidate for a matched comparison", kVllm, kVllmDate},
    SelectRule{"ab-ncclep", "Hopper or Blackwell", [](const SelectFacts& f) { return f.gpu >= GpuClass::kHopper && f.gpu <= GpuClass::kBlackwellNvl72; },
        RuleEffect::kScore, "ncclep", 14, "a candidate for a matched comparison", kMegatron, kMegatronDate},
    SelectRule{"ab-uccl", "Hopper or Blackwell of 8", [](const SelectFacts& f) { return hardware_is(f, GpuClass::kHopper) || hardware_is(f, GpuClass::kBlackwell); },
        RuleEffect::kScore, "uccl", 12, "DeepEP's interface without its demand for Mellanox cards", kEfa, kEfaDate},
    SelectRule{"ab-flashinfer", "NVLink, inference", [](const SelectFacts& f) { return f.nvlink && !f.training(); },
        RuleEffect::kScore, "flashinfer", 13, "a candidate inside one NVLink domain", kVllm, kVllmDate},
    SelectRule{"ab-nixl", "inference", [](const SelectFacts& f) { return f.nvlink && !f.training(); },
        RuleEffect::kScore, "nixl", 9, "a candidate where ranks come and go", kVllm, kVllmDate},
    SelectRule{"ab-epistle", "one domain of Hopper", sm90_domain, RuleEffect::kScore, "epistle", 35,
        "measured against the link on H200, every bit compared with the oracle; above alltoall where it is installed",
        kEpistle, kEpistleDate},
    SelectRule{"ab-epistle-unmeasured", "NVLink, not Hopper", [](const SelectFacts& f) { return f.nvlink && !hardware_is(f, GpuClass::kHopper) && f.num_domains == 1; },
        RuleEffect::kScore, "epistle", 11, "only compiled for this GPU, not measured: compare before it is used",
        kEpistle, kEpistleDate},

    SelectRule{"ab-epistle-domains", "NVLink, several domains", [](const SelectFacts& f) { return f.nvlink && f.num_domains > 1; },
        RuleEffect::kScore, "epistle", 13,
        "hybrid puts {rows_per_domain} rows of a token on the network, one per domain, alltoall {rows_per_expert}; it stages them "
        "through host memory, and between machines it has not been measured: compare before it is used", kEpistleHosts, kEpistleDate},

    // The table by EP degree.
    SelectRule{"ep-one", "EP 1", [](const SelectFacts& f) { return f.query.ep == 1; }, RuleEffect::kScore, "alltoall", 2 * kDecides,
        "EP 1 has no expert-parallel all-to-all: nothing crosses between ranks, and any dispatcher only permutes",
        kMegatron, kMegatronDate},
    SelectRule{"ep-small-alltoall", "EP 2 to 8", [](const SelectFacts& f) { return f.query.ep > 1 && f.query.ep <= 8; },
        RuleEffect::kScore, "alltoall", 10,
        "at a small EP degree the choice is second-order; start with alltoall or DeepEP", kGuide, kGuideDate},
    SelectRule{"ep-small-deepep", "EP 2 to 8", [](const SelectFacts& f) { return f.query.ep > 1 && f.query.ep <= 8; },
        RuleEffect::kScore, "deepep", 5,
        "at a small EP degree the choice is second-order; start with alltoall or DeepEP", kGuide, kGuideDate},
    SelectRule{"ep-tiny-alltoall", "EP 2 to 4", [](const SelectFacts& f) { return f.query.ep > 1 && f.query.ep <= 4; },
        RuleEffect::kScore, "alltoall", 60,
        "with {ep} ranks no dispatcher's gain is worth a package: maintainers advise alltoall or all-gather at EP 8 or less",
        kIssues, kIssuesDate},
    SelectRule{"ep-small-allgather", "EP 2 to 8", [](const SelectFacts& f) { return f.query.ep > 1 && f.query.ep <= 8; },
        RuleEffect::kScore, "allgather", 8,
        "maintainers of Megatron advise alltoall or all-gather over DeepEP at EP 8 or less", kIssues, kIssuesDate},
    SelectRule{"ep-medium-deepep", "EP 9 to 32", [](const SelectFacts& f) { return f.query.ep > 8 && f.query.ep <= 32; },
        RuleEffect::kScore, "deepep", 5, "at a medium EP degree DeepEP often becomes worthwhile", kGuide, kGuideDate},
    SelectRule{"ep-large-hybridep", "EP above 32 on NVL72", [](const SelectFacts& f) { return f.query.ep > 32 && hardware_is(f, GpuClass::kBlackwellNvl72); },
        RuleEffect::kScore, "hybridep", 20, "at a large EP degree on NVL72 usually the best target", kGuide, kGuideDate},
    SelectRule{"ep-large-deepep", "EP above 32, not NVL72",
        [](const SelectFacts& f) { return f.query.ep > 32 && (hardware_is(f, GpuClass::kHopper) || hardware_is(f, GpuClass::kBlackwell)); },
        RuleEffect::kScore, "deepep", 5, "EP across nodes is what DeepEP is made for outside NVL72", kGuide, kGuideDate},
};
// clang-format on

}  // namespace

std::span<const SelectRule> hardware_rules() noexcept { return kHardwareRules; }

}  // namespace epistle
