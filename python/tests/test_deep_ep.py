"""The deep_ep drop-in on tensors of the CPU: Buffer, normal and low-latency, and ElasticBuffer."""

from __future__ import annotations

import itertools
import pathlib
import subprocess
import sys
import threading
import typing

import pytest

torch = pytest.importorskip("torch", reason="Torch is not installed: its wheel for Linux brings gigabytes of CUDA")

import epistle  # noqa: E402
from epistle import deep_ep  # noqa: E402
from epistle.deep_ep._routes import Dispatchers  # noqa: E402
from epistle.deep_ep.utils.math import calc_diff, per_token_cast_back, per_token_cast_to_fp8  # noqa: E402

EXPERTS, TOP_K, TOKENS, HIDDEN = 8, 3, 20, 256
SCRIPT = pathlib.Path(__file__).parent / "deep_ep_script.py"


class Inputs:
    """Ranks have fewer tokens the higher they are; some tokens lack an expert, one lacks all."""

    def __init__(self, rank: int) -> None:
        generator = torch.Generator().manual_seed(rank)
        num_tokens = max(1, TOKENS - 3 * rank)
        self.weights, self.ids = torch.rand(num_tokens, EXPERTS, generator=generator).topk(TOP_K)
        self.ids[1::5, 1] = -1
        self.ids[-1:] = -1
        self.x = torch.randn(num_tokens, HIDDEN, generator=generator).bfloat16()

    @property
    def taken(self) -> torch.Tensor:
        return torch.where(self.ids >= 0, self.weights, 0)


def layout_of(buffer: deep_ep.Buffer, given: Inputs) -> dict[str, typing.Any]:
    per_rank, per_node, per_expert, in_rank, _ = buffer.get_dispatch_layout(given.ids, EXPERTS)
    assert per_node is None
    return {"num_tokens_per_rank": per_rank, "is_token_in_rank": in_rank, "num_tokens_per_expert": per_expert}


def as_rows(x: typing.Any) -> torch.Tensor:
    return per_token_cast_back(*x) if isinstance(x, tuple) else x


