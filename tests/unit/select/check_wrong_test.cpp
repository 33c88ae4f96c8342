// Configurations with one mistake each: it is found, at its line and flag. Every rule has at least one.
#include <algorithm>
#include <set>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "select/check/check.hpp"
#include "topology/cluster.hpp"
#include "unit/select/check_configs.hpp"

namespace epistle::test {
namespace {

using check::CheckReport;
using check::Finding;

struct Mistake {
  const char* rule;
  std::string text;
  std::int32_t line;
  const char* flag;
  const char* file = "run.sh";
  const char* hardware = "";
  const char* version = "";
};

const std::string kMegatron =
    "torchrun --nproc_per_node 8 --nnodes 2 pretrain_gpt.py --bf16 --num-experts 128 --hidden-size 2048 "
    "--moe-router-topk 8 --moe-router-dtype fp32 ";
const std::string kFlex = kMegatron + "--moe-token-dispatcher-type flex ";
const std::string kDeepEp = kFlex + "--moe-flex-dispatcher-backend deepep --expert-model-parallel-size 16 ";
const std::string kHybrid = kFlex + "--moe-flex-dispatcher-backend hybridep --expert-model-parallel-size 16 ";
const std::string kAlltoall = kMegatron + "--moe-token-dispatcher-type alltoall --expert-model-parallel-size 16 ";
const std::string kVllm = "vllm serve deepseek-ai/DeepSeek-V3 --data-parallel-size 8 ";
const std::string kVllmEp = kVllm + "--enable-expert-parallel ";
const std::string kSglang = "python3 -m sglang.launch_server --model-path deepseek-ai/DeepSeek-V3 --tp 16 ";
const std::string kSglangEp = kSglang + "--moe-a2a-backend deepep ";

const std::vector<Mistake>& mistakes() {
  static const std::vector<Mistake> all = {
      {"unknown-flag", kFlex + "\\\n--moe-flex-dispacher-backend deepep", 2, "--moe-flex-dispacher-backend"},
      {"unknown-flag", kAlltoall + "--moe-hybrid-ep-fast", 1, "--moe-hybrid-ep-fast"},
      {"unknown-flag", kVllmEp + "--all2all-backnd deepep_low_latency", 1, "--all2all-backnd"},
      {"unknown-flag", kSglang + "--moe-a2a-backen deepep --expert-distribution-recorder-mode stat --moe-a2abackend x",
       1, "--moe-a2abackend"},
      {"unknown-flag", "model:\n  moe_token_dispatcher_type: flex\n  moe_flex_dispatcher_bakend: deepep\n", 3,
       "moe_flex_dispatcher_bakend", "recipe.yaml"},
      {"shortened-flag", kMegatron + "--moe-token-dispatcher alltoall", 1, "--moe-token-dispatcher"},
      {"underscore-flag", kMegatron + "--moe_token_dispatcher_type alltoall", 1, "--moe_token_dispatcher_type"},
      {"repeated-flag", kAlltoall + "\\\n--expert-model-parallel-size 8", 2, "--expert-model-parallel-size"},
      {"repeated-flag", "moe-a2a-backend: deepep\ntp-size: 8\nmoe-a2a-backend: mori\n", 3, "moe-a2a-backend",
       "sglang.yaml"},
      {"missing-value", kMegatron + "--moe-token-dispatcher-type --moe-grouped-gemm", 1, "--moe-token-dispatcher-type"},
      {"unexported-variable", "USE_MNNVL=1\n" + kHybrid, 1, "USE_MNNVL"},
      {"megatron-inert-backend", kAlltoall + "\\\n--moe-flex-dispatcher-backend deepep", 2,
       "--moe-flex-dispatcher-backend"},
      {"megatron-inert-backend", kMegatron + "--moe-flex-dispatcher-backend hybridep", 1,
       "--moe-flex-dispatcher-backend"},
      {"megatron-inert-backend",
       "model:\n  moe_token_dispatcher_type: alltoall\n  moe_flex_dispatcher_backend: deepep\n", 3,
       "moe_flex_dispatcher_backend", "recipe.yaml"},
      {"megatron-wrong-value", kMegatron + "--moe-token-dispatcher-type all2all", 1, "--moe-token-dispatcher-type"},
      {"megatron-wrong-backend", kFlex + "--moe-flex-dispatcher-backend hybrid-ep", 1, "--moe-flex-dispatcher-backend"},
      {"megatron-default-backend", kFlex, 1, "--moe-token-dispatcher-type"},
      {"megatron-foreign-option", kHybrid + "--moe-deepep-num-sms 20", 1, "--moe-deepep-num-sms"},
      {"megatron-foreign-option", kAlltoall + "--moe-permute-fusion-into-hybridep", 1,
       "--moe-permute-fusion-into-hybridep"},
      {"megatron-foreign-variable", "export NUM_OF_HYBRID_EP_RANKS_PER_NVLINK_DOMAIN=8\n" + kDeepEp, 1,
       "NUM_OF_HYBRID_EP_RANKS_PER_NVLINK_DOMAIN"},
      {"megatron-deprecated", kDeepEp + "--moe-deepep-num-sms 20", 1, "--moe-deepep-num-sms"},
      {"megatron-too-new", kDeepEp + "--moe-flex-dispatcher-num-sms 20", 1, "--moe-flex-dispatcher-num-sms", "run.sh",
       "", "0.16"},
      {"megatron-conflict", kHybrid + "--moe-enable-deepep", 1, "--moe-enable-deepep"},
      {"megatron-conflict", kAlltoall + "--moe-enable-deepep", 1, "--moe-enable-deepep"},
      {"megatron-conflict", kDeepEp + "--moe-deepep-num-sms 20 --moe-hybridep-num-sms 16", 1, "--moe-hybridep-num-sms"},
      {"megatron-refused", kDeepEp + "--moe-expert-capacity-factor 1.0 --moe-pad-expert-input-to-capacity", 1,
       "--moe-pad-expert-input-to-capacity"},
      {"megatron-refused", kHybrid + "--moe-dispatch-fwd-dtype mxfp8", 1, "--moe-dispatch-fwd-dtype"},
      {"megatron-capacity", kAlltoall + "--moe-pad-expert-input-to-capacity", 1, "--moe-pad-expert-input-to-capacity"},
      {"megatron-shared-overlap", kMegatron + "--moe-token-dispatcher-type allgather --moe-shared-expert-overlap", 1,
       "--moe-shared-expert-overlap"},
      {"megatron-router-dtype",
       "pretrain_gpt.py --num-experts 64 --moe-token-dispatcher-type flex --moe-flex-dispatcher-backend deepep", 1,
       "--moe-token-dispatcher-type"},
      {"megatron-forced-balance", kAlltoall + "--moe-router-force-load-balancing", 1,
       "--moe-router-force-load-balancing"},
      {"degree-value", kMegatron + "--expert-model-parallel-size sixteen", 1, "--expert-model-parallel-size"},
      {"ep-divides-experts", kMegatron + "--moe-token-dispatcher-type alltoall --expert-model-parallel-size 12", 1,
       "--expert-model-parallel-size"},
      {"ep-divides-experts", "pretrain_gpt.py --moe-token-dispatcher-type alltoall --expert-model-parallel-size 8", 1,
       "--expert-model-parallel-size"},
      {"ep-divides-world", kMegatron + "--moe-token-dispatcher-type alltoall --expert-model-parallel-size 32", 1,
       "--expert-model-parallel-size"},
      {"ep-divides-world", kAlltoall + "--pipeline-model-parallel-size 3", 1, "--pipeline-model-parallel-size"},
      {"vllm-inert-backend",
       "containers:\n  - command: [vllm, serve]\n    args:\n      - deepseek-ai/DeepSeek-V3\n      - "
       "--data-parallel-size=16\n      - --all2all-backend=deepep_low_latency\n",
       6, "--all2all-backend", "pod.yaml"},
      {"vllm-inert-backend",
       "containers:\n  - image: vllm/vllm-openai\n    args: [deepseek-ai/DeepSeek-V3, -dp, '16', --all2all-backend, "
       "deepep_low_latency]\n",
       3, "--all2all-backend", "pod.yaml"},
      {"flex-one-rank", kFlex + "--moe-flex-dispatcher-backend deepep", 1, "--moe-token-dispatcher-type"},
      {"flex-one-rank", kFlex + "--moe-flex-dispatcher-backend deepep --expert-model-parallel-size 1", 1,
       "--moe-token-dispatcher-type"},
      {"top-k-experts",
       "torchrun pretrain_gpt.py --num-experts 8 --moe-router-topk 16 --moe-token-dispatcher-type alltoall", 1,
       "--moe-router-topk"},
      {"sequence-parallel", kMegatron + "--moe-token-dispatcher-type alltoall --tensor-model-parallel-size 2", 1,
       "--tensor-model-parallel-size"},
      {"ep-overlap", kAlltoall + "--overlap-moe-expert-parallel-comm --moe-shared-expert-overlap", 1,
       "--overlap-moe-expert-parallel-comm"},
      {"ep-overlap",
       kMegatron + "--moe-token-dispatcher-type alltoall --expert-model-parallel-size 8 --pipeline-model-parallel-size "
                   "2 --overlap-moe-expert-parallel-comm",
       1, "--overlap-moe-expert-parallel-comm"},
      {"ep-overlap", kAlltoall + "--overlap-moe-expert-parallel-comm --recompute-granularity full", 1,
       "--overlap-moe-expert-parallel-comm"},
      {"delay-wgrad", kAlltoall + "--delay-wgrad-compute", 1, "--delay-wgrad-compute"},
      {"one-connection", "export CUDA_DEVICE_MAX_CONNECTIONS=1\n" + kAlltoall + "--overlap-moe-expert-parallel-comm", 1,
       "CUDA_DEVICE_MAX_CONNECTIONS"},
      {"hybridep-uneven-tokens", kHybrid + "--rl-use-sequence-packing", 1, "--rl-use-sequence-packing"},
      {"hybridep-uneven-tokens",
       "model:\n  moe_token_dispatcher_type: flex\n  moe_flex_dispatcher_backend: hybridep\n  variable_seq_lengths: "
       "true\n",
       4, "variable_seq_lengths", "recipe.yaml"},
      {"graph-unknown-scope", kAlltoall + "--cuda-graph-impl local --cuda-graph-modules attn moe_routr", 1,
       "--cuda-graph-modules"},
      {"graph-inert-scope", kAlltoall + "--cuda-graph-modules attn moe_router", 1, "--cuda-graph-modules"},
      {"graph-scope-conflict",
       kAlltoall + "--cuda-graph-impl transformer_engine --cuda-graph-modules attn moe_preprocess", 1,
       "--cuda-graph-modules"},
      {"graph-scope-conflict", kAlltoall + "--cuda-graph-impl transformer_engine --cuda-graph-modules moe moe_router",
       1, "--cuda-graph-modules"},
      {"graph-dropless", kDeepEp + "--cuda-graph-impl transformer_engine --cuda-graph-modules attn moe", 1,
       "--cuda-graph-modules"},
      {"graph-dropless", kAlltoall + "--cuda-graph-impl full_iteration --no-check-for-nan-in-loss-and-grad", 1,
       "--cuda-graph-impl"},
      {"graph-mlp-scope", kAlltoall + "--cuda-graph-impl transformer_engine --cuda-graph-modules attn mlp", 1,
       "--cuda-graph-modules"},
      {"graph-preprocess",
       kAlltoall + "--moe-expert-capacity-factor 1.5 --cuda-graph-impl transformer_engine --cuda-graph-modules attn "
                   "moe_router moe_preprocess",
       1, "--cuda-graph-modules"},
      {"graph-overlap",
       kAlltoall + "--overlap-moe-expert-parallel-comm --cuda-graph-impl transformer_engine --cuda-graph-modules attn "
                   "mlp --moe-layer-freq 2",
       1, "--cuda-graph-modules"},
      {"graph-recompute",
       kAlltoall + "--recompute-granularity selective --recompute-modules moe --cuda-graph-impl transformer_engine "
                   "--cuda-graph-modules attn moe_router",
       1, "--recompute-modules"},
      {"graph-nan-check", kHybrid + "--cuda-graph-impl full_iteration --moe-expert-rank-capacity-factor 1.5", 1,
       "--cuda-graph-impl"},
      {"deepep-ranks", kFlex + "--moe-flex-dispatcher-backend deepep --num-experts 240 --expert-model-parallel-size 40",
       1, "--expert-model-parallel-size"},
      {"deepep-experts", "vllm serve Qwen/Qwen3-30B-A3B -dp 12 -ep --all2all-backend deepep_low_latency", 1, "-dp"},
      {"deepep-gpu", kDeepEp, 1, "--moe-flex-dispatcher-backend", "run.sh", "gb200-nvl72"},
      {"deepep-gpu", kDeepEp, 1, "--moe-flex-dispatcher-backend", "run.sh", "rtx-pro-6000"},
      {"deepep-gpu", kSglangEp, 1, "--moe-a2a-backend", "run.sh", "mi300x"},
      {"deepep-gpu", "#SBATCH --gres=gpu:gb300:4\nsrun " + kDeepEp, 2, "--moe-flex-dispatcher-backend", "run.sh",
       "gb300-nvl72"},
      {"hybridep-gpu", kHybrid, 1, "--moe-flex-dispatcher-backend", "run.sh", "a100"},
      {"hybridep-hidden",
       "export NUM_OF_HYBRID_EP_RANKS_PER_NVLINK_DOMAIN=8\n" + kHybrid + "--hidden-size 2880 --fp8-format hybrid", 2,
       "--hidden-size"},
      {"hybridep-hidden", kHybrid + "--hidden-size 2888", 1, "--hidden-size"},
      {"hybridep-domain", "export NUM_OF_HYBRID_EP_RANKS_PER_NVLINK_DOMAIN=6\n" + kHybrid, 1,
       "NUM_OF_HYBRID_EP_RANKS_PER_NVLINK_DOMAIN"},
      {"hybridep-domain", "NUM_OF_HYBRID_EP_RANKS_PER_NVLINK_DOMAIN=4 " + kHybrid, 1,
       "NUM_OF_HYBRID_EP_RANKS_PER_NVLINK_DOMAIN"},
      {"hybridep-domain", "export NUM_OF_HYBRID_EP_RANKS_PER_NVLINK_DOMAIN=8\n" + kHybrid, 1,
       "NUM_OF_HYBRID_EP_RANKS_PER_NVLINK_DOMAIN", "run.sh", "gb200-nvl72"},
      {"hybridep-domain", "export NUM_OF_HYBRID_EP_RANKS_PER_NVLINK_DOMAIN=144\n" + kHybrid, 1,
       "NUM_OF_HYBRID_EP_RANKS_PER_NVLINK_DOMAIN"},
      {"hybridep-mnnvl", "export NUM_OF_HYBRID_EP_RANKS_PER_NVLINK_DOMAIN=16 USE_MNNVL=0\n" + kHybrid, 1, "USE_MNNVL"},
      {"hybridep-mnnvl", "export USE_MNNVL=1\n" + kHybrid, 1, "USE_MNNVL", "run.sh", "h100-hgx"},
      {"hybridep-experts",
       kFlex + "--moe-flex-dispatcher-backend hybridep --num-experts 6 --expert-model-parallel-size 2", 1,
       "--expert-model-parallel-size"},
      {"hybridep-multinode-build", kHybrid, 1, "--moe-flex-dispatcher-backend"},
      {"hybridep-multinode-build", "git checkout hybrid-ep\npip install .\n" + kHybrid, 2, "HYBRID_EP_MULTINODE"},
      {"ncclep-limits", kFlex + "--moe-flex-dispatcher-backend ncclep --expert-model-parallel-size 128", 1,
       "--expert-model-parallel-size"},
      {"num-sms", kDeepEp + "--moe-flex-dispatcher-num-sms 21", 1, "--moe-flex-dispatcher-num-sms"},
      {"num-sms", kDeepEp + "--moe-deepep-num-sms 200", 1, "--moe-deepep-num-sms"},
      {"num-sms", kHybrid + "--moe-hybridep-num-sms 96", 1, "--moe-hybridep-num-sms"},
      {"num-sms", kHybrid + "--moe-hybridep-num-sms many", 1, "--moe-hybridep-num-sms"},
      {"deepep-config",
       kSglangEp + "--deepep-config '{\"normal_dispatch\": {\"num_sms\": 95}, \"normal_combine\": {}}'", 1,
       "--deepep-config"},
      {"deepep-config", kSglangEp + "--deepep-config '{normal_dispatch}'", 1, "--deepep-config"},
      {"vllm-wrong-backend", kVllmEp + "--all2all-backend deepep", 1, "--all2all-backend"},
      {"vllm-wrong-backend", kVllmEp + "--all2all-backend=deepep_lowlatency", 1, "--all2all-backend"},
      {"vllm-dead-backend", kVllmEp + "--all2all-backend pplx", 1, "--all2all-backend"},
      {"vllm-inert-backend", kVllm + "\\\n  --all2all-backend deepep_low_latency", 2, "--all2all-backend"},
      {"vllm-inert-backend", "vllm serve deepseek-ai/DeepSeek-V3 -tp 8 -ep --all2all-backend deepep_low_latency", 1,
       "--all2all-backend"},
      {"vllm-old-variable", "export VLLM_ALL2ALL_BACKEND=deepep_low_latency\n" + kVllmEp, 1, "VLLM_ALL2ALL_BACKEND"},
      {"vllm-too-new", kVllmEp + "--all2all-backend deepep_low_latency", 1, "--all2all-backend", "run.sh", "", "0.10"},
      {"vllm-microbatches", kVllmEp + "--enable-dbo", 1, "--enable-dbo"},
      {"vllm-eplb", kVllm + "--enable-eplb", 1, "--enable-eplb"},
      {"vllm-eplb-config", kVllmEp + "--enable-eplb --eplb-config '{\"window_sise\": 10}'", 1, "--eplb-config"},
      {"vllm-eplb-config", kVllmEp + "--enable-eplb --eplb-config '{\"communicator\": \"pynccl\"}'", 1,
       "--eplb-config"},
      {"vllm-eplb-split", kVllmEp + "--enable-eplb --eplb-config '{\"num_redundant_experts\": 3}'", 1, "--eplb-config"},
      {"vllm-eplb-split", kVllmEp + "--enable-eplb --eplb-config.num_redundant_experts=3", 1,
       "--eplb-config.num_redundant_experts"},
      {"deepep-experts",
       kVllmEp + "--all2all-backend deepep_low_latency --enable-eplb --eplb-config '{\"num_redundant_experts\": 31}'",
       1, "--eplb-config"},
      {"vllm-eplb", kVllmEp + "--eplb-config '{\"num_redundant_experts\": 16}'", 1, "--eplb-config"},
      {"vllm-graphs", kVllmEp + "--all2all-backend deepep_high_throughput", 1, "--all2all-backend"},
      {"vllm-dp-local", kVllmEp + "--data-parallel-size-local 16", 1, "--data-parallel-size-local"},
      {"vllm-gpu", kVllmEp + "--all2all-backend mori_high_throughput", 1, "--all2all-backend", "run.sh", "h100-hgx"},
      {"sglang-wrong-value", kSglang + "--moe-a2a-backend deep_ep", 1, "--moe-a2a-backend"},
      {"sglang-wrong-value", kSglangEp + "--deepep-mode low-latency", 1, "--deepep-mode"},
      {"sglang-inert-mode", kSglang + "--deepep-mode normal", 1, "--deepep-mode"},
      {"sglang-inert-mode", kSglang + "--moe-a2a-backend deepep_v2 --deepep-mode auto", 1, "--deepep-mode"},
      {"sglang-old-switch", kSglang + "--enable-deepep-moe", 1, "--enable-deepep-moe"},
      {"sglang-ep-degree", kSglangEp + "--ep-size 8", 1, "--ep-size"},
      {"sglang-ep-degree", kSglang + "--ep 3", 1, "--ep"},
      {"sglang-dp-attention", kSglangEp + "--enable-dp-attention --dp 3", 1, "--dp"},
      {"sglang-experts", "python -m sglang.launch_server --model-path Qwen/Qwen3-30B-A3B --tp 12 --ep 12", 1, "--ep"},
      {"deepep-experts", kSglangEp + "--ep-num-redundant-experts 5", 1, "--ep-num-redundant-experts"},
      {"lost-option",
       "torchrun --nproc_per_node 8 pretrain_gpt.py --num-experts 8 \\ \n  --moe-token-dispatcher-type alltoall", 1,
       "\\"},
      {"sglang-graphs", kSglangEp + "--deepep-mode normal --cuda-graph-max-bs 64", 1, "--cuda-graph-max-bs"},
      {"sglang-phase", kSglangEp + "--deepep-mode low_latency --disaggregation-mode prefill", 1, "--deepep-mode"},
      {"sglang-dispatch-tokens", kSglangEp + "--cuda-graph-max-bs 256", 1, "--cuda-graph-max-bs"},
      {"sglang-dispatch-tokens", "export SGLANG_DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK=2048\n" + kSglangEp, 1,
       "SGLANG_DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK"},
      {"sglang-deepep-v2", kSglang + "--moe-a2a-backend deepep_v2 --nnodes 2", 1, "--nnodes"},
      {"sglang-refused", kSglang + "--enable-two-batch-overlap", 1, "--enable-two-batch-overlap"},
      {"compare-routing-mode", kAlltoall + "--moe-router-force-load-balancing\n" + kDeepEp, 1,
       "--moe-router-force-load-balancing"},
      {"compare-graph-scopes",
       kAlltoall + "\n" + kDeepEp + "--cuda-graph-impl transformer_engine --cuda-graph-modules attn", 2,
       "--cuda-graph-impl"},
  };
  return all;
}

CheckReport check_mistake(const Mistake& mistake) {
  check::CheckOptions options;
  if (*mistake.hardware != '\0') options.cluster = find_cluster(mistake.hardware);
  if (*mistake.version != '\0') {
    options.megatron = parse_version(mistake.version);
    options.vllm = parse_version(mistake.version);
    options.sglang = parse_version(mistake.version);
  }
  return check::check_config(check::parse_config(mistake.text, mistake.file), options);
}

std::string describe(const CheckReport& report) {
  std::string text;
  for (const Finding& finding : report.findings) {
    text += std::to_string(finding.line) + " " + finding.flag + " " + finding.rule + ": " + finding.message + "\n";
  }
  return text;
}

TEST(CheckWrong, EveryMistakeIsFoundWhereItIs) {
  for (const Mistake& mistake : mistakes()) {
    const CheckReport report = check_mistake(mistake);
    const bool found = std::any_of(report.findings.begin(), report.findings.end(), [&](const Finding& finding) {
      return finding.rule == mistake.rule && finding.line == mistake.line && finding.flag == mistake.flag;
    });
    EXPECT_TRUE(found) << mistake.rule << " at " << mistake.line << " " << mistake.flag << "\n"
                       << mistake.text << "\n"
                       << describe(report);
  }
}

TEST(CheckWrong, EveryFindingSaysWhatToDo) {
  for (const Mistake& mistake : mistakes()) {
    for (const Finding& finding : check_mistake(mistake).findings) {
      EXPECT_FALSE(finding.message.empty()) << finding.rule;
      EXPECT_FALSE(finding.fix.empty()) << finding.rule;
      EXPECT_GT(finding.line, 0) << finding.rule;
    }
  }
}

TEST(CheckWrong, EveryRuleHasAMistake) {
  std::set<std::string_view> shown;
  const auto configs = checked_configs("_wrong");
  std::vector<std::string> rules;
  for (const CheckedConfig& config : configs) rules.push_back(config.get("rule"));
  shown.insert(rules.begin(), rules.end());
  for (const Mistake& mistake : mistakes()) shown.insert(mistake.rule);
  for (const check::CheckRule& rule : check::all_checks()) {
    EXPECT_TRUE(shown.contains(rule.id)) << rule.id;
    EXPECT_FALSE(rule.source.empty()) << rule.id;
    EXPECT_TRUE(rule.date.starts_with("20")) << rule.id;
  }
}

TEST(CheckWrong, TellsWhatWouldRun) {
  const auto would_run = [](const std::string& text, const char* file = "run.sh") {
    return check::check_config(check::parse_config(text, file), {}).would_run;
  };
  EXPECT_EQ(would_run(kAlltoall + "--moe-flex-dispatcher-backend deepep"), "alltoall");
  EXPECT_EQ(would_run(kMegatron), "allgather");
  EXPECT_EQ(would_run(kFlex), "deepep");
  EXPECT_EQ(would_run(kHybrid), "hybridep");
  EXPECT_EQ(would_run(kVllm + "--all2all-backend deepep_low_latency"), "none");
  EXPECT_EQ(would_run(kVllmEp + "--all2all-backend naive"), "allgather_reducescatter");
  EXPECT_EQ(would_run(kSglang), "none");
  EXPECT_EQ(would_run(kSglangEp), "deepep");
  EXPECT_EQ(would_run("python setup_experiment.py -g h100 --moe_flex_dispatcher_backend hybridep"), "hybridep");
}

}  // namespace
}  // namespace epistle::test
