"""HybridEPBuffer on tensors of the CPU."""

from __future__ import annotations

import typing

import pytest

torch = pytest.importorskip("torch", reason="Torch is not installed: its wheel for Linux brings gigabytes of CUDA")

import epistle  # noqa: E402
from epistle import deep_ep  # noqa: E402

EXPERTS, HIDDEN, RANKS = 6, 64, 2
LOCAL = EXPERTS // RANKS


class Inputs:
    """A token has between none and four experts; ranks have fewer tokens the higher they are."""

    def __init__(self, rank: int, num_tokens: int | None = None) -> None:
        generator = torch.Generator().manual_seed(rank)
        num_tokens = num_tokens or 19 - 4 * rank
        wanted = torch.randint(0, 5, (num_tokens, 1), generator=generator)
        order = torch.rand(num_tokens, EXPERTS, generator=generator).argsort(1).argsort(1)
        self.map = order < wanted
        self.probs = torch.where(self.map, torch.rand(num_tokens, EXPERTS, generator=generator), 0)
        # Small integers: sums are exact in any order.
        self.x = torch.randint(-4, 5, (num_tokens, HIDDEN), generator=generator).bfloat16()


def buffer_of(group: epistle.Group) -> deep_ep.HybridEPBuffer:
    return deep_ep.HybridEPBuffer(group, HIDDEN, 32, LOCAL, num_sms_dispatch_api=8)


def rows_of(expert: int, everyone: list[Inputs], what: str) -> torch.Tensor:
    """Of all ranks' tokens, in the order of (source rank, source token)."""
    if what == "x":
        return torch.cat([given.x[given.map[:, expert]] for given in everyone])
    return torch.cat([given.probs[given.map[:, expert], expert] for given in everyone])


@pytest.mark.parametrize("pad_multiple", [None, 8])
@pytest.mark.parametrize("num_permuted_tokens", [None, 160])
def test_permuted_rows_come_in_groups_of_experts_and_go_back(
    pad_multiple: int | None, num_permuted_tokens: int | None
) -> None:
    def play(group: epistle.Group) -> None:
        buffer = buffer_of(group)
        everyone = [Inputs(rank) for rank in range(RANKS)]
        given = everyone[group.rank]
        rows, probs, scales, counts, handle = buffer.dispatch_with_permute(
            hidden=given.x,
            routing_map=given.map,
            probs=given.probs,
            scaling_factor=None,
            num_of_experts_per_rank=LOCAL,
            pad_multiple=pad_multiple,
            num_permuted_tokens=num_permuted_tokens,
            non_blocking=num_permuted_tokens is not None,
        )
        assert scales is None and len(handle) == 11 and not handle[-1].any()
        assert probs is not None and (num_permuted_tokens is None or rows.shape[0] == num_permuted_tokens)
        begin = 0
        for local, padded in enumerate(counts.tolist()):
            expected = rows_of(group.rank * LOCAL + local, everyone, "x")
            end = begin + expected.shape[0]
            assert torch.equal(rows[begin:end], expected)
            assert torch.equal(probs[begin:end], rows_of(group.rank * LOCAL + local, everyone, "probs"))
            assert padded == -(-expected.shape[0] // (pad_multiple or 1)) * (pad_multiple or 1)
            assert not rows[end : begin + padded].any() and not probs[end : begin + padded].any()
            begin += padded
        sums, dense = buffer.combine_with_unpermute(hidden=rows, probs=probs, handle=handle, pad_multiple=pad_multiple)
        assert torch.equal(sums, given.x * given.map.sum(1, keepdim=True))
        assert dense is not None and torch.equal(dense, given.probs)

        # Gradients take the same way with the handle.
        again, no_probs, _, _, _ = buffer.dispatch_with_permute(
            hidden=given.x * 2, handle=handle, pad_multiple=pad_multiple, num_permuted_tokens=counts.sum()
        )
        assert no_probs is None and torch.equal(again, rows * 2)

    epistle.run_threads(RANKS, play, timeout=30)


def test_rows_that_find_no_room_are_left_out_and_told_of() -> None:
    def play(group: epistle.Group) -> bool:
        given = Inputs(group.rank, 16)
        *_, handle = buffer_of(group).dispatch_with_permute(
            hidden=given.x, routing_map=given.map, probs=given.probs, num_permuted_tokens=8, non_blocking=True
        )
        return bool(handle[-1] != 0)

    assert any(epistle.run_threads(RANKS, play, timeout=30))


@pytest.mark.parametrize("by_index", [False, True])
def test_rows_that_are_not_permuted_come_once_with_their_probabilities(by_index: bool) -> None:
    def play(group: epistle.Group) -> None:
        buffer = buffer_of(group)
        everyone = [Inputs(rank) for rank in range(RANKS)]
        given = everyone[group.rank]
        first = group.rank * LOCAL
        arguments: dict[str, typing.Any] = {"routing_map": given.map, "probs": given.probs}
        if by_index:
            weights, ids = given.probs.topk(4)
            ids = torch.where(given.map.gather(1, ids), ids, -1)
            arguments = {"topk_idx": ids, "topk_weights": weights, "num_of_experts": EXPERTS}
        rows, probs, _, handle = buffer.dispatch(given.x, **arguments)
        here = [inputs.map[:, first : first + LOCAL].any(1) for inputs in everyone]
        assert torch.equal(rows, torch.cat([inputs.x[mask] for inputs, mask in zip(everyone, here, strict=True)]))
        expected = torch.cat([inputs.probs[mask] for inputs, mask in zip(everyone, here, strict=True)])
        assert len(handle) == 7 and probs is not None
        assert torch.equal(probs[:, first : first + LOCAL], expected[:, first : first + LOCAL])
        assert torch.equal(handle[4], expected[:, first : first + LOCAL] > 0)
        sums, dense = buffer.combine(rows, probs, handle)
        ranks = given.map.view(-1, RANKS, LOCAL).any(2).sum(1, keepdim=True)
        assert torch.equal(sums, given.x * ranks)
        assert dense is not None and torch.equal(dense, given.probs)

    epistle.run_threads(RANKS, play, timeout=30)


def test_a_handle_of_another_call_is_refused() -> None:
    [group] = epistle.Group.threads(1)
    with pytest.raises(ValueError, match="11 entries; 7 given"):
        buffer_of(group).combine_with_unpermute(hidden=torch.zeros(1, HIDDEN), handle=(None,) * 7)