def pack_exponents(x: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales that are powers of two, in words of four."""
    exponents = torch.zeros(x[1].shape[0], 4, dtype=torch.uint8)
    exponents[:, : x[1].shape[1]] = (x[1].log2().ceil() + 127).to(torch.uint8)
    return x[0], exponents.view(torch.int32)


def test_the_layout_is_the_obvious_one() -> None:
    def play(group: epistle.Group) -> None:
        given = Inputs(group.rank)
        layout = layout_of(deep_ep.Buffer(group), given)
        ranks = torch.where(given.ids < 0, -1, given.ids // (EXPERTS // group.size))
        in_rank = torch.stack([(ranks == rank).any(1) for rank in range(group.size)], dim=1)
        assert torch.equal(layout["is_token_in_rank"], in_rank)
        assert layout["num_tokens_per_rank"].tolist() == in_rank.sum(0).tolist()
        assert layout["num_tokens_per_expert"].tolist() == [(given.ids == e).sum().item() for e in range(EXPERTS)]

    epistle.run_threads(2, play, timeout=30)


PAYLOADS = {
    "bf16": lambda x: x,
    "fp8": per_token_cast_to_fp8,
    "fp8 with scales in columns": lambda x: (lambda q: (q[0], q[1].T.contiguous().T))(per_token_cast_to_fp8(x)),
    "fp8 with packed exponents": lambda x: pack_exponents(per_token_cast_to_fp8(x)),
}


@pytest.mark.parametrize("payload", PAYLOADS)
@pytest.mark.parametrize("with_topk", [True, False])
def test_normal_dispatch_and_combine(payload: str, with_topk: bool) -> None:
    def play(group: epistle.Group) -> None:
        buffer = deep_ep.Buffer(group, int(2e9), 0, num_qps_per_rank=1, explicitly_destroy=True)
        given = Inputs(group.rank)
        everyone = [Inputs(rank) for rank in range(group.size)]
        x = PAYLOADS[payload](given.x)
        arguments = layout_of(buffer, given)
        if with_topk:
            arguments |= {"topk_idx": given.ids, "topk_weights": given.weights}
        recv_x, recv_idx, recv_weights, counts, handle, event = buffer.dispatch(
            x,
            **arguments,
            expert_alignment=4,
            config=deep_ep.Config(24, 8, 256),
            previous_event=buffer.capture(),
            async_finish=True,
        )
        event.current_stream_wait()
        rows = as_rows(recv_x)
        experts = range(group.rank * EXPERTS // 2, (group.rank + 1) * EXPERTS // 2)
        sent = [[(inputs.ids == expert).sum().item() for inputs in everyone] for expert in experts]
        assert counts == [-(-sum(parts) // 4) * 4 for parts in sent]

        # Grouped by source rank, in the order of the sources' tokens.
        ends = handle[0][:, group.rank].tolist()
        assert ends[-1] == rows.shape[0]
        for source, (begin, end) in enumerate(itertools.pairwise([0, *ends])):
            inputs = everyone[source]
            here = ((inputs.ids >= experts.start) & (inputs.ids < experts.stop)).any(1)
            assert torch.equal(rows[begin:end], as_rows(PAYLOADS[payload](inputs.x))[here])
            if with_topk:
                local = inputs.ids[here] - experts.start
                is_local = (local >= 0) & (local < len(experts)) & (inputs.ids[here] >= 0)
                assert torch.equal(recv_idx[begin:end], torch.where(is_local, local, -1))
                assert torch.equal(recv_weights[begin:end], torch.where(is_local, inputs.weights[here], 0))

        combined, weights, _ = buffer.combine(rows, handle, topk_weights=recv_weights)
        num_ranks = arguments["is_token_in_rank"].sum(1, keepdim=True)
        expected = (as_rows(x).float() * num_ranks).bfloat16()
        assert calc_diff(combined, expected) < 5e-6
        if with_topk:
            assert torch.equal(weights, given.taken)
            worst = buffer.dispatch(x, **arguments, num_worst_tokens=2 * TOKENS)
            assert worst[3] == [] and as_rows(worst[0]).shape[0] == 2 * TOKENS
            assert torch.equal(as_rows(worst[0])[: rows.shape[0]], rows)
            assert (worst[1][rows.shape[0] :] == -1).all()

        # A cached dispatch takes any payload.
        bias = torch.ones_like(combined)
        cached = buffer.dispatch(given.x, handle=handle)
        assert cached[1:5] == (None, None, None, None)
        twice, _, _ = buffer.combine(cached[0], handle, bias=(bias, bias))
        assert calc_diff(twice, (given.x.float() * num_ranks).bfloat16() + 2) < 5e-6
        buffer.destroy()

    epistle.run_threads(2, play, timeout=30)


@pytest.mark.parametrize(
    "quantisation", [(), ("use_fp8",), ("use_fp8", "round_scale"), ("use_fp8", "round_scale", "use_ue8m0")]
)
@pytest.mark.parametrize("mode", ["neither", "async_finish", "return_recv_hook"])
@pytest.mark.parametrize("zero_copy", [False, True])
def test_low_latency(quantisation: tuple[str, ...], mode: str, zero_copy: bool) -> None:
    max_tokens = 32
    num_local = EXPERTS // 2

    def play(group: epistle.Group) -> None:
        buffer = deep_ep.Buffer(group, num_rdma_bytes=1 << 20, low_latency_mode=True, explicitly_destroy=True)
        given = Inputs(group.rank)
        options = {"use_fp8": False} | dict.fromkeys(quantisation, True)
        if mode != "neither":
            options[mode] = True
        stats = torch.full((num_local,), 5, dtype=torch.int32)
        buffer.clean_low_latency_buffer(max_tokens, HIDDEN, EXPERTS)
        # Two results may be outstanding.
        first = buffer.low_latency_dispatch(
            given.x, given.ids, max_tokens, EXPERTS, cumulative_local_expert_recv_stats=stats, **options
        )
        second = buffer.low_latency_dispatch(given.x + 1, given.ids, max_tokens, EXPERTS, **options)
        for result in (first, second):
            if result[4] is not None:
                result[4]()
        recv_x, recv_count, handle, event, _ = first
        event.current_stream_wait()
        assert stats.tolist() == (recv_count + 5).tolist()
        packed = recv_x
        if isinstance(recv_x, tuple):
            assert recv_x[1].stride(1) == 1
            assert recv_x[1].dtype == (torch.int32 if "use_ue8m0" in quantisation else torch.float32)
            packed = per_token_cast_back(
                recv_x[0].reshape(-1, HIDDEN), recv_x[1].reshape(recv_x[0].shape[0] * recv_x[0].shape[1], -1)
            )
            packed = packed.view(num_local, -1, HIDDEN)
        assert packed.shape == (num_local, group.size * max_tokens, HIDDEN)

        src_info, layout_range, *shape = handle
        assert shape == [max_tokens, HIDDEN, EXPERTS]
        tolerance = 9e-4 if quantisation else 1e-9
        for expert in range(num_local):
            for source in range(group.size):
                begin, count = (
                    layout_range[expert, source].item() >> 32,
                    layout_range[expert, source].item() & 0xFFFFFFFF,
                )
                inputs = Inputs(source)
                tokens = (inputs.ids == group.rank * num_local + expert).any(1).nonzero().flatten()
                assert src_info[expert, begin : begin + count].tolist() == tokens.tolist()
                assert calc_diff(packed[expert, begin : begin + count], inputs.x[tokens]) < tolerance or count == 0

        used = torch.arange(packed.shape[1]).unsqueeze(0) < recv_count.unsqueeze(1)
        outputs = torch.where(used.unsqueeze(2), packed, float("nan"))  # unused rows are never looked at
        if zero_copy:
            buffer.get_next_low_latency_combine_buffer(handle)[:] = outputs
        out = torch.full_like(given.x, float("nan"))
        options = {mode: True} if mode != "neither" else {}
        combined, event, hook = buffer.low_latency_combine(
            outputs, given.ids, given.weights, handle, zero_copy=zero_copy, out=out, **options
        )
        if hook is not None:
            hook()
        event.current_stream_wait()
        assert combined is out
        expected = given.x.float() * given.taken.sum(1, keepdim=True)
        assert calc_diff(combined, expected) < (9e-4 if quantisation else 1e-5)
        buffer.destroy()

    epistle.run_threads(2, play, timeout=30)


@pytest.mark.parametrize("max_tokens", [1, 24, 100])
def test_low_latency_blocks_have_room_for_every_token_that_ranks_may_send(
    monkeypatch: pytest.MonkeyPatch, max_tokens: int
) -> None:
    configs: list[epistle.DispatcherConfig] = []
    make = Dispatchers.make

    def note(self: Dispatchers, name: str, config: epistle.DispatcherConfig, options: typing.Any) -> epistle.Dispatcher:
        configs.append(config)
        return make(self, name, config, options)

    monkeypatch.setattr(Dispatchers, "make", note)
    [group] = epistle.Group.threads(1)
    given = Inputs(0)
    deep_ep.Buffer(group).low_latency_dispatch(given.x[:1], given.ids[:1], max_tokens, EXPERTS)
    assert configs
    for config in configs:  # or the rows go by the slow way
        assert isinstance(config.layout, epistle.ExpertBlocks)
        assert config.layout.rows_per_expert >= group.size * config.max_tokens


def reference_v2(given: Inputs, y: torch.Tensor, num_ranks: int, one_sum: bool) -> torch.Tensor:
    """``y`` [tokens, top_k, hidden]: per rank in top-k order, rounded; then ranks by their last place."""
    out = torch.zeros_like(given.x)
    for token, ids in enumerate(given.ids.tolist()):
        total = torch.zeros(HIDDEN)
        places: dict[int, list[int]] = {}
        for place, expert in enumerate(ids):
            if expert >= 0:
                places.setdefault(place if one_sum else expert // (EXPERTS // num_ranks), []).append(place)
        for of_rank in sorted(places.values(), key=lambda mine: mine[-1]):
            part = torch.zeros(HIDDEN)
            for place in of_rank:
                part = part + y[token, place].float()
            total = total + part.bfloat16().float()
        out[token] = total.bfloat16()
    return out


@pytest.mark.parametrize("do_cpu_sync", [None, False])
@pytest.mark.parametrize("one_sum", [False, True])
def test_elastic_expanded_sums_bit_for_bit(do_cpu_sync: bool | None, one_sum: bool) -> None:
    def play(group: epistle.Group) -> None:
        buffer = deep_ep.ElasticBuffer(group, explicitly_destroy=True, allow_multiple_reduction=not one_sum)
        given = Inputs(group.rank)
        stats = torch.zeros(EXPERTS // 2, dtype=torch.int32)
        recv_x, recv_idx, recv_weights, handle, _ = buffer.dispatch(
            given.x,
            topk_idx=given.ids,
            topk_weights=given.weights,
            cumulative_local_expert_recv_stats=stats,
            num_experts=EXPERTS,
            num_max_tokens_per_rank=TOKENS,
            expert_alignment=4,
            do_expand=True,
            do_cpu_sync=do_cpu_sync,
        )
        assert recv_idx is None and recv_weights.shape == (recv_x.shape[0],)
        counts = handle.num_unaligned_recv_tokens_per_expert
        assert torch.equal(stats, counts)
        aligned = [-(-count // 4) * 4 for count in counts.tolist()]
        assert handle.num_recv_tokens_per_expert_list == ([] if do_cpu_sync is False else aligned)
        starts = [sum(aligned[:expert]) for expert in range(len(aligned))]
        assert handle.psum_num_recv_tokens_per_expert.tolist() == [
            a + b for a, b in zip(starts, counts.tolist(), strict=True)
        ]
        assert handle.psum_num_recv_tokens_per_scaleup_rank[-1] == handle.num_recv_tokens

        combined, weights, _ = buffer.combine((recv_x * recv_weights.unsqueeze(1)).bfloat16(), handle)
        assert weights is None
        y = (given.x.unsqueeze(1) * given.weights.unsqueeze(2)).bfloat16()
        assert torch.equal(combined, reference_v2(given, y, group.size, one_sum))
        again, *_ = buffer.dispatch(given.x, handle=handle)
        assert torch.equal(again, recv_x)
        buffer.destroy()

    epistle.run_threads(2, play, timeout=30)


@pytest.mark.parametrize("do_cpu_sync", [None, False])
def test_elastic_token_mode(do_cpu_sync: bool | None) -> None:
    def play(group: epistle.Group) -> None:
        buffer = deep_ep.ElasticBuffer(group, num_max_tokens_per_rank=TOKENS)
        given = Inputs(group.rank)
        recv_x, recv_idx, recv_weights, handle, _ = buffer.dispatch(
            per_token_cast_to_fp8(given.x),
            topk_idx=given.ids,
            topk_weights=given.weights,
            num_experts=EXPERTS,
            do_cpu_sync=do_cpu_sync,
            use_tma_aligned_col_major_sf=True,
        )
        assert recv_x[1].stride(0) == 1 and recv_x[1].stride(1) % 4 == 0
        num_rows = group.size * TOKENS if do_cpu_sync is False else handle.num_recv_tokens
        assert recv_idx.shape == recv_weights.shape == (num_rows, TOP_K)
        assert (recv_idx[handle.num_recv_tokens :] == -1).all()
        combined, weights, _ = buffer.combine(as_rows(recv_x), handle, topk_weights=recv_weights)
        assert torch.equal(weights, given.taken)
        ranks = torch.where(given.ids < 0, -1, given.ids // (EXPERTS // group.size))
        num_ranks = sum((ranks == rank).any(1, keepdim=True).float() for rank in range(group.size))
        expected = (as_rows(per_token_cast_to_fp8(given.x)).float() * num_ranks).bfloat16()
        assert calc_diff(combined, expected) < 5e-6

    epistle.run_threads(2, play, timeout=30)


def test_what_is_not_there_says_what_to_use() -> None:
    [group] = epistle.Group.threads(1)
    buffer = deep_ep.Buffer(group)
    given = Inputs(0)
    with pytest.raises(NotImplementedError, match="enable_shrink"):
        deep_ep.Buffer(group, enable_shrink=True)
    with pytest.raises(NotImplementedError, match="LogFMT"):
        handle = buffer.low_latency_dispatch(given.x, given.ids, 32, EXPERTS)[2]
        buffer.low_latency_combine(given.x, given.ids, given.weights, handle, use_logfmt=True)
    with pytest.raises(NotImplementedError, match="use_nvfp4"):
        buffer.low_latency_dispatch(given.x, given.ids, 32, EXPERTS, use_nvfp4=True, x_global_scale=None)
    with pytest.raises(NotImplementedError, match="get_next_low_latency_combine_buffer"):
        buffer.get_local_buffer_tensor(torch.bfloat16)
    with pytest.raises(ValueError, match="sent < received"):
        deep_ep.Config(20, 8, 8)
    with pytest.raises(ValueError, match="exclude"):
        buffer.low_latency_dispatch(given.x, given.ids, 32, EXPERTS, async_finish=True, return_recv_hook=True)
    status = torch.empty(1, dtype=torch.int32)
    buffer.low_latency_query_mask_buffer(status)
    assert status.tolist() == [0]


def test_low_latency_goes_on_without_masked_ranks() -> None:
    """All bits of what is left: experts that weigh nothing give the sums of the tokens' other experts."""

    have_dispatched = threading.Barrier(4)

    def play(group: epistle.Group) -> None:
        buffer = deep_ep.Buffer(group)
        given = Inputs(group.rank)
        status = torch.full((group.size,), -1, dtype=torch.int32)
        buffer.low_latency_dispatch(given.x, given.ids, TOKENS, EXPERTS, use_fp8=False)
        have_dispatched.wait(30)  # who is masked out before it has woken from that is told so
        if group.rank == 1:
            return
        buffer.low_latency_update_mask_buffer(1, mask=True)
        buffer.low_latency_query_mask_buffer(status)
        assert status.tolist() == [0, 1, 0, 0]
        rows, counts, handle, _, _ = buffer.low_latency_dispatch(given.x, given.ids, TOKENS, EXPERTS, use_fp8=False)
        combined, _, _ = buffer.low_latency_combine(rows, given.ids, given.weights, handle)
        share = EXPERTS // group.size
        is_left = (given.ids >= 0) & (given.ids // share != 1)
        weight = (given.weights * is_left).sum(1, keepdim=True)
        assert calc_diff(combined, (given.x.float() * weight).bfloat16()) < 1e-5
        assert counts.sum() > 0
        group.barrier()
        buffer.low_latency_clean_mask_buffer()  # rank 1 is gone, and stays masked
        buffer.low_latency_query_mask_buffer(status)
        assert status.tolist() == [0, 1, 0, 0]
        group.barrier()  # who has left counts as lost where others still look

    epistle.run_threads(4, play, timeout=30)


def test_sizes_and_configurations_are_given_for_any_number_of_ranks() -> None:
    for num_ranks in (1, 3, 8, 100):
        for config in (deep_ep.Buffer.get_dispatch_config(num_ranks), deep_ep.Buffer.get_combine_config(num_ranks)):
            assert config.get_nvl_buffer_size_hint(14336, num_ranks) > 0
            assert config.get_rdma_buffer_size_hint(14336, num_ranks) == 0
    assert deep_ep.Buffer.get_low_latency_rdma_size_hint(128, 7168, 2, 288) > 0
    [group] = epistle.Group.threads(1)
    assert deep_ep.get_physical_domain_size(group) == (1, 1)
    assert deep_ep.ElasticBuffer.get_buffer_size_hint(group, 128, 7168) > 0


def test_a_script_of_two_processes_with_gloo() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "epistle.as_deep_ep", str(SCRIPT), "2"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("passed") == 2


@pytest.mark.parametrize("do_expand", [False, True])
@pytest.mark.parametrize("sums_once", [False, True])
@pytest.mark.parametrize("num_biases", [1, 2])
@pytest.mark.parametrize("do_cpu_sync", [True, False])
def test_an_elastic_bias_comes_first_in_the_sum(
    do_expand: bool, sums_once: bool, num_biases: int, do_cpu_sync: bool
) -> None:
    def play(group: epistle.Group) -> None:
        buffer = deep_ep.ElasticBuffer(
            group, num_max_tokens_per_rank=TOKENS, allow_multiple_reduction=not sums_once, explicitly_destroy=True
        )
        given = Inputs(group.rank)
        biases = tuple(torch.randn(given.x.shape).bfloat16() * 8 for _ in range(num_biases))
        recv, _, recv_weights, handle, _ = buffer.dispatch(
            given.x,
            given.ids,
            given.weights,
            num_experts=EXPERTS,
            expert_alignment=4,
            do_expand=do_expand,
            do_cpu_sync=do_cpu_sync,
        )
        out, weights, _ = buffer.combine(
            recv, handle, topk_weights=recv_weights, bias=biases if num_biases == 2 else biases[0]
        )
        assert torch.equal(weights, given.taken)
        total = sum(bias.float() for bias in biases)
        ranks = torch.where(given.ids < 0, -1, given.ids // (EXPERTS // group.size))
        for place in range(TOP_K):
            rank = ranks[:, place : place + 1]
            row = given.x.float()
            if not (sums_once and do_expand):  # rows of a rank come in the last of its places
                is_last = (ranks[:, place + 1 :] != rank).all(1, keepdim=True)
                if do_expand:
                    row = sum(torch.where(ranks[:, p : p + 1] == rank, row, 0) for p in range(place + 1))
                row = torch.where(is_last, row.bfloat16().float(), 0)
            total = total + torch.where(rank >= 0, row, 0)
        assert torch.equal(out, total.bfloat16())
        buffer.destroy()

    epistle.run_threads(2, play, timeout=30)


@pytest.mark.parametrize("do_expand", [False, True])
def test_elastic_handles_say_where_tokens_come_from_and_where_their_rows_are(do_expand: bool) -> None:
    def play(group: epistle.Group) -> None:
        buffer = deep_ep.ElasticBuffer(group, num_max_tokens_per_rank=TOKENS)
        everyone = [Inputs(rank) for rank in range(group.size)]
        given = everyone[group.rank]
        recv, _, _, handle, _ = buffer.dispatch(
            given.x, given.ids, num_experts=EXPERTS, expert_alignment=4, do_expand=do_expand, do_handle_copy=False
        )
        assert handle.topk_idx is given.ids
        metadata = handle.recv_src_metadata
        first, num_local = group.rank * EXPERTS // 2, EXPERTS // 2
        row = 0
        for source, inputs in enumerate(everyone):
            for token, ids in enumerate(inputs.ids.tolist()):
                here = [first <= expert < first + num_local for expert in ids]
                if not any(here):
                    continue
                assert metadata[row, 0] == source * TOKENS + token
                assert metadata[row, 1] == source * TOP_K + here.index(True)
                for place, is_here in enumerate(here):
                    at = metadata[row, 2 + place]
                    assert (at >= 0) == (is_here and do_expand)
                    if at >= 0:
                        assert torch.equal(recv[at], inputs.x[token])
                        assert handle.handle.row_expert.torch()[at] == ids[place] - first
                row += 1
        assert row == metadata.shape[0]
        again = buffer.dispatch(given.x, topk_weights=given.weights, handle=handle, do_expand=do_expand)
        assert torch.equal(again[0], recv) and again[2] is not None
        with pytest.raises(ValueError, match="takes its routing from the handle"):
            buffer.dispatch(given.x, given.ids, handle=handle)
        group.barrier()

    epistle.run_threads(2, play, timeout=30)


def test_buffer_sums_what_stands_at_all_places_of_the_weights() -> None:
    def play(group: epistle.Group) -> None:
        buffer = deep_ep.Buffer(group)
        given = Inputs(group.rank)
        layout = layout_of(buffer, given)
        recv_x, _, recv_weights, _, handle, _ = buffer.dispatch(
            given.x, **layout, topk_idx=given.ids, topk_weights=given.weights
        )
        _, weights, _ = buffer.combine(recv_x, handle, topk_weights=torch.ones_like(recv_weights))
        num_ranks = layout["is_token_in_rank"].sum(1, keepdim=True)
        assert torch.equal(weights, num_ranks.float().expand(-1, TOP_K))

    epistle.run_threads(2, play, timeout=30)


def test_processes_that_a_script_starts_find_the_drop_in(tmp_path: pathlib.Path) -> None:
    child = tmp_path / "children" / "child.py"
    child.parent.mkdir()
    child.write_text("import deep_ep, deep_ep.utils.refs\nprint(deep_ep.__name__, deep_ep.Buffer.__module__)\n")
    script = tmp_path / "script.py"
    script.write_text(f"import subprocess, sys\nsubprocess.run([sys.executable, {str(child)!r}], check=True)\n")
    (tmp_path / "deep_ep").mkdir()  # as in a checkout, which must not be taken
    (tmp_path / "deep_ep" / "__init__.py").write_text("raise RuntimeError('the wrong one')\n")
    ran = subprocess.run(
        [sys.executable, "-m", "epistle.as_deep_ep", str(script)], capture_output=True, text=True, cwd=tmp_path
    )
    assert ran.stdout.strip() == "epistle.deep_ep epistle.deep_ep._buffer", ran.stderr
