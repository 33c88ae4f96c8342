// Configurations with nothing wrong: no finding above an info, whatever they are written as.
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "select/check/check.hpp"
#include "topology/cluster.hpp"

namespace epistle::test {
namespace {

struct Right {
  const char* would_run;
  const char* text;
  const char* file = "run.sh";
  const char* hardware = "";
};

const Right kRight[] = {
    {"alltoall", R"(#!/bin/bash
#SBATCH --nodes=2
#SBATCH --gres=gpu:h100:8
export CUDA_DEVICE_MAX_CONNECTIONS=1
GPUS_PER_NODE=8
NUM_NODES=2
WORLD_SIZE=$(($GPUS_PER_NODE*$NUM_NODES))
CHECKPOINT_PATH=$1
DATA_PATH=$2
DISTRIBUTED_ARGS=(
    --nproc_per_node $GPUS_PER_NODE
    --nnodes $NUM_NODES
    --node_rank ${NODE_RANK:-"0"}
    --master_addr $MASTER_ADDR
    --master_port 6000
)
MODEL_ARGS=(
    --use-mcore-models
    --disable-bias-linear
    --seq-length 4096
    --max-position-embeddings 32768
    --num-layers 32
    --hidden-size 4096
    --ffn-hidden-size 14336
    --num-attention-heads 32
    --init-method-std 0.01
    --attention-dropout 0.0
    --hidden-dropout 0.0
    --normalization RMSNorm
    --position-embedding-type rope
    --swiglu
    --untie-embeddings-and-output-weights
    --group-query-attention
    --num-query-groups 8
    --no-masked-softmax-fusion
    --no-position-embedding
    --rotary-base 1000000
)
MOE_ARGS=(
    --num-experts 8
    --moe-router-topk 2
    --moe-router-load-balancing-type aux_loss
    --moe-aux-loss-coeff 1e-2
    --moe-grouped-gemm
    --moe-token-dispatcher-type alltoall
    --overlap-param-gather
    --overlap-grad-reduce
)
TRAINING_ARGS=( --micro-batch-size 1 --global-batch-size 256 --lr 1e-4 --train-iters 500000
    --lr-decay-iters 320000 --lr-decay-style cosine --min-lr 1.0e-5 --weight-decay 0.1 --lr-warmup-iters 500
    --clip-grad 1.0 --bf16 )
MODEL_PARALLEL_ARGS=(
    --tensor-model-parallel-size 1
    --pipeline-model-parallel-size 4
    --num-layers-per-virtual-pipeline-stage 8
    --expert-model-parallel-size 4
    --use-distributed-optimizer
    --sequence-parallel
)
LOGGING_ARGS=( --log-interval 1 --save-interval 10000 --eval-interval 1000 --eval-iters 10
    --save $CHECKPOINT_PATH --load $CHECKPOINT_PATH --tensorboard-dir "${CHECKPOINT_PATH}/tensorboard" --no-load-optim --no-load-rng )
if [ -n "${WANDB_API_KEY}" ]; then
    LOGGING_ARGS+=( --wandb-project ${WANDB_PROJECT:-"Mixtral"} --wandb-exp-name ${WANDB_NAME:-"Mixtral_8x7B"} )
fi
torchrun ${DISTRIBUTED_ARGS[@]} pretrain_gpt.py \
    ${MODEL_ARGS[@]} ${MOE_ARGS[@]} --data-path $DATA_PATH \
    ${TRAINING_ARGS[@]} ${MODEL_PARALLEL_ARGS[@]} ${LOGGING_ARGS[@]}
)"},
    {"deepep", R"(export CUDA_DEVICE_MAX_CONNECTIONS=32
OPTIONS="--num-experts 256 --hidden-size 7168 --moe-router-topk 8 --bf16 \
  --moe-token-dispatcher-type flex --moe-flex-dispatcher-backend deepep --moe-flex-dispatcher-num-sms 20 \
  --moe-router-dtype fp32 --expert-model-parallel-size 32 --pipeline-model-parallel-size 8 \
  --num-virtual-stages-per-pipeline-rank 2 --overlap-moe-expert-parallel-comm --delay-wgrad-compute \
  --cuda-graph-impl transformer_engine --cuda-graph-modules attn moe_router moe_preprocess \
  --recompute-granularity selective --recompute-modules mla_up_proj mlp --moe-permute-fusion"
srun --nodes 32 --ntasks-per-node 8 bash -c "python -u pretrain_gpt.py ${OPTIONS}"
)",
     "run.sh", "h100-hgx"},
    {"hybridep", R"(export NUM_OF_HYBRID_EP_RANKS_PER_NVLINK_DOMAIN=64
export USE_MNNVL=1
torchrun --nproc-per-node=4 --nnodes=64 pretrain_gpt.py --bf16 --fp8-format e4m3 --fp8-recipe mxfp8 \
  --num-experts=256 --hidden-size=7168 --moe-router-topk=8 --moe-token-dispatcher-type=flex \
  --moe-flex-dispatcher-backend=hybridep --moe-flex-dispatcher-num-sms=32 --expert-model-parallel-size=64 \
  --moe-router-padding-for-quantization --moe-permute-fusion-into-hybridep
)",
     "run.sh", "gb200-nvl72"},
    {"hybridep",
     R"(NUM_OF_HYBRID_EP_RANKS_PER_NVLINK_DOMAIN=8 USE_MNNVL=0 torchrun --nproc_per_node 8 --nnodes 4 pretrain_gpt.py \
  --bf16 --num-experts 128 --hidden-size 4096 --moe-token-dispatcher-type flex --moe-flex-dispatcher-backend hybridep \
  --moe-hybridep-num-sms 16 --expert-model-parallel-size 32
)"},
    {"hybridep",
     "pretrain_gpt.py --bf16 --num-experts 32 --hidden-size 2880 --moe-token-dispatcher-type flex "
     "--moe-flex-dispatcher-backend hybridep --expert-model-parallel-size 8"},
    {"alltoall",
     R"(torchrun --nproc_per_node 8 pretrain_gpt.py --bf16 --num-experts 64 --moe-token-dispatcher-type alltoall \
  --expert-model-parallel-size 8 --moe-expert-capacity-factor 1.0 --moe-pad-expert-input-to-capacity \
  --cuda-graph-impl transformer_engine --cuda-graph-modules attn moe
)"},
    {"ncclep",
     "pretrain_gpt.py --bf16 --num-experts 128 --moe-router-topk 8 --moe-token-dispatcher-type flex "
     "--moe-flex-dispatcher-backend ncclep --expert-model-parallel-size 16"},
    {"allgather",
     "torchrun --nproc_per_node 8 pretrain_gpt.py --bf16 --num-experts 8 --expert-model-parallel-size 4 "
     "--tensor-model-parallel-size 2 --sequence-parallel --expert-tensor-parallel-size 1"},
    {"none", "torchrun --nproc_per_node 8 pretrain_gpt.py --bf16 --hidden-size 4096 --tensor-model-parallel-size 8"},
    {"deepep",
     "model:\n  moe_token_dispatcher_type: flex\n  moe_flex_dispatcher_backend: deepep\n  moe_router_dtype: fp32\n"
     "  expert_model_parallel_size: 8\n  num_moe_experts: 128\n  moe_shared_expert_overlap: false\n",
     "recipe.yaml"},
    {"alltoall",
     "ENV_VARS:\n  CUDA_DEVICE_MAX_CONNECTIONS: 1\nMODEL_ARGS:\n  --num-experts: 256\n  --moe-router-topk: 8\n"
     "  --moe-token-dispatcher-type: alltoall\n  --moe-grouped-gemm: true\n  --expert-model-parallel-size: 8\n"
     "  --bf16: true\n",
     "deepseek.yaml"},
    {"hybridep",
     "python scripts/performance/setup_experiment.py -g gb200 -m deepseek -s v3 -ng 256 "
     "--moe_flex_dispatcher_backend hybridep -ep 64 -pp 4",
     "bridge.sh"},
    {"alltoall",
     "python run_recipe.py model.moe_token_dispatcher_type=alltoall model.expert_model_parallel_size=8 "
     "train.train_iters=10",
     "recipe.sh"},
    {"deepep_low_latency", R"(VLLM_USE_DEEP_GEMM=1 vllm serve deepseek-ai/DeepSeek-V3-0324 \
    --tensor-parallel-size 1 --data-parallel-size 16 --data-parallel-size-local 8 \
    --data-parallel-address 10.0.0.1 --data-parallel-rpc-port 13345 --enable-expert-parallel \
    --all2all-backend deepep_low_latency --enable-eplb \
    --eplb-config '{"window_size":1000,"step_interval":3000,"num_redundant_experts":32,"log_balancedness":true}' \
    --enable-dbo --max-model-len 8192 --gpu-memory-utilization 0.9 --trust-remote-code --headless
)"},
    {"deepep_high_throughput",
     "vllm serve Qwen/Qwen3-235B-A22B -tp 2 -dp 4 -ep --all2all-backend=deepep_high_throughput -q fp8"},
    {"none", "vllm serve meta-llama/Llama-3.1-8B --tensor-parallel-size 8 --port 8000 -O3"},
    {"allgather_reducescatter",
     "python -m vllm.entrypoints.openai.api_server --model openai/gpt-oss-120b "
     "--data_parallel_size 8 --enable_expert_parallel"},
    {"deepep_low_latency",
     "model: deepseek-ai/DeepSeek-R1\ndata-parallel-size: 8\nenable-expert-parallel: true\n"
     "all2all-backend: deepep_low_latency\nmax-model-len: 8192\n",
     "config.yaml"},
    {"deepep", R"(SGLANG_DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK=256 python3 -m sglang.launch_server \
  --model-path deepseek-ai/DeepSeek-V3 --tp 16 --ep 16 --dp 16 --enable-dp-attention --moe-a2a-backend deepep --deepep-mode auto \
  --nnodes 2 --node-rank 0 --dist-init-addr 10.0.0.1:5757 --mem-fraction-static 0.8 --cuda-graph-max-bs 256 \
  --ep-num-redundant-experts 32 --enable-eplb --eplb-algorithm deepseek --enable-two-batch-overlap \
  --deepep-config '{"normal_dispatch": {"num_sms": 96, "num_max_nvl_chunked_send_tokens": 12}, "normal_combine": {"num_sms": 96}}' \
  --chunked-prefill-size 32768 --trust-remote-code
)"},
    {"deepep",
     "python3 -m sglang.launch_server --model-path deepseek-ai/DeepSeek-V3 --disaggregation-mode prefill --tp-size 8 "
     "--moe-a2a-backend deepep --deepep-mode normal --disable-radix-cache"},
    {"none",
     "python3 -m sglang.launch_server --model-path Qwen/Qwen3-30B-A3B --tp 8 --ep 8 --moe-runner-backend triton"},
    {"deepep_v2",
     "sglang serve --model-path deepseek-ai/DeepSeek-V3 --tp 16 --nnodes 2 --moe-a2a-backend deepep_v2 "
     "--deepep-v2-mode hybrid --moe-runner-backend deep_gemm"},
    {"mori",
     "python3 -m sglang.launch_server --model-path deepseek-ai/DeepSeek-V3 --tp 8 --moe-a2a-backend mori --deepep-mode "
     "normal",
     "amd.sh", "mi300x"},
    {"alltoall",
     "torchrun --nproc_per_node 8 pretrain_gpt.py \\\r\n  --bf16 --num-experts 64 \\\r\n"
     "  --moe-token-dispatcher-type alltoall \\\r\n  --expert-model-parallel-size 8\r\n"},
    {"deepep", R"(apiVersion: apps/v1
kind: Deployment
spec:
  template:
    spec:
      containers:
      - name: sglang
        image: lmsysorg/sglang:latest
        env:
        - name: SGLANG_DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK
          value: "128"
        command: ["python3", "-m", "sglang.launch_server"]
        args:
        - --model-path
        - deepseek-ai/DeepSeek-V3
        - --tp-size=16
        - --moe-a2a-backend
        - deepep
)",
     "pod.yaml"},
    {"deepep_low_latency", R"(services:
  decode:
    command: >
      vllm serve deepseek-ai/DeepSeek-V3
      --data-parallel-size 8 --enable-expert-parallel
      --all2all-backend deepep_low_latency
)",
     "compose.yaml"},
};

TEST(CheckRight, NothingRightIsCalledWrong) {
  for (const Right& right : kRight) {
    check::CheckOptions options;
    if (*right.hardware != '\0') options.cluster = find_cluster(right.hardware);
    const check::CheckReport report = check::check_config(check::parse_config(right.text, right.file), options);
    EXPECT_EQ(report.would_run, right.would_run) << right.text;
    for (const check::Finding& finding : report.findings) {
      EXPECT_EQ(finding.severity, check::Severity::kInfo)
          << finding.line << " " << finding.flag << " " << finding.rule << ": " << finding.message << "\n"
          << right.text;
    }
  }
}

}  // namespace
}  // namespace epistle::test
