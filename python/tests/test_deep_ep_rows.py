"""Who owns what the deep_ep drop-in gives and takes: rows where they lie or copied, tensors that are written anew."""

from __future__ import annotations

import typing

import pytest

torch = pytest.importorskip("torch", reason="Torch is not installed: its wheel for Linux brings gigabytes of CUDA")

import epistle  # noqa: E402
from epistle import deep_ep  # noqa: E402
from epistle.deep_ep import _routes  # noqa: E402

EXPERTS, TOP_K, HIDDEN = 8, 2, 64


def routing(num_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Every token goes to both of two ranks, and tokens to all experts in turn."""
    half = EXPERTS // 2
    ids = (torch.arange(num_tokens) % half).unsqueeze(1) + torch.tensor([0, half])
    return ids, torch.full((num_tokens, TOP_K), 0.5)


class Layer:
    """A buffer's dispatch of rows that all have one value."""

    def __init__(self, group: epistle.Group) -> None:
        self.buffer = deep_ep.Buffer(group, explicitly_destroy=True)

    def dispatch(self, value: int, num_tokens: int = 6) -> tuple[typing.Any, ...]:
        ids, weights = routing(num_tokens)
        per_rank, _, per_expert, in_rank, _ = self.buffer.get_dispatch_layout(ids, EXPERTS)
        result = self.buffer.dispatch(
            torch.full((num_tokens, HIDDEN), value, dtype=torch.bfloat16),
            num_tokens_per_rank=per_rank,
            is_token_in_rank=in_rank,
            num_tokens_per_expert=per_expert,
            topk_idx=ids,
            topk_weights=weights,
        )
        # The next routing is written there: what is kept of this one must not be these.
        ids.fill_(-1)
        weights.zero_()
        return result


def test_rows_stay_while_they_are_kept_and_are_copied_only_then() -> None:
    def play(group: epistle.Group) -> None:
        layer = Layer(group)
        results = [layer.dispatch(value)[:3] for value in range(4)]
        for _, recv_ids, recv_weights in results:
            assert torch.equal(recv_weights, torch.where(recv_ids >= 0, 0.5, 0.0))
            assert bool(((recv_ids >= 0).sum(1) == 1).all())
        kept = [result[0] for result in results]
        del results
        for value, rows in enumerate(kept):
            assert rows.shape == (12, HIDDEN)
            assert bool((rows == value).all())
        places = {rows.data_ptr() for rows in kept}
        assert len(places) == 4
        part = kept[0][2:5]  # holds them as well
        del kept, rows
        assert bool((layer.dispatch(7)[0] == 7).all())
        assert bool((part == 0).all())
        del part
        # Where nothing is kept, nothing is copied: the rows lie in the dispatcher's own two buffers.
        assert len({layer.dispatch(value)[0].data_ptr() for value in range(6)}) <= 2
        layer.buffer.destroy()

    epistle.run_threads(2, play, timeout=30)


def test_a_cached_dispatch_goes_by_the_ids_that_were_given_then() -> None:
    def play(group: epistle.Group) -> None:
        layer = Layer(group)
        first = layer.dispatch(1)
        handle = first[4]
        again = layer.buffer.dispatch(torch.full((6, HIDDEN), 2.0), handle=handle)[0]  # of another type
        assert torch.equal(again, first[0].float() * 2)
        sums, _, _ = layer.buffer.combine(first[0], handle)
        assert sums.shape == (6, HIDDEN)
        assert bool((sums == 2).all())
        layer.buffer.destroy()

    epistle.run_threads(2, play, timeout=30)


def test_a_batch_may_grow_and_shrink() -> None:
    def play(group: epistle.Group) -> None:
        layer = Layer(group)
        for num_tokens in (4, 40, 4, 0, 41, 200, 7):
            rows = layer.dispatch(num_tokens, num_tokens)[0]
            assert rows.shape == (2 * num_tokens, HIDDEN)
            assert bool((rows == num_tokens).all())
        layer.buffer.destroy()

    epistle.run_threads(2, play, timeout=30)


def test_a_batch_may_grow_on_one_rank_alone() -> None:
    def play(group: epistle.Group) -> None:
        layer = Layer(group)
        for grown, num_tokens in ((0, 4), (1, 40), (0, 40), (1, 300), (0, 2)):
            own = num_tokens if group.rank == grown else 4
            rows = layer.dispatch(own, own)[0]
            assert rows.shape == (num_tokens + 4, HIDDEN)
            assert int((rows[:, 0] == num_tokens).sum()) == (num_tokens if num_tokens != 4 else 8)
        layer.buffer.destroy()

    epistle.run_threads(2, play, timeout=30)


def test_a_routing_that_one_rank_gets_wrong_is_refused_on_all_and_the_next_one_works() -> None:
    def play(group: epistle.Group) -> None:
        layer = Layer(group)
        layer.dispatch(1)
        ids, _ = routing(6)
        per_rank, _, per_expert, in_rank, _ = layer.buffer.get_dispatch_layout(ids, EXPERTS)
        if group.rank == 1:
            ids[3, 1] = EXPERTS
        with pytest.raises(epistle.Error) as refused:
            layer.buffer.dispatch(
                torch.ones(6, HIDDEN, dtype=torch.bfloat16),
                num_tokens_per_rank=per_rank,
                is_token_in_rank=in_rank,
                num_tokens_per_expert=per_expert,
                topk_idx=ids,
            )
        codes = (epistle.ErrorCode.PEER_REJECTED, epistle.ErrorCode.INVALID_ARGUMENT)
        assert refused.value.code == codes[group.rank]
        assert bool((layer.dispatch(2)[0] == 2).all())
        layer.buffer.destroy()

    epistle.run_threads(2, play, timeout=30)


def test_rows_that_do_not_go_with_their_ids_are_refused_on_all_and_make_nobody_wait() -> None:
    def play(group: epistle.Group) -> None:
        layer = Layer(group)
        layer.dispatch(1)
        ids, _ = routing(6)
        _, _, per_expert, in_rank, _ = layer.buffer.get_dispatch_layout(ids, EXPERTS)
        rows = torch.ones(5 if group.rank == 1 else 6, HIDDEN, dtype=torch.bfloat16)
        with pytest.raises(epistle.Error) as refused:
            layer.buffer.dispatch(rows, is_token_in_rank=in_rank, num_tokens_per_expert=per_expert, topk_idx=ids)
        codes = (epistle.ErrorCode.PEER_REJECTED, epistle.ErrorCode.INVALID_ARGUMENT)
        assert refused.value.code == codes[group.rank]
        assert bool((layer.dispatch(2)[0] == 2).all())
        layer.buffer.destroy()

    epistle.run_threads(2, play, timeout=10)


def test_no_rank_is_asked_for_its_tokens_where_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    ask = _routes.gather_numbers

    def note(group: epistle.Group, values: list[int]) -> list[tuple[int, ...]]:
        asked.append(group.rank)
        return ask(group, values)

    monkeypatch.setattr(_routes, "gather_numbers", note)

    def play(group: epistle.Group) -> None:
        layer = Layer(group)
        layer.dispatch(1)
        group.barrier()
        asked.clear()
        group.barrier()
        for num_tokens in (3, 6, 16):
            layer.dispatch(1, num_tokens)
        group.barrier()
        assert not asked
        layer.dispatch(1, 17)
        group.barrier()
        assert sorted(asked) == [0, 1]
        layer.buffer.destroy()

    epistle.run_threads(2, play, timeout=30)


def test_counts_of_a_low_latency_dispatch_are_its_own() -> None:
    [group] = epistle.Group.threads(1)
    buffer = deep_ep.Buffer(group, low_latency_mode=True)
    x = torch.ones(8, HIDDEN, dtype=torch.bfloat16)
    ids, _ = routing(8)
    kept = []
    for turn in range(6):
        shifted = torch.where(ids < turn, -1, ids)
        kept.append((buffer.low_latency_dispatch(x, shifted, 8, EXPERTS, use_fp8=False)[1], shifted))
    for counts, chosen in kept:
        assert counts.tolist() == [int((chosen == expert).sum()) for expert in range(EXPERTS)]


def test_combine_takes_rows_in_blocks_as_they_are() -> None:
    [group] = epistle.Group.threads(1)
    config = epistle.DispatcherConfig(
        hidden=HIDDEN,
        num_experts=EXPERTS,
        top_k=TOP_K,
        max_tokens=8,
        layout=epistle.ExpertBlocks(8),
        sizing=epistle.Capacity(),
        order="flat",
    )
    moe = epistle.Dispatcher(group, "direct", config)
    ids, weights = routing(8)
    handle = moe.prepare(ids, weights)
    x = torch.arange(8 * HIDDEN).view(8, HIDDEN).remainder(7).bfloat16()
    received = moe.dispatch(x, handle=handle)
    blocks = received.rows.torch().view(EXPERTS, 8, HIDDEN)
    out = torch.empty_like(x)
    moe.combine(out, rows=blocks, handle=handle)
    assert torch.equal(out, x)
    wide = torch.zeros(EXPERTS, 9, HIDDEN, dtype=torch.bfloat16)
    with pytest.raises(epistle.Error, match="rows has 3 dimensions; 2 are expected"):
        moe.combine(out, rows=wide[:, :8], handle=handle)
    with pytest.raises(epistle.Error, match="rows has 4 dimensions"):
        moe.combine(out, rows=blocks.unsqueeze(0), handle=handle)
    moe.combine(out, rows=wide[:, :8].reshape(-1, HIDDEN), handle=handle)
    assert not bool(out.any())


def test_a_dispatch_in_one_step_gives_its_lease_back() -> None:
    [group] = epistle.Group.threads(1)
    config = epistle.DispatcherConfig(hidden=HIDDEN, num_experts=EXPERTS, top_k=TOP_K, max_tokens=8, max_handles=3)
    moe = epistle.Dispatcher(group, "direct", config)
    ids, _ = routing(8)
    x = torch.ones(8, HIDDEN, dtype=torch.bfloat16)
    for _ in range(5):
        handle, counts = moe.dispatch_decode(x, ids)
        assert counts.tolist() == handle.expert_counts.torch().tolist() == [2] * EXPERTS
    with pytest.raises(epistle.Error, match="expert_ids"):
        moe.dispatch_decode(x, ids.float())
    del handle
    tables = [moe.dispatch_decode(x, ids)[1] for _ in range(2)]  # each keeps its handle
    assert all(table.tolist() == [2] * EXPERTS for table in tables)
