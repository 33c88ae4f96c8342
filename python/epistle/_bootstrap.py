"""Groups from what ranks are joined by already: torch.distributed, MPI, or any all-gather."""

from __future__ import annotations

import json
import pathlib
import socket
import typing
import uuid

from epistle import _core
from epistle._errors import Error, ErrorCode, Phase

if typing.TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def _host() -> str:
    """What tells one booted machine, and one container on it, from another."""
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {pathlib.Path('/proc/self/ns/net').readlink()}"
    except OSError:
        return socket.gethostname()


def from_all_gather(
    rank: int, num_ranks: int, all_gather: Callable[[str], Sequence[str]], timeout: float | None = None
) -> _core.Group:
    """Rank 0 names the meeting; every rank learns of it, and of where the others are, in one gathering."""
    said = all_gather(json.dumps({"host": _host(), "job": f"python:{uuid.uuid4()}"}))
    if len(said) != num_ranks:
        raise Error(f"all_gather gave {len(said)} strings for {num_ranks} ranks", rank=rank, phase=Phase.RENDEZVOUS)
    ranks = [json.loads(text) for text in said]
    strangers = [peer for peer in range(num_ranks) if ranks[peer]["host"] != ranks[0]["host"]]
    if strangers:
        raise Error(
            f"ranks {strangers} are on another host, or in another network namespace, than rank 0; ranks of a group "
            "share the memory of one host",
            ErrorCode.UNSUPPORTED,
            rank=rank,
            phase=Phase.RENDEZVOUS,
        )
    return _core.Group.join(rank, num_ranks, ranks[0]["job"], timeout)


def from_torch(group: typing.Any, timeout: float | None) -> _core.Group:
    import torch.distributed

    distributed: typing.Any = torch.distributed
    num_ranks = distributed.get_world_size(group)

    def all_gather(text: str) -> list[str]:
        said: list[typing.Any] = [None] * num_ranks
        distributed.all_gather_object(said, text, group=group)
        return said

    return from_all_gather(distributed.get_rank(group), num_ranks, all_gather, timeout)


def from_mpi(communicator: typing.Any, timeout: float | None) -> _core.Group:
    return from_all_gather(communicator.Get_rank(), communicator.Get_size(), communicator.allgather, timeout)
