"""Buffer's normal (high-throughput) calls: get_dispatch_layout, dispatch, combine."""

from __future__ import annotations

import typing

import torch

import epistle
from epistle.deep_ep._config import Config
from epistle.deep_ep._events import EventOverlap, finish, wait_for
from epistle.deep_ep._prepared import Made, Prepared, kept, move
from epistle.deep_ep._routes import (
    MAX_HANDLES,
    NUM_BUFFERS,
    Dispatchers,
    Payload,
    align_up,
    gather_numbers,
    largest,
    options_for,
    rank_starts,
    ranks_of,
    tensor_of,
)

if typing.TYPE_CHECKING:
    from collections.abc import Iterator


# A dispatcher, and what its dispatch_routed gave.
Moved = tuple[
    epistle.Dispatcher,
    tuple[epistle.Received, epistle.Handle, tuple[typing.Any, typing.Any], tuple[typing.Any, typing.Any]],
]
# Rows have a multiple of 16 bytes.
_FLOATS_PER_ROW_UNIT = 4
_UNKNOWN = 0
# What a rank and its peers are told where a routing is refused: nothing has moved, and the next call works.
_REFUSED = (epistle.ErrorCode.INVALID_ARGUMENT, epistle.ErrorCode.PEER_REJECTED)


class Handle:
    """What dispatch returns for combine and for cached dispatches. As a sequence it has the six entries of DeepEP's, of
    which those that Epistle does not need are None."""

    def __init__(
        self, routing: Routing, dispatcher: epistle.Dispatcher, handle: epistle.Handle, payload: Payload
    ) -> None:
        self.routing = routing
        self.dispatcher = dispatcher
        self.handle = handle
        self._prepared = Prepared(payload, (dispatcher, handle))

    def for_payload(self, payload: Payload, dispatchers: Dispatchers) -> Made:
        return self._prepared.of(payload, lambda: self.routing.prepare(payload, dispatchers))

    def for_weights(self, payload: Payload, dispatchers: Dispatchers) -> Made:
        """With room for all rows that could come, so that nobody waits for counts that are known."""
        room = self.routing.num_worst_tokens or self.routing.num_ranks * self.routing.max_tokens
        return self._prepared.of(payload, lambda: self.routing.prepare(payload, dispatchers, room))

    def for_sums(self, x: torch.Tensor, dispatchers: Dispatchers) -> Made:
        return self._prepared.that_sums(x, lambda payload: self.for_payload(payload, dispatchers))

    def rank_prefix_matrix(self) -> torch.Tensor:
        """int32 [num_ranks, num_ranks]: in this rank's column, behind which row the rows of each source end. The other
        columns belong to other ranks and are -1."""
        src_rank = self.handle.src_rank.torch()
        num_ranks, rank = self.routing.num_ranks, self.routing.rank
        counts = torch.stack([(src_rank == source).sum() for source in range(num_ranks)])
        matrix = torch.full((num_ranks, num_ranks), -1, dtype=torch.int32, device=src_rank.device)
        matrix[:, rank] = counts.cumsum(0).to(torch.int32)
        return matrix

    def __len__(self) -> int:
        return 6

    def __getitem__(self, position: int) -> typing.Any:
        if position == 0:
            return self.rank_prefix_matrix()
        if position == 3:
            return self.handle.src_token.torch()
        if position == 4:
            return self.routing.is_token_in_rank
        if position in (1, 2, 5):
            return None
        raise IndexError(position)

    def __iter__(self) -> Iterator[typing.Any]:
        return (self[position] for position in range(len(self)))


