"""Events of the drop-in. Its calls run on the caller's stream; events are there for code that orders streams."""

from __future__ import annotations

import typing

import torch

from epistle.deep_ep._routes import has_cuda_work

if typing.TYPE_CHECKING:
    from collections.abc import Callable, Iterable


class EventHandle:
    """A point on the current stream. On the CPU, where calls are done when they return, it is always reached."""

    def __init__(self) -> None:
        self.event: typing.Any = None
        if has_cuda_work():
            cuda: typing.Any = torch.cuda  # without types
            self.event = cuda.Event()
            self.event.record()

    def current_stream_wait(self) -> None:
        if self.event is not None:
            torch.cuda.current_stream().wait_event(self.event)


class EventOverlap:
    """An event with the tensors that must live until it is reached. ``with event: ...`` waits at the end."""

    # What most have, whose calls are done in the order of the stream: every call makes one.
    event: EventHandle | None = None
    extra_tensors: Iterable[typing.Any] | None = None
    _after_wait: tuple[Callable[[], typing.Any], ...] = ()

    def __init__(self, event: EventHandle | None = None, extra_tensors: Iterable[typing.Any] | None = None) -> None:
        if event is not None:
            self.event = event
        if extra_tensors is not None:
            self.extra_tensors = extra_tensors

    def current_stream_wait(self, release_handle: bool = False) -> None:
        if self.event is not None:
            self.event.current_stream_wait()
        if release_handle:
            self.event = None
            self.extra_tensors = None
        hooks, self._after_wait = self._after_wait, ()
        for hook in hooks:
            hook()

    def register_hook_after_wait(self, hook: Callable[[], typing.Any]) -> None:
        self._after_wait = (*self._after_wait, hook)

    def __call__(self, release_handle: bool = False) -> None:
        self.current_stream_wait(release_handle)

    def __enter__(self) -> EventOverlap:
        return self

    def __exit__(self, *_: object) -> None:
        if self.event is not None:
            self.current_stream_wait()


def wait_for(event: EventOverlap | EventHandle | None) -> None:
    if event is not None:
        event.current_stream_wait()


def finish(async_finish: bool, tensors: Iterable[typing.Any] | None = None) -> EventOverlap:
    """What a call returns: an event where the caller asked for one."""
    return EventOverlap(EventHandle(), tensors) if async_finish else EventOverlap()
