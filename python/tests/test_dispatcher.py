"""Round trips of NumPy arrays between ranks that are threads."""

from __future__ import annotations

import dataclasses
import gc
import pathlib
import re
import threading
import weakref

import numpy as np
import pytest
from conftest import EXPERTS, HIDDEN, TOKENS, config, routing, small_integers, starts_of

import epistle

LAYOUTS = [
    (epistle.TokenMajor(), epistle.Exact()),
    (epistle.ExpertMajor(4), epistle.Exact()),
    (epistle.ExpertMajor(4), epistle.Capacity(400)),
    (epistle.ExpertBlocks(3 * TOKENS), epistle.Capacity()),
]


@pytest.mark.parametrize("name", ["direct", "low_latency", "alltoall", "reference"])
@pytest.mark.parametrize(("layout", "sizing"), LAYOUTS)
def test_rows_come_where_the_routing_says_and_back(
    name: str, layout: epistle.TokenMajor | epistle.ExpertMajor | epistle.ExpertBlocks, sizing: epistle.Exact
) -> None:
    def play(group: epistle.Group) -> None:
        moe = epistle.Dispatcher(group, name, config(layout=layout, sizing=sizing))
        tables = [routing(rank, group.size) for rank in range(group.size)]
        tokens = [small_integers((TOKENS, HIDDEN), rank) for rank in range(group.size)]
        ids, weights = tables[group.rank]
        handle = moe.prepare(ids, weights)
        received = moe.dispatch(tokens[group.rank], handle=handle)
        rows, outputs = np.asarray(received.rows), np.asarray(received.expert_outputs)
        src_rank, src_token = np.asarray(received.src_rank), np.asarray(received.src_token)
        assert rows.shape == outputs.shape == (received.num_rows, HIDDEN)
        for row in range(received.num_rows):
            source = tokens[src_rank[row]][src_token[row]] if src_rank[row] >= 0 else np.zeros(HIDDEN, np.float32)
            np.testing.assert_array_equal(rows[row], source)

        # Expert e multiplies by e + 1; in token_major a rank's one row has no expert, so it multiplies by 1.
        starts = starts_of(group.size)
        counts = np.zeros(EXPERTS, dtype=int)
        for table, _ in tables:
            np.add.at(counts, table[table >= 0], 1)
        np.testing.assert_array_equal(received.expert_counts, counts[starts[group.rank] : starts[group.rank + 1]])
        factor = np.ones(received.num_rows, dtype=np.float32)
        if received.row_expert is not None:
            factor = np.asarray(received.row_expert) + received.first_expert + np.float32(1)
        outputs[:] = rows * factor[:, None]
        out = np.full_like(tokens[0], np.nan)
        moe.combine(out, received=received)
        per_expert = np.where(ids >= 0, ids + 1 if received.row_expert is not None else 1, 0)
        np.testing.assert_array_equal(out, tokens[group.rank] * (weights * per_expert).sum(1, keepdims=True))

        stats = handle.wait_stats()
        assert stats.num_tokens == TOKENS and stats.dropped_in_group == 0
        assert handle.read_expert_counts() == np.asarray(handle.expert_counts).tolist()
        assert handle.routed_ids is None  # nobody keeps them on the host
        assert moe.wire_bytes(handle).dispatch > 0

    epistle.run_threads(3, play, timeout=20)


def test_halves_and_leases() -> None:
    def play(group: epistle.Group) -> None:
        moe = epistle.Dispatcher(group, "direct", config(num_buffers=2))
        ids, weights = routing(group.rank, group.size)
        tokens = small_integers((TOKENS, HIDDEN), group.rank)
        handle = moe.prepare(ids, weights)
        pending = moe.dispatch_send(tokens, handle=handle)
        ahead = pending.received()
        first = moe.dispatch_receive(pending)
        assert ahead.rows.data_pointer == first.rows.data_pointer
        ahead.release()  # its own reference: `first` is leased still
        second = moe.dispatch(tokens, handle=handle)
        with pytest.raises(epistle.Error, match="leased") as error:
            moe.dispatch(tokens, handle=handle)
        assert error.value.code == epistle.ErrorCode.INVALID_ARGUMENT
        kept = np.asarray(first.rows)
        del first  # the array still holds the lease
        with pytest.raises(epistle.Error, match="leased"):
            moe.dispatch(tokens, handle=handle)
        del kept
        third = moe.dispatch(tokens, handle=handle)
        np.testing.assert_array_equal(second.rows, third.rows)
        out = np.empty_like(tokens)
        moe.combine_receive(moe.combine_send(out, rows=third.rows, handle=handle))
        expected = np.empty_like(tokens)
        moe.combine(expected, rows=third.rows, handle=handle)
        np.testing.assert_array_equal(out, expected)

    epistle.run_threads(2, play, timeout=20)


