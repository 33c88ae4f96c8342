"""Ranks as threads of this process."""

from __future__ import annotations

import threading
import typing

from epistle._core import Group
from epistle._errors import Error, ErrorCode

if typing.TYPE_CHECKING:
    from collections.abc import Callable

Result = typing.TypeVar("Result")

# These only tell of what happened to another rank.
_SECONDARY = (ErrorCode.PEER_LOST, ErrorCode.PEER_REJECTED, ErrorCode.TIMEOUT, ErrorCode.ABORTED)


def run_threads(num_ranks: int, body: Callable[[Group], Result], timeout: float | None = None) -> list[Result]:
    """Calls ``body(group)`` as every rank of a thread group, one thread per rank, and returns what they return.

    A rank that raises counts as lost for the ranks that still wait for it. Raises the error of the rank that failed
    first of itself, not one that only reports another rank's loss.
    """
    groups = Group.threads(num_ranks, timeout)
    results: dict[int, Result] = {}
    failures: list[BaseException] = []

    def play(rank: int) -> None:
        try:
            results[rank] = body(groups[rank])
        except BaseException as error:
            failures.append(error)
        finally:
            groups[rank].leave()

    threads = [threading.Thread(target=play, args=(rank,), name=f"rank {rank}") for rank in range(num_ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in failures:
        if not (isinstance(error, Error) and error.code in _SECONDARY):
            raise error
    if failures:
        raise failures[0]
    return [results[rank] for rank in range(num_ranks)]
