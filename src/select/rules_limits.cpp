// What rules a backend out: architecture, topology, shape, engine.
#include <array>

#include "select/rule.hpp"
#include "select/shape_limits.hpp"

namespace epistle {
namespace {

using namespace source;

constexpr auto kReject = RuleEffect::kReject;

bool has_hopper_or_later(const SelectFacts& f) {
  return f.gpu == GpuClass::kHopper || f.gpu == GpuClass::kBlackwell || f.gpu == GpuClass::kBlackwellNvl72;
}
/// An unknown GPU is not ruled out: what it can do is found when alltoall is correct.
bool known(const SelectFacts& f) { return f.gpu != GpuClass::kUnknown; }
bool known_without_hopper(const SelectFacts& f) { return known(f) && !has_hopper_or_later(f); }
bool amd(const SelectFacts& f) { return f.gpu == GpuClass::kAmd; }
bool known_without_nvlink(const SelectFacts& f) { return known(f) && !f.nvlink && !amd(f); }
bool efa(const SelectFacts& f) { return f.query.fabric == Fabric::kEfa && f.num_domains > 1; }
std::int64_t tokens(const SelectFacts& f) { return f.query.tokens_per_rank.value_or(0); }
std::int64_t experts_in_domain(const SelectFacts& f) { return f.query.model.num_experts / f.query.ep * f.domain_ranks; }

// clang-format off
constexpr std::array kLimitsRules = {
    // Architecture.
    SelectRule{"arch-deepep-amd", "AMD", amd, kReject, "deepep", 0, "is made for NVIDIA GPUs; this is {gpu}", kDeepEp, kDeepEpDate},
    SelectRule{"arch-deepep-pcie", "no NVLink", known_without_nvlink, kReject, "deepep", 0,
        "its kernels store into the memory of NVLink peers; {gpu} has no NVLink", kDeepEp, kDeepEpDate},
    SelectRule{"arch-deepep-nvl72", "NVL72, training", [](const SelectFacts& f) { return f.gpu == GpuClass::kBlackwellNvl72 && f.training(); },
        kReject, "deepep", 0,
        "Megatron-Bridge takes DeepEP on compute capability 8 and 9 and on devices named B200 or B300, not on {gpu}: its recipes fall "
        "back to alltoall with a warning", kBridge, kBridgeDate},
    SelectRule{"arch-hybridep", "neither Hopper nor Blackwell", known_without_hopper, kReject, "hybridep", 0,
        "its kernels need the bulk copies of sm_90 and later; {gpu} has none, or no NVLink. Megatron-Bridge accepts compute "
        "capability 8, which is wrong", kHybridEp, kHybridEpDate},
    SelectRule{"arch-deepep-v2", "neither Hopper nor Blackwell", known_without_hopper, kReject, "deepep-v2", 0,
        "needs sm_90 or later and NVLink; this is {gpu}", kDeepEp, kDeepEpDate},
    SelectRule{"arch-ncclep", "neither Hopper nor Blackwell", known_without_hopper, kReject, "ncclep", 0,
        "needs sm_90 or later; this is {gpu}", kNcclEp, kNcclEpDate},
    SelectRule{"arch-epistle", "neither NVLink nor a host", [](const SelectFacts& f) { return known_without_nvlink(f) || amd(f); },
        kReject, "epistle", 0, "its CUDA device has run over NVLink only; this is {gpu}", kEpistle, kEpistleDate},
    SelectRule{"arch-mori", "not AMD", [](const SelectFacts& f) { return known(f) && !amd(f); }, kReject, "mori", 0,
        "is made for ROCm; this is {gpu}", kVllm, kVllmDate},
    SelectRule{"arch-uccl", "no NVLink", known_without_nvlink, kReject, "uccl", 0,
        "its kernels inside a domain are DeepEP's and need NVLink; {gpu} has none", kEfa, kEfaDate},
    SelectRule{"arch-flashinfer", "no NVLink", [](const SelectFacts& f) { return known_without_nvlink(f) || amd(f); }, kReject, "flashinfer", 0,
        "its kernels need NVLink; this is {gpu}", kVllm, kVllmDate},
    SelectRule{"arch-nixl", "AMD", amd, kReject, "nixl", 0, "is made for NVIDIA GPUs; this is {gpu}", kVllm, kVllmDate},

    // Topology.
    SelectRule{"topo-deepep-ranks", "an EP degree without kernels", [](const SelectFacts& f) { return f.query.ep > 1 && !limits::is_one_of(limits::kDeepEpRanks, f.query.ep); },
        kReject, "deepep", 0,
        "has kernels for 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 144 and 160 ranks, not for {ep}", kDeepEp, kDeepEpDate},
    SelectRule{"topo-hybridep-domain", "more ranks in a domain than it takes", [](const SelectFacts& f) { return f.domain_ranks > limits::kHybridEpMaxDomainRanks; },
        kReject, "hybridep", 0, "takes at most 72 ranks in a domain; here are {domain}", kHybridEp, kHybridEpDate},
    SelectRule{"topo-hybridep-divides", "domains of unequal size", [](const SelectFacts& f) { return f.query.ep % f.domain_ranks != 0; },
        kReject, "hybridep", 0,
        "the EP group must be a multiple of the ranks of a domain: {ep} is none of {domain}", kHybridEp, kHybridEpDate},
    SelectRule{"topo-epistle-domain", "domains of unequal size", [](const SelectFacts& f) { return f.query.ep % f.domain_ranks != 0; },
        kReject, "epistle", 0,
        "has hybrid between domains, which must be of one size: EP {ep} is no multiple of {domain} ranks", kEpistleHosts, kEpistleDate},
    SelectRule{"topo-epistle-ranks", "more than 72 ranks", [](const SelectFacts& f) { return f.query.ep > limits::kEpistleMaxRanks; },
        kReject, "epistle", 0, "takes at most 72 ranks with GPUs; EP is {ep}", kEpistleHosts, kEpistleDate},
    SelectRule{"topo-epistle-no-network", "several domains without a network", [](const SelectFacts& f) { return f.num_domains > 1 && f.query.cluster.network_bytes_per_s() <= 0; },
        kReject, "epistle", 0, "needs a network between {domains} domains, and this machine has none", kEpistleHosts, kEpistleDate},
    SelectRule{"topo-flashinfer-domain", "several domains", [](const SelectFacts& f) { return f.num_domains > 1; }, kReject, "flashinfer", 0,
        "works inside one NVLink domain of {gpus_per_domain} GPUs; EP {ep} needs {domains}", kVllm, kVllmDate},
    SelectRule{"topo-ncclep-ranks", "more than 64 ranks", [](const SelectFacts& f) { return f.query.ep > limits::kNcclEpMaxRanks; }, kReject, "ncclep", 0,
        "takes at most 64 GPUs; EP is {ep}", kNcclEp, kNcclEpDate},
    SelectRule{"topo-no-network", "several domains without a network", [](const SelectFacts& f) { return f.num_domains > 1 && f.query.cluster.network_bytes_per_s() <= 0; },
        kReject, "deepep", 0, "EP {ep} spans {domains} domains, and this machine has no network between them", kDeepEp, kDeepEpDate},

    // Fabric.
    SelectRule{"fabric-efa-ranks-deepep", "EFA above 64 ranks", [](const SelectFacts& f) { return efa(f) && f.query.ep > limits::kEfaMaxRanks; }, kReject, "deepep", 0,
        "every DeepEP-class kernel aborted above 64 ranks on EFA; only NCCL reached 256", kEfa, kEfaDate},
    SelectRule{"fabric-efa-ranks-uccl", "EFA above 64 ranks", [](const SelectFacts& f) { return efa(f) && f.query.ep > limits::kEfaMaxRanks; }, kReject, "uccl", 0,
        "every DeepEP-class kernel aborted above 64 ranks on EFA; only NCCL reached 256", kEfa, kEfaDate},
    SelectRule{"fabric-efa-low-latency", "EFA, low latency", [](const SelectFacts& f) { return efa(f) && f.low_latency; }, kReject, "deepep", 0,
        "its low-latency kernels need mlx5 network cards; EFA has none", kDeepEp, kDeepEpDate},

    // Shape.
    SelectRule{"shape-hybridep-fp8", "8 or 4 bits, hidden no multiple of 512", [](const SelectFacts& f) { return f.eight_bit() && f.query.model.hidden % limits::kHybridEpHiddenFp8 != 0; },
        kReject, "hybridep", 0, "with {precision} hidden must be a multiple of 512; it is {hidden}", kHybridEp, kHybridEpDate},
    SelectRule{"shape-hybridep-bf16", "bf16, hidden no multiple of 16", [](const SelectFacts& f) { return !f.eight_bit() && f.query.model.hidden % limits::kHybridEpHiddenBf16 != 0; },
        kReject, "hybridep", 0, "with bf16 hidden must be a multiple of 16; it is {hidden}", kHybridEp, kHybridEpDate},
    SelectRule{"shape-hybridep-experts", "experts of a domain no multiple of 4", [](const SelectFacts& f) { return experts_in_domain(f) % limits::kHybridEpExpertsPerDomain != 0; },
        kReject, "hybridep", 0, "experts per rank times ranks per domain must be a multiple of 4", kHybridEp, kHybridEpDate},
    SelectRule{"shape-hybridep-tokens", "more than 21844 tokens per rank over several domains", [](const SelectFacts& f) { return f.num_domains > 1 && tokens(f) > limits::kHybridEpMaxTokensMultiDomain; },
        kReject, "hybridep", 0, "over several domains it takes at most 21844 tokens per rank; here are {tokens}", kHybridEp, kHybridEpDate},
    SelectRule{"shape-deepep-row", "a row that is no multiple of 16 bytes", [](const SelectFacts& f) { return f.query.model.hidden * (f.eight_bit() ? 1 : 2) % limits::kDeepEpRowBytes != 0; },
        kReject, "deepep", 0, "a row must be a multiple of 16 bytes; hidden is {hidden}", kDeepEp, kDeepEpDate},
    SelectRule{"shape-deepep-ll-hidden", "low latency, a hidden size without kernels", [](const SelectFacts& f) { return f.low_latency && !limits::is_one_of(limits::kDeepEpLowLatencyHidden, f.query.model.hidden); },
        kReject, "deepep", 0,
        "its low-latency kernels take hidden 2048, 2560, 3072, 4096, 5120, 6144, 7168 and 8192, not {hidden}", kDeepEp, kDeepEpDate},
    SelectRule{"shape-deepep-ll-topk", "low latency, top-k above 11", [](const SelectFacts& f) { return f.low_latency && f.query.model.top_k > limits::kDeepEpLowLatencyMaxTopK; },
        kReject, "deepep", 0, "its low-latency kernels take top-k up to 11; it is {top_k}", kDeepEp, kDeepEpDate},
    SelectRule{"shape-ncclep-hidden", "a hidden size without kernels", [](const SelectFacts& f) { return f.low_latency && !limits::is_one_of(limits::kDeepEpLowLatencyHidden, f.query.model.hidden); },
        kReject, "ncclep", 0, "its low-latency kernels take a fixed list of hidden sizes without {hidden}", kNcclEp, kNcclEpDate},
    SelectRule{"shape-ncclep-topk", "top-k above 9", [](const SelectFacts& f) { return f.query.model.top_k > limits::kNcclEpMaxTopK; }, kReject, "ncclep", 0,
        "takes top-k up to 9; it is {top_k}", kNcclEp, kNcclEpDate},
    SelectRule{"shape-ncclep-tokens", "more than 8192 tokens per rank", [](const SelectFacts& f) { return tokens(f) > limits::kNcclEpMaxTokens; }, kReject, "ncclep", 0,
        "takes at most 8192 tokens per rank; here are {tokens}", kNcclEp, kNcclEpDate},

    // Engines.
    SelectRule{"engine-hybridep-training", "inference", [](const SelectFacts& f) { return !f.training(); }, kReject, "hybridep", 0,
        "neither vLLM nor SGLang has a HybridEP backend", kVllm, kVllmDate},
    SelectRule{"engine-ncclep-inference", "inference", [](const SelectFacts& f) { return !f.training(); }, kReject, "ncclep", 0,
        "no release of vLLM or SGLang has an NCCL EP backend", kVllm, kVllmDate},
    SelectRule{"engine-ncclep-version", "Megatron core before 0.20", [](const SelectFacts& f) { return f.training() && f.query.megatron < kOneSmOption; }, kReject, "ncclep", 0,
        "Megatron core has the backend ncclep from 0.20 on; this is {megatron}", kMegatron, kMegatronDate},
    SelectRule{"engine-deepep-v2-training", "training", [](const SelectFacts& f) { return f.training(); }, kReject, "deepep-v2", 0,
        "no release of Megatron core has a backend for ElasticBuffer; 0.20 takes deepep, hybridep and ncclep", kMegatron, kMegatronDate},
    SelectRule{"engine-flashinfer-training", "training", [](const SelectFacts& f) { return f.training(); }, kReject, "flashinfer", 0,
        "has no backward pass: it serves inference engines", kVllm, kVllmDate},
    SelectRule{"engine-mori-training", "training on AMD", [](const SelectFacts& f) { return f.training() && amd(f); }, kReject, "mori", 0,
        "no release of Megatron core has a MoRI backend", kMegatron, kMegatronDate},
    SelectRule{"engine-nixl-training", "training", [](const SelectFacts& f) { return f.training(); }, kReject, "nixl", 0,
        "has no backward pass: it serves inference engines", kVllm, kVllmDate},
};
// clang-format on

}  // namespace

std::span<const SelectRule> limit_rules() noexcept { return kLimitsRules; }

}  // namespace epistle
