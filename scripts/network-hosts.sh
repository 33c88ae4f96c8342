# shellcheck shell=bash
# shellcheck disable=SC2154  # who sources it sets what is not set here
# Hosts as network namespaces, ranks in them, and what is expected of these: for scripts/network-check, which sources it
# and sets `program` (tests/network_rank), `epistle` (the command) and `keep`.

num_passed=0
num_failed=0
num_skipped=0
pass() { num_passed=$((num_passed + 1)); printf 'passed: %s\n' "$*"; }
fail() { num_failed=$((num_failed + 1)); printf 'failed: %s\n' "$*"; }
skip() { num_skipped=$((num_skipped + 1)); printf 'skipped: %s\n' "$*"; }
finish() {
  printf '%d passed, %d failed, %d skipped\n' "$num_passed" "$num_failed" "$num_skipped"
  [ "$num_failed" -eq 0 ]
  exit
}

# ---- Hosts ------------------------------------------------------------------------------------------------------------
# Names carry this script's process id, so that two runs do not meet.
tag="ep$$"
folder="$(mktemp -d)"
num_hosts=0
pids=()
host() { printf '%s-%s' "$tag" "$1"; }
address_of_run=$(($$ % 200))
address() { printf '10.231.%d.%d' "$address_of_run" "$(($1 + 1))"; }

remove_hosts() {
  local idx rank
  for rank in "${!pids[@]}"; do
    kill -KILL "${pids[rank]}" 2>/dev/null || true
    wait "${pids[rank]}" 2>/dev/null || true
  done
  pids=()
  for ((idx = 0; idx < num_hosts; idx++)); do
    ip netns pids "$(host "$idx")" 2>/dev/null | xargs -r kill -KILL 2>/dev/null || true
    # Connections to a host that has vanished keep a namespace for minutes; its cable goes now.
    ip link del "$tag-v$idx" 2>/dev/null || true
    ip link del "$tag-w$idx" 2>/dev/null || true
    ip netns del "$(host "$idx")" 2>/dev/null || true
    rm -rf "/etc/netns/$(host "$idx")"
  done
  ip link del "$tag-br" 2>/dev/null || true
  ip link del "$tag-br1" 2>/dev/null || true
  num_hosts=0
}
# shellcheck disable=SC2317  # called by the trap
clean_up() {
  local status=$?
  if $keep; then
    say "kept: $num_hosts namespaces $tag-*, and what the ranks said in $folder"
  else
    remove_hosts
    rm -rf "$folder"
  fi
  exit "$status"
}
trap clean_up EXIT

# make_hosts N: N namespaces, each with an interface eth0 on one bridge.
make_hosts() {
  local idx name
  ip link add "$tag-br" type bridge && ip link set "$tag-br" up || return 1
  for ((idx = 0; idx < $1; idx++)); do
    name="$(host "$idx")"
    ip netns add "$name" || return 1
    num_hosts=$((idx + 1))
    ip link add "$tag-v$idx" type veth peer name eth0 netns "$name" || return 1
    ip link set "$tag-v$idx" master "$tag-br" up || return 1
    ip -n "$name" addr add "$(address "$idx")/24" dev eth0 || return 1
    ip -n "$name" link set eth0 up || return 1
    ip -n "$name" link set lo up || return 1
  done
}

# add_rails: every host gets a second card, eth1, on a bridge of their own.
add_rails() {
  local idx name
  ip link add "$tag-br1" type bridge && ip link set "$tag-br1" up || return 1
  for ((idx = 0; idx < num_hosts; idx++)); do
    name="$(host "$idx")"
    ip link add "$tag-w$idx" type veth peer name eth1 netns "$name" || return 1
    ip link set "$tag-w$idx" master "$tag-br1" up || return 1
    ip -n "$name" addr add "10.232.${address_of_run}.$((idx + 1))/24" dev eth1 || return 1
    ip -n "$name" link set eth1 up || return 1
    # Ranks of different index speak to each other, too: from one card to the other.
    # shellcheck disable=SC2016  # expanded by the inner shell
    ip netns exec "$name" sh -c 'for card in all eth0 eth1; do echo 0 >/proc/sys/net/ipv4/conf/$card/rp_filter; done' || return 1
  done
}

# limit_rate MBIT: of every host's interface, in the direction away from it.
limit_rate() {
  local idx
  for ((idx = 0; idx < num_hosts; idx++)); do
    ip netns exec "$(host "$idx")" tc qdisc replace dev eth0 root tbf rate "${1}mbit" burst 256kb latency 50ms || return 1
  done
}

