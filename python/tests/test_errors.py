"""Failures of one rank, as all of them see it."""

from __future__ import annotations

import pickle
import threading
import time

import numpy as np
import pytest
from conftest import HIDDEN, TOKENS, config, routing, small_integers

import epistle


def test_a_bad_tensor_is_told_to_the_others_and_the_next_call_works() -> None:
    def play(group: epistle.Group) -> None:
        moe = epistle.Dispatcher(group, "direct", config())
        ids, weights = routing(group.rank, group.size)
        tokens = small_integers((TOKENS, HIDDEN), group.rank)
        bad = tokens.astype("float64") if group.rank == 1 else tokens
        with pytest.raises(epistle.Error) as error:
            moe.dispatch(bad, expert_ids=ids, weights=weights)
        if group.rank == 1:
            assert error.value.code is epistle.ErrorCode.INVALID_ARGUMENT
            assert "tokens has elements of float64" in str(error.value)
        else:
            assert error.value.code is epistle.ErrorCode.PEER_REJECTED
            assert error.value.peer_rank == 1
            assert "tokens has elements of float64" in str(error.value)
        assert error.value.rank == group.rank
        assert moe.poll() == "ok"
        moe.dispatch(tokens, expert_ids=ids, weights=weights)

    epistle.run_threads(3, play, timeout=20)


@pytest.mark.parametrize(
    ("bad_ids", "bad_handle", "reason"),
    [
        (None, "given", "expert_ids is None"),
        ("objects", "given", "expert_ids cannot be read: its elements are of type"),
        ("ids", "five", "handle is no Handle"),
    ],
)
def test_what_is_no_tensor_or_handle_is_told_to_the_others(bad_ids: str | None, bad_handle: str, reason: str) -> None:
    def play(group: epistle.Group) -> None:
        moe = epistle.Dispatcher(group, "direct", config())
        ids, weights = routing(group.rank, group.size)
        tokens = small_integers((TOKENS, HIDDEN), group.rank)
        is_bad = group.rank == 0
        given = {None: None, "objects": ids.astype(object), "ids": ids}[bad_ids] if is_bad else ids
        with pytest.raises(epistle.Error, match=reason) as error:
            handle = moe.prepare(given, weights)
            moe.dispatch(tokens, handle=5 if is_bad and bad_handle == "five" else handle)
        expected = epistle.ErrorCode.INVALID_ARGUMENT if is_bad else epistle.ErrorCode.PEER_REJECTED
        assert error.value.code is expected
        moe.dispatch(tokens, expert_ids=ids, weights=weights)

    epistle.run_threads(2, play, timeout=20)


@pytest.mark.parametrize("timeout", [float("nan"), -1.0, float("-inf")])
def test_impossible_timeouts_are_refused(timeout: float) -> None:
    with pytest.raises(epistle.Error, match="the timeout is ") as error:
        epistle.Group.threads(2, timeout=timeout)
    assert error.value.code is epistle.ErrorCode.INVALID_ARGUMENT


def test_endless_timeouts_are_the_longest() -> None:
    assert epistle.Group.threads(1, timeout=float("inf"))[0].timeout > 86_400


def test_different_configurations_are_named() -> None:
    def play(group: epistle.Group) -> None:
        epistle.Dispatcher(group, "direct", config(hidden=64 + 64 * group.rank))

    with pytest.raises(epistle.Error, match="hidden") as error:
        epistle.run_threads(2, play)
    assert error.value.code is epistle.ErrorCode.SHAPE_MISMATCH


def test_a_rank_that_raises_is_lost_to_the_others_at_once() -> None:
    seen: list[epistle.Error] = []

    def play(group: epistle.Group) -> None:
        if group.rank == 1:
            raise ValueError("a mistake of rank 1")
        try:
            group.barrier()
        except epistle.Error as error:
            seen.append(error)
            raise

    start = time.monotonic()
    with pytest.raises(ValueError, match="rank 1"):
        epistle.run_threads(3, play, timeout=20)
    assert time.monotonic() - start < 10
    assert [(error.code, error.peer_rank) for error in seen] == [(epistle.ErrorCode.PEER_LOST, 1)] * 2
    assert seen[0].phase is epistle.Phase.BARRIER


