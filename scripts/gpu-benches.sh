# shellcheck shell=bash disable=SC2034  # what is set here is read by gpu-check
# What scripts/gpu-check measures: of two ranks, and of more by the same rows. Sourced, not run.
#
# A benchmark has its record, the GPUs that it needs and its options; a tool its command besides. STEP_ENVIRONMENT is what a
# step's environment has besides: the GPUs that it may see, where not all of them, and by what domains are joined.

# Top-8 of 256 experts, hidden 7168, two ranks of 4096 tokens.
BIG=(--hidden 7168 --experts 256 --top-k 8 --tokens 4096 --ranks 2)
QWEN=(--model qwen3-30b-a3b --tokens 4096 --ranks 2 --dtype fp8)
FP8=(--dtype fp8)
EXPERT_MAJOR=(--layout expert_major --alignment 128)
PAIR=(--group processes)
OURS=alltoall,direct,low_latency
DECODE_DISPATCHER=low_latency
MODEL=(--hidden 7168 --experts 256 --top-k 8)
SMALL_MODEL=(--hidden 2048 --experts 128 --top-k 8)
# Static shapes. A rank gets every token of both ranks at most; of its 128 experts about half need a second group of 128
# rows, 40.4 thousand rows together with this routing, and the rest is room.
CAPACITY=(--sizing capacity --capacity-rows 8192)
EXPERT_CAPACITY=(--sizing capacity --capacity-rows 41984)

BENCH_NAMES=()
declare -A BENCH_GPUS BENCH_OPTIONS STEP_ENVIRONMENT

# add_bench NAME NUM_GPUS OPTION...
add_bench() {
  BENCH_NAMES+=("$1")
  BENCH_GPUS["$1"]="$2"
  BENCH_OPTIONS["$1"]="${*:3}"
}

TOOL_NAMES=()
declare -A TOOL_GPUS TOOL_OPTIONS

# add_tool NAME NUM_GPUS COMMAND OPTION...
add_tool() {
  TOOL_NAMES+=("$1")
  TOOL_GPUS["$1"]="$2"
  TOOL_OPTIONS["$1"]="${*:3}"
}