# ---- Ranks ------------------------------------------------------------------------------------------------------------
port=29500

# start_rank HOST RANK RANKS_PER_HOST NUM_RANKS ARGUMENT...: as torchrun starts it. Variables may be set before the call.
start_rank() {
  local on="$1" rank="$2" per_host="$3" num_ranks="$4"
  shift 4
  ip netns exec "$(host "$on")" env RANK="$rank" WORLD_SIZE="$num_ranks" LOCAL_RANK=$((rank % per_host)) \
    LOCAL_WORLD_SIZE="$per_host" MASTER_ADDR="$(address 0)" MASTER_PORT="$port" TORCHELASTIC_RUN_ID="$tag" \
    EPISTLE_JOB_SECRET="${secret:-secret of $tag}" EPISTLE_TIMEOUT_MS="${timeout_ms:-20000}" \
    "$program" "$@" >"$folder/rank$rank" 2>"$folder/rank$rank.err" &
  pids[rank]=$!
}

# start_ranks RANKS_PER_HOST ARGUMENT...: on all hosts.
start_ranks() {
  local per_host="$1" rank num_ranks
  shift
  num_ranks=$((per_host * num_hosts))
  pids=()
  rm -f "$folder"/rank*
  port=$((port + 20))
  for ((rank = 0; rank < num_ranks; rank++)); do start_rank $((rank / per_host)) "$rank" "$per_host" "$num_ranks" "$@"; done
}

# wait_ranks [RANK_LEFT_OUT...]: for their ends; what they said is in files.
wait_ranks() {
  local rank
  for rank in "${!pids[@]}"; do
    case " $* " in *" $rank "*) continue ;; esac
    # A rank that was killed is no news.
    wait "${pids[rank]}" 2>/dev/null || true
  done
}

# field RANK NAME: of the last line that a rank has printed.
field() { tail -n 1 "$folder/rank$1" | python3 -c "import json, sys; print(json.load(sys.stdin).get('$2', ''))" 2>/dev/null || echo '?'; }

show_ranks() {
  local rank
  for rank in "${!pids[@]}"; do
    printf '  rank %s: %s %s\n' "$rank" "$(tail -n 1 "$folder/rank$rank")" "$(tail -n 1 "$folder/rank$rank.err")"
  done
}

# expect_ok WHAT: every rank has come to a good end.
expect_ok() {
  local rank all=true
  wait_ranks
  for rank in "${!pids[@]}"; do [ "$(field "$rank" ok)" = True ] || all=false; done
  if $all; then pass "$1"; else fail "$1"; show_ranks; fi
}

# expect_named WHAT PEER CODES LIMIT_S RANK_LEFT_OUT...: all others name the rank, in time, with one code.
expect_named() {
  local what="$1" peer="$2" codes="$3" limit="$4" rank code took first='' all=true
  shift 4
  wait_ranks "$@"
  took=$((SECONDS - broken_at))
  for rank in "${!pids[@]}"; do
    case " $* " in *" $rank "*) continue ;; esac
    code="$(field "$rank" code | tr ' ' _)"
    [ -n "$first" ] || first="$code"
    [[ " $codes " == *" $code "* ]] && [ "$code" = "$first" ] && [ "$(field "$rank" peer_rank)" = "$peer" ] || all=false
  done
  if $all && [ "$took" -le "$limit" ]; then
    pass "$what: all name rank $peer ($first) within $took s"
  else
    fail "$what ($took s, at most $limit)"
    show_ranks
  fi
}