class Routing:
    """The router's choice of one dispatch, and how dispatchers for it are made."""

    def __init__(
        self,
        group: epistle.Group,
        expert_ids: torch.Tensor,
        weights: torch.Tensor | None,
        *,
        num_experts: int,
        num_worst_tokens: int,
        is_token_in_rank: torch.Tensor | None,
    ) -> None:
        self._group = group
        self.rank, self.num_ranks = group.rank, group.size
        self.num_tokens, self.top_k = expert_ids.shape
        self._ids = expert_ids
        self._kept: epistle.Handle | None = None  # has them, where they are not those that were given any more
        self.weights = weights
        self.num_experts = num_experts
        self.num_worst_tokens = num_worst_tokens
        # Of any rank. Under static shapes nobody waits, so the bound is the one that all ranks were given.
        self.max_tokens = num_worst_tokens or _UNKNOWN
        self.is_token_in_rank = is_token_in_rank

    @property
    def expert_ids(self) -> torch.Tensor:
        if self._kept is not None:
            self._ids, self._kept = tensor_of(self._kept.routed_ids), None
        return self._ids

    def keep(self, handle: epistle.Handle) -> None:
        """The caller may write the next ids there, and a cached dispatch of another payload needs these again; it gives
        no weights."""
        if self._ids.is_cuda:  # the handle keeps them, and few ask for them again
            self._kept = handle
        else:
            self._ids = self._ids.clone()
        self.weights = None

    def prepare(
        self, payload: Payload, dispatchers: Dispatchers, num_rows: int = 0
    ) -> tuple[epistle.Dispatcher, epistle.Handle]:
        """``num_rows``: of static shapes; 0: as the routing says. Behind dispatch() where there are none."""
        num_rows = num_rows or self.num_worst_tokens
        dispatcher = self._large_enough(self._key(payload, num_rows), payload, dispatchers, num_rows)
        return dispatcher, dispatcher.prepare(self.expert_ids, self.weights)

    def dispatch(
        self, payload: Payload, dispatchers: Dispatchers, x: torch.Tensor, scales: torch.Tensor | None, num_sms: int
    ) -> Moved:
        """Routes and moves in one call, of as many rows as come. A dispatcher that was made before is taken in the hope
        that no rank has more tokens than then: who has is refused, and all ranks hear of that. So how many they have is
        asked when a routing was refused, not before every one."""
        key = self._key(payload, 0)
        found = dispatchers.find(key, 0)
        if found is not None:
            size, dispatcher = found
            try:
                moved = self._send(dispatcher, payload, x, scales, num_sms)
            except epistle.Error as error:
                if error.code not in _REFUSED or error.phase != epistle.Phase.LAYOUT:
                    raise
                self.max_tokens = largest(self._group, self.num_tokens)
                if self.max_tokens <= size:
                    raise
            else:
                self.max_tokens = size
                return moved
        else:
            self.max_tokens = largest(self._group, self.num_tokens)
        return self._send(self._large_enough(key, payload, dispatchers, 0), payload, x, scales, num_sms)

    def _key(self, payload: Payload, num_rows: int) -> typing.Any:
        return payload, self.num_experts, self.top_k, num_rows, self._ids.get_device()

    def _large_enough(
        self, key: typing.Any, payload: Payload, dispatchers: Dispatchers, num_rows: int
    ) -> epistle.Dispatcher:
        """For max_tokens, which all ranks know by now."""
        self.max_tokens, dispatcher = dispatchers.find(key, self.max_tokens) or self._make(
            key, payload, dispatchers, num_rows
        )
        return dispatcher

    def _send(
        self,
        dispatcher: epistle.Dispatcher,
        payload: Payload,
        x: torch.Tensor,
        scales: torch.Tensor | None,
        num_sms: int,
    ) -> Moved:
        if scales is not None:
            scales = payload.scales_given(scales)
        return dispatcher, dispatcher.dispatch_routed(x, self._ids, self.weights, scales, num_sms)

    def _make(
        self, key: typing.Any, payload: Payload, dispatchers: Dispatchers, num_rows: int
    ) -> tuple[int, epistle.Dispatcher]:
        fields = {
            **payload.config(),
            "num_experts": self.num_experts,
            "top_k": self.top_k,
            "apply_weights": False,
            "max_handles": MAX_HANDLES,
        }
        if num_rows > 0:
            fields["sizing"] = epistle.Capacity(rows_per_rank=num_rows)
        else:
            fields["num_buffers"] = NUM_BUFFERS
        return dispatchers.keep(key, "direct", fields, options_for(self._ids), self.max_tokens)