# Of two ranks: those that the pages show, and others to compare them with.
add_pair_steps() {
  add_bench token-major-bf16-16sms 2 "${PAIR[@]}" "${BIG[@]}" "${CAPACITY[@]}" --sms 16
  add_bench token-major-bf16-8sms 2 "${PAIR[@]}" "${BIG[@]}" "${CAPACITY[@]}" --sms 8
  add_bench token-major-bf16 2 "${PAIR[@]}" "${BIG[@]}" "${CAPACITY[@]}"
  add_bench token-major-fp8-16sms 2 "${PAIR[@]}" "${BIG[@]}" "${FP8[@]}" "${CAPACITY[@]}" --sms 16
  add_bench expert-major-bf16 2 "${PAIR[@]}" "${BIG[@]}" "${EXPERT_MAJOR[@]}" "${EXPERT_CAPACITY[@]}"
  add_bench expert-major-bf16-32sms 2 "${PAIR[@]}" "${BIG[@]}" "${EXPERT_MAJOR[@]}" "${EXPERT_CAPACITY[@]}" --sms 32
  add_bench qwen3-30b-fp8-32sms 2 "${PAIR[@]}" "${QWEN[@]}" "${CAPACITY[@]}" --sms 32
  # Those above with two events around every call, which show almost 3 us of their own.
  for name in "${BENCH_NAMES[@]}"; do
    add_bench "$name-single" 2 "${BENCH_OPTIONS[$name]} --runs 1"
  done
  # With exact sizing: the host waits for the counts, once.
  add_bench token-major-bf16-16sms-exact 2 "${PAIR[@]}" "${BIG[@]}" --sms 16
  add_bench token-major-bf16-8sms-exact 2 "${PAIR[@]}" "${BIG[@]}" --sms 8
  add_bench token-major-bf16-exact 2 "${PAIR[@]}" "${BIG[@]}"
  add_bench token-major-fp8-16sms-exact 2 "${PAIR[@]}" "${BIG[@]}" "${FP8[@]}" --sms 16
  add_bench expert-major-bf16-exact 2 "${PAIR[@]}" "${BIG[@]}" "${EXPERT_MAJOR[@]}"
  add_bench expert-major-bf16-32sms-exact 2 "${PAIR[@]}" "${BIG[@]}" "${EXPERT_MAJOR[@]}" --sms 32
  add_bench qwen3-30b-fp8-32sms-exact 2 "${PAIR[@]}" "${QWEN[@]}" --sms 32
  # Other ways to run, for comparison.
  add_bench expert-major-bf16-unpadded 2 "${PAIR[@]}" "${BIG[@]}" "${EXPERT_MAJOR[@]}" "${EXPERT_CAPACITY[@]}" \
    --no-zero-padding
  add_bench token-major-bf16-16sms-threads 2 --group threads "${BIG[@]}" "${CAPACITY[@]}" --sms 16
  add_bench token-major-bf16-copy-engines 2 "${PAIR[@]}" "${BIG[@]}" --mover copy-engines
  add_bench token-major-bf16-nccl 2 "${PAIR[@]}" "${BIG[@]}" --dispatcher direct,alltoall
  add_bench virtual-8-bf16 1 --group threads --hidden 2048 --experts 128 --top-k 8 --tokens 512 --ranks 8
  # Two domains of one GPU, joined by the network stack of this host.
  for tokens in 128 4096; do
    add_bench "hybrid-tcp-$tokens" 2 "${PAIR[@]}" "${MODEL[@]}" --tokens "$tokens" --ranks 2 --domain-size 1 \
      --dispatcher hybrid --runs 1
    STEP_ENVIRONMENT["hybrid-tcp-$tokens"]="EPISTLE_DOMAIN_LINK=fabric EPISTLE_FABRIC_PROVIDER=tcp"
  done
  # Decode steps: pairs in a row, in a CUDA graph and without, and ten thousand replays. A rank gets every token of both
  # ranks at most, and so does each of its experts. Nobody reads the padding of blocks, which is most of them.
  DECODE=(--hidden 7168 --experts 256 --top-k 8 --ranks 2 --dispatcher "$DECODE_DISPATCHER" --wire fp8 --no-zero-padding
    --chain 20 --replays 10000)
  for tokens in 1 8 64 128 256; do
    static=(--tokens "$tokens" --sizing capacity --capacity-rows "$((2 * tokens))")
    add_bench "decode-token-major-$tokens" 2 "${PAIR[@]}" "${DECODE[@]}" "${static[@]}"
    add_bench "decode-expert-blocks-$tokens" 2 "${PAIR[@]}" "${DECODE[@]}" "${static[@]}" --layout expert_blocks
  done
  for sms in 16 32; do
    add_bench "decode-expert-blocks-128-${sms}sms" 2 "${BENCH_OPTIONS[decode-expert-blocks-128]} --sms $sms"
  done
  add_bench virtual-8-decode 1 --group threads --hidden 2048 --experts 128 --top-k 8 --tokens 64 --ranks 8 \
    --sizing capacity --capacity-rows 512 --chain 4 --replays 200
  # What the tools are asked: decode steps and a prefill.
  SHAPE=(--device cuda --group processes --ranks 2 --hidden 7168 --experts 256 --top-k 8)
  TUNED=("${SHAPE[@]}" --tokens 128 --sizing capacity --capacity-rows 256)
  add_tool doctor 1 doctor --python "@python" --time-limit 120 --model deepseek-v3
  add_tool compare-128 2 compare "${SHAPE[@]}" --dispatchers "$OURS,ncclep,deepep-low-latency" --python "@python" --tokens 128 \
    --sizing capacity --capacity-rows 256
  add_tool compare-4096 2 compare "${SHAPE[@]}" --dispatchers "$OURS,ncclep-high-throughput,deepep" --python "@python" --tokens 4096 \
    --sizing capacity --capacity-rows 8192
  add_tool tune-128 2 tune "${TUNED[@]}" --policy balanced --gemm --chain 5 --profile profile-128.json
  add_tool bench-profile-128 2 bench "${TUNED[@]}" --chain 20 --profile profile-128.json
  add_tool compare-profile-128 2 compare "${TUNED[@]}" --dispatchers direct --profile profile-128.json --baseline direct
}

