"""ElasticBuffer and EPHandle: DeepEP's second interface."""

from __future__ import annotations

import itertools
import typing

import torch

import epistle
from epistle.deep_ep._events import EventHandle, EventOverlap, finish, wait_for
from epistle.deep_ep._normal import MAX_HANDLES
from epistle.deep_ep._routes import (
    NAMES,
    Dispatchers,
    Payload,
    align_up,
    has_cuda_work,
    join,
    lacking,
    largest,
    options_for,
    rank_starts,
    sum_rows,
    tensor_of,
)


def get_physical_domain_size(group: typing.Any) -> tuple[int, int]:
    """(domains, ranks of a domain): the ranks share one host."""
    return 1, _size_of(group)


def get_logical_domain_size(group: typing.Any, allow_hybrid_mode: bool = True) -> tuple[int, int]:
    del allow_hybrid_mode
    return 1, _size_of(group)


def _size_of(group: typing.Any) -> int:
    return group.size if isinstance(group, epistle.Group) else int(group.size())


class EPHandle:
    """What ElasticBuffer.dispatch returns for combine and for cached dispatches."""

    def __init__(
        self,
        *,
        do_expand: bool,
        num_experts: int,
        expert_alignment: int,
        num_max_tokens_per_rank: int,
        num_sms: int,
        topk_idx: torch.Tensor,
        topk_weights: torch.Tensor | None,
        is_static: bool,
        group: epistle.Group,
    ) -> None:
        self.do_expand = do_expand
        self.num_experts = num_experts
        self.expert_alignment = expert_alignment
        self.num_max_tokens_per_rank = num_max_tokens_per_rank
        self.num_sms = num_sms
        self.topk_idx = topk_idx
        self.topk_weights = topk_weights
        self.is_static = is_static
        self.group = group
        self.prepared: dict[Payload, tuple[epistle.Dispatcher, epistle.Handle]] = {}

    @property
    def handle(self) -> epistle.Handle:
        return next(iter(self.prepared.values()))[1]

    @property
    def num_unaligned_recv_tokens_per_expert(self) -> torch.Tensor:
        """int32 [local experts]."""
        return tensor_of(self.handle.expert_counts)

    @property
    def num_recv_tokens_per_expert_list(self) -> list[int]:
        """Aligned, on the host: waits for them. Empty where the dispatch was told not to wait."""
        if self.is_static:
            return []
        return [align_up(count, self.expert_alignment) for count in self.num_unaligned_recv_tokens_per_expert.tolist()]

    @property
    def psum_num_recv_tokens_per_scaleup_rank(self) -> torch.Tensor:
        """int32 [ranks]: rows of this source and those before it, each token once."""
        src_rank = tensor_of(self.handle.src_rank)
        sources = torch.arange(self.group.size, device=src_rank.device)
        if self.do_expand:  # a token has a row for each of its experts here
            key = torch.where(src_rank < 0, -1, src_rank * self.num_max_tokens_per_rank + self.handle.src_token.torch())
            src_rank = torch.div(torch.unique(key), self.num_max_tokens_per_rank, rounding_mode="floor")
        return (src_rank.unsqueeze(1) == sources).sum(0).cumsum(0).to(torch.int32)

    @property
    def psum_num_recv_tokens_per_expert(self) -> torch.Tensor:
        """int32 [local experts]: where the rows of each expert end; expanded, each begins at the aligned end before."""
        counts = self.num_unaligned_recv_tokens_per_expert
        begin = self.handle.expert_begin
        if begin is None:
            return counts.cumsum(0).to(torch.int32)
        return tensor_of(begin)[:-1] + counts

    @property
    def num_recv_tokens(self) -> int:
        """Tokens received, each once: waits for the counts."""
        return self.handle.wait_stats().received_rows

    @property
    def num_expanded_tokens(self) -> int:
        """Rows of the expanded layout, alignment included; 0 in token mode."""
        return self.handle.num_rows if self.do_expand else 0

    def __getattr__(self, name: str) -> typing.Any:
        if name in ("recv_src_metadata", "dst_buffer_slot_idx", "token_metadata_at_forward", "channel_linked_list"):
            raise lacking(
                f"EPHandle.{name}",
                "handle.src_rank and handle.src_token of this object's `handle` say where rows come from",
            )
        raise AttributeError(name)


