"""Numbers that lie on a GPU, on the host."""

from __future__ import annotations

import typing

import torch

if typing.TYPE_CHECKING:
    from collections.abc import Callable


class CountReader:
    """Reads counts that are on the GPU already, as those of a prepare that the host has waited for: past the rows that
    are on their way on the caller's stream, which nobody need wait for on the host."""

    def __init__(self) -> None:
        # By device and number of counts: a stream of their own, and memory that it copies to.
        self._places: dict[tuple[torch.device, int], tuple[typing.Any, torch.Tensor]] = {}

    def start(self, counts: torch.Tensor) -> Callable[[], list[int]]:
        """What waits for them and returns them; before the next start, and while ``counts`` are there."""
        if not counts.is_cuda:
            return counts.tolist
        key = (counts.device, counts.shape[0])
        place = self._places.get(key)
        if place is None:
            cuda: typing.Any = torch.cuda  # without types
            stream = cuda.Stream(counts.device)
            place = self._places[key] = (stream, torch.empty(counts.shape, dtype=counts.dtype, pin_memory=True))
        stream, told = place
        with torch.cuda.stream(stream):
            told.copy_(counts, non_blocking=True)

        def finish() -> list[int]:
            stream.synchronize()
            return typing.cast("list[int]", told.tolist())

        return finish
