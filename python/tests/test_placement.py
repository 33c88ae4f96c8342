"""Experts that are placed: replicas, placements that change, loads that are counted, plans, weights that move."""

from __future__ import annotations

import dataclasses
import gc
import pathlib
import runpy
import typing

import numpy as np
import pytest
from conftest import EXPERTS, HIDDEN, TOKENS, config, routing, small_integers

import epistle
from epistle import balance

BLOCKS = [[0, 1, 2], [3, 4, 5], [6, 7]]
# Experts 0 and 3 are there twice, rank 2 has four slots.
REPLICAS = [[0, 1, 2], [3, 4, 5, 0], [3, 6, 7, 1]]


def factor_of(received: epistle.Received, placement: epistle.Placement, rank: int) -> typing.Any:
    """Expert e multiplies by e + 1: [num_rows, 1]."""
    experts = np.array([*placement.slot_experts[rank], -1])  # padding rows have expert -1, and multiply by 0
    return (experts[np.asarray(received.row_expert)] + 1).astype(np.float32)[:, None]


def check_step(
    moe: epistle.Dispatcher, group: epistle.Group, placement: epistle.Placement, seed: int
) -> tuple[typing.Any, typing.Any]:
    """A round trip with the right sums; returns rows of every slot, and the ids."""
    ids, weights = routing(group.rank, group.size)
    tokens = small_integers((TOKENS, HIDDEN), group.rank)
    received = moe.dispatch(tokens, expert_ids=ids, weights=weights, step_seed=seed)
    assert received.first_expert == -1
    assert received.placement_generation == placement.generation
    assert received.num_local_experts == len(placement.slot_experts[group.rank])
    np.asarray(received.expert_outputs)[:] = np.asarray(received.rows) * factor_of(received, placement, group.rank)
    out = np.empty_like(tokens)
    moe.combine(out, received=received)
    np.testing.assert_array_equal(out, tokens * (weights * np.where(ids >= 0, ids + 1, 0)).sum(1, keepdims=True))
    return np.array(received.expert_counts), ids


@pytest.mark.parametrize("name", ["direct", "low_latency", "alltoall", "reference"])
def test_replicas_serve_tokens_and_placements_change_between_calls(name: str) -> None:
    first = epistle.Placement(EXPERTS, BLOCKS, generation=1)
    second = epistle.Placement(EXPERTS, REPLICAS, generation=2, quotas=[[0.25, 1, 1], [1, 1, 1, 0.75], [3, 1, 1, 0]])

    def play(group: epistle.Group) -> typing.Any:
        shape = config(layout=epistle.ExpertMajor(4), placement=first, slots_per_rank=4)
        moe = epistle.Dispatcher(group, name, shape)
        assert moe.placement == first
        check_step(moe, group, first, seed=0)
        with pytest.raises(epistle.Error, match="generation"):
            moe.set_placement(first)
        moe.set_placement(second)
        assert moe.placement == second
        counts, ids = check_step(moe, group, second, seed=1)
        np.testing.assert_array_equal(moe.expert_tokens(), 2 * np.bincount(ids[ids >= 0], minlength=EXPERTS))
        return counts, np.bincount(ids[ids >= 0], minlength=EXPERTS)

    results = epistle.run_threads(3, play, timeout=20)
    given = sum(ids for _, ids in results)
    served = np.zeros(EXPERTS, dtype=int)
    for rank, (counts, _) in enumerate(results):
        np.add.at(served, REPLICAS[rank], counts)
    np.testing.assert_array_equal(served, given)
    # A replica without a quota serves nobody; of expert 0 the second one serves most.
    assert results[2][0][3] == 0
    assert 0 < results[0][0][0] < results[1][0][3]


def test_the_seed_of_a_step_decides_which_replica_serves_a_token_and_may_be_read_from_memory() -> None:
    placement = epistle.Placement(EXPERTS, [list(range(EXPERTS)), list(range(EXPERTS))])

    def play(group: epistle.Group) -> list[list[int]]:
        moe = epistle.Dispatcher(group, "direct", config(layout=epistle.ExpertMajor(), placement=placement))
        ids, _ = routing(group.rank, group.size)
        counts = []
        for seed in ({"step_seed": 1}, {"step_seed": 2}, {"step_seed_at": np.array([1], dtype=np.uint64)}):
            counts.append(np.array(moe.prepare(ids, **seed).expert_counts).tolist())
        with pytest.raises(epistle.Error, match="step_seed_at has elements of int32; one uint64 or int64"):
            moe.prepare(ids, step_seed_at=np.array([1], dtype=np.int32))
        return counts

    for one, two, again in epistle.run_threads(2, play, timeout=20):
        assert one == again != two


