"""Timing: with CUDA events on a GPU, with the clock on the CPU."""

from __future__ import annotations

import statistics
import time
import typing

import torch
import torch.distributed

if typing.TYPE_CHECKING:
    from collections.abc import Callable

_L2_FLUSH_BYTES = 256 * 1024 * 1024
_HEAD_START_CYCLES = 20_000_000  # about 10 ms


def bench(
    fn: Callable[[], typing.Any],
    num_warmups: int = 50,
    num_tests: int = 50,
    post_fn: Callable[[], typing.Any] | None = None,
    flush_l2: bool = True,
) -> tuple[float, float, float]:
    """(mean, shortest, longest) of ``fn`` in seconds; the first of the timed calls is left out."""
    on_gpu = torch.cuda.is_available()
    for _ in range(num_warmups):
        fn()
    times = []
    for _ in range(num_tests + 1):
        if on_gpu and flush_l2:
            torch.empty(_L2_FLUSH_BYTES // 4, dtype=torch.int32, device="cuda").zero_()
        times.append(_time_once(fn, on_gpu))
        if post_fn is not None:
            post_fn()
    times = times[1:]
    return statistics.fmean(times), min(times), max(times)


def _time_once(fn: Callable[[], typing.Any], on_gpu: bool) -> float:
    if not on_gpu:
        start = time.perf_counter()
        fn()
        return time.perf_counter() - start
    cuda: typing.Any = torch.cuda  # without types
    begin, end = (cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    fn()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3


def bench_kineto(
    fn: Callable[[], typing.Any],
    kernel_names: str | tuple[str, ...],
    num_tests: int = 30,
    suppress_kineto_output: bool = False,
    trace_path: str | None = None,
    flush_l2: bool = True,
    barrier_comm_profiling: bool = False,
    num_kernels_per_period: int = 1,
    barrier: Callable[[], typing.Any] | None = None,
) -> typing.Any:
    """Mean seconds of the kernels whose name contains each of ``kernel_names``, from the profiler of Torch: a number
    for one name, a tuple for several. With ``num_kernels_per_period`` above 1, for every name a list: the mean of the
    first, second, ... kernel of a period. ``barrier_comm_profiling``: ranks meet on the device before every call, so
    that no kernel waits for a rank whose host is late."""
    del suppress_kineto_output
    if not torch.cuda.is_available():
        raise RuntimeError("bench_kineto looks at kernels, and there is no GPU; use bench")
    names = (kernel_names,) if isinstance(kernel_names, str) else kernel_names
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        for _ in range(num_tests):
            if flush_l2:
                torch.empty(_L2_FLUSH_BYTES // 4, dtype=torch.int32, device="cuda").zero_()
            if barrier_comm_profiling:
                _meet(barrier)
            fn()
        torch.cuda.synchronize()
    if trace_path is not None:
        profiler.export_chrome_trace(trace_path)
    results = [_mean_times(profiler, name, num_kernels_per_period) for name in names]
    return results[0] if isinstance(kernel_names, str) else tuple(results)


def _meet(barrier: Callable[[], typing.Any] | None) -> None:
    cuda: typing.Any = torch.cuda  # without types
    cuda._sleep(_HEAD_START_CYCLES)  # while the host goes on to launch what comes behind
    if barrier is not None:
        barrier()
    else:
        torch.distributed.all_reduce(torch.ones(1, dtype=torch.float32, device="cuda"))


def _mean_times(profiler: typing.Any, name: str, per_period: int) -> typing.Any:
    autograd: typing.Any = torch.autograd  # without types
    on_device = autograd.DeviceType.CUDA
    kernels = [event for event in profiler.events() if name in event.name and event.device_type == on_device]
    if not kernels:
        raise RuntimeError(f"no kernel has '{name}' in its name")
    kernels.sort(key=lambda event: event.time_range.start)
    times = [event.time_range.elapsed_us() / 1e6 for event in kernels]
    means = [statistics.fmean(times[first::per_period]) for first in range(per_period)]
    return means[0] if per_period == 1 else means
