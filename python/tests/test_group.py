"""How groups are made."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import subprocess
import sys
import threading
import types
import uuid

import pytest

import epistle

ROUND = """
import epistle
group = epistle.Group.from_launcher()
print([part.decode() for part in group.all_gather(b"rank %d" % group.rank)])
"""


def test_threads() -> None:
    groups = epistle.Group.threads(3, timeout=12.5)
    assert [(group.rank, group.size, group.kind, group.timeout) for group in groups] == [
        (rank, 3, "threads", 12.5) for rank in range(3)
    ]
    assert [(group.domain_size, group.gpu_domain_size) for group in groups] == [(3, 3)] * 3
    assert epistle.run_threads(3, lambda group: group.all_gather(bytes([group.rank]))) == [[b"\0", b"\1", b"\2"]] * 3


def test_the_command_and_its_ranks() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "epistle", "run", "-n", "2", "--", sys.executable, "-c", ROUND],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert run.stdout.count("['rank 0', 'rank 1']") == 2
    assert (
        epistle.__version__
        in subprocess.run(
            [sys.executable, "-m", "epistle", "--version"], capture_output=True, text=True, check=True
        ).stdout
    )


class Meeting:
    """An all-gather between threads."""

    def __init__(self, num_ranks: int) -> None:
        self.barrier = threading.Barrier(num_ranks)
        self.said = [""] * num_ranks

    def of(self, rank: int) -> object:
        def all_gather(text: str) -> list[str]:
            self.said[rank] = text
            self.barrier.wait()
            return list(self.said)

        return all_gather


def _join(rank: int, host: str, connection: multiprocessing.connection.Connection) -> None:
    # Hosts that are played meet on loopback.
    os.environ.update(EPISTLE_HOST_ID=host, EPISTLE_INTERFACE="lo")

    def all_gather(text: str) -> list[str]:
        connection.send(text)
        result: list[str] = connection.recv()
        return result

    group = epistle.Group.from_all_gather(rank, 2, all_gather)
    connection.send((group.rank, group.num_hosts, group.domain_size, group.all_gather(bytes([rank]))))
    # The first to leave must not be taken for lost.
    group.barrier()


@pytest.mark.parametrize("hosts", [("one", "one"), ("one", "another")])
def test_any_all_gather_joins_processes(hosts: tuple[str, str]) -> None:
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in range(2)]
    ranks = [context.Process(target=_join, args=(rank, hosts[rank], pipes[rank][1])) for rank in range(2)]
    for rank in ranks:
        rank.start()
    for _, theirs in pipes:
        theirs.close()  # a rank that dies is heard of
    said = [ours.recv() for ours, _ in pipes]
    while isinstance(said[0], str):
        for ours, _ in pipes:
            ours.send(said)
        said = [ours.recv() for ours, _ in pipes]
    num_hosts = len(set(hosts))
    assert said == [(rank, num_hosts, 2 // num_hosts, [b"\0", b"\1"]) for rank in range(2)]
    for rank in ranks:
        rank.join()
        assert rank.exitcode == 0


def test_an_all_gather_of_too_few_is_named() -> None:
    with pytest.raises(epistle.Error, match="1 of them for 2 ranks") as error:
        epistle.Group.from_all_gather(0, 2, lambda text: [text])
    assert error.value.code is epistle.ErrorCode.INVALID_ARGUMENT


def test_what_an_all_gather_raises_comes_through() -> None:
    def all_gather(text: str) -> list[str]:
        raise ValueError("no network today")

    with pytest.raises(ValueError, match="no network today"):
        epistle.Group.from_all_gather(0, 2, all_gather)


def test_mpi_communicators_are_asked_as_mpi4py_has_it() -> None:
    communicator = types.SimpleNamespace(Get_rank=lambda: 0, Get_size=lambda: 1, allgather=lambda text: [text])
    assert epistle.Group.from_mpi(communicator).size == 1


def test_a_rank_that_never_comes() -> None:
    with pytest.raises(epistle.Error) as error:
        epistle.Group.join(0, 2, f"test:{uuid.uuid4()}", timeout=0.2)
    assert error.value.phase is epistle.Phase.RENDEZVOUS
