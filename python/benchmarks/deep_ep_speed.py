"""What the drop-in costs against the same calls in C++, on GPUs; and whether buffers leave anything behind.

    torchrun --nproc-per-node 2 deep_ep_speed.py --epistle PATH [--json FILE] [--quick] [--only TEXT]

PATH is the command, which measures the C++ figures in the same run, in turns with Python's. The record has, for every
figure, what was measured, what it is held against and whether it is within it:

- ``pair``: low_latency_dispatch and low_latency_combine, 20 pairs in a CUDA graph, against `epistle bench --chain 20`
- ``host``: host time of an eager call of one token, median of 10,000, on the slower rank
- ``dispatch``: Buffer.dispatch with the host's wait for the counts, by its clock until the rows are there, against the
  same of `epistle bench --host-calls`; and when the call was back, and what letting go of the rows took behind that
- ``buffers``: memory, file descriptors and threads before and after 1,000 buffers that were made, used and destroyed
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import os
import pathlib
import statistics
import subprocess
import tempfile
import threading
import time
import typing

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import record

import epistle
from epistle import deep_ep

if typing.TYPE_CHECKING:
    from collections.abc import Callable

HIDDEN, EXPERTS, TOP_K = 7168, 256, 8
PAIRS = 20
PAIR_TOKENS = (128, 1, 8, 64)
PAIR_TOLERANCE = 1.03
HOST_LIMIT_US = 12.0
DISPATCH_ALLOWANCE_US = 25.0
SYNCHRONISE_EVERY = 50  # calls; far fewer kernels than a stream takes before its host waits
# Allocators keep some of what they were given once. What grows with the number of buffers would be more.
HOST_GROWTH_BYTES = 16 << 20
DEVICE_GROWTH_BYTES = 8 << 20


class Bench:
    def __init__(self, command: pathlib.Path, quick: bool) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.device = torch.device("cuda", torch.cuda.current_device())
        self.command = command
        self.quick = quick
        # A rank that waits in a collective of NCCL has a kernel on its GPU, beside which the command would be slow.
        self.hosts: typing.Any = dist.new_group(backend="gloo")

    def inputs(self, tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        ids, weights = epistle.generate_routing(
            "uniform", num_tokens=tokens, num_experts=EXPERTS, top_k=TOP_K, rank=self.rank, num_ranks=self.size
        )
        x = torch.randint(-2, 3, (tokens, HIDDEN), device=self.device).to(torch.bfloat16)
        return x, ids.torch().to(self.device, torch.int64), weights.torch().to(self.device)

    def slowest(self, values: list[float]) -> list[float]:
        """Each over the ranks."""
        largest = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(largest, dist.ReduceOp.MAX, self.hosts)
        return typing.cast("list[float]", largest.tolist())

    def in_cpp(self, options: list[str]) -> dict[str, typing.Any]:
        """A record of `epistle bench`, which rank 0 runs while the others wait, their GPUs idle."""
        found: list[typing.Any] = [None]
        torch.cuda.synchronize()
        dist.barrier(self.hosts)
        if self.rank == 0:
            with tempfile.TemporaryDirectory() as folder:
                file = pathlib.Path(folder, "record.json")
                given = ["--device", "cuda", "--group", "processes", "--ranks", str(self.size)]
                shape = ["--hidden", str(HIDDEN), "--experts", str(EXPERTS), "--top-k", str(TOP_K)]
                # What is right is shown by the tests; here every second is one in which the other figure gets old.
                rounds = ["--iters", "10" if self.quick else "50", "--no-verify", "--quiet", "--json", str(file)]
                launcher = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
                environment = {
                    name: value
                    for name, value in os.environ.items()
                    if name not in launcher and not name.startswith(("TORCHELASTIC", "GROUP_", "ROLE_", "LOCAL_WORLD"))
                }
                run = subprocess.run(
                    [str(self.command), "bench", *given, *shape, *options, *rounds],
                    capture_output=True,
                    text=True,
                    env=environment,
                )
                found[0] = json.loads(file.read_text()) if run.returncode == 0 else run.stderr.strip()
        dist.broadcast_object_list(found, group=self.hosts)
        if isinstance(found[0], str):
            raise RuntimeError(f"epistle bench {' '.join(options)}: {found[0]}")
        return typing.cast("dict[str, typing.Any]", found[0])


def graph_of_pairs(bench: Bench, tokens: int, use_fp8: bool) -> Callable[[], float]:
    """What measures it: a run of the graph, in us a pair. It keeps what the graph reads and writes: a graph keeps
    neither tensors nor a buffer's memory."""
    x, ids, weights = bench.inputs(tokens)
    buffer = deep_ep.Buffer(dist.group.WORLD, low_latency_mode=True, explicitly_destroy=True)
    out = torch.empty_like(x)
    kept: list[typing.Any] = []  # handles: each has memory of its own, which another dispatch may take otherwise

    def pair() -> None:
        made = buffer.low_latency_dispatch(x, ids, tokens, EXPERTS, use_fp8=use_fp8)
        # The experts' outputs lie where combine reads them, as they do in the benchmark in C++.
        buffer.low_latency_combine(
            buffer.get_next_low_latency_combine_buffer(made[2]), ids, weights, made[2], zero_copy=True, out=out
        )
        kept.append(made)

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(4):
            pair()
        stream.synchronize()
        kept.clear()
        dist.barrier()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            for _ in range(PAIRS):
                pair()
    torch.cuda.synchronize()
    dist.barrier()

    def measure(alive: tuple[typing.Any, ...] = (buffer, kept, x, ids, weights, out)) -> float:
        del alive
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with torch.cuda.stream(stream):
            graph.replay()  # brings the ranks together
            begin.record()
            graph.replay()
            end.record()
        stream.synchronize()
        return begin.elapsed_time(end) * 1e3 / PAIRS

    return measure