class NormalCalls:
    """Mixed into Buffer."""

    _group: epistle.Group
    _dispatchers: Dispatchers
    _constants: dict[torch.device, tuple[torch.Tensor, torch.Tensor]]
    num_sms: typing.ClassVar[int] = 20
    _num_sms_is_set: typing.ClassVar[bool] = False

    def get_dispatch_layout(
        self,
        topk_idx: torch.Tensor,
        num_experts: int,
        previous_event: EventOverlap | None = None,
        async_finish: bool = False,
        allocate_on_comm_stream: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor, EventOverlap]:
        """(tokens per rank int32 [R], None, tokens per expert int32 [E], is_token_in_rank bool [T, R], event)."""
        del allocate_on_comm_stream
        wait_for(previous_event)
        ids = topk_idx.long()
        every_rank, one = self._layout_constants(ids.device)
        # The place before the first expert takes those that go nowhere.
        per_expert = torch.zeros(num_experts + 1, dtype=torch.int32, device=ids.device)
        per_expert.scatter_add_(0, (ids + 1).flatten(), one.expand(ids.numel()))
        in_rank = (ranks_of(ids, num_experts, self._group.size).unsqueeze(2) == every_rank).any(1)
        per_rank = in_rank.sum(0, dtype=torch.int32)
        return per_rank, None, per_expert[1:], in_rank, finish(async_finish)

    def _layout_constants(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """The ranks in order, and a one: every operation that makes a tensor takes the host as long as the others."""
        found = self._constants.get(device)
        if found is not None:
            return found
        made = (
            torch.arange(self._group.size, device=device),
            torch.ones(1, dtype=torch.int32, device=device),
        )
        if device.type == "cuda":
            if torch.cuda.is_current_stream_capturing():
                return made  # filled when the graph is replayed
            torch.cuda.current_stream(device).synchronize()  # calls on other streams find them filled
        self._constants[device] = made
        return made

    def dispatch(
        self,
        x: torch.Tensor | tuple[torch.Tensor, torch.Tensor],
        handle: Handle | None = None,
        num_tokens_per_rank: torch.Tensor | None = None,
        num_tokens_per_rdma_rank: torch.Tensor | None = None,
        is_token_in_rank: torch.Tensor | None = None,
        num_tokens_per_expert: torch.Tensor | None = None,
        topk_idx: torch.Tensor | None = None,
        topk_weights: torch.Tensor | None = None,
        expert_alignment: int = 1,
        num_worst_tokens: int = 0,
        config: Config | None = None,
        previous_event: EventOverlap | None = None,
        async_finish: bool = False,
        allocate_on_comm_stream: bool = False,
    ) -> tuple[typing.Any, ...]:
        """(recv_x, recv_topk_idx, recv_topk_weights, rows per local expert, handle, event). Rows are in the order of
        (source rank, source token)."""
        del num_tokens_per_rank, num_tokens_per_rdma_rank, allocate_on_comm_stream
        wait_for(previous_event)
        tokens, scales = x if isinstance(x, tuple) else (x, None)
        payload = Payload.of(tokens, scales)
        # Who works with events reads rows on other streams, behind which nothing waits before they are written again.
        in_order = previous_event is None and not async_finish
        if handle is not None:
            if topk_idx is not None or topk_weights is not None:
                raise ValueError(
                    "a cached dispatch takes its routing from the handle; leave topk_idx and topk_weights out"
                )
            made_by = handle.for_payload(payload, self._dispatchers)
            rows = self._move(
                made_by, payload, tokens, scales, config, in_order and handle.routing.num_worst_tokens == 0
            )
            return rows, None, None, None, None, finish(async_finish)

        routing = self._routing(
            tokens, is_token_in_rank, num_tokens_per_expert, topk_idx, topk_weights, num_worst_tokens
        )
        if num_worst_tokens > 0:
            dispatcher, prepared = routing.prepare(payload, self._dispatchers)
            rows = self._move((dispatcher, prepared), payload, tokens, scales, config, False)
            local_idx, local_weights = tensor_of(prepared.local_experts), prepared.weights.torch()
        else:
            dispatcher, (lease, prepared, moved, (local_idx, local_weights)) = routing.dispatch(
                payload, self._dispatchers, tokens, scales, self._sms(tokens, config)
            )
            rows = _paired(*kept(dispatcher, lease, *payload.as_known(*moved), in_order))
        # From here on the rows are on their way, and nothing of this delays them.
        recv_idx = recv_weights = None
        if topk_idx is not None:
            # The former is quicker, and makes a tensor of its own.
            is_wide = topk_idx.dtype == torch.int64
            recv_idx = local_idx.long() if is_wide else local_idx.to(topk_idx.dtype, copy=True)
            if topk_weights is not None:
                # Nobody else writes there while it lives, but a graph, when it is replayed.
                recv_weights = local_weights.clone() if num_worst_tokens > 0 else local_weights
        made = Handle(routing, dispatcher, prepared, payload)
        routing.keep(prepared)
        counts: list[int] = []
        if num_worst_tokens == 0 and topk_idx is not None:
            counts = prepared.read_expert_counts()
        elif num_worst_tokens == 0 and num_tokens_per_expert is not None:
            counts = self._gather_counts(num_tokens_per_expert)
        if expert_alignment > 1:
            counts = [align_up(count, expert_alignment) for count in counts]
        return rows, recv_idx, recv_weights, counts, made, finish(async_finish)

    def combine(
        self,
        x: torch.Tensor,
        handle: Handle,
        topk_weights: torch.Tensor | None = None,
        bias: torch.Tensor | tuple[torch.Tensor, torch.Tensor] | None = None,
        config: Config | None = None,
        previous_event: EventOverlap | None = None,
        async_finish: bool = False,
        allocate_on_comm_stream: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None, EventOverlap]:
        """(sums [T, hidden], sums of the weights [T, top_k] or None, event). Ranks are added in ascending order in fp32
        and rounded once; a bias is added to that, and rounded again."""
        del allocate_on_comm_stream
        wait_for(previous_event)
        dispatcher, prepared = handle.for_sums(x, self._dispatchers)
        num_sms = self._sms(x, config)
        out = x.new_empty((handle.routing.num_tokens, x.shape[1]))
        dispatcher.combine(out, rows=x, handle=prepared, num_sms=num_sms)
        weights = None if topk_weights is None else self._sum_weights(handle, topk_weights, num_sms)
        if bias is not None:
            total = out.float()
            for part in bias if isinstance(bias, tuple) else (bias,):
                total = total + part.float()
            out = total.to(out.dtype)
        return out, weights, finish(async_finish)

    # ---- What these are made of ----

    def _sum_weights(self, handle: Handle, weights: torch.Tensor, num_sms: int) -> torch.Tensor:
        """[T, top_k]: plain sums over the ranks, of what stands at places without a local expert as well. They are rows
        of their own, of a routing that is prepared when a handle's weights are first summed."""
        top_k = weights.shape[1]
        payload = Payload(torch.float32, align_up(top_k, _FLOATS_PER_ROW_UNIT))
        dispatcher, prepared = handle.for_weights(payload, self._dispatchers)
        rows = weights.new_zeros((prepared.num_rows, payload.hidden))
        rows[: weights.shape[0], :top_k] = weights
        sums = weights.new_empty((handle.routing.num_tokens, payload.hidden))
        dispatcher.combine(sums, rows=rows, handle=prepared, num_sms=num_sms)
        return sums[:, :top_k].contiguous()

    def _sms(self, x: torch.Tensor, config: Config | None) -> int:
        """0, what the tuning table says, unless the caller chose a number."""
        if not x.is_cuda:
            return 0
        if config is not None:
            return config.num_sms
        return type(self).num_sms if type(self)._num_sms_is_set else 0

    def _routing(
        self,
        x: torch.Tensor,
        is_token_in_rank: torch.Tensor | None,
        num_tokens_per_expert: torch.Tensor | None,
        topk_idx: torch.Tensor | None,
        topk_weights: torch.Tensor | None,
        num_worst_tokens: int,
    ) -> Routing:
        if is_token_in_rank is None or num_tokens_per_expert is None:
            raise ValueError(
                "dispatch needs is_token_in_rank and num_tokens_per_expert of get_dispatch_layout, or a handle"
            )
        num_experts = num_tokens_per_expert.shape[0]
        ids = topk_idx
        if ids is None:
            # Only the ranks are known: each stands for one expert.
            num_experts = self._group.size
            every_rank = torch.arange(num_experts, dtype=torch.int32, device=x.device)
            ids = torch.where(is_token_in_rank, every_rank, -1).to(torch.int32)
        return Routing(
            self._group,
            ids,
            topk_weights,
            num_experts=num_experts,
            num_worst_tokens=num_worst_tokens,
            is_token_in_rank=is_token_in_rank,
        )

    def _move(
        self,
        made: Made,
        payload: Payload,
        x: torch.Tensor,
        scales: torch.Tensor | None,
        config: Config | None,
        may_lease: bool,
    ) -> typing.Any:
        return _paired(*move(made, payload, x, scales, self._sms(x, config), may_lease))

    def _gather_counts(self, num_tokens_per_expert: torch.Tensor) -> list[int]:
        """Rows of every local expert, from what all ranks send."""
        sent = num_tokens_per_expert.tolist()
        totals = [sum(column) for column in zip(*gather_numbers(self._group, sent), strict=True)]
        starts = rank_starts(len(sent), self._group.size)
        return totals[starts[self._group.rank] : starts[self._group.rank + 1]]


def _paired(rows: torch.Tensor, scales: torch.Tensor | None) -> typing.Any:
    """As Buffer takes and gives a payload."""
    return rows if scales is None else (rows, scales)