# expect_masked WHAT TRIPS HOW HOST RANK...: two ranks per host make round trips; those of one host are killed (HOW: kill), or
# its cable is taken away (cut), or is without a signal for 8 s (unplug); all others name one of them, mask them and make
# TRIPS more, every bit right.
expect_masked() {
  local what="$1" trips="$2" how="$3" on="$4" rank wrong='' named=''
  shift 4
  timeout_ms=20000
  [ "$how" != unplug ] || timeout_ms=6000
  start_ranks 2 masks "$trips"
  unset timeout_ms
  wait_ready
  broken_at=$SECONDS
  case "$how" in
    cut) ip link del "$tag-v$on" ;;
    kill) kill -KILL "${pids[$1]}" "${pids[$2]}" ;;
    unplug)
      ip link set "$tag-v$on" down
      sleep 8
      ip link set "$tag-v$on" up
      ;;
  esac
  wait_ranks "$@"
  for rank in "$@"; do kill -KILL "${pids[rank]}" 2>/dev/null || true; done
  for rank in "${!pids[@]}"; do
    [ "$((rank / 2))" != "$on" ] || continue
    [ "$(field "$rank" ok)" = True ] || wrong+="rank $rank is not well; "
    [ "$(field "$rank" masked)" = "[${1}, ${2}]" ] || wrong+="rank $rank masks $(field "$rank" masked); "
    [[ " $* " == *" $(field "$rank" peer_rank) "* ]] || wrong+="rank $rank names $(field "$rank" peer_rank); "
    named+="$(field "$rank" peer_rank) "
  done
  if [ -z "$wrong" ]; then
    pass "$what: the others name ${named% }, mask $* and make $trips round trips, every bit right ($((SECONDS - broken_at)) s)"
  else
    fail "$what: $wrong"
    show_ranks
  fi
}

# attack_hosts SECONDS: strangers come to every port of every host, in the background. end_attack waits for the end of that.
attackers=()
attack_hosts() {
  local idx
  rm -f "$folder"/strangers*
  for ((idx = 0; idx < num_hosts; idx++)); do
    ip netns exec "$(host "$idx")" "$ROOT/scripts/network_strangers.py" "$1" >"$folder/strangers$idx" &
    attackers+=($!)
  done
}
end_attack() {
  wait "${attackers[@]}" || true
  attackers=()
  printf '  %s\n' "$(cat "$folder"/strangers* | tr '\n' ' ')"
}

# expect_setting_refused WHAT NAME=VALUE PART RANK...: with that setting these ranks end with an error that has the part.
expect_setting_refused() {
  local what="$1" setting="$2" part="$3" rank all=true
  shift 3
  export "${setting?}"
  timeout_ms=6000
  start_ranks 2 steps 1
  unset timeout_ms "${setting%%=*}"
  wait_ranks
  for rank in "$@"; do field "$rank" message | grep -qF "$part" || all=false; done
  if $all; then pass "$what: $(field "$1" message)"; else fail "$what"; show_ranks; fi
}

wait_ready() {
  local rank tries
  for rank in "${!pids[@]}"; do
    for ((tries = 0; tries < 200; tries++)); do
      grep -qs ready "$folder/rank$rank" && break
      sleep 0.1
    done
  done
}

has_fabric() { ldconfig -p | grep -q 'libfabric\.so\.1'; }

# expect_share WHAT RATE LIMIT FRACTION BY: a rate against what plain TCP moves in one direction, both in bytes per second.
expect_share() {
  local what="$1" rate="$2" limit="$3" fraction="$4" by="$5" share
  share="$(python3 -c "print(round(float('$rate') / float('$limit'), 3))" 2>/dev/null || echo 0)"
  if python3 -c "import sys; sys.exit(0 if float('$share') >= $fraction else 1)"; then
    pass "$what: $rate bytes/s by $by, $limit by plain TCP, share $share (at least $fraction)"
  else
    fail "$what: $rate bytes/s by $by, $limit by plain TCP, share $share (at least $fraction)"
    show_ranks
  fi
}

# measure_tcp MIB: what plain TCP moves in one direction, in bytes per second, into `measured`.
measure_tcp() {
  start_ranks 1 rate "$1"
  wait_ranks
  measured="$(field 0 bytes_per_s)"
}

# expect_rate WHAT MIB FRACTION: bytes by libfabric.
expect_rate() {
  measure_tcp "$2"
  start_ranks 1 link "$2"
  wait_ranks
  expect_share "$1" "$(field 0 bytes_per_s)" "$measured" "$3" "$(field 0 transport)"
}

# run_bench DISPATCHERS RANKS_PER_HOST OPTION...: rows by dispatchers, which every rank checks bit for bit; its record is
# $folder/bench.json.
run_bench() {
  local dispatchers="$1" per_host="$2"
  shift 2
  rm -f "$folder/bench.json"
  program="$epistle" start_ranks "$per_host" bench --dispatcher "$dispatchers" --quiet --json "$folder/bench.json" "$@"
  wait_ranks
}