def test_gradients() -> None:
    def play(group: epistle.Group) -> None:
        moe = epistle.Dispatcher(group, "direct", config(layout=epistle.ExpertMajor(4), num_buffers=2))
        ids, weights = routing(group.rank, group.size)
        x, grad_y = (small_integers((TOKENS, HIDDEN), seed + group.rank) for seed in (10, 20))
        handle = moe.prepare(ids, weights)
        received = moe.dispatch(x, handle=handle)
        rows = np.asarray(received.rows)
        row_grad_weights = np.zeros(received.num_rows, dtype=np.float32)
        grad_rows = moe.combine_backward(handle, grad_y, saved_rows=rows, grad_weights=row_grad_weights)
        grad_x, grad_probs = np.empty_like(x), np.empty_like(weights)
        moe.dispatch_backward(
            handle, np.array(grad_rows.rows), grad_x, grad_weights=row_grad_weights, grad_probs=grad_probs
        )
        taken = ids >= 0
        np.testing.assert_array_equal(grad_x, grad_y * (weights * taken).sum(1, keepdims=True))
        np.testing.assert_array_equal(grad_probs, taken * (x * grad_y).sum(1, keepdims=True))

    epistle.run_threads(2, play, timeout=20)


def test_what_is_used_lives_and_goes_on_any_thread() -> None:
    [group] = epistle.Group.threads(1)
    moe = epistle.Dispatcher(group, "direct", config())
    ids, weights = routing(0, 1)
    tokens = small_integers((TOKENS, HIDDEN), 1)
    rows = np.asarray(moe.dispatch(tokens, expert_ids=ids, weights=weights).rows)
    handle = moe.prepare(ids)
    src_token = np.asarray(handle.src_token)
    del moe, handle, group
    gc.collect()
    np.testing.assert_array_equal(rows, tokens[src_token])

    class Holder:
        pass

    holder = Holder()
    holder.rows, holder.cycle = rows, holder  # type: ignore[attr-defined]
    gone = weakref.ref(holder)
    del rows, holder
    collector = threading.Thread(target=gc.collect)
    collector.start()
    collector.join()
    assert gone() is None


def test_unfriendly_strides_and_types() -> None:
    [group] = epistle.Group.threads(1)
    moe = epistle.Dispatcher(group, "direct", config())
    ids, weights = routing(0, 1)
    wide = small_integers((TOKENS, 2 * HIDDEN), 1)
    received = moe.dispatch(wide[:, :HIDDEN], expert_ids=ids.astype(np.int64), weights=weights)
    np.testing.assert_array_equal(received.rows, wide[np.asarray(received.src_token), :HIDDEN])
    received.release()
    for tokens, complaint in [
        (wide[:, ::2], "one behind the other"),
        (wide[:, :HIDDEN].astype(np.float64), "float64"),
        (wide[0], "dimensions"),
        ("text", "tensor"),
        (wide, "128 elements"),
    ]:
        with pytest.raises(epistle.Error, match=complaint):
            moe.dispatch(tokens, expert_ids=ids, weights=weights)
    out = np.empty((TOKENS, HIDDEN), np.float32)
    out.flags.writeable = False
    received = moe.dispatch(wide[:, :HIDDEN], expert_ids=ids, weights=weights)
    with pytest.raises(epistle.Error, match="written"):
        moe.combine(out, received=received)


def test_capabilities_are_those_of_the_header() -> None:
    header = pathlib.Path(__file__).parents[2] / "include" / "epistle" / "dispatcher_info.hpp"
    struct = re.search(r"struct Capabilities \{(.*?)\n\};", header.read_text(), re.DOTALL)
    assert struct is not None
    fields = set(re.findall(r"(\w+)(?: = [^;]*)?;", re.sub(r"//.*", "", struct[1])))
    assert fields == {field.name for field in dataclasses.fields(epistle.find_dispatcher("direct").capabilities)}
    assert epistle.find_dispatcher("hybrid").capabilities.joins_domains
    assert not epistle.find_dispatcher("direct").capabilities.joins_domains


def test_what_there_is_without_a_group() -> None:
    names = {(info.name, info.device) for info in epistle.dispatchers()}
    assert {("direct", "host"), ("direct", "cuda"), ("low_latency", "cuda")} <= names
    info = epistle.find_dispatcher("direct", "cuda")
    assert "bf16" in info.capabilities.inputs
    shape = epistle.DispatcherConfig(hidden=7168, num_experts=256, top_k=8, max_tokens=4096)
    assert info.cannot_serve(shape, 8) is None or info.capabilities.missing
    plan = epistle.find_dispatcher("direct").memory(shape, 8)
    assert plan.largest_bytes("shared") >= 8 * 4096 * 7168 * 2
    with pytest.raises(epistle.Error) as error:
        epistle.find_dispatcher("dirct")
    assert error.value.code is epistle.ErrorCode.NOT_FOUND
    with pytest.raises(epistle.Error, match="TokenMajor"):
        info.memory(config(layout="rows"), 2)


def test_buffers_come_and_go_without_a_trace() -> None:
    import os

    def count() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    def play(group: epistle.Group) -> None:
        moe = epistle.Dispatcher(group, "direct", config())
        ids, weights = routing(group.rank, group.size)
        moe.dispatch(small_integers((TOKENS, HIDDEN), 1), expert_ids=ids, weights=weights)

    for _ in range(3):
        epistle.run_threads(2, play)
    before = count()
    for _ in range(100):
        epistle.run_threads(2, play)
    gc.collect()
    assert count() == before
