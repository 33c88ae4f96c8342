// Scripts, YAML and JSON that somebody broke: a report or a typed error, never a crash.
#include <cstdint>
#include <random>
#include <string>

#include <gtest/gtest.h>

#include "epistle/error.hpp"

#include "select/check/check.hpp"
#include "support/sanitizers.hpp"
#include "topology/cluster.hpp"

namespace epistle::test {
namespace {

const std::string kScript =
    "#!/bin/bash\n#SBATCH --nodes=2 --gres=gpu:h100:8\nexport NUM_OF_HYBRID_EP_RANKS_PER_NVLINK_DOMAIN=8 USE_MNNVL=0\n"
    "EP=$((2*8))\nARGS=( --num-experts 128 # many\n --hidden-size \"2048\" )\n"
    "O=\"--moe-token-dispatcher-type flex \\\n --moe-flex-dispatcher-backend ${B:-deepep}\"\n"
    "if [ -n \"$X\" ]; then O+=' --bf16'; else O=; fi\n"
    "torchrun --nproc_per_node 8 --nnodes 2 pretrain_gpt.py \"${ARGS[@]}\" $O --expert-model-parallel-size $EP "
    "--cuda-graph-impl local --cuda-graph-modules attn moe_router\n"
    "vllm serve x -dp 8 -ep --all2all-backend deepep_low_latency --eplb-config '{\"window_size\": 1}'\n"
    "python -m sglang.launch_server --model-path x --tp 8 --moe-a2a-backend deepep --deepep-config '{\"a\": [1]}'\n";

const std::string kYaml =
    "base: &b\n  moe_token_dispatcher_type: flex\nmodel:\n  <<: *b\n  moe_flex_dispatcher_backend: \"deepep\"\n"
    "  cuda_graph_modules: [attn, moe_router]\n  expert_model_parallel_size: 8\nnum_nodes: 2\ngpus_per_node: 8\n"
    "env:\n- name: USE_MNNVL\n  value: \"1\"\nargs: [\"--moe-a2a-backend\", deepep]\nscript: |\n  vllm serve x -ep\n";

const std::string kJson = "{\"model\": {\"moe_token_dispatcher_type\": \"flex\", \"moe_flex_dispatcher_num_sms\": 21}}";

const std::string kPython =
    "import os\ndef tuned():\n    \"\"\"It's --moe-x.\"\"\"\n    os.environ['USE_MNNVL'] = '1'\n    cfg = base()\n"
    "    cfg.model.moe_token_dispatcher_type = \"flex\"  # now\n    cfg.model.cuda_graph_scope = ['attn', "
    "\"moe_router\"]\n"
    "    apply_flex_dispatcher_backend(cfg.model, moe_flex_dispatcher_backend=r'deepep')\n"
    "x = dict(moe_deepep_num_sms=2_1, **{'expert_model_parallel_size': -8})\n"
    "cmd = ['vllm', 'serve', f'{m}', '--all2all-backend', 'pplx']\nrun('vllm serve x --data-parallel-size 8 ' + "
    "'''a\nb''')\n";

/// Bytes that mean something to one of the readers.
constexpr std::string_view kPieces =
    "'\"`\\$(){}[]<>|&;#=:-*!%@~?, \n\t\r\x01\x7f\xc3\xff"
    "0a&*";

std::string mutate(std::string text, std::mt19937& random) {
  const std::size_t num_changes = 1 + random() % 8;
  for (std::size_t change = 0; change < num_changes && !text.empty(); ++change) {
    const std::size_t at = random() % text.size();
    const std::size_t length = std::min<std::size_t>(1 + random() % 12, text.size() - at);
    switch (random() % 4) {
      case 0:
        text[at] = kPieces[random() % kPieces.size()];
        break;
      case 1:
        text.erase(at, length);
        break;
      case 2:
        text.insert(at, text.substr(random() % text.size(), length));
        break;
      default:
        text.insert(at, 1, kPieces[random() % kPieces.size()]);
    }
  }
  return text;
}

void check_survives(const std::string& text, const std::string& name, const check::CheckOptions& options) {
  try {
    const check::CheckReport report = check::check_config(check::parse_config(text, name), options);
    for (const check::Finding& finding : report.findings) EXPECT_GE(finding.line, 0);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kCorruptInput) << error.what();
    EXPECT_NE(std::string(error.what()).find(name), std::string::npos) << error.what();
  }
}

TEST(CheckFuzz, BrokenFilesGiveAReportOrATypedError) {
  check::CheckOptions options;
  options.cluster = find_cluster("gb200-nvl72");
  std::mt19937 random(20261127);
  const int num_trials = epistle::testing::kInstrumented ? 60 : 1500;
  for (int trial = 0; trial < num_trials; ++trial) {
    check_survives(mutate(kScript, random), "broken.sh", options);
    check_survives(mutate(kYaml, random), "broken.yaml", options);
    check_survives(mutate(kJson, random), "broken.json", {});
    check_survives(mutate(kScript, random), "broken", {});
    check_survives(mutate(kPython, random), "broken.py", options);
  }
}

TEST(CheckFuzz, DeepAndWideFilesEnd) {
  const std::size_t depth = 20'000;
  check_survives(std::string(depth, '['), "deep.yaml", {});
  check_survives(std::string(depth, '{'), "deep.json", {});
  check_survives("a: " + std::string(depth, '$') + std::string(depth, '('), "deep.sh", {});
  check_survives("run " + std::string(depth, '{') + " ${" + std::string(depth, '{'), "deep.sh", {});
  std::string nested;
  for (std::size_t level = 0; level < 2000; ++level) nested += "${A:-";
  check_survives("run " + nested + std::string(2000, '}'), "nested.sh", {});
  std::string aliases = "a0: &a0 [x, x]\n";
  for (int level = 1; level < 40; ++level) {
    const std::string before = std::to_string(level - 1);
    aliases += "a" + std::to_string(level) + ": &a" + std::to_string(level) + " [*a" + before + ", *a" + before + "]\n";
  }
  check_survives(aliases, "aliases.yaml", {});
  check_survives(std::string(depth, '[') + std::string(depth, '"'), "deep.py", {});
  check_survives("apply_flex_dispatcher_backend" + std::string(depth, '('), "deep.py", {});
  check_survives("--moe-token-dispatcher-type " + std::string(300'000, 'x'), "long.sh", {});
}

TEST(CheckFuzz, WhatIsNoTextOrTooLongIsRefused) {
  EXPECT_THROW(static_cast<void>(check::parse_config(std::string("a\0b", 3), "zero")), Error);
  EXPECT_THROW(static_cast<void>(check::parse_config(std::string(check::kMaxConfigBytes + 1, 'a'), "long")), Error);
  EXPECT_THROW(static_cast<void>(check::read_config("/nowhere/run.sh")), Error);
}

}  // namespace
}  // namespace epistle::test
