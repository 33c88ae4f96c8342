"""Groups from what ranks are joined by already: torch.distributed or MPI."""

from __future__ import annotations

import typing

from epistle import _core


def from_torch(group: typing.Any, timeout: float | None) -> _core.Group:
    import torch.distributed

    distributed: typing.Any = torch.distributed
    num_ranks = distributed.get_world_size(group)

    def all_gather(text: str) -> list[str]:
        said: list[typing.Any] = [None] * num_ranks
        distributed.all_gather_object(said, text, group=group)
        return said

    return _core.Group.from_all_gather(distributed.get_rank(group), num_ranks, all_gather, timeout)


def from_mpi(communicator: typing.Any, timeout: float | None) -> _core.Group:
    return _core.Group.from_all_gather(
        communicator.Get_rank(), communicator.Get_size(), communicator.allgather, timeout
    )
