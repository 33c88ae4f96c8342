"""Groups that go on without some of their ranks."""

from __future__ import annotations

from collections.abc import Iterable

from epistle._core import Group
from epistle._errors import Error, ErrorCode


def go_on_without(group: Group, ranks: Iterable[int]) -> list[int]:
    """Masks ``ranks`` out, and those that turn out to be gone, or do not come, while the others agree on it.

    Collective over the ranks that stay: they give the same ranks, or learn of the same losses on the way. Returns the
    ranks that are masked out from here on.
    """
    masked = set(ranks)
    while True:
        try:
            group.set_mask(sorted(masked))
        except Error as error:
            is_loss = error.code in (ErrorCode.PEER_LOST, ErrorCode.TIMEOUT)
            if not is_loss or error.peer_rank < 0 or error.peer_rank in masked:
                raise
            masked.add(error.peer_rank)
        else:
            return group.masked
