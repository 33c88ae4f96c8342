"""ElasticBuffer: DeepEP's second interface."""

from __future__ import annotations

import typing

import torch

from epistle.deep_ep._bias import sum_with_bias
from epistle.deep_ep._ep_handle import EPHandle
from epistle.deep_ep._events import EventHandle, EventOverlap, finish, wait_for
from epistle.deep_ep._routes import Dispatchers, Payload, align_up, has_cuda_work, join, largest, size_of, sum_rows


def get_physical_domain_size(group: typing.Any) -> tuple[int, int]:
    """(domains, ranks of a domain): the ranks share one host."""
    return 1, size_of(group)


def get_logical_domain_size(group: typing.Any, allow_hybrid_mode: bool = True) -> tuple[int, int]:
    del allow_hybrid_mode
    return 1, size_of(group)


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
        del prefer_overlap_with_compute, sl_idx, num_cpu_timeout_secs, num_gpu_timeout_secs
        self._group = join(group)
        self._dispatchers = Dispatchers(self._group)
        self.group = group
        self.rank_idx = self.rank = self._group.rank
        self.num_ranks = self.group_size = self._group.size
        self.num_scaleout_ranks, self.num_scaleup_ranks = self.get_logical_domain_size()
        self.num_rdma_ranks, self.num_nvlink_ranks = self.get_physical_domain_size()
        self.scaleout_rank_idx, self.scaleup_rank_idx = 0, self.rank_idx
        self.num_allocated_qps = num_allocated_qps  # taken, not used
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
        return 2 * size_of(group) * num_max_tokens_per_rank * hidden * 2

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
        del num_qps
        if do_zero_padding and not (do_expand or (handle is not None and handle.do_expand)):
            raise ValueError("do_zero_padding is for do_expand=True; padding is zero with and without it")
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
                do_copy=do_handle_copy,
                is_static=do_cpu_sync is False,
            )
            dispatcher, prepared = handle.prepared(payload)
        else:
            given = {
                "num_experts": num_experts,
                "num_max_tokens_per_rank": num_max_tokens_per_rank,
                "expert_alignment": expert_alignment,
            }
            _check_cached(handle, topk_idx, do_expand, do_cpu_sync, given)
            # Weights travel with the routing.
            dispatcher, prepared = (
                handle.prepared(payload) if topk_weights is None else handle.prepare(payload, topk_weights)
            )
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
        recv_weights = None if topk_weights is None else prepared.weights.torch().clone()
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
        _check_events(previous_event, allocate_on_comm_stream)
        wait_for(previous_event)
        wait_for(previous_event_before_epilogue)
        sms = num_sms if x.is_cuda else 0
        dispatcher, prepared = handle.prepared_for_sums(x)
        if bias is None:
            out, weights = sum_rows(dispatcher, prepared, x, topk_weights, handle.topk_idx.shape, sms)
        else:
            out = sum_with_bias(handle, x, bias if isinstance(bias, tuple) else (bias,), sms)
            weights = None
            if topk_weights is not None:
                _, weights = sum_rows(dispatcher, prepared, x, topk_weights, handle.topk_idx.shape, sms)
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
        do_copy: bool,
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
            topk_idx=topk_idx.clone() if do_copy else topk_idx,
            topk_weights=topk_weights.clone() if do_copy and topk_weights is not None else topk_weights,
            is_static=is_static,
            sums_once=not self.allow_multiple_reduction,
            dispatchers=self._dispatchers,
        )


def _check_cached(
    handle: EPHandle,
    topk_idx: torch.Tensor | None,
    do_expand: bool,
    do_cpu_sync: bool | None,
    given: dict[str, int | None],
) -> None:
    """A cached dispatch takes its routing from the handle; what is said of it again must be the same."""
    if topk_idx is not None:
        raise ValueError("a cached dispatch takes its routing from the handle; leave topk_idx out")
    if do_cpu_sync:
        raise ValueError("a cached dispatch waits for nothing; leave do_cpu_sync out")
    if do_expand and not handle.do_expand:
        raise ValueError("do_expand is given, the handle was made without")
    for name, value in given.items():
        if value is not None and value != getattr(handle, name):
            raise ValueError(f"{name} is {value}, the handle was made with {getattr(handle, name)}")


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
