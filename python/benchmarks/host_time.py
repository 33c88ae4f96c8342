"""What a call costs its host: the median of many eager calls of one rank, with rows so few that moving them is nothing.

    python host_time.py [--device cuda] [--calls 10000] [--json FILE]

On the CPU the library's own work is in it: all of it runs on the host.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import time
import typing

import torch

import epistle
from epistle import deep_ep

if typing.TYPE_CHECKING:
    from collections.abc import Callable

HIDDEN, EXPERTS, TOP_K = 256, 8, 2


def median_us(call: Callable[[], object], calls: int) -> float:
    for _ in range(min(calls, 200)):
        call()
    times = []
    for _ in range(calls):
        begin = time.perf_counter_ns()
        call()
        times.append(time.perf_counter_ns() - begin)
    return statistics.median(times) / 1e3


def measure(device: str, calls: int) -> dict[str, float]:
    [group] = epistle.Group.threads(1)
    options = epistle.Cuda() if device == "cuda" else epistle.Host()
    results = {}
    for tokens, suffix in ((1, ""), (0, ", no tokens")):
        x = torch.ones(tokens, HIDDEN, dtype=torch.bfloat16, device=device)
        ids = torch.zeros(tokens, TOP_K, dtype=torch.int64, device=device)
        ids[:, 1] = 1
        weights = torch.ones(tokens, TOP_K, device=device)
        out = torch.empty_like(x)
        config = epistle.DispatcherConfig(
            hidden=HIDDEN, num_experts=EXPERTS, top_k=TOP_K, max_tokens=16, sizing=epistle.Capacity(rows_per_rank=16)
        )
        moe = epistle.Dispatcher(group, "direct", config, options)
        handle = moe.prepare(ids, weights)
        received = moe.dispatch(x, handle=handle)
        results["combine" + suffix] = median_us(lambda: moe.combine(out, received=received), calls)  # noqa: B023
        rows = received.rows
        results["to torch" + suffix] = median_us(rows.torch, calls)
        received.release()
        del rows
        results["prepare" + suffix] = median_us(lambda: moe.prepare(ids, weights), calls)  # noqa: B023
        results["dispatch" + suffix] = median_us(lambda: moe.dispatch(x, handle=handle), calls)  # noqa: B023
        buffer = deep_ep.Buffer(group, low_latency_mode=True, explicitly_destroy=True)

        def dispatch() -> typing.Any:
            return buffer.low_latency_dispatch(x, ids, 16, EXPERTS, use_fp8=False)  # noqa: B023

        results["low_latency_dispatch" + suffix] = median_us(dispatch, calls)

        received_rows, _, made, _, _ = dispatch()

        def combine() -> object:
            return buffer.low_latency_combine(received_rows, ids, weights, made, out=out)  # noqa: B023

        results["low_latency_combine" + suffix] = median_us(combine, calls)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--calls", type=int, default=10000)
    parser.add_argument("--json", type=pathlib.Path)
    options = parser.parse_args()
    results = measure(options.device, options.calls)
    for name, value in results.items():
        print(f"{name:36} {value:8.2f} us")
    if options.json is not None:
        record = {"device": options.device, "calls": options.calls, "median_us": results}
        options.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