# measure_dispatch DISPATCHER RANKS_PER_HOST OPTION...: the network bytes per second of a host in a dispatch, into `measured`.
# Fails, with the reason in a file, where something is wrong.
measure_dispatch() {
  run_bench "$@"
  measured="$(python3 - "$folder/bench.json" "$2" "$num_hosts" 2>"$folder/reason" <<'PYTHON'
import json
import sys
path, per_host, num_hosts = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
with open(path) as file:
    record = json.load(file)
if not record["verified"] or record["config"]["domains"] != num_hosts:
    sys.exit(f"verified: {record['verified']}, domains: {record['config']['domains']} of {num_hosts} hosts")
result = next(result for result in record["results"] if result["phase"] == "dispatch")
if result["network_bytes"] <= 0:
    sys.exit("nothing crossed the network")
print(int(per_host * result["network_bytes"] / result["median_us"] * 1e6))
PYTHON
  )"
}

has_command_built() {
  [ -x "$epistle" ] && return
  skip "$1: $epistle is not built"
  return 1
}

# expect_bits WHAT DISPATCHER RANKS_PER_HOST OPTION...
expect_bits() {
  local what="$1"
  shift
  has_command_built "$what" || return 0
  if measure_dispatch "$@"; then
    pass "$what: every bit is the reference's; $measured network bytes/s of a host in a dispatch"
  else
    fail "$what: $(tail -n 1 "$folder/reason")"
    show_ranks
  fi
}

# expect_refused WHAT DISPATCHER: with a reason that says what to take instead.
expect_refused() {
  local what="$1" reason
  has_command_built "$what" || return 0
  run_bench "$2" 2 --hidden 64 --experts 8 --top-k 2 --tokens 4 --iters 1
  reason="$(grep -h "needs ranks that reach each other's memory" "$folder"/rank*.err | head -n 1)"
  if [ -n "$reason" ] && [ ! -e "$folder/bench.json" ]; then pass "$what: $reason"; else fail "$what"; show_ranks; fi
}

# expect_bytes WHAT RANKS_PER_HOST TOKENS: of hybrid, against what the routing asks for; the rank fails beyond 1%.
expect_bytes() {
  start_ranks "$2" bytes "$3"
  expect_ok "$1 are those of (token, domain) pairs within 1%"
  printf '  %s\n' "$(tail -n 1 "$folder/rank0" | cut -c 1-600)"
}

# expect_hybrid_ahead WHAT RANKS_PER_HOST OPTION...: of alltoall, by nearly the ratio of their network bytes. Both take turns in
# every round, and the quickest of the rounds counts for both: others may use the machine meanwhile. Where that is not
# enough, rounds are added, to both, twice at most.
expect_hybrid_ahead() {
  local what="$1" per_host="$2" verdict attempt
  shift 2
  has_command_built "$what" || return 0
  rm -f "$folder"/turns*.json
  for attempt in 1 2 3; do
    program="$epistle" start_ranks "$per_host" compare --dispatchers hybrid,alltoall --chain 1 --quiet \
      --json "$folder/turns$attempt.json" "$@"
    wait_ranks
    verdict="$(python3 - "$folder"/turns*.json 2>&1 <<'PYTHON'
import json
import sys
from statistics import median
best, network_bytes, paired = {}, {}, []
for path in sys.argv[1:]:
    with open(path) as file:
        record = json.load(file)
    if not record["verified"]:
        sys.exit("the bits are not the reference's")
    for result in record["results"]:
        key = result["dispatcher"], result["phase"]
        best[key] = min(result["min_us"], best.get(key, result["min_us"]))
        network_bytes[key] = result["network_bytes"]
    samples = {side["dispatcher"]: side["period_us"]["samples"] for side in record["dispatchers"]}
    paired += [slow / quick for quick, slow in zip(samples["hybrid"], samples["alltoall"])]
told, is_ahead = [], True
for phase in ("dispatch", "combine"):
    hybrid, alltoall = ("hybrid", phase), ("alltoall", phase)
    ratio = network_bytes[alltoall] / network_bytes[hybrid]
    faster = best[alltoall] / best[hybrid]
    is_ahead = is_ahead and ratio > 1 and faster >= 0.9 * ratio
    told.append(f"{phase} {faster:.2f} times as fast with 1/{ratio:.2f} of the network bytes ({best[hybrid] / 1e3:.1f} and "
                f"{best[alltoall] / 1e3:.1f} ms)")
told.append(f"a pair with its layout {median(paired):.2f} times, median of {len(paired)} rounds")
print("; ".join(told))
sys.exit(0 if is_ahead else 1)
PYTHON
    )" && pass "$what: hybrid against alltoall: $verdict" && return
  done
  fail "$what: hybrid against alltoall: $(printf '%s' "$verdict" | tail -n 1)"
  show_ranks
}

