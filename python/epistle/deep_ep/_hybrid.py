"""HybridEPBuffer: the interface of DeepEP's branch for routing maps, which Megatron's backend hybridep calls."""

from __future__ import annotations

import dataclasses
import typing

import torch

import epistle
from epistle.deep_ep._prepared import Made, Prepared, move
from epistle.deep_ep._routes import (
    MAX_HANDLES,
    Dispatchers,
    Payload,
    align_up,
    join,
    largest_of,
    options_for,
    sum_rows,
    tensor_of,
)

# Lengths of what dispatch and dispatch_with_permute return as handles, and the places in them that are filled: the
# others are tables of kernels that are not here.
_LENGTH, _PERMUTED_LENGTH = 7, 11
_RECEIVED, _LOCAL_MAP, _COUNTS = 3, 4, 7


@dataclasses.dataclass(frozen=True)
class _Layout:
    """How rows are laid out where they are received."""

    permuted: bool
    alignment: int = 1
    max_rows: int | None = None  # None: as many as come, for which the host waits


class _Routing:
    """A routing map as lists of experts, prepared for the payloads that it moves."""

    def __init__(
        self,
        dispatchers: Dispatchers,
        ids: torch.Tensor,
        num_experts: int,
        max_tokens: int,
        layout: _Layout,
        lost: torch.Tensor,
    ) -> None:
        self.dispatchers = dispatchers
        self.ids = ids
        self.num_experts = num_experts
        self.max_tokens = max_tokens
        self.layout = layout
        self.lost = lost  # assignments beyond the top-k that is agreed on
        self._prepared = Prepared()

    def prepare(self, payload: Payload, probs: torch.Tensor | None) -> tuple[epistle.Dispatcher, epistle.Handle]:
        """``probs``: [T, experts]."""
        fields = {
            **payload.config(),
            "num_experts": self.num_experts,
            "top_k": self.ids.shape[1],
            "layout": epistle.ExpertMajor(self.layout.alignment) if self.layout.permuted else epistle.TokenMajor(),
            "apply_weights": False,
            "max_handles": MAX_HANDLES,
        }
        if self.layout.max_rows is not None:
            fields["sizing"] = epistle.Capacity(rows_per_rank=self.layout.max_rows)
            fields["overflow"] = "drop"
        dispatcher = self.dispatchers.get("direct", fields, options_for(self.ids), self.max_tokens)
        weights = None
        if probs is not None:
            weights = torch.where(self.ids < 0, 0, probs.float().gather(1, self.ids.clamp(min=0)))
        return dispatcher, dispatcher.prepare(self.ids, weights)

    def prepared(self, payload: Payload, probs: torch.Tensor | None = None) -> Made:
        """Anew where there are other probabilities to move."""
        if probs is not None:
            return self._prepared.keep(payload, self.prepare(payload, probs))
        return self._prepared.of(payload, lambda: self.prepare(payload, None))

    def combine(self, hidden: torch.Tensor, probs: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """([T, hidden], [T, experts] or None). ``probs`` are one for each row, or [rows, top_k]."""
        dispatcher, prepared = self._prepared.that_sums(hidden, self.prepared)
        out, sums = sum_rows(dispatcher, prepared, hidden, probs, self.ids.shape, 0)
        if sums is None:
            return out, None
        dense = sums.new_zeros((sums.shape[0], self.num_experts + 1))
        dense.scatter_(1, torch.where(self.ids < 0, self.num_experts, self.ids), sums)
        return out, dense[:, : self.num_experts].contiguous()


class HybridEPBuffer:
    """Dispatch and combine by routing maps bool [T, experts], with rows as they come (each token once) or permuted into
    groups of experts. Sizes and numbers of SMs and blocks are taken and not used: memory is what the calls need, and
    SMs are as tuned. Ranks may have different numbers of tokens, unless num_permuted_tokens is given."""

    def __init__(
        self,
        group: typing.Any,
        hidden_dim: int,
        max_num_of_tokens_per_rank: int,
        num_local_experts: int,
        use_fp8: bool = False,
        num_sms_dispatch_api: int | None = None,
        num_sms_combine_api: int | None = None,
        num_sms_preprocessing_api: int | None = None,
        num_blocks_permute: int | None = None,
        num_blocks_unpermute: int | None = None,
        load_cached_kernels: bool = False,
        use_shared_buffer: bool = True,
        enable_custom_allgather: bool = False,
        num_of_hybrid_ep_ranks_per_nvlink_domain: int | None = None,
        use_mnnvl: bool | None = None,
    ) -> None:
        del hidden_dim, use_fp8, num_sms_dispatch_api, num_sms_combine_api, num_sms_preprocessing_api
        del num_blocks_permute, num_blocks_unpermute, load_cached_kernels, use_shared_buffer, enable_custom_allgather
        del num_of_hybrid_ep_ranks_per_nvlink_domain, use_mnnvl
        self._group = join(group)
        self._dispatchers = Dispatchers(self._group)
        self.group = group
        self.rank, self.group_size = self._group.rank, self._group.size
        self.num_of_hybrid_ep_ranks_per_nvlink_domain = self.group_size
        self.local_rank, self.node_rank, self.num_of_nodes = self.rank, 0, 1
        self._num_experts = num_local_experts * self.group_size
        self._max_tokens = max_num_of_tokens_per_rank
        self._top_k = 0  # the largest of any token so far, over the ranks; 0: no routing has been seen yet

    def empty_jit_cache(self) -> None:
        """Nothing is compiled at run time."""

    def dispatch(
        self,
        hidden: torch.Tensor,
        scaling_factor: torch.Tensor | None = None,
        topk_idx: torch.Tensor | None = None,
        topk_weights: torch.Tensor | None = None,
        num_of_experts: int | None = None,
        probs: torch.Tensor | None = None,
        routing_map: torch.Tensor | None = None,
        num_dispatched_tokens_tensor: torch.Tensor | None = None,
        num_dispatched_tokens: int | None = None,
        handle: tuple[typing.Any, ...] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None, tuple[typing.Any, ...]]:
        """(rows in the order of (source rank, source token), probs [rows, experts] or None, scales or None, handle of
        7): of the columns of probs those of this rank's experts are filled."""
        del num_dispatched_tokens_tensor, num_dispatched_tokens  # known from the routing
        routing, probs = self._routing(
            hidden, (topk_idx, topk_weights, num_of_experts), routing_map, probs, handle, _Layout(permuted=False)
        )
        payload = Payload.of(hidden, scaling_factor)
        dispatcher, prepared = routing.prepared(payload, probs)
        rows, scales = move((dispatcher, prepared), payload, hidden, scaling_factor)
        local = tensor_of(prepared.local_experts).long()
        first, num_local = prepared.first_expert, prepared.num_local_experts
        place = torch.where(local < 0, routing.num_experts, local + first)
        moved_probs = None
        if probs is not None:
            dense = torch.zeros((rows.shape[0], routing.num_experts + 1), dtype=torch.float32, device=rows.device)
            moved_probs = dense.scatter_(1, place, tensor_of(prepared.weights))[:, : routing.num_experts].contiguous()
        made: list[typing.Any] = [None] * _LENGTH
        there = torch.zeros((rows.shape[0], routing.num_experts + 1), dtype=torch.bool, device=rows.device)
        there.scatter_(1, place, True)
        made[_RECEIVED] = torch.tensor([rows.shape[0]], dtype=torch.int32, device=rows.device)
        made[_LOCAL_MAP] = there[:, first : first + num_local].contiguous()
        made[-2:] = [routing.ids.shape[0], routing]
        return rows, moved_probs, scales, tuple(made)

    def combine(
        self,
        hidden: torch.Tensor,
        probs: torch.Tensor | None = None,
        handle: tuple[typing.Any, ...] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(sums [T, hidden] over ranks, probs [T, experts] or None)."""
        routing = _routing_of(handle, _LENGTH)
        if probs is None:
            return routing.combine(hidden, None)
        prepared = routing.prepared(Payload(hidden.dtype, hidden.shape[1]))[1]
        local = tensor_of(prepared.local_experts).long()
        columns = (local + prepared.first_expert).clamp(min=0)
        return routing.combine(hidden, torch.where(local < 0, 0, probs.float().gather(1, columns)))

    def dispatch_with_permute(
        self,
        *,
        hidden: torch.Tensor,
        topk_idx: torch.Tensor | None = None,
        topk_weights: torch.Tensor | None = None,
        num_of_experts_per_rank: int | None = None,
        num_of_experts: int | None = None,
        use_fp8: bool | None = None,
        routing_map: torch.Tensor | None = None,
        probs: torch.Tensor | None = None,
        scaling_factor: torch.Tensor | None = None,
        num_permuted_tokens: typing.Any = None,
        pad_multiple: int | None = None,
        handle: tuple[typing.Any, ...] | None = None,
        non_blocking: bool = False,
        fuse_permute_dispatch: bool = False,
        num_dispatched_tokens: int | None = None,
        use_host_meta: bool | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None, torch.Tensor, tuple[typing.Any, ...]]:
        """(rows in groups of experts, each padded with zeros to ``pad_multiple``; a probability for each row, or None;
        scales or None; padded rows per expert, on the CPU unless ``non_blocking``; handle of 11). With
        ``num_permuted_tokens`` that many rows, and the last of the handle is not 0 where some found no room."""
        del num_of_experts_per_rank, use_fp8, fuse_permute_dispatch, num_dispatched_tokens  # as the tensors are
        if use_host_meta is not None:
            non_blocking = not use_host_meta
        max_rows = None if num_permuted_tokens is None or handle is not None else int(num_permuted_tokens)
        if non_blocking and max_rows is None and handle is None:
            raise ValueError("a dispatch that does not wait needs num_permuted_tokens")
        layout = _Layout(permuted=True, alignment=max(1, pad_multiple or 1), max_rows=max_rows)
        routing, probs = self._routing(
            hidden, (topk_idx, topk_weights, num_of_experts), routing_map, probs, handle, layout
        )
        payload = Payload.of(hidden, scaling_factor)
        dispatcher, prepared = routing.prepared(payload, probs)
        rows, scales = move((dispatcher, prepared), payload, hidden, scaling_factor)
        begin = tensor_of(prepared.expert_begin)
        counts = begin[1:] - begin[:-1]
        made: list[typing.Any] = [None] * _PERMUTED_LENGTH
        made[_RECEIVED] = (tensor_of(prepared.row_expert) >= 0).sum(dtype=torch.int32).view(1)
        made[_COUNTS] = tensor_of(prepared.expert_counts).clone()
        dropped = tensor_of(prepared.expert_dropped).sum() + routing.lost
        made[-3:] = [routing.ids.shape[0], routing, dropped.to(torch.int32).view(1)]
        moved_probs = None if probs is None else tensor_of(prepared.weights).clone()
        return rows, moved_probs, scales, counts if non_blocking else counts.cpu(), tuple(made)

    def combine_with_unpermute(
        self,
        *,
        hidden: torch.Tensor,
        probs: torch.Tensor | None = None,
        handle: tuple[typing.Any, ...] | None = None,
        pad_multiple: int | None = None,
        fuse_unpermute_combine: bool = False,
        num_dispatched_tokens: int | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(sums [T, hidden] over experts, probs [T, experts] or None): rows and probs as dispatch_with_permute laid
        them out."""
        del pad_multiple, fuse_unpermute_combine, num_dispatched_tokens  # as the handle has them
        return _routing_of(handle, _PERMUTED_LENGTH).combine(hidden, None if probs is None else probs.float())

    def _routing(
        self,
        hidden: torch.Tensor,
        by_index: tuple[torch.Tensor | None, torch.Tensor | None, int | None],
        routing_map: torch.Tensor | None,
        probs: torch.Tensor | None,
        handle: tuple[typing.Any, ...] | None,
        layout: _Layout,
    ) -> tuple[_Routing, torch.Tensor | None]:
        """And the probabilities [T, experts], where some are given."""
        if handle is not None:
            routing = _routing_of(handle, _PERMUTED_LENGTH if layout.permuted else _LENGTH)
            if hidden.shape[0] != routing.ids.shape[0]:
                raise ValueError(f"hidden has {hidden.shape[0]} rows, the handle was made for {routing.ids.shape[0]}")
            return routing, probs
        topk_idx, topk_weights, num_experts = by_index
        if routing_map is None:
            if topk_idx is None:
                raise ValueError("a dispatch needs a routing_map, or topk_idx and num_of_experts, or a handle")
            num_experts = num_experts or self._num_experts
            routing_map = torch.zeros((topk_idx.shape[0], num_experts + 1), dtype=torch.bool, device=topk_idx.device)
            place = torch.where(topk_idx < 0, num_experts, topk_idx).long()
            routing_map.scatter_(1, place, True)
            routing_map = routing_map[:, :num_experts]
            if topk_weights is not None:
                dense = torch.zeros((place.shape[0], num_experts + 1), dtype=torch.float32, device=place.device)
                probs = dense.scatter_(1, place, topk_weights.float())[:, :num_experts]
        if routing_map.dtype != torch.bool or routing_map.shape[0] != hidden.shape[0]:
            raise ValueError(
                f"routing_map is {routing_map.dtype} {tuple(routing_map.shape)}; bool [{hidden.shape[0]}, experts] is "
                "expected"
            )
        ids, lost = self._lists(routing_map, layout)
        return _Routing(self._dispatchers, ids, routing_map.shape[1], self._max_tokens, layout, lost), probs

    def _lists(self, routing_map: torch.Tensor, layout: _Layout) -> tuple[torch.Tensor, torch.Tensor]:
        """int64 [T, top_k], the experts of every token in ascending order and then -1; and how many found no place.
        Ranks agree on top_k and on a bound on T, which takes the host; a dispatch of static shapes does it once only.
        """
        num_tokens, num_experts = routing_map.shape
        widest = routing_map.sum(1)
        if layout.max_rows is None or self._top_k == 0:
            most = int(widest.max()) if num_tokens > 0 else 0
            tokens, top_k = largest_of(self._group, num_tokens, max(1, most))
            self._top_k = max(self._top_k, top_k)
            self._max_tokens = max(self._max_tokens, tokens)
        self._max_tokens = max(self._max_tokens, align_up(num_tokens, 16))
        experts = torch.where(routing_map, torch.arange(num_experts, device=routing_map.device), num_experts)
        ids = experts.topk(min(self._top_k, num_experts), dim=1, largest=False, sorted=True).values
        return torch.where(ids == num_experts, -1, ids), (widest - self._top_k).clamp(min=0).sum()


def _routing_of(handle: tuple[typing.Any, ...] | None, length: int) -> _Routing:
    if handle is None or len(handle) != length:
        raise ValueError(f"the handle of a dispatch has {length} entries; {0 if handle is None else len(handle)} given")
    routing: _Routing = handle[-2] if length == _PERMUTED_LENGTH else handle[-1]
    return routing
