"""What the buffers share of a routing whose tokens are moved more than once."""

from __future__ import annotations

import typing
import weakref

import epistle
from epistle.deep_ep._routes import Payload

if typing.TYPE_CHECKING:
    from collections.abc import Callable

    import torch

Made = tuple[epistle.Dispatcher, epistle.Handle]


class Prepared:
    """The handles of one routing. It does not depend on what is moved by it, a dispatcher does: so it is prepared once
    for every payload, in a call that all ranks make."""

    def __init__(self, payload: Payload | None = None, made: Made | None = None) -> None:
        self._made: dict[Payload, Made] = {}
        if payload is not None and made is not None:
            self._made[payload] = made

    @property
    def first(self) -> Made:
        return next(iter(self._made.values()))

    def keep(self, payload: Payload, made: Made) -> Made:
        self._made[payload] = made
        return made

    def of(self, payload: Payload, prepare: Callable[[], Made]) -> Made:
        return self._made[payload] if payload in self._made else self.keep(payload, prepare())

    def that_sums(self, rows: torch.Tensor, prepare: Callable[[Payload], Made]) -> Made:
        """Whichever combine can take for such rows."""
        for payload, made in self._made.items():
            if payload.hidden == rows.shape[1] and payload.output == rows.dtype:
                return made
        return prepare(Payload(rows.dtype, rows.shape[1]))


class Leases:
    """Which dispatches' rows are still in use where they lie."""

    def __init__(self) -> None:
        # By what id() says of the dispatcher, which lives at least as long as what it has received.
        self._taken: dict[int, weakref.ref[epistle.Received]] = {}

    def take(self, dispatcher: epistle.Dispatcher, received: epistle.Received) -> bool:
        """Whether the caller may keep this lease, and the next dispatch still finds a buffer of NUM_BUFFERS."""
        taken = self._taken.get(id(dispatcher))
        if taken is not None and taken() is not None:
            return False
        self._taken[id(dispatcher)] = weakref.ref(received)
        return True


_leases = Leases()


def kept(
    dispatcher: epistle.Dispatcher,
    received: epistle.Received,
    rows: torch.Tensor,
    scales: torch.Tensor | None,
    may_lease: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What comes back may be kept for as long as anybody likes, and buffers are few: these are copies, unless the
    dispatcher has NUM_BUFFERS (``may_lease``) and what came before is not in use any more."""
    if may_lease and _leases.take(dispatcher, received):
        return rows, scales
    return rows.clone(), None if scales is None else scales.clone()


def move(
    made: Made,
    payload: Payload,
    rows: torch.Tensor,
    scales: torch.Tensor | None,
    num_sms: int = 0,
    may_lease: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Dispatches rows of ``payload``; see kept()."""
    dispatcher, handle = made
    received = dispatcher.dispatch(handle=handle, num_sms=num_sms, **payload.given(rows, scales))
    return kept(dispatcher, received, *payload.received(received.rows, received.scales), may_lease)
