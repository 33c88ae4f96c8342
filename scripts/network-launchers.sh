# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154  # what is set here and not there, and the other way round, is of who sources it
# Launchers over several hosts, and what is expected of them: for scripts/network-check, which sources it behind
# network-hosts.sh.

# expect_counted WHAT NUM_RANKS: so many ranks have said that all is well, in whichever file.
expect_counted() {
  local num_well
  wait_ranks
  num_well="$(cat "$folder"/rank* | grep -c '"ok":true' || true)"
  if [ "$num_well" = "$2" ]; then pass "$1"; else fail "$1: $num_well of $2 ranks are well"; show_ranks; fi
}

# expect_torchrun STEPS: two nodes of it.
expect_torchrun() {
  local node
  if [ -z "$torchrun" ]; then
    skip "torchrun over two hosts: there is none on PATH; --torchrun names one"
    return
  fi
  pids=()
  rm -f "$folder"/rank*
  port=$((port + 20))
  for node in 0 1; do
    ip netns exec "$(host "$node")" env EPISTLE_JOB_SECRET="$tag" OMP_NUM_THREADS=1 "$torchrun" --nnodes 2 \
      --node-rank "$node" --nproc-per-node 2 --master-addr "$(address 0)" --master-port "$port" --no-python \
      "$program" steps "$1" >"$folder/rank$node" 2>"$folder/rank$node.err" &
    pids[node]=$!
  done
  expect_counted "torchrun over two hosts: 2 nodes x 2 ranks, $1 barriers and gatherings" 4
}

# name_hosts: every host has a name of its own, which all know.
name_hosts() {
  local idx known
  known="127.0.0.1 localhost"$'\n'
  for ((idx = 0; idx < num_hosts; idx++)); do known+="$(address "$idx") $(host "$idx")"$'\n'; done
  for ((idx = 0; idx < num_hosts; idx++)); do
    mkdir -p "/etc/netns/$(host "$idx")" && printf '%s' "$known" >"/etc/netns/$(host "$idx")/hosts" || return 1
  done
}

# write_agent: a program that runs a command on a host, which has a name of its own there, as ssh does.
write_agent() {
  cat >"$folder/agent" <<'SHELL'
#!/usr/bin/env bash
# agent HOST COMMAND...
on="$1"
shift
exec ip netns exec "$on" unshare --uts bash -c 'hostname "$0" && exec sh -c "$*"' "$on" "$@"
SHELL
  chmod +x "$folder/agent"
}

# expect_mpirun STEPS: it starts its daemon on the other host by a program in the place of ssh; ranks meet by its PMIx server,
# then at MASTER_ADDR.
expect_mpirun() {
  local way options
  if ! command -v mpirun >/dev/null; then
    skip "mpirun over two hosts: it is not installed (the package openmpi-bin)"
    return
  fi
  if ! name_hosts 2>"$folder/reason"; then
    skip "mpirun over two hosts: hosts cannot have names here ($(tail -n 1 "$folder/reason"))"
    return
  fi
  write_agent
  for way in PMIx MASTER_ADDR; do
    options=()
    [ "$way" = PMIx ] || options=(-x "MASTER_ADDR=$(address 0)")
    if [ "$way" = PMIx ] && false; then
      skip "mpirun over two hosts, ranks meet by PMIx: built without it (the package libpmix-dev)"
      continue
    fi
    pids=()
    rm -f "$folder"/rank*
    "$folder/agent" "$(host 0)" env -u MASTER_ADDR mpirun --allow-run-as-root --oversubscribe -np 4 \
      --host "$(host 0):2,$(host 1):2" --mca plm_rsh_agent "$folder/agent" --mca oob_tcp_if_include eth0 \
      "${options[@]}" "$program" steps "$1" >"$folder/rank0" 2>"$folder/rank0.err" &
    pids[0]=$!
    expect_counted "mpirun over two hosts: 2 x 2 ranks meet by $way, $1 barriers and gatherings" 4
  done
}