# add_group_steps PREFIX RANKS GPUS GROUP SHAPE...: the same of a larger group. SHAPE: options of a prefill and its tokens last.
add_group_steps() {
  local prefix="$1" ranks="$2" gpus="$3" group=(--group "$4")
  local tokens="${*: -1}" model=("${@:5}")
  local rows="$((ranks * tokens))"
  local big=("${group[@]}" --ranks "$ranks" "${model[@]}") static=(--sizing capacity --capacity-rows "$rows")
  local name sms size step=(--ranks "$ranks" "${group[@]}")
  for sms in 24 16 12 8; do
    add_bench "$prefix-token-major-bf16-${sms}sms" "$gpus" "${big[@]}" "${static[@]}" --sms "$sms"
  done
  add_bench "$prefix-token-major-bf16" "$gpus" "${big[@]}" "${static[@]}"
  add_bench "$prefix-token-major-fp8-16sms" "$gpus" "${big[@]}" "${FP8[@]}" "${static[@]}" --sms 16
  # Every expert's group may need 128 rows more than it has.
  local padded=(--sizing capacity --capacity-rows "$((8 * tokens + tokens + 128 * 256 / ranks))")
  add_bench "$prefix-expert-major-bf16" "$gpus" "${big[@]}" "${EXPERT_MAJOR[@]}" "${padded[@]}"
  add_bench "$prefix-expert-major-bf16-32sms" "$gpus" "${big[@]}" "${EXPERT_MAJOR[@]}" "${padded[@]}" --sms 32
  add_bench "$prefix-qwen3-30b-fp8-32sms" "$gpus" "${group[@]}" --ranks "$ranks" --model qwen3-30b-a3b --tokens "$tokens" \
    "${FP8[@]}" "${static[@]}" --sms 32
  if [ "$4" = processes ]; then  # alltoall has no virtual ranks
    add_bench "$prefix-token-major-bf16-nccl" "$gpus" "${big[@]}" --dispatcher direct,alltoall
  fi
  for size in 1 8 64 128; do
    local decode=("${step[@]}" "${model[@]:0:6}" --dispatcher "$DECODE_DISPATCHER" --wire fp8 --no-zero-padding --chain 20
      --tokens "$size" --sizing capacity --capacity-rows "$((ranks * size))")
    add_bench "$prefix-decode-expert-blocks-$size" "$gpus" "${decode[@]}" --layout expert_blocks
    add_bench "$prefix-decode-token-major-$size" "$gpus" "${decode[@]}"
  done
  for size in 128 "$tokens"; do
    local asked=(--device cuda "${step[@]}" "${model[@]:0:6}" --tokens "$size" --sizing capacity --capacity-rows
      "$((ranks * size))")
    add_tool "$prefix-compare-$size" "$gpus" compare "${asked[@]}" --dispatchers "$OURS"
    add_tool "$prefix-tune-$size" "$gpus" tune "${asked[@]}" --policy balanced --chain 5 --profile \
      "profile-$prefix-$size.json"
  done
}

# add_steps_of RANKS: as many processes as GPUs. add_virtual_steps_of RANKS: the same without such a machine, with all
# ranks on one GPU and, where there are two, half of them on each. Sizes are smaller: ranks share a GPU's SMs.
add_steps_of() { add_group_steps "ep$1" "$1" "$1" processes "${MODEL[@]}" --tokens 4096; }
add_virtual_steps_of() {
  local name
  add_group_steps "virtual-1-ep$1" "$1" 1 threads "${SMALL_MODEL[@]}" --tokens 512
  for name in "${BENCH_NAMES[@]}" "${TOOL_NAMES[@]}"; do STEP_ENVIRONMENT["$name"]="CUDA_VISIBLE_DEVICES=0"; done
  add_group_steps "virtual-2-ep$1" "$1" 2 threads "${SMALL_MODEL[@]}" --tokens 512
}
