// Every row of the table of rules: a query for which it holds, and one for which it does not.
#include <map>
#include <set>
#include <string>

#include <gtest/gtest.h>

#include "select/rule.hpp"
#include "unit/select/select_query.hpp"

namespace epistle::test {
namespace {

struct Example {
  const char* holds;
  const char* silent;  ///< empty where it always holds
};

const std::map<std::string, Example> kExamples = {
    {"base-alltoall", {"", ""}},
    {"base-allgather", {"", ""}},
    {"hw-hopper-deepep", {"hw=h20", "hw=b200"}},
    {"hw-blackwell-deepep", {"hw=b300", "hw=gb200-nvl72"}},
    {"hw-nvl72-hybridep", {"hw=gb300-nvl72", "hw=b200"}},
    {"hw-unknown-alltoall", {"hw=unknown", "hw=a100"}},
    {"hw-unknown-try-deepep", {"hw=unknown", "hw=h100-hgx"}},
    {"hw-unknown-try-hybridep", {"hw=unknown", "hw=unknown assume=deepep"}},
    {"hw-ampere-deepep", {"hw=a100", "hw=h100-hgx"}},
    {"hw-pcie-alltoall", {"hw=rtx-pro-6000", "hw=a100"}},
    {"hw-amd-alltoall", {"hw=mi300x", "hw=a100"}},
    {"hw-amd-mori", {"hw=mi300x phase=decode", "hw=mi300x"}},
    {"ab-hybridep", {"hw=h100-hgx", "hw=a100"}},
    {"ab-deepep-v2", {"phase=decode", ""}},
    {"ab-ncclep", {"hw=b200", "hw=a100"}},
    {"ab-uccl", {"hw=b200", "hw=gb200-nvl72"}},
    {"ab-flashinfer", {"phase=decode", "hw=rtx-pro-6000 phase=decode"}},
    {"ab-nixl", {"phase=decode", ""}},
    {"ab-epistle", {"ep=8", "ep=16"}},
    {"ab-epistle-unmeasured", {"hw=b200 ep=8", "ep=8"}},
    {"ab-epistle-domains", {"ep=16", "ep=8"}},
    {"ep-one", {"ep=1", "ep=2"}},
    {"ep-small-alltoall", {"ep=8", "ep=16"}},
    {"ep-small-deepep", {"ep=2", "ep=16"}},
    {"ep-tiny-alltoall", {"ep=4", "ep=8"}},
    {"ep-small-allgather", {"ep=8", "ep=16"}},
    {"ep-medium-deepep", {"ep=32", "ep=64"}},
    {"ep-large-hybridep", {"hw=gb200-nvl72 ep=64", "ep=64"}},
    {"ep-large-deepep", {"ep=64", "hw=gb200-nvl72 ep=64"}},
    {"model-dsv3-nvl72", {"hw=gb200-nvl72 ep=32 model=deepseek-v3", "hw=gb200-nvl72 ep=16 model=deepseek-v3"}},
    {"model-dsv3-hopper", {"ep=32 model=deepseek-v3", "hw=b200 ep=32 model=deepseek-v3"}},
    {"model-qwen3-235b-nvl72", {"hw=gb200-nvl72 model=qwen3-235b", "model=qwen3-235b"}},
    {"model-qwen3-235b-hopper", {"model=qwen3-235b", "hw=gb200-nvl72 model=qwen3-235b"}},
    {"model-qwen3-30b", {"", "model=glm-5"}},
    {"model-qwen3-next-close", {"model=qwen3-next", "model=qwen3-next precision=fp8"}},
    {"model-qwen3-next-tight", {"model=qwen3-next memory", "model=qwen3-next"}},
    {"model-vlm-simple", {"model=glm-4.5v", "model=glm-4.5"}},
    {"model-vlm-test-hybridep", {"hw=gb200-nvl72 model=qwen3-vl", "model=qwen3-vl"}},
    {"model-few-experts", {"ep=8 model=mixtral-8x22b", ""}},
    {"memory-hybridep", {"hw=gb200-nvl72 memory", "memory"}},
    {"phase-decode-nvl72", {"hw=gb200-nvl72 phase=decode", "hw=gb200-nvl72 phase=decode ep=8"}},
    {"phase-allgather-b200", {"hw=b200 ep=4 phase=decode", "hw=b200 ep=4"}},
    {"phase-allgather-nvl72", {"hw=gb300-nvl72 ep=8 phase=prefill", "hw=gb300-nvl72 ep=8"}},
    {"phase-decode-epistle", {"ep=8 phase=decode", "ep=8 phase=prefill"}},
    {"fabric-efa-deepep", {"fabric=efa", "fabric=efa ep=8"}},
    {"fabric-efa-uccl", {"fabric=efa", ""}},
    {"fabric-efa-alltoall", {"fabric=efa", ""}},
    {"arch-deepep-amd", {"hw=mi300x", "hw=a100"}},
    {"arch-deepep-pcie", {"hw=rtx-pro-6000", "hw=unknown"}},
    {"arch-deepep-nvl72", {"hw=gb200-nvl72", "hw=gb200-nvl72 phase=decode"}},
    {"arch-hybridep", {"hw=a100", "hw=b200"}},
    {"arch-deepep-v2", {"hw=a100", "hw=b200"}},
    {"arch-ncclep", {"hw=a100", "hw=unknown"}},
    {"arch-epistle", {"hw=rtx-pro-6000", "hw=a100"}},
    {"arch-mori", {"hw=h100-hgx", "hw=mi300x"}},
    {"arch-uccl", {"hw=rtx-pro-6000", "hw=mi300x"}},
    {"arch-flashinfer", {"hw=mi300x", "hw=h100-hgx"}},
    {"arch-nixl", {"hw=mi300x", "hw=h100-hgx"}},
    {"topo-deepep-ranks", {"ep=12", "ep=16"}},
    {"topo-hybridep-domain", {"hw=gb200-nvl72 domain=144 ep=128", "hw=gb200-nvl72 ep=64"}},
    {"topo-hybridep-divides", {"ep=12", "ep=16"}},
    {"topo-epistle-domain", {"ep=12", "ep=16"}},
    {"topo-epistle-ranks", {"ep=128", "ep=64"}},
    {"topo-epistle-no-network", {"nics=0 ep=16", "ep=16"}},
    {"topo-flashinfer-domain", {"ep=16", "ep=8"}},
    {"topo-ncclep-ranks", {"ep=128", "ep=64"}},
    {"topo-no-network", {"nics=0 ep=16", "nics=0 ep=8"}},
    {"fabric-efa-ranks-deepep", {"fabric=efa ep=128", "fabric=efa ep=64"}},
    {"fabric-efa-ranks-uccl", {"fabric=efa ep=128", "ep=128"}},
    {"fabric-efa-low-latency", {"fabric=efa phase=decode", "fabric=efa"}},
    {"shape-hybridep-fp8", {"model=gpt-oss-120b precision=fp8", "model=gpt-oss-120b"}},
    {"shape-hybridep-bf16", {"hidden=2050", "hidden=2880"}},
    {"shape-hybridep-experts", {"ep=1 experts=6 topk=2", "ep=8 experts=128"}},
    {"shape-hybridep-tokens", {"ep=16 tokens=30000", "ep=8 tokens=30000"}},
    {"shape-deepep-row", {"hidden=2052", "hidden=2056"}},
    {"shape-deepep-ll-hidden", {"hidden=2880 phase=decode", "hidden=2880"}},
    {"shape-deepep-ll-topk", {"topk=12 phase=decode", "topk=11 phase=decode"}},
    {"shape-ncclep-hidden", {"hidden=2880 phase=decode", "phase=decode"}},
    {"shape-ncclep-topk", {"topk=10", "topk=9"}},
    {"shape-ncclep-tokens", {"tokens=9000", "tokens=8192"}},
    {"engine-hybridep-training", {"phase=decode", ""}},
    {"engine-ncclep-inference", {"phase=prefill", ""}},
    {"engine-ncclep-version", {"megatron=0.19", "megatron=0.20"}},
    {"engine-deepep-v2-training", {"", "phase=decode"}},
    {"engine-flashinfer-training", {"", "phase=decode"}},
    {"engine-mori-training", {"hw=mi300x", "hw=mi300x phase=decode"}},
    {"engine-nixl-training", {"", "phase=decode"}},
    {"advice-graph-scopes", {"", "phase=decode"}},
    {"advice-ep-overlap", {"", "ep=8"}},
    {"advice-fp8", {"precision=fp8", ""}},
    {"advice-cpu-affinity", {"hw=gb200-nvl72", ""}},
    {"advice-pipeline-layout", {"", "phase=decode"}},
    {"advice-same-stack", {"", "ep=1"}},
    {"advice-topology-sensitive", {"assume=hybridep", "hw=gb200-nvl72 assume=hybridep"}},
    {"advice-tune-sms", {"assume=deepep", ""}},
    {"advice-memory-tradeoff", {"memory", ""}},
    {"advice-availability", {"", "ep=1"}},
    {"advice-sms-20", {"megatron=0.20", "megatron=0.19"}},
    {"advice-sms-old", {"megatron=0.19", ""}},
    {"advice-deepep-b200", {"hw=b200", ""}},
    {"advice-crossover", {"phase=decode", ""}},
    {"advice-h20-sms", {"hw=h20", ""}},
    {"advice-network-rows", {"ep=16", "ep=8"}},
    {"advice-rails", {"ep=16", "nics=0 ep=16"}},
    {"advice-validate-phases", {"ep=16", "ep=8"}},
    {"trap-inert-backend", {"assume=deepep", ""}},
    {"trap-domain-size", {"assume=hybridep", "assume=deepep"}},
    {"trap-fp8-hidden", {"model=gpt-oss-120b precision=fp8 assume=hybridep", "precision=fp8 assume=hybridep"}},
    {"trap-unequal-tokens", {"unequal assume=hybridep", "assume=hybridep"}},
    {"trap-equal-tokens", {"assume=hybridep", "unequal assume=hybridep"}},
    {"trap-multinode-build", {"assume=hybridep", "ep=8 assume=hybridep"}},
    {"trap-forced-balance", {"", "phase=decode"}},
    {"trap-deepep-odd-sms", {"assume=deepep", ""}},
    {"trap-deepep-2-import", {"assume=deepep megatron=0.19", "assume=deepep"}},
    {"trap-vllm-ep-flag", {"phase=decode", ""}},
    {"trap-sglang-mode", {"phase=decode", ""}},
    {"trap-ncclep-versions", {"assume=ncclep", ""}},
    {"trap-experts-divide", {"experts=100", ""}},
    {"trap-nothing-assumed", {"", "assume=deepep"}},
};

TEST(SelectRules, EveryRowHasAnExampleThatItHoldsForAndOneThatItDoesNot) {
  for (const SelectRule& rule : all_select_rules()) {
    const auto example = kExamples.find(std::string(rule.id));
    ASSERT_NE(example, kExamples.end()) << rule.id << " has no example";
    EXPECT_TRUE(rule.applies(facts_of(example->second.holds))) << rule.id << ": " << example->second.holds;
    if (rule.id.starts_with("base-")) continue;
    EXPECT_FALSE(rule.applies(facts_of(example->second.silent))) << rule.id << ": " << example->second.silent;
  }
}

TEST(SelectRules, EveryRowSaysItsSourceAndDateAndKnowsItsBackend) {
  std::set<std::string_view> ids;
  for (const SelectRule& rule : all_select_rules()) {
    EXPECT_TRUE(ids.insert(rule.id).second) << rule.id << " is there twice";
    EXPECT_FALSE(rule.source.empty()) << rule.id;
    EXPECT_TRUE(rule.date.starts_with("20")) << rule.id;
    EXPECT_FALSE(rule.text.empty()) << rule.id;
    EXPECT_FALSE(rule.condition.empty()) << rule.id;
    if (!rule.backend.empty()) {
      EXPECT_NO_THROW(static_cast<void>(find_backend(rule.backend))) << rule.id;
    }
    const bool about_a_backend = rule.effect == RuleEffect::kScore || rule.effect == RuleEffect::kReject;
    EXPECT_TRUE(!about_a_backend || !rule.backend.empty()) << rule.id;
  }
  EXPECT_EQ(ids.size(), kExamples.size()) << "an example belongs to no row";
}

TEST(SelectRules, TextsAreFilledInWholly) {
  for (const SelectRule& rule : all_select_rules()) {
    const std::string text = fill_text(rule.text, facts_of("ep=16"));
    EXPECT_EQ(text.find('{'), std::string::npos) << rule.id << ": " << text;
  }
}

}  // namespace
}  // namespace epistle::test
