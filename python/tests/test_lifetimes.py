"""What ends while others go on: buffers by the thousand, objects in any order, and processes that are interrupted,
raise or are killed."""

from __future__ import annotations

import gc
import itertools
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
import uuid

import numpy as np
import pytest
from conftest import HIDDEN, TOKENS, config, routing, small_integers

import epistle

TIMEOUT_S = 8.0
# Rank 0 waits for rank 1, which never comes: FAULT says why. Then it leaves the interpreter as any program does.
RANK = """
import os, pathlib, signal, sys, threading, time
sys.path.insert(0, {tests!r})
import epistle
from conftest import HIDDEN, TOKENS, config, routing, small_integers

rank, job, fault = int(sys.argv[1]), sys.argv[2], sys.argv[3]
interrupted = pathlib.Path(__file__).with_name("interrupted")
group = epistle.Group.join(rank, 2, job, timeout={timeout})
moe = epistle.Dispatcher(group, "direct", config())
ids, weights = routing(rank, 2)
tokens = small_integers((TOKENS, HIDDEN), rank)
received = moe.dispatch(tokens, expert_ids=ids, weights=weights)
group.barrier()
if rank == 1:
    if fault == "exception":
        raise ValueError("a mistake of rank 1")
    if fault == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    # What a shell starts in the background ignores interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Interrupted while it waits for rank 0, which comes once it has seen that.
    def interrupt():
        os.kill(os.getpid(), signal.SIGINT)
        interrupted.touch()
    threading.Timer(0.5, interrupt).start()
    group.barrier()
    raise AssertionError("the barrier returned, and the interrupt was lost")
if fault == "interrupt":
    end = time.monotonic() + {timeout} / 2
    while not interrupted.exists() and time.monotonic() < end:
        time.sleep(0.01)
    group.barrier()
begin = time.monotonic()
try:
    moe.dispatch(tokens, expert_ids=ids, weights=weights)
    moe.wait()
except epistle.Error as error:
    print(error.code.name, error.rank, error.peer_rank, time.monotonic() - begin < {timeout})
"""


def play(fault: str, tmp_path: pathlib.Path) -> list[tuple[int, str, str]]:
    """Exit code, output and errors of two processes."""
    script = tmp_path / "rank.py"
    script.write_text(RANK.format(tests=str(pathlib.Path(__file__).parent), timeout=TIMEOUT_S))
    job = f"test:{uuid.uuid4()}"
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), job, fault],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [rank.communicate(timeout=60) for rank in ranks]
    return [(rank.returncode, *texts) for rank, texts in zip(ranks, said, strict=True)]


@pytest.mark.parametrize(
    ("fault", "exit_code", "last_words"),
    [
        ("exception", 1, "ValueError: a mistake of rank 1"),
        ("killed", -signal.SIGKILL, ""),
        ("interrupt", -signal.SIGINT, "KeyboardInterrupt"),
    ],
)
def test_a_rank_that_ends_is_a_typed_error_of_the_other(
    fault: str, exit_code: int, last_words: str, tmp_path: pathlib.Path
) -> None:
    survivor, ended = play(fault, tmp_path)
    assert survivor == (0, "PEER_LOST 0 1 True\n", "")
    assert (ended[0], ended[2][-len(last_words) - 1 :].strip()) == (exit_code, last_words), ended


def resident_bytes() -> int:
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_thousand_buffers_leave_nothing_behind() -> None:
    [group] = epistle.Group.threads(1)
    ids, weights = routing(0, 1)
    tokens = small_integers((TOKENS, HIDDEN), 1)
    out = np.empty_like(tokens)

    def use() -> None:
        moe = epistle.Dispatcher(group, "direct", config())
        moe.combine(out, received=moe.dispatch(tokens, expert_ids=ids, weights=weights))

    def traces() -> tuple[int, int, int]:
        gc.collect()
        return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task")), resident_bytes()

    for _ in range(50):
        use()
    before = traces()
    for _ in range(1000):
        use()
    after = traces()
    assert after[:2] == before[:2]
    assert after[2] - before[2] < 4 << 20  # a thousand of anything that the call needs would be more


def test_two_buffers_and_many_handles_end_in_any_order() -> None:
    def play(group: epistle.Group) -> None:
        ids, weights = routing(group.rank, group.size)
        tokens = small_integers((TOKENS, HIDDEN), group.rank)
        for order in itertools.permutations(range(4)):
            buffers = [epistle.Dispatcher(group, name, config(num_buffers=2)) for name in ("direct", "low_latency")]
            handles = [[moe.prepare(ids, weights) for _ in range(3)] for moe in buffers]  # of three layers
            received = [moe.dispatch(tokens, handle=own[1]) for moe, own in zip(buffers, handles, strict=True)]
            outs = [np.empty_like(tokens) for _ in buffers]
            for moe, own, rows, out in zip(buffers, handles, received, outs, strict=True):
                moe.combine(out, rows=rows.rows, handle=own[1])
            np.testing.assert_array_equal(*outs)
            arrays = [np.asarray(rows.rows) for rows in received]
            wanted = [array.copy() for array in arrays]
            held: list[object] = [buffers, handles, received, None]
            del moe, own, rows, buffers, handles, received
            for position in order:
                held[position] = None
                gc.collect()
            for array, copy in zip(arrays, wanted, strict=True):
                np.testing.assert_array_equal(array, copy)

    epistle.run_threads(2, play, timeout=20)


def test_buffers_are_collected_on_another_thread_while_calls_run() -> None:
    stop = threading.Event()

    def collect() -> None:
        while not stop.is_set():
            gc.collect()
            time.sleep(0.002)

    def play(group: epistle.Group) -> None:
        ids, weights = routing(group.rank, group.size)
        tokens = small_integers((TOKENS, HIDDEN), group.rank)
        for _ in range(30):
            moe = epistle.Dispatcher(group, "direct", config())
            received = moe.dispatch(tokens, expert_ids=ids, weights=weights)
            cycle: list[object] = [moe, received, received.rows]
            cycle.append(cycle)  # only the collector ends it
            del moe, received, cycle

    collector = threading.Thread(target=collect)
    collector.start()
    try:
        epistle.run_threads(2, play, timeout=20)
    finally:
        stop.set()
        collector.join()