def compare_pairs(bench: Bench, tokens: int, use_fp8: bool) -> dict[str, typing.Any]:
    options = ["--dispatcher", "low_latency", "--tokens", str(tokens), "--sizing", "capacity", "--capacity-rows"]
    options += [str(bench.size * tokens), "--layout", "expert_blocks", "--no-zero-padding", "--combine", "flat"]
    # Scales where the drop-in has them.
    options += ["--wire", "fp8-columns" if use_fp8 else "as-given", "--chain", str(PAIRS)]
    measure = graph_of_pairs(bench, tokens, use_fp8)
    cpp, python = [], []
    for _ in range(1 if bench.quick else 3):
        chains = bench.in_cpp(options)["chain"]
        cpp.append(next(chain["median_us"] for chain in chains if chain["in_graph"]))
        dist.barrier()
        python.append(statistics.median(bench.slowest([measure() for _ in range(50)])))
    result = {"python_us": statistics.median(python), "cpp_us": statistics.median(cpp), "tokens": tokens}
    return {
        **result,
        "python_rounds_us": python,
        "cpp_rounds_us": cpp,
        "wire": "fp8" if use_fp8 else "bf16",
        "command": "epistle bench " + " ".join(options),
        "limit_us": result["cpp_us"] * PAIR_TOLERANCE,
        "within": result["python_us"] <= result["cpp_us"] * PAIR_TOLERANCE,
    }


def host_us(call: Callable[[], object], calls: int) -> float:
    times = []
    for index in range(calls + 200):
        if index % SYNCHRONISE_EVERY == 0:
            torch.cuda.synchronize()
        begin = time.perf_counter_ns()
        call()
        times.append(time.perf_counter_ns() - begin)
    return statistics.median(times[200:]) / 1e3


def host_times(bench: Bench) -> dict[str, typing.Any]:
    x, ids, weights = bench.inputs(1)
    buffer = deep_ep.Buffer(dist.group.WORLD, low_latency_mode=True, explicitly_destroy=True)
    out = torch.empty_like(x)
    calls = 1000 if bench.quick else 10000

    def dispatch() -> typing.Any:
        return buffer.low_latency_dispatch(x, ids, 16, EXPERTS, use_fp8=False)

    made = dispatch()
    rows = buffer.get_next_low_latency_combine_buffer(made[2])

    def combine() -> object:
        return buffer.low_latency_combine(rows, ids, weights, made[2], zero_copy=True, out=out)

    combine()
    result: dict[str, typing.Any] = {}
    for name, call in (("low_latency_dispatch", dispatch), ("low_latency_combine", combine)):
        dist.barrier()
        [median] = bench.slowest([host_us(call, calls)])
        torch.cuda.synchronize()
        result[name] = {"median_us": median, "limit_us": HOST_LIMIT_US, "within": median <= HOST_LIMIT_US}
    return {"calls": calls, **result}