def test_wrong_placements_are_refused_and_the_old_one_stays() -> None:
    first = epistle.Placement(EXPERTS, [list(range(4)), list(range(4, 8))], generation=1)

    def play(group: epistle.Group) -> None:
        moe = epistle.Dispatcher(group, "direct", config(layout=epistle.ExpertMajor(4), placement=first))
        for slots, complaint in [
            ([list(range(8)), [0]], "slots"),  # more than there is room for
            ([list(range(4)), list(range(4, 7))], "expert 7"),
            ([[0, 1, 2, 2], list(range(4, 8))], "2"),
        ]:
            with pytest.raises(epistle.Error, match=complaint):
                moe.set_placement(epistle.Placement(EXPERTS, slots, generation=2))
        ranks_differ = epistle.Placement(EXPERTS, first.slot_experts, generation=2 + group.rank)
        with pytest.raises(epistle.Error) as error:
            moe.set_placement(ranks_differ)
        assert error.value.code == epistle.ErrorCode.SHAPE_MISMATCH
        check_step(moe, group, first, seed=0)

    epistle.run_threads(2, play, timeout=20)


def test_a_placement_is_a_value_of_lists_or_arrays() -> None:
    quotas = [[0.5, 1.0, 1.0], [1.0, 1.0, 1.0, 0.5], [0.0, 1.0, 1.0, 0.0]]
    placement = epistle.Placement(EXPERTS, REPLICAS, quotas=quotas, domain_of_rank=[0, 0, 1])
    arrays = epistle.Placement(
        EXPERTS,
        [np.array(slots) for slots in REPLICAS],  # type: ignore[misc]
        quotas=quotas,
        domain_of_rank=np.array([0, 0, 1]),  # type: ignore[arg-type]
    )
    assert placement == arrays
    assert hash(placement) == hash(arrays)
    assert placement.replicas_of(3) == [(1, 0), (2, 0)]
    assert dataclasses.replace(placement, generation=1) != placement
    with pytest.raises(TypeError):
        epistle.Placement(EXPERTS, [[0.5]])  # type: ignore[list-item]


def test_counts_become_loads_and_ranks_add_up() -> None:
    def play(group: epistle.Group) -> typing.Any:
        moe = epistle.Dispatcher(group, "direct", config())
        window = balance.LoadWindow(EXPERTS, num_layers=2, kind="steps", span_steps=2, num_buckets=2)
        feed = balance.CounterFeed(window, layer=1, phase="decode")
        ids, _ = routing(group.rank, group.size)
        for _ in range(3):
            moe.prepare(ids)
            feed.update(moe.expert_tokens())
            window.end_step(phase="decode")
        counts = np.bincount(ids[ids >= 0], minlength=EXPERTS)
        own = window.snapshot(phase="decode")
        assert (own.num_layers, own.num_experts) == (2, EXPERTS)
        np.testing.assert_array_equal(own.tokens_total, [np.zeros(EXPERTS), 3 * counts])
        np.testing.assert_array_equal(window.samples(layer=1, phase="decode"), [counts])  # the other has begun
        assert not np.any(window.snapshot().tokens_total)
        with pytest.raises(epistle.Error, match="only grow"):
            feed.update([0] * EXPERTS)
        return own.gather(group), counts

    results = epistle.run_threads(3, play, timeout=20)
    total = sum(counts for _, counts in results)
    for snapshot, _ in results:
        np.testing.assert_array_equal(snapshot.tokens_total[1], 3 * total)
    text = results[0][0].metrics_text(balancedness=[1.0, 0.5], num_moves=[0, 7])
    assert f'epistle_expert_tokens_total{{layer="1",expert="0"}} {3 * total[0]}\n' in text
    assert 'epistle_balancedness{layer="1"} 0.5\n' in text
    assert 'epistle_expert_moves_total{layer="1"} 7\n' in text
    with pytest.raises(epistle.Error, match="2 layers, but replicas or moves of 1"):
        results[0][0].metrics_text(balancedness=[1.0, 1.0], num_moves=[1])
    with pytest.raises(epistle.Error, match="it is one of time, steps, decayed"):
        balance.LoadWindow(4, kind="days")
    with pytest.raises(epistle.Error, match="it is one of prefill, decode"):
        balance.LoadWindow(4).add([1] * 4, phase="training")


