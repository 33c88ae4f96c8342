"""EPHandle: what ElasticBuffer.dispatch returns for combine and for cached dispatches."""

from __future__ import annotations

import itertools
import typing

import torch

import epistle
from epistle.deep_ep._prepared import Made, Prepared
from epistle.deep_ep._routes import (
    MAX_HANDLES,
    Dispatchers,
    Payload,
    align_up,
    options_for,
    rank_starts,
    ranks_of,
    tensor_of,
)

# The smallest row there is: of a routing of which nobody moves rows.
_LEAST_ROW = Payload(torch.bfloat16, 8)
_METADATA_COLUMNS = 2


class EPHandle:
    """The router's choice of one dispatch, how dispatchers for it are made, and what was received by it."""

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
        sums_once: bool,
        dispatchers: Dispatchers,
    ) -> None:
        self.do_expand = do_expand
        self.num_experts = num_experts
        self.expert_alignment = expert_alignment
        self.num_max_tokens_per_rank = num_max_tokens_per_rank
        self.num_sms = num_sms
        self.topk_idx = topk_idx
        self.topk_weights = topk_weights
        self.is_static = is_static
        self.sums_once = sums_once and do_expand  # token rows have one sum only
        self.group = dispatchers.group
        self.dispatchers = dispatchers
        self.biased: dict[typing.Any, tuple[epistle.Dispatcher, epistle.Handle]] = {}
        self._prepared = Prepared()
        self._metadata: torch.Tensor | None = None
        self._by_token: epistle.Handle | None = None
        self._counts: list[int] | None = None

    # ---- What was received ----

    @property
    def handle(self) -> epistle.Handle:
        return self._prepared.first[1]

    @property
    def num_unaligned_recv_tokens_per_expert(self) -> torch.Tensor:
        """int32 [local experts]."""
        return tensor_of(self.handle.expert_counts)

    @property
    def num_recv_tokens_per_expert_list(self) -> list[int]:
        """Aligned, on the host: waits for them. Empty where the dispatch was told not to wait."""
        if self.is_static:
            return []
        if self._counts is None:
            counts = self.num_unaligned_recv_tokens_per_expert.tolist()
            self._counts = [align_up(count, self.expert_alignment) for count in counts]
        return self._counts

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
        """int32 [local experts]. Token mode: sums of the aligned counts. Expanded: where the rows of each expert end;
        those of the next begin at the aligned end."""
        counts = self.num_unaligned_recv_tokens_per_expert
        begin = self.handle.expert_begin
        if begin is None:
            aligned = torch.div(counts + self.expert_alignment - 1, self.expert_alignment, rounding_mode="floor")
            return (aligned * self.expert_alignment).cumsum(0).to(torch.int32)
        return tensor_of(begin)[:-1] + counts

    @property
    def num_recv_tokens(self) -> int:
        """Tokens received, each once: waits for the counts."""
        return self.handle.wait_stats().received_rows

    @property
    def num_expanded_tokens(self) -> int:
        """Rows of the expanded layout, alignment included; 0 in token mode."""
        return self.handle.num_rows if self.do_expand else 0

    @property
    def recv_src_metadata(self) -> torch.Tensor:
        """int32 [received tokens, 2 + top_k]: source rank * M + source token; source rank * top_k + the first place of
        an expert that is here; the rows of the token's experts, expanded, -1 where there is none. Of an expanded
        dispatch it is made when it is first asked for, which all ranks must do together."""
        if self._metadata is None:
            self._metadata = self._describe_tokens()
        return self._metadata

    @recv_src_metadata.setter
    def recv_src_metadata(self, metadata: torch.Tensor) -> None:
        self._metadata = metadata

    @property
    def dst_buffer_slot_idx(self) -> torch.Tensor:
        """int32 [T, top_k]: how many earlier tokens of this rank go to the same rank; -1 where there is no expert."""
        ranks = ranks_of(self.topk_idx.long(), self.num_experts, self.group.size)
        goes = torch.zeros((ranks.shape[0], self.group.size + 1), dtype=torch.int32, device=ranks.device)
        goes.scatter_(1, torch.where(ranks < 0, self.group.size, ranks), 1)
        before = goes.cumsum(0) - goes
        return torch.where(ranks < 0, -1, before.gather(1, ranks.clamp(min=0))).to(torch.int32)

    @property
    def token_metadata_at_forward(self) -> None:
        """Of forwarding between hosts: there is none."""

    @property
    def channel_linked_list(self) -> None:
        """Likewise."""

    # ---- Dispatchers for it ----

    def prepare(
        self, payload: Payload, topk_weights: torch.Tensor | None, *, by_token: bool = False
    ) -> tuple[epistle.Dispatcher, epistle.Handle]:
        fields = self._fields(payload, expand=self.do_expand and not by_token)
        options = options_for(self.topk_idx)
        dispatcher = self.dispatchers.get("direct", fields, options, self.num_max_tokens_per_rank)
        return dispatcher, dispatcher.prepare(self.topk_idx, topk_weights)

    def prepared(self, payload: Payload) -> Made:
        return self._prepared.of(payload, lambda: self.prepare(payload, self.topk_weights))

    def prepared_for_sums(self, x: torch.Tensor) -> Made:
        return self._prepared.that_sums(x, self.prepared)

    def token_rows(self) -> epistle.Handle:
        """The same routing with each token once; of an expanded dispatch a second one. Collective at first."""
        if not self.do_expand:
            return self.handle
        if self._by_token is None:
            self._by_token = self.prepare(_LEAST_ROW, None, by_token=True)[1]
        return self._by_token

    def expanded_rows(self) -> torch.Tensor:
        """int64 [received tokens, top_k]: the rows of the experts of each token, -1 where an expert is not here."""
        local = tensor_of(self.token_rows().local_experts).long()
        begin, counts = tensor_of(self.handle.expert_begin).long()[:-1], self.num_unaligned_recv_tokens_per_expert
        # Rows of an expert are in the order of their tokens; those without an expert come last.
        flat = torch.where(local < 0, counts.shape[0], local).flatten()
        order = flat.sort(stable=True).indices
        first = counts.cumsum(0) - counts  # of the expert, among the sorted
        place = torch.empty_like(order)
        place[order] = torch.arange(order.shape[0], device=order.device)
        place = place.view(local.shape)
        expert = local.clamp(min=0)
        return torch.where(local < 0, -1, begin[expert] + place - first[expert])

    def _describe_tokens(self) -> torch.Tensor:
        tokens = self.token_rows()
        src_rank, src_token = tensor_of(tokens.src_rank), tensor_of(tokens.src_token)
        top_k = self.topk_idx.shape[1]
        metadata = torch.full(
            (src_rank.shape[0], _METADATA_COLUMNS + top_k), -1, dtype=torch.int32, device=src_rank.device
        )
        is_row = src_rank >= 0
        first_place = (tensor_of(tokens.local_experts) >= 0).to(torch.int32).argmax(1)
        metadata[:, 0] = torch.where(is_row, src_rank * self.num_max_tokens_per_rank + src_token, -1)
        metadata[:, 1] = torch.where(is_row, src_rank * top_k + first_place, -1)
        if self.do_expand:
            metadata[:, _METADATA_COLUMNS:] = self.expanded_rows()
        return metadata

    def _fields(self, payload: Payload, *, expand: bool) -> dict[str, typing.Any]:
        top_k = self.topk_idx.shape[1]
        layout: epistle.TokenMajor | epistle.ExpertMajor = epistle.TokenMajor()
        rows = self.group.size * self.num_max_tokens_per_rank
        if expand:
            layout = epistle.ExpertMajor(self.expert_alignment)
            # Of the rank that holds most experts: rows are equally many on all ranks.
            num_local = most_experts(self.num_experts, self.group.size)
            rows = rows * min(top_k, num_local) + num_local * (self.expert_alignment - 1)
        fields = {
            **payload.config(),
            "num_experts": self.num_experts,
            "top_k": top_k,
            "layout": layout,
            "order": "flat" if self.sums_once else "deepep_v2",
            "apply_weights": False,
            "max_handles": MAX_HANDLES,
        }
        if self.is_static:
            fields["sizing"] = epistle.Capacity(rows_per_rank=rows)
        return fields


def most_experts(num_experts: int, num_ranks: int) -> int:
    """Of any rank."""
    return max(end - begin for begin, end in itertools.pairwise(rank_starts(num_experts, num_ranks)))
