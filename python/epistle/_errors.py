"""The exception that every failure of the library is."""

from __future__ import annotations

import enum
import typing


class ErrorCode(str, enum.Enum):
    """What kind of failure it is; see epistle/error.hpp."""

    INVALID_ARGUMENT = "invalid argument"
    UNSUPPORTED = "unsupported"
    SHAPE_MISMATCH = "shape mismatch"
    CAPACITY_EXCEEDED = "capacity exceeded"
    BUFFER_TOO_SMALL = "buffer too small"
    HANDLE_MISMATCH = "handle mismatch"
    PEER_REJECTED = "peer rejected its input"
    PEER_LOST = "peer lost"
    TIMEOUT = "timeout"
    CORRUPT_INPUT = "corrupt input"
    NOT_FOUND = "not found"
    OUT_OF_MEMORY = "out of memory"
    SYSTEM = "system error"
    VERIFICATION_FAILED = "verification failed"
    ABORTED = "aborted"
    MASKED_OUT = "masked out"


class Phase(str, enum.Enum):
    """The step of a collective call in which a failure was seen."""

    NONE = "none"
    RENDEZVOUS = "rendezvous"
    CREATE = "create"
    BARRIER = "barrier"
    LAYOUT = "layout"
    DISPATCH = "dispatch"
    COMBINE = "combine"


class Error(RuntimeError):
    """What was expected, what was found, on which rank, and what to do about it.

    code: ErrorCode. rank: the rank that reports, -1 without a group. peer_rank: the rank at fault, -1 where it is this
    one or none. phase: Phase. missing_rows: rows that ``peer_rank`` still owed to ``rank``, -1 where that is not known.
    """

    code: ErrorCode
    rank: int
    peer_rank: int
    phase: Phase
    missing_rows: int

    def __init__(
        self,
        message: str,
        code: ErrorCode = ErrorCode.INVALID_ARGUMENT,
        *,
        rank: int = -1,
        peer_rank: int = -1,
        phase: Phase = Phase.NONE,
        missing_rows: int = -1,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.rank = rank
        self.peer_rank = peer_rank
        self.phase = phase
        self.missing_rows = missing_rows

    def __reduce__(self) -> tuple[typing.Any, ...]:
        state = {name: getattr(self, name) for name in ("code", "rank", "peer_rank", "phase", "missing_rows")}
        return (type(self), (str(self),), state)


def from_native(code: str, message: str, rank: int, peer_rank: int, phase: str, missing_rows: int) -> Error:
    """For the extension module."""
    return Error(
        message, ErrorCode(code), rank=rank, peer_rank=peer_rank, phase=Phase(phase), missing_rows=missing_rows
    )