# start_slurm: a Slurm of this script's own: the controller on the first host, and a daemon on every one. Its daemons end
# with the hosts.
slurm="$folder/slurm"
start_slurm() {
  local idx tries name
  mkdir -p "$slurm" || return 1
  {
    printf '%s\n' ClusterName=epistle "SlurmctldHost=$(host 0)($(address 0))" AuthType=auth/none CredType=cred/none \
      SlurmUser=root SlurmdUser=root "StateSaveLocation=$slurm/state" "SlurmdSpoolDir=$slurm/%n" "TmpFS=$slurm/%n" \
      "SlurmctldPidFile=$slurm/ctld.pid" "SlurmdPidFile=$slurm/%n.pid" ProctrackType=proctrack/pgid TaskPlugin=task/none \
      SwitchType=switch/none SlurmdParameters=config_overrides SelectType=select/cons_tres ReturnToService=2 MpiDefault=none \
      "SlurmctldPort=$((port + 4000))" "SlurmdPort=$((port + 4001))" "SrunPortRange=$((port + 4100))-$((port + 4200))"
    for ((idx = 0; idx < num_hosts; idx++)); do
      printf 'NodeName=%s NodeAddr=%s NodeHostname=%s CPUs=8 State=UNKNOWN\n' "$(host "$idx")" "$(address "$idx")" "$(host "$idx")"
    done
    printf 'PartitionName=all Nodes=ALL Default=YES OverSubscribe=FORCE State=UP\n'
  } >"$slurm/slurm.conf"
  mkdir -p "$slurm/state"
  printf 'CgroupPlugin=cgroup/v1\n' >"$slurm/cgroup.conf"
  "$folder/agent" "$(host 0)" env SLURM_CONF="$slurm/slurm.conf" slurmctld -D >"$slurm/ctld.log" 2>&1 &
  disown
  for ((idx = 0; idx < num_hosts; idx++)); do
    name="$(host "$idx")"
    mkdir -p "$slurm/$name"
    "$folder/agent" "$name" env SLURM_CONF="$slurm/slurm.conf" slurmd -D -N "$name" >"$slurm/$name.log" 2>&1 &
    disown
  done
  for ((tries = 0; tries < 30; tries++)); do
    [ "$("$folder/agent" "$(host 0)" env SLURM_CONF="$slurm/slurm.conf" sinfo -h -t idle -o %D 2>/dev/null)" = "$num_hosts" ] && return 0
    sleep 0.5
  done
  tail -q -n 1 "$slurm"/*.log >&2
  return 1
}

# expect_srun STEPS: ranks meet at the first node, and by the PMIx server of Slurm.
expect_srun() {
  local way options
  if ! command -v srun >/dev/null || ! command -v slurmctld >/dev/null || ! command -v slurmd >/dev/null; then
    skip "srun over two hosts: Slurm is not installed (the packages slurmctld, slurmd and slurm-client)"
    return
  fi
  if ! { write_agent && name_hosts && start_slurm; } 2>"$folder/reason"; then
    skip "srun over two hosts: Slurm does not start here ($(tail -n 1 "$folder/reason"))"
    return
  fi
  for way in "the first node" PMIx; do
    options=()
    if [ "$way" = PMIx ]; then
      if ! grep -q -a PMIx_Fence_nb "$program" || ! SLURM_CONF="$slurm/slurm.conf" srun --mpi=list 2>&1 | grep -qw pmix; then
        skip "srun over two hosts, ranks meet by PMIx: built without it (libpmix-dev), or Slurm has no plugin for it"
        continue
      fi
      options=(--mpi=pmix)
    fi
    pids=()
    rm -f "$folder"/rank*
    "$folder/agent" "$(host 0)" env -u MASTER_ADDR SLURM_CONF="$slurm/slurm.conf" EPISTLE_JOB_SECRET="$tag" \
      srun -N 2 -n 4 --ntasks-per-node=2 "${options[@]}" "$program" steps "$1" >"$folder/rank0" 2>"$folder/rank0.err" &
    pids[0]=$!
    expect_counted "srun over two hosts: 2 x 2 ranks meet by $way, $1 barriers and gatherings" 4
  done
}
