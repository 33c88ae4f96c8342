# shellcheck shell=bash disable=SC2154  # what is read here is set by gpu-check
# What scripts/gpu-check runs on the drop-in, with the packages of --python. Sourced, not run.

check_deep_ep() {
  local name="deep-ep tests" pressure=120
  if ! is_wanted "$name"; then return; fi
  if [ "${#deep_ep[@]}" -eq 0 ]; then skip "$name" "no --deep-ep CHECKOUT is given"; return; fi
  can_run_python "$name" || return 0
  if $quick; then pressure=20; fi
  run_step "$name" "$DEEP_EP_LIMIT" "$python" "$ROOT/scripts/deep-ep-tests" "$folder/deep-ep-tests.json" \
    --logs "$folder/logs" --pressure-seconds "$pressure" "${deep_ep[@]}" || true
}

run_pair_of_python() {
  run_step "$1" "$BENCH_LIMIT" "$python" -m torch.distributed.run --standalone --nproc-per-node 2 "${@:2}" || true
}

check_python_speed() {
  local name="python-speed" options=()
  if ! is_wanted "$name"; then return; fi
  can_run_python "$name" || return 0
  if $quick; then options+=(--quick); fi
  run_pair_of_python "$name" "$ROOT/python/benchmarks/deep_ep_speed.py" --epistle "$epistle" --json "$folder/$name.json" \
    "${options[@]}"
}
