"""Which of the two dispatchers of low-latency calls a dispatch takes."""

from __future__ import annotations

import typing

import pytest

torch = pytest.importorskip("torch")

import epistle  # noqa: E402
from epistle import deep_ep  # noqa: E402

EXPERTS, HIDDEN, TOKENS = 8, 64, 4


class Calls:
    """Of one rank."""

    def __init__(self, group: epistle.Group) -> None:
        self.buffer = deep_ep.Buffer(group, low_latency_mode=True)
        self.ids = torch.tensor([[0, 5], [4, 1], [2, 7], [6, 3]])
        self.weights = torch.full((TOKENS, 2), 0.5)

    def dispatch(self, value: float, **options: typing.Any) -> tuple[typing.Any, ...]:
        x = torch.full((TOKENS, HIDDEN), value, dtype=torch.bfloat16)
        return self.buffer.low_latency_dispatch(x, self.ids, TOKENS, EXPERTS, use_fp8=False, **options)

    def combine(self, made: tuple[typing.Any, ...], **options: typing.Any) -> tuple[typing.Any, ...]:
        return self.buffer.low_latency_combine(made[0], self.ids, self.weights, made[2], **options)


def played(play: typing.Callable[[Calls], None]) -> None:
    epistle.run_threads(2, lambda group: play(Calls(group)), timeout=30)


def values(made: tuple[typing.Any, ...]) -> set[float]:
    rows, counts = made[0], made[1]
    return {float(rows[expert, row, 0]) for expert in range(len(counts)) for row in range(int(counts[expert]))}


@pytest.mark.parametrize("options", [{}, {"return_recv_hook": True}, {"async_finish": True}])
def test_two_take_turns_whether_results_are_combined_or_not(options: dict[str, bool]) -> None:
    def play(calls: Calls) -> None:
        results = []
        for value in (1, 2, 3):
            made = calls.dispatch(value, **options)
            if made[4] is not None:
                made[4]()
            if value != 2:
                combined, event, hook = calls.combine(made, **options)
                if hook is not None:
                    hook()
                event.current_stream_wait()
                assert bool((combined == value).all())
            results.append(made)
        places = [made[0].data_ptr() for made in results]
        assert places[0] == places[2] != places[1]
        assert values(results[1]) == {2.0}
        assert values(results[2]) == {3.0}

    played(play)


def test_on_the_host_every_call_comes_behind_the_last() -> None:
    def play(calls: Calls) -> None:
        assert calls.dispatch(1)[2].dispatcher.is_on_current_stream()

    played(play)