class ElasticBuffer:
    """Dispatch and combine in token mode (each token once per rank) or expanded (a row for every expert), with and
    without a wait on the host. Combine adds in the order of DeepEP's second version, bit for bit. Ranks without tokens
    take part; a new shape is compiled for nobody; any NCCL, or none, will do."""

    def __init__(
        self,
        group: typing.Any,
        num_bytes: int | None = None,
        num_cpu_bytes: int = 0,
        num_max_tokens_per_rank: int = 0,
        hidden: int = 0,
        num_topk: int = 0,
        use_fp8_dispatch: bool = False,
        deterministic: bool = False,
        allow_hybrid_mode: bool = True,
        allow_multiple_reduction: bool = True,
        prefer_overlap_with_compute: bool = True,
        sl_idx: int = 3,
        num_allocated_qps: int = 0,
        num_cpu_timeout_secs: int = 300,
        num_gpu_timeout_secs: int = 100,
        explicitly_destroy: bool = False,
    ) -> None:
        del num_cpu_bytes, hidden, num_topk, use_fp8_dispatch, deterministic, allow_hybrid_mode
        del prefer_overlap_with_compute, sl_idx, num_allocated_qps, num_cpu_timeout_secs, num_gpu_timeout_secs
        self._group = join(group)
        self._dispatchers = Dispatchers(self._group)
        self.group = group
        self.rank_idx = self.rank = self._group.rank
        self.num_ranks = self.group_size = self._group.size
        self.num_bytes = num_bytes
        self.num_max_tokens_per_rank = num_max_tokens_per_rank
        self.allow_multiple_reduction = allow_multiple_reduction
        self.explicitly_destroy = explicitly_destroy

    def destroy(self) -> None:
        if not self.explicitly_destroy:
            raise AssertionError("destroy() is for a buffer made with explicitly_destroy=True")
        self._dispatchers.clear()

    @staticmethod
    def get_buffer_size_hint(
        group: typing.Any,
        num_max_tokens_per_rank: int,
        hidden: int,
        num_topk: int = 0,
        use_fp8_dispatch: bool = False,
        allow_hybrid_mode: bool = True,
        allow_multiple_reduction: bool = True,
    ) -> int:
        """Bytes of received rows and expert outputs in bf16, each token once per rank. Nothing is allocated by it."""
        del num_topk, use_fp8_dispatch, allow_hybrid_mode, allow_multiple_reduction
        return 2 * _size_of(group) * num_max_tokens_per_rank * hidden * 2

    @staticmethod
    def capture() -> EventHandle:
        return EventHandle()

    def barrier(self, use_comm_stream: bool = True, with_cpu_sync: bool = False, sequential: bool = True) -> None:
        """On the host, after the work of this rank's stream where ``with_cpu_sync``."""
        del use_comm_stream, sequential
        if with_cpu_sync and has_cuda_work():
            torch.cuda.current_stream().synchronize()
        self._group.barrier()

    def get_theoretical_num_sms(self, num_experts: int, num_topk: int, *_: typing.Any, **__: typing.Any) -> int:
        """0: what the tuning table says."""
        del num_experts, num_topk
        return 0

    def get_theoretical_num_qps(self, num_sms: int) -> int:
        del num_sms
        return 0

    def get_physical_domain_size(self) -> tuple[int, int]:
        return 1, self._group.size

    def get_logical_domain_size(self) -> tuple[int, int]:
        return 1, self._group.size

    def dispatch(
        self,
        x: torch.Tensor | tuple[torch.Tensor, torch.Tensor],
        topk_idx: torch.Tensor | None = None,
        topk_weights: torch.Tensor | None = None,
        cumulative_local_expert_recv_stats: torch.Tensor | None = None,
        num_experts: int | None = None,
        num_max_tokens_per_rank: int | None = None,
        expert_alignment: int | None = None,
        num_sms: int = 0,
        num_qps: int = 0,
        previous_event: typing.Any = None,
        previous_event_before_epilogue: typing.Any = None,
        async_with_compute_stream: bool = False,
        allocate_on_comm_stream: bool = False,
        handle: EPHandle | None = None,
        do_handle_copy: bool = True,
        do_cpu_sync: bool | None = None,
        do_expand: bool = False,
        do_zero_padding: bool = False,
        use_tma_aligned_col_major_sf: bool = False,
    ) -> tuple[typing.Any, torch.Tensor | None, torch.Tensor | None, EPHandle, EventOverlap]:
        """(recv_x, recv_topk_idx or None, recv_topk_weights or None, handle, event).

        Token mode: recv_topk_idx [rows, top_k] local experts, -1 elsewhere; recv_topk_weights [rows, top_k]. Expanded:
        recv_topk_idx None, recv_topk_weights [rows]. Without a host wait (``do_cpu_sync=False``) rows are as many as
        could come, and the tail is padding.
        """
        del num_qps, do_handle_copy, do_zero_padding  # padding is always zero
        _check_events(previous_event, allocate_on_comm_stream)
        wait_for(previous_event)
        wait_for(previous_event_before_epilogue)
        tokens, scales = x if isinstance(x, tuple) else (x, None)
        payload = Payload.of(tokens, scales)
        if handle is None:
            handle = self._new_handle(
                tokens,
                topk_idx,
                topk_weights,
                num_experts,
                num_max_tokens_per_rank or self.num_max_tokens_per_rank,
                expert_alignment or 1,
                num_sms,
                do_expand=do_expand,
                is_static=do_cpu_sync is False,
            )
        dispatcher, prepared = self._prepared(handle, payload, tokens)
        received = dispatcher.dispatch(
            handle=prepared, num_sms=num_sms if tokens.is_cuda else 0, **payload.given(tokens, scales)
        )
        rows, row_scales = payload.received(received.rows, received.scales)
        # Copies: the caller may keep them for as long as it likes, and leases are few.
        recv_x: typing.Any = rows.clone()
        if row_scales is not None:
            recv_x = (recv_x, _scale_copy(row_scales, use_tma_aligned_col_major_sf))
        if cumulative_local_expert_recv_stats is not None:
            cumulative_local_expert_recv_stats.add_(prepared.expert_counts.torch())
        local_experts = prepared.local_experts
        recv_idx = None
        if local_experts is not None:
            recv_idx = local_experts.torch().to(handle.topk_idx.dtype, copy=True)
        recv_weights = None if handle.topk_weights is None else prepared.weights.torch().clone()
        return recv_x, recv_idx, recv_weights, handle, finish(async_with_compute_stream)

    def combine(
        self,
        x: torch.Tensor,
        handle: EPHandle,
        topk_weights: torch.Tensor | None = None,
        bias: typing.Any = None,
        num_sms: int = 0,
        num_qps: int = 0,
        previous_event: typing.Any = None,
        previous_event_before_epilogue: typing.Any = None,
        async_with_compute_stream: bool = False,
        allocate_on_comm_stream: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None, EventOverlap]:
        """(sums [T, hidden], sums of the weights [T, top_k] or None, event)."""
        del num_qps
        if bias is not None:
            raise lacking("bias in ElasticBuffer.combine", "add it to the result")
        if handle.do_expand and topk_weights is not None:
            raise ValueError("expanded rows are weighted by the caller: leave topk_weights out")
        _check_events(previous_event, allocate_on_comm_stream)
        wait_for(previous_event)
        wait_for(previous_event_before_epilogue)
        dispatcher, prepared = self._prepared_for_sums(handle, x)
        sms = num_sms if x.is_cuda else 0
        out, weights = sum_rows(dispatcher, prepared, x, topk_weights, handle.topk_idx.shape, sms)
        return out, weights, finish(async_with_compute_stream)

    # ---- What these are made of ----

    def _new_handle(
        self,
        tokens: torch.Tensor,
        topk_idx: torch.Tensor | None,
        topk_weights: torch.Tensor | None,
        num_experts: int | None,
        max_tokens: int,
        expert_alignment: int,
        num_sms: int,
        *,
        do_expand: bool,
        is_static: bool,
    ) -> EPHandle:
        if topk_idx is None or num_experts is None:
            raise ValueError("dispatch needs topk_idx and num_experts, or a handle")
        if max_tokens == 0:
            if is_static:
                raise ValueError("dispatch without a host wait needs num_max_tokens_per_rank")
            max_tokens = largest(self._group, tokens.shape[0])
        return EPHandle(
            do_expand=do_expand,
            num_experts=num_experts,
            expert_alignment=expert_alignment,
            num_max_tokens_per_rank=max_tokens,
            num_sms=num_sms,
            topk_idx=topk_idx.clone(),
            topk_weights=None if topk_weights is None else topk_weights.clone(),
            is_static=is_static,
            group=self._group,
        )

    def _prepared(
        self, handle: EPHandle, payload: Payload, tokens: torch.Tensor
    ) -> tuple[epistle.Dispatcher, epistle.Handle]:
        """A routing is prepared once for every payload, in a call that all ranks make."""
        if payload not in handle.prepared:
            fields = self._fields(handle, payload)
            dispatcher = self._dispatchers.get("direct", fields, options_for(tokens), handle.num_max_tokens_per_rank)
            handle.prepared[payload] = (dispatcher, dispatcher.prepare(handle.topk_idx, handle.topk_weights))
        return handle.prepared[payload]

    def _prepared_for_sums(self, handle: EPHandle, x: torch.Tensor) -> tuple[epistle.Dispatcher, epistle.Handle]:
        for payload, prepared in handle.prepared.items():
            if payload.hidden == x.shape[1] and _output_of(payload) == x.dtype:
                return prepared
        return self._prepared(handle, Payload(x.dtype, x.shape[1]), x)

    def _fields(self, handle: EPHandle, payload: Payload) -> dict[str, typing.Any]:
        top_k = handle.topk_idx.shape[1]
        layout: epistle.TokenMajor | epistle.ExpertMajor = epistle.TokenMajor()
        rows = self._group.size * handle.num_max_tokens_per_rank
        if handle.do_expand:
            layout = epistle.ExpertMajor(handle.expert_alignment)
            starts = rank_starts(handle.num_experts, self._group.size)
            # Of the rank that holds most experts: rows are equally many on all ranks.
            num_local = max(end - begin for begin, end in itertools.pairwise(starts))
            rows = rows * min(top_k, num_local) + num_local * (handle.expert_alignment - 1)
        fields = {
            **payload.config(_output_of(payload)),
            "num_experts": handle.num_experts,
            "top_k": top_k,
            "layout": layout,
            "order": "deepep_v2" if self.allow_multiple_reduction else "flat",
            "apply_weights": False,
            "max_handles": MAX_HANDLES,
        }
        if handle.is_static:
            fields["sizing"] = epistle.Capacity(rows_per_rank=rows)
        return fields


def _output_of(payload: Payload) -> torch.dtype:
    return payload.dtype if payload.dtype in NAMES and not payload.is_raw else torch.bfloat16


def _check_events(previous_event: typing.Any, allocate_on_comm_stream: bool) -> None:
    if previous_event is not None and not allocate_on_comm_stream:
        raise ValueError("previous_event needs allocate_on_comm_stream=True")


def _scale_copy(scales: torch.Tensor, in_columns: bool) -> torch.Tensor:
    """In columns the rows of a column lie one behind the other, each column filled up to a multiple of 16 bytes."""
    if not in_columns:
        return scales.clone()
    num_rows, num_columns = scales.shape
    padded = align_up(num_rows, max(1, 16 // scales.dtype.itemsize))
    columns = scales.new_empty((num_columns, padded)).transpose(0, 1)[:num_rows]
    columns.copy_(scales)
    return columns
