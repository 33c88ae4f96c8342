"""What the buffers share of a routing whose tokens are moved more than once."""

from __future__ import annotations

import typing

import epistle
from epistle.deep_ep._routes import Payload

if typing.TYPE_CHECKING:
    from collections.abc import Callable

    import torch

Made = tuple[epistle.Dispatcher, epistle.Handle]


class Prepared:
    """The handles of one routing. It does not depend on what is moved by it, a dispatcher does: so it is prepared once
    for every payload, in a call that all ranks make."""

    def __init__(self) -> None:
        self._made: dict[Payload, Made] = {}

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


def move(
    made: Made, payload: Payload, rows: torch.Tensor, scales: torch.Tensor | None, num_sms: int = 0
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Dispatches rows of ``payload``. What comes back are copies: the caller may keep them for as long as it likes, and
    leases are few."""
    dispatcher, handle = made
    received = dispatcher.dispatch(handle=handle, num_sms=num_sms, **payload.given(rows, scales))
    moved, moved_scales = payload.received(received.rows, received.scales)
    return moved.clone(), None if moved_scales is None else moved_scales.clone()