def compare_dispatch(bench: Bench, tokens: int) -> dict[str, typing.Any]:
    x, ids, weights = bench.inputs(tokens)
    buffer = deep_ep.Buffer(dist.group.WORLD, explicitly_destroy=True)
    per_rank, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(ids, EXPERTS)
    stream = torch.cuda.current_stream()  # which Torch takes longer to name than to wait for

    def dispatch() -> typing.Any:
        return buffer.dispatch(
            x,
            num_tokens_per_rank=per_rank,
            is_token_in_rank=in_rank,
            num_tokens_per_expert=per_expert,
            topk_idx=ids,
            topk_weights=weights,
        )

    def times_us(calls: int) -> tuple[list[float], list[float], list[float]]:
        """Until the call is back, until the rows are there, and what letting go of them takes."""
        back, there, let_go = [], [], []
        for _ in range(calls):
            bench_group_wait(buffer)
            begin = time.perf_counter_ns()
            rows = dispatch()
            returned = time.perf_counter_ns()
            stream.synchronize()
            end = time.perf_counter_ns()
            del rows  # as a layer has it: the next dispatch finds that they are not in use any more
            back.append((returned - begin) / 1e3)
            there.append((end - begin) / 1e3)
            let_go.append((time.perf_counter_ns() - end) / 1e3)
        return bench.slowest(back), bench.slowest(there), bench.slowest(let_go)

    options = ["--dispatcher", "direct", "--tokens", str(tokens), "--layout", "token_major", "--sizing", "exact"]
    options += ["--weights", "off", "--host-calls", "50" if bench.quick else "200"]
    cpp: list[float] = []
    rounds: list[tuple[float, ...]] = []
    times_us(10)
    for _ in range(1 if bench.quick else 3):
        cpp.append(next(row["median_us"] for row in bench.in_cpp(options)["host_calls"]))
        dist.barrier()
        torch.cuda.synchronize()
        times_us(10)
        rounds.append(tuple(statistics.median(times) for times in times_us(50 if bench.quick else 200)))
    returned_us, python_us, let_go_us = (statistics.median(times) for times in zip(*rounds, strict=True))
    limit_us = statistics.median(cpp) + DISPATCH_ALLOWANCE_US
    return {
        "python_us": python_us,
        "cpp_us": statistics.median(cpp),
        "python_rounds_us": [times[1] for times in rounds],
        "cpp_rounds_us": cpp,
        "returned_us": returned_us,
        "let_go_us": let_go_us,
        "tokens": tokens,
        "command": "epistle bench " + " ".join(options),
        "limit_us": limit_us,
        "within": python_us <= limit_us,
    }


def bench_group_wait(buffer: deep_ep.Buffer) -> None:
    """Brings the ranks' hosts together, closer than NCCL does."""
    buffer._group.barrier()


def traces() -> dict[str, int]:
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    status = pathlib.Path("/proc/self/status").read_text()
    resident = next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))
    return {
        "device_used_bytes": torch.cuda.mem_get_info()[1] - torch.cuda.mem_get_info()[0],
        "host_resident_bytes": int(resident) * 1024,
        "file_descriptors": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
        "python_threads": threading.active_count(),
    }


def buffers_come_and_go(bench: Bench) -> dict[str, typing.Any]:
    x, ids, weights = bench.inputs(16)

    def use() -> None:
        buffer = deep_ep.Buffer(dist.group.WORLD, low_latency_mode=True, explicitly_destroy=True)
        rows, _, handle, _, _ = buffer.low_latency_dispatch(x, ids, 16, EXPERTS, use_fp8=False)
        buffer.low_latency_combine(rows, ids, weights, handle)
        torch.cuda.synchronize()
        buffer.destroy()

    count = 50 if bench.quick else 1000
    for _ in range(20):
        use()
    dist.barrier()
    before = traces()
    begin = time.monotonic()
    for _ in range(count):
        use()
    seconds = time.monotonic() - begin
    dist.barrier()
    after = traces()
    grown = {name: after[name] - before[name] for name in before}
    within = (
        grown["device_used_bytes"] <= DEVICE_GROWTH_BYTES
        and grown["host_resident_bytes"] <= HOST_GROWTH_BYTES
        and all(grown[name] == 0 for name in ("file_descriptors", "threads", "python_threads"))
    )
    return {
        "buffers": count,
        "seconds": seconds,
        "before": before,
        "after": after,
        "within": bench.slowest([float(not within)]) == [0.0],
    }


# Without it torchrun shows neither what a rank has raised nor where.
@record
def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--epistle", type=pathlib.Path, required=True, help="the command")
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--quick", action="store_true", help="a tenth of the calls, a twentieth of the buffers")
    parser.add_argument("--only", default="", help="figures whose name contains it")
    options = parser.parse_args()
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl", device_id=torch.device("cuda", torch.cuda.current_device()))
    bench = Bench(options.epistle.resolve(), options.quick)
    figures: dict[str, Callable[[], dict[str, typing.Any]]] = {
        "host": lambda: host_times(bench),
        "dispatch-128": lambda: compare_dispatch(bench, 128),
        "dispatch-4096": lambda: compare_dispatch(bench, 4096),
        "buffers": lambda: buffers_come_and_go(bench),
    }
    for tokens in PAIR_TOKENS:
        for wire in ("bf16", "fp8"):
            figures[f"pair-{tokens}-{wire}"] = functools.partial(compare_pairs, bench, tokens, wire == "fp8")
    report: dict[str, typing.Any] = {
        "tool": "python/benchmarks/deep_ep_speed.py",
        "device": torch.cuda.get_device_name(),
        "ranks": bench.size,
        "epistle": epistle.__version__,
        "torch": torch.__version__,
        "figures": {},
    }
    for name, measure in figures.items():
        if options.only not in name:
            continue
        report["figures"][name] = result = measure()
        if bench.rank == 0:
            print(name, json.dumps(result), flush=True)
            if options.json is not None:  # what has been measured so far is kept, whatever comes
                options.json.write_text(json.dumps(report, indent=2) + "\n")
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
