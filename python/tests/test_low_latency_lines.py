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


def test_results_that_are_combined_one_by_one_lie_where_the_first_lay() -> None:
    def play(calls: Calls) -> None:
        first = calls.dispatch(1)
        for value in (2, 3, 4):
            calls.combine(first)
            made = calls.dispatch(value)
            assert made[0].data_ptr() == first[0].data_ptr()
            assert values(made) == {float(value)}
            combined, _, _ = calls.combine(made)
            assert bool((combined == value).all())
            first = made

    played(play)


def test_a_result_that_is_not_combined_is_left_alone() -> None:
    def play(calls: Calls) -> None:
        first, second = calls.dispatch(1), calls.dispatch(2)
        assert first[0].data_ptr() != second[0].data_ptr()
        calls.combine(first)
        third = calls.dispatch(3)
        assert third[0].data_ptr() == first[0].data_ptr()
        assert values(second) == {2.0}
        # A handle whose rows were written over frees nothing.
        calls.combine(first)
        fourth = calls.dispatch(4)
        assert fourth[0].data_ptr() == second[0].data_ptr()
        assert values(third) == {3.0}

    played(play)


@pytest.mark.parametrize("options", [{"return_recv_hook": True}, {"async_finish": True}])
def test_two_take_turns_where_combine_may_be_under_way(options: dict[str, bool]) -> None:
    def play(calls: Calls) -> None:
        places = []
        for value in (1, 2, 3):
            made = calls.dispatch(value, **options)
            if made[4] is not None:
                made[4]()
            places.append(made[0].data_ptr())
            combined, event, hook = calls.combine(made, **options)
            if hook is not None:
                hook()
            event.current_stream_wait()
            assert bool((combined == value).all())
        assert places[0] == places[2] != places[1]

    played(play)