def test_plans_say_what_to_copy_and_why_not() -> None:
    loads = np.array([8.0, 1.0, 1.0, 1.0])
    plan = balance.plan_placement(loads, [2, 2, 2])
    assert plan.changed and not plan.copies
    assert plan.after > 0.9 and plan.after <= plan.bound
    placement = plan.placement(generation=3, near_first=True)
    assert placement.generation == 3 and placement.near_first
    assert len(placement.replicas_of(0)) > 1
    now = [[0, 1], [2, -1], [3, -1]]
    moved = balance.plan_placement(loads, [2, 2, 2], current=now, expert_bytes=10)
    assert moved.changed and moved.before < 0.5 < moved.after
    assert moved.bytes_between_ranks == 10 * sum(copy.link != "local" for copy in moved.copies)
    held = [list(slots) for slots in now]
    for copy in moved.copies:
        assert held[copy.source[0]][copy.source[1]] == copy.expert
        held[copy.destination[0]][copy.destination[1]] = copy.expert
        assert {expert for slots in held for expert in slots} >= {0, 1, 2, 3}
    assert held == moved.slot_experts
    stay = balance.plan_placement(loads, [2, 2, 2], current=now, expert_bytes=10, budget_bytes=9)
    assert not stay.changed and stay.slot_experts == now and stay.reason
    windows = balance.plan_placement([[8, 1, 1, 1], [1, 1, 1, 8]], [2, 2, 2], num_candidates=8, half_life=1.0)
    assert windows.after > 0.8
    for arguments, complaint in [
        ({"method": "best"}, "'fresh' or 'incremental'"),
        ({"objective": "time"}, "'tokens' or 'activated'"),
        ({"method": "incremental"}, "needs the current placement"),
        ({"target": 2.0}, "the target"),
        ({"current": [[0, 1], [2, 3]]}, "."),
    ]:
        with pytest.raises((ValueError, epistle.Error), match=complaint):
            balance.plan_placement(loads, [2, 2, 2], **arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected \\[experts\\] or \\[windows, experts\\]"):
        balance.plan_placement(np.ones((1, 1, 4)), [4])


def test_plans_take_tensors_of_torch() -> None:
    torch = pytest.importorskip("torch")
    loads = torch.tensor([8.0, 1.0, 1.0, 1.0], dtype=torch.bfloat16)
    assert balance.plan_placement(loads, [2, 2, 2]).after > 0.9


@pytest.mark.parametrize("bytes_per_advance", [0, 64])
def test_weights_move_between_two_steps_on_all_ranks(bytes_per_advance: int) -> None:
    before = [[0, 1], [2, 3], [4, -1]]
    after = [[4, 1], [2, 0], [3, 0]]

    def play(group: epistle.Group) -> tuple[int, list[list[int]]]:
        store = epistle.WeightStore(
            group,
            before,
            num_experts=5,
            expert_bytes=128,
            chunk_bytes=64,
            low_priority=False,
            bytes_per_advance=bytes_per_advance,
        )
        assert store.status.state == "idle"
        assert store.placement.slot_experts == ((0, 1), (2, 3), (4,))
        for slot, expert in enumerate(store.placement.slot_experts[group.rank]):
            np.asarray(store.weights(slot))[:] = expert
        group.barrier()
        assert not store.begin(before)
        assert store.begin(after)
        with pytest.raises(epistle.Error, match="runs already"):
            store.begin(before)
        switched_at = -1
        for step in range(1_000_000):
            if store.advance() and store.status.state == "done":
                switched_at = step
                break
            group.barrier()  # stands for a step
        status = store.status
        assert status.rounds_done == status.num_rounds >= 1
        assert status.bytes_copied == status.bytes_into_rank
        assert store.placement.slot_experts == tuple(tuple(slots) for slots in after)
        held = [sorted(set(np.asarray(store.weights(slot)).tolist())) for slot in range(2)]
        return switched_at, held

    results = epistle.run_threads(3, play, timeout=20)
    assert len({step for step, _ in results}) == 1
    assert [held for _, held in results] == [[[expert] for expert in slots] for slots in after]


def test_a_migration_can_be_cancelled_and_weights_outlive_their_store() -> None:
    def play(group: epistle.Group) -> typing.Any:
        store = epistle.WeightStore(
            group, [[0, 1], [2, 3]], num_experts=4, expert_bytes=4096, chunk_bytes=64, bytes_per_advance=64
        )
        np.asarray(store.weights(0))[:] = 7
        group.barrier()
        store.begin([[2, 1], [0, 3]])
        store.advance()
        group.barrier()
        if group.rank == 0:
            assert store.cancel()
        for _ in range(100):
            group.barrier()
            store.advance()
            if store.status.state == "cancelled":
                break
        assert store.status.state == "cancelled"
        assert store.placement.slot_experts == ((0, 1), (2, 3))
        assert not store.cancel()
        with pytest.raises(epistle.Error, match="slot 2 of rank"):
            store.weights(2)
        with pytest.raises(epistle.Error, match="sound"):
            store.settle()
        group.barrier()
        return np.asarray(store.weights(0))

    kept = epistle.run_threads(2, play, timeout=20)
    gc.collect()
    assert all((weights == 7).all() for weights in kept)


def test_stores_that_do_not_fit_are_refused_on_all_ranks() -> None:
    def play(group: epistle.Group) -> None:
        with pytest.raises(epistle.Error) as error:
            epistle.WeightStore(group, [[0, 1], [2, 3]], num_experts=4, expert_bytes=64 + group.rank)
        assert error.value.code == epistle.ErrorCode.SHAPE_MISMATCH
        with pytest.raises(epistle.Error, match="expert 3"):
            epistle.WeightStore(group, [[0, 1], [2, 2]], num_experts=4, expert_bytes=64)

    epistle.run_threads(2, play, timeout=20)


def test_the_example_moves_experts() -> None:
    example = runpy.run_path(str(pathlib.Path(__file__).parents[1] / "examples" / "moving_experts.py"))
    assert max(epistle.run_threads(4, example["play"])) < 1e-5