# expect_rails MIB: ranks of one index take the card of one index, and both cards carry their bytes.
expect_rails() {
  local what="2 hosts x 2 ranks, two cards each: ranks take them in turn" rank wrong=
  if ! add_rails 2>"$folder/reason"; then
    skip "$what: hosts cannot have a second card here ($(tail -n 1 "$folder/reason"))"
    return
  fi
  EPISTLE_FABRIC_NICS=eth0,eth1 start_ranks 2 link "$1"
  wait_ranks
  for rank in "${!pids[@]}"; do
    [ "$(field "$rank" ok)" = True ] || wrong+="rank $rank is not well; "
    [[ "$(field "$rank" transport)" == *"over eth$((rank % 2)) "* ]] || wrong+="rank $rank takes $(field "$rank" transport); "
  done
  for rank in 0 1; do
    [ "$(ip netns exec "$(host 0)" cat "/sys/class/net/eth$rank/statistics/tx_bytes")" -gt $(($1 << 20)) ] ||
      wrong+="less than $1 MiB by eth$rank; "
  done
  if [ -z "$wrong" ]; then
    pass "$what: $(field 0 transport), $(field 1 transport); every byte is right"
  else
    fail "$what: $wrong"
    show_ranks
  fi
}

# expect_large_group RANKS LIMIT_S: processes that form a group; the slowest counts.
expect_large_group() {
  local what="a group of $1 process ranks on $num_hosts host(s)" verdict
  if [ "$num_hosts" = 1 ] && ! has_command_built "$what"; then return 0; fi
  timeout_ms=120000
  if [ "$num_hosts" = 1 ]; then
    rm -f "$folder"/rank*
    pids=()
    ip netns exec "$(host 0)" env EPISTLE_TIMEOUT_MS="$timeout_ms" "$epistle" run -n "$1" -- "$program" form \
      >"$folder/rank0" 2>"$folder/rank0.err" &
    pids[0]=$!
  else
    start_ranks $(($1 / num_hosts)) form
  fi
  unset timeout_ms
  wait_ranks
  verdict="$(cat "$folder"/rank* | python3 -c '
import json
import sys
num_ranks, limit_s = int(sys.argv[1]), float(sys.argv[2])
lines = [line[line.index("{"):] for line in sys.stdin if "\"ok\":true" in line]
ranks = [json.loads(line) for line in lines]
slowest_s = max((rank["joined_s"] for rank in ranks), default=0)
private, shared = (max((rank[kind] for rank in ranks), default=0) for kind in ("private_kib", "shared_kib"))
print(f"{len(ranks)} formed it within {slowest_s:.1f} s; a rank has at most {private} KiB of its own and {shared} KiB of shared memory")
sys.exit(0 if len(ranks) == num_ranks and slowest_s < limit_s else 1)' "$1" "$2")" && pass "$what: $verdict" && return
  fail "$what (at most $2 s): $verdict"
  show_ranks | head -n 8
}

# expect_soak TRIPS RANKS_PER_HOST: while one rank or another stands still for up to .3 s.
expect_soak() {
  local staller
  timeout_ms=60000 start_ranks "$2" soak "$1"
  python3 - "${pids[@]}" <<'PYTHON' &
import os
import random
import signal
import sys
import time
random.seed(7)
pids = [int(pid) for pid in sys.argv[1:]]
try:
    while True:
        pid = random.choice(pids)
        os.kill(pid, signal.SIGSTOP)
        time.sleep(random.uniform(0, 0.3))
        os.kill(pid, signal.SIGCONT)
        time.sleep(random.uniform(0, 1))
except ProcessLookupError:
    pass
PYTHON
  staller=$!
  expect_ok "$num_hosts hosts x $2 ranks: $1 random round trips while ranks stand still at random"
  printf '  %s\n' "$(tail -n 1 "$folder/rank0" | cut -c 1-400)"
  wait "$staller" || true
}

# expect_hybrid_rate WHAT FRACTION RANKS_PER_HOST OPTION...: network bytes of a host in a dispatch.
expect_hybrid_rate() {
  local what="$1" fraction="$2" limit
  shift 2
  measure_tcp 64
  limit="$measured"
  measure_dispatch hybrid "$@" || measured=0
  expect_share "$what" "$measured" "$limit" "$fraction" "a dispatch"
}