def test_a_rank_that_is_late() -> None:
    def play(group: epistle.Group) -> None:
        if group.rank == 0:
            with pytest.raises(epistle.Error) as error:
                group.barrier()
            assert error.value.code is epistle.ErrorCode.TIMEOUT
        else:
            time.sleep(0.6)  # the GIL is not held by rank 0, which waits

    epistle.run_threads(2, play, timeout=0.2)


def test_abort_from_another_thread() -> None:
    both_there = threading.Barrier(2)

    def play(group: epistle.Group) -> None:
        moe = epistle.Dispatcher(group, "direct", config())
        both_there.wait()
        if group.rank == 0:
            moe.abort()
            return
        ids, weights = routing(group.rank, group.size)
        with pytest.raises(epistle.Error) as error:
            moe.prepare(ids, weights)
        assert error.value.code is epistle.ErrorCode.ABORTED
        assert moe.poll() == "aborted" and moe.suspects() == [0]

    epistle.run_threads(2, play, timeout=20)


def test_survivors_go_on_without_a_rank_and_it_comes_back() -> None:
    rank_may_come_back = threading.Event()
    have_prepared = threading.Barrier(4)

    def play(group: epistle.Group) -> None:
        moe = epistle.Dispatcher(group, "direct", config())
        ids, weights = routing(group.rank, group.size)
        tokens = small_integers((TOKENS, HIDDEN), group.rank)
        before = moe.prepare(ids, weights)
        assert before.wait_stats().lost_by_this_rank == 0
        have_prepared.wait(20)  # who is masked out before it has woken from that is told so
        if group.rank == 1:
            rank_may_come_back.wait(20)
            with pytest.raises(epistle.Error) as error:
                group.barrier()
            assert error.value.code is epistle.ErrorCode.MASKED_OUT
        else:
            assert epistle.go_on_without(group, [1]) == group.masked == [1] and group.suspects() == []
            handle = moe.prepare(ids, weights)
            lost = int((ids // (len(moe.lost_tokens()) // group.size) == 1).sum())
            assert handle.wait_stats().lost_by_this_rank == sum(moe.lost_tokens()) == lost
            received = moe.dispatch(tokens, handle=handle)
            assert 1 not in set(np.asarray(received.src_rank).tolist())
            with pytest.raises(epistle.Error) as error:
                moe.dispatch(tokens, handle=before)
            assert error.value.code is epistle.ErrorCode.HANDLE_MISMATCH
            rank_may_come_back.set()
        group.clear_mask()
        assert group.masked == [] and moe.poll() == "ok"
        assert moe.prepare(ids, weights).wait_stats().lost_by_this_rank == 0

    epistle.run_threads(4, play, timeout=20)


def test_errors_can_be_sent_to_another_process() -> None:
    error = epistle.Error("text", epistle.ErrorCode.TIMEOUT, rank=1, peer_rank=2, phase=epistle.Phase.COMBINE)
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.code, copy.rank, copy.peer_rank, copy.phase) == ("text", error.code, 1, 2, error.phase)


def test_weights_in_combine_are_refused_where_they_come_with_the_ids() -> None:
    [group] = epistle.Group.threads(1)
    moe = epistle.Dispatcher(group, "direct", config())
    ids, weights = routing(0, 1)
    received = moe.dispatch(small_integers((TOKENS, HIDDEN), 1), handle=moe.prepare(ids, weights))
    assert not moe.info.capabilities.late_weights
    with pytest.raises(epistle.Error, match="takes the weights with the ids") as raised:
        moe.combine(np.zeros((TOKENS, HIDDEN), np.float32), received=received, weights=weights)
    assert raised.value.code == epistle.ErrorCode.UNSUPPORTED
