// Traps: configurations that run something else than they say, hang, or are silently wrong.
#include <array>

#include "select/rule.hpp"

namespace epistle {
namespace {

using namespace source;

constexpr auto kWarn = RuleEffect::kWarn;

bool flex_training(const SelectFacts& f) {
  return f.training() && f.query.ep > 1 && (f.has("deepep") || f.has("hybridep") || f.has("ncclep") || f.has("uccl"));
}
bool hybridep_training(const SelectFacts& f) { return f.training() && f.query.ep > 1 && f.has("hybridep"); }

// clang-format off
constexpr std::array kTrapsRules = {
    SelectRule{"trap-inert-backend", "a flex backend in training", flex_training, kWarn, "", 0,
        "--moe-flex-dispatcher-backend does nothing unless --moe-token-dispatcher-type is flex: the run then uses another dispatcher "
        "and says nothing", kMegatron, kMegatronDate},
    SelectRule{"trap-experts-divide", "experts not divisible", [](const SelectFacts& f) { return f.query.model.num_experts % f.query.ep != 0; }, kWarn, "", 0,
        "{experts} experts do not divide over {ep} ranks: Megatron refuses that with every dispatcher, and vLLM and SGLang need redundant "
        "experts (EPLB) with which they do", kMegatron, kMegatronDate},
    SelectRule{"trap-domain-size", "HybridEP in training", hybridep_training, kWarn, "hybridep", 0,
        "NUM_OF_HYBRID_EP_RANKS_PER_NVLINK_DOMAIN must be the real domain ({domain} here) and divide the EP group of {ep}: otherwise "
        "slow, wrong, or a deadlock. Newer HybridEP finds the domain itself; the variable overrides it", kHybridEp, kHybridEpDate},
    SelectRule{"trap-fp8-hidden", "8 or 4 bits, hidden no multiple of 512", [](const SelectFacts& f) { return f.has("hybridep") && f.eight_bit() && f.query.model.hidden % 512 != 0; },
        kWarn, "hybridep", 0,
        "HybridEP cannot dispatch {precision} rows of hidden {hidden}: 512 does not divide it", kHybridEp, kHybridEpDate},
    SelectRule{"trap-unequal-tokens", "HybridEP, ranks with unequal tokens", [](const SelectFacts& f) { return hybridep_training(f) && f.query.unequal_tokens; },
        kWarn, "hybridep", 0,
        "HybridEP with unequal token counts hangs or corrupts silently: give --moe-hybridep-pad-uneven-dispatch-inputs (Megatron core "
        "0.20), or pad to equal counts", kMegatron, kMegatronDate},
    SelectRule{"trap-equal-tokens", "HybridEP in training", [](const SelectFacts& f) { return hybridep_training(f) && !f.query.unequal_tokens; },
        kWarn, "hybridep", 0,
        "every rank must bring the same number of tokens to HybridEP; packed or variable sequences need padding", kMegatron, kMegatronDate},
    SelectRule{"trap-multinode-build", "HybridEP over several domains", [](const SelectFacts& f) { return hybridep_training(f) && f.num_domains > 1; },
        kWarn, "hybridep", 0,
        "HybridEP over {domains} domains must have been built with HYBRID_EP_MULTINODE=1: it is a flag of the build, and an import "
        "does not tell", kHybridEp, kHybridEpDate},
    SelectRule{"trap-forced-balance", "training", [](const SelectFacts& f) { return f.training() && f.query.ep > 1; }, kWarn, "", 0,
        "--moe-router-force-load-balancing and dropless routing are no interchangeable baselines: keep one mode for all backends, and "
        "say which. Random forced balance is balanced in expectation only", kGuide, kGuideDate},
    SelectRule{"trap-deepep-odd-sms", "DeepEP", [](const SelectFacts& f) { return f.has("deepep") && f.query.ep > 1; }, kWarn, "deepep", 0,
        "DeepEP takes an even number of SMs only", kDeepEp, kDeepEpDate},
    SelectRule{"trap-deepep-2-import", "DeepEP with Megatron core before 0.20", [](const SelectFacts& f) { return f.training() && f.has("deepep") && f.query.megatron < kOneSmOption; },
        kWarn, "deepep", 0,
        "DeepEP 2.1.0 is taken for missing by Megatron core 0.19.2: a name that its guarded import wants is not exported", kMegatron, kMegatronDate},
    SelectRule{"trap-vllm-ep-flag", "inference", [](const SelectFacts& f) { return !f.training() && f.query.ep > 1; }, kWarn, "", 0,
        "vLLM: --all2all-backend does nothing without --enable-expert-parallel and data parallelism; naive and pplx are gone and "
        "become allgather_reducescatter", kVllm, kVllmDate},
    SelectRule{"trap-sglang-mode", "inference", [](const SelectFacts& f) { return !f.training() && f.query.ep > 1; }, kWarn, "", 0,
        "SGLang: --deepep-mode does nothing without --moe-a2a-backend deepep, and the backend sets the EP degree to the TP degree",
        kSglang, kSglangDate},
    SelectRule{"trap-ncclep-versions", "NCCL EP or DeepEP V2", [](const SelectFacts& f) { return f.has("ncclep") || f.has("deepep-v2"); }, kWarn, "", 0,
        "NCCL EP and DeepEP V2 need NCCL 2.30.4 or newer; PyTorch 2.11 pins 2.28.9", kNcclEp, kNcclEpDate},
    SelectRule{"trap-nothing-assumed", "no package is known to be there", [](const SelectFacts& f) { return f.query.available.empty() && f.query.ep > 1; }, kWarn, "", 0,
        "nothing is known to be installed, so only what every engine has is a candidate; `epistle doctor --python PATH` proves what is "
        "there, --assume LIST says it", kGuide, kGuideDate},
};
// clang-format on

}  // namespace

std::span<const SelectRule> trap_rules() noexcept { return kTrapsRules; }

}  // namespace epistle
