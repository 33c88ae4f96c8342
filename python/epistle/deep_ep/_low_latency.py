"""Buffer's low-latency calls."""

from __future__ import annotations

import dataclasses
import typing

import torch

import epistle
from epistle.deep_ep._events import EventOverlap, finish
from epistle.deep_ep._routes import Dispatchers, lacking, tensor_of

if typing.TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Hook = typing.Optional["Callable[[], None]"]

# Dispatches whose results may be outstanding: each has a dispatcher of its own, used in turn.
NUM_OUTSTANDING = 2
# Of every dispatcher; a round trip takes two.
MAX_HANDLES = 64


@dataclasses.dataclass(frozen=True)
class _Shape:
    """What tells the dispatchers of one call from those of another."""

    options: epistle.Host | epistle.Cuda
    hidden: int
    top_k: int
    max_tokens: int
    num_experts: int
    use_fp8: bool
    round_scale: bool
    use_ue8m0: bool

    @property
    def device(self) -> str:
        return "cuda" if isinstance(self.options, epistle.Cuda) else "host"

    def wire(self) -> epistle.AsGiven | epistle.Fp8Blocks:
        if not self.use_fp8:
            return epistle.AsGiven()
        if self.use_ue8m0 and not self.round_scale:
            raise ValueError("use_ue8m0 needs round_scale: its scales are powers of two")
        return epistle.Fp8Blocks(
            scales="ue8m0" if self.use_ue8m0 else "fp32", powers_of_two=self.round_scale, order="columns"
        )


@dataclasses.dataclass(frozen=True, slots=True)
class _Places:
    """Where a dispatcher's rows lie. It has one buffer, so they stay there; what is in it is a call's until the
    dispatcher's turn comes again: no lease is kept."""

    rows: torch.Tensor
    scales: torch.Tensor | None
    outputs: torch.Tensor

    @staticmethod
    def of(received: epistle.Received, blocks: tuple[int, int]) -> _Places:
        rows, scales, outputs = received.borrow()
        return _Places(
            tensor_of(rows).view(*blocks, -1),
            None if scales is None else tensor_of(scales),
            tensor_of(outputs).view(*blocks, -1),
        )


@dataclasses.dataclass(slots=True)
class _Line:
    """One of the dispatchers that are used in turn."""

    dispatcher: epistle.Dispatcher
    late_weights: bool  # it takes them in combine
    num_ranks: int
    shape: tuple[int, int, int]  # as a handle has it
    places: _Places | None = None


class LowLatencyHandle:
    """What low_latency_dispatch returns for low_latency_combine. As a sequence it is DeepEP's (src_info, layout_range,
    num_max_dispatch_tokens_per_rank, hidden, num_experts)."""

    __slots__ = ("handle", "line")

    def __init__(self, line: _Line, handle: epistle.Handle | None) -> None:
        self.line = line
        self.handle = handle  # from the receive half on

    @property
    def dispatcher(self) -> epistle.Dispatcher:
        return self.line.dispatcher

    @property
    def outputs(self) -> torch.Tensor:
        """[experts, rows, hidden]: where combine reads without a copy."""
        assert self.line.places is not None
        return self.line.places.outputs

    def described(self) -> epistle.Handle:
        if self.handle is None:
            raise RuntimeError("the rows of this dispatch have not been received yet; call its hook first")
        return self.handle

    @property
    def src_info(self) -> torch.Tensor:
        """int32 [experts, rows]: index of the token at its rank."""
        return tensor_of(self.described().src_token).view(self.outputs.shape[:2])

    @property
    def layout_range(self) -> torch.Tensor:
        """int64 [experts, ranks]: ``begin << 32 | count`` of the rows of each source, which lie together."""
        src_rank = tensor_of(self.described().src_rank).view(self.outputs.shape[:2])
        sources = torch.arange(self.line.num_ranks, device=src_rank.device)
        counts = (src_rank.unsqueeze(2) == sources).sum(1)
        return ((counts.cumsum(1) - counts) << 32) | counts

    def __len__(self) -> int:
        return 5

    def __getitem__(self, position: int) -> typing.Any:
        if position == 0:
            return self.src_info
        if position == 1:
            return self.layout_range
        return self.line.shape[position - 2]

    def __iter__(self) -> Iterator[typing.Any]:
        return (self[position] for position in range(len(self)))


class LowLatencyCalls:
    """Mixed into Buffer."""

    _group: epistle.Group
    _dispatchers: Dispatchers
    _low_latency: dict[typing.Any, list[_Line]]
    _num_low_latency: int = 0

    def clean_low_latency_buffer(self, num_max_dispatch_tokens_per_rank: int, hidden: int, num_experts: int) -> None:
        """Nothing is left to clean: signals carry the number of their call."""
        del num_max_dispatch_tokens_per_rank, hidden, num_experts
        self._group.barrier()

    def low_latency_dispatch(
        self,
        x: torch.Tensor,
        topk_idx: torch.Tensor,
        num_max_dispatch_tokens_per_rank: int,
        num_experts: int,
        cumulative_local_expert_recv_stats: torch.Tensor | None = None,
        dispatch_wait_recv_cost_stats: torch.Tensor | None = None,
        use_fp8: bool = True,
        round_scale: bool = False,
        use_ue8m0: bool = False,
        async_finish: bool = False,
        return_recv_hook: bool = False,
        **of_forks: typing.Any,
    ) -> tuple[typing.Any, torch.Tensor, LowLatencyHandle, EventOverlap, Hook]:
        """(recv_x [experts, R*M, hidden] or (recv_x, scales), recv_count int32 [experts], handle, event, hook). Two
        results may be outstanding; a third dispatch writes over the first."""
        if of_forks:
            _refuse_forks("low_latency_dispatch", of_forks)
        if dispatch_wait_recv_cost_stats is not None:
            raise lacking(
                "dispatch_wait_recv_cost_stats", "leave it None; a rank that is late is named by epistle.Error"
            )
        # Behind the first the fields of _Shape behind its options.
        key = (
            x.get_device(),
            x.shape[1],
            topk_idx.shape[1],
            num_max_dispatch_tokens_per_rank,
            num_experts,
            use_fp8,
            round_scale,
            use_ue8m0,
        )
        line = self._next_line(key)
        if return_recv_hook:
            _check_hooks(async_finish, return_recv_hook)
            return self._dispatch_in_halves(line, x, topk_idx, cumulative_local_expert_recv_stats)
        # In one step, which is less than two for the host and for a GPU.
        places = line.places
        if places is None:
            received = line.dispatcher.dispatch(x, expert_ids=topk_idx)
            routed, places = _keep_places(line, received)
            recv_count = tensor_of(routed.expert_counts)
        else:
            routed, recv_count = line.dispatcher.dispatch_decode(x, topk_idx)
        handle = LowLatencyHandle(line, routed)
        recv_x = places.rows if places.scales is None else (places.rows, places.scales)
        if cumulative_local_expert_recv_stats is not None:
            cumulative_local_expert_recv_stats.add_(recv_count)
        return recv_x, recv_count, handle, finish(async_finish), None

    def _dispatch_in_halves(
        self,
        line: _Line,
        x: torch.Tensor,
        topk_idx: torch.Tensor,
        recv_stats: torch.Tensor | None,
    ) -> tuple[typing.Any, torch.Tensor, LowLatencyHandle, EventOverlap, Hook]:
        dispatcher = line.dispatcher
        if x.is_cuda:  # routing and rows travel together
            pending = dispatcher.dispatch_send(x, expert_ids=topk_idx)
        else:
            pending = dispatcher.dispatch_send(x, handle=dispatcher.prepare(topk_idx))
        routed, places = _keep_places(line, pending.received())
        handle = LowLatencyHandle(line, None)
        recv_x = places.rows if places.scales is None else (places.rows, places.scales)
        recv_count = tensor_of(routed.expert_counts)

        def receive(kept: tuple[torch.Tensor, ...] = (x, topk_idx)) -> None:
            del kept  # read by the receive half as well
            dispatcher.dispatch_receive(pending).release()
            handle.handle = routed
            if recv_stats is not None:
                recv_stats.add_(recv_count)

        return recv_x, recv_count, handle, EventOverlap(), receive

    def low_latency_combine(
        self,
        x: torch.Tensor,
        topk_idx: torch.Tensor,
        topk_weights: torch.Tensor,
        handle: LowLatencyHandle,
        use_logfmt: bool = False,
        zero_copy: bool = False,
        async_finish: bool = False,
        return_recv_hook: bool = False,
        out: torch.Tensor | None = None,
        combine_wait_recv_cost_stats: torch.Tensor | None = None,
        **of_forks: typing.Any,
    ) -> tuple[torch.Tensor, EventOverlap, Hook]:
        """(sums [T, hidden], event, hook): the rows of a token times its weights, added in top-k order in fp32."""
        if of_forks:
            _refuse_forks("low_latency_combine", of_forks)
        if use_logfmt:
            raise lacking("LogFMT", "leave use_logfmt False: combine sends bf16")
        if combine_wait_recv_cost_stats is not None:
            raise lacking(
                "combine_wait_recv_cost_stats", "leave it None; a rank that is late is named by epistle.Error"
            )
        if return_recv_hook:
            _check_hooks(async_finish, return_recv_hook)
        line = handle.line
        dispatcher = line.dispatcher
        weights: torch.Tensor | None = topk_weights.contiguous()
        if line.late_weights:
            weighted = handle.handle or handle.described()
        else:  # they come with the ids in a prepare; the same ids get the same places
            weighted, weights = dispatcher.prepare(topk_idx, topk_weights), None
        rows = handle.outputs if zero_copy else x
        result = x.new_empty((topk_idx.shape[0], x.shape[-1])) if out is None else out
        if not return_recv_hook:
            dispatcher.combine(result, rows=rows, handle=weighted, weights=weights)
            return result, finish(async_finish), None
        pending = dispatcher.combine_send(result, rows=rows, handle=weighted, weights=weights)

        def receive(kept: tuple[torch.Tensor | None, ...] = (rows, weights)) -> None:
            del kept  # read by the receive half as well
            dispatcher.combine_receive(pending)

        return result, EventOverlap(), receive

    def get_next_low_latency_combine_buffer(self, handle: LowLatencyHandle) -> torch.Tensor:
        """bf16 [experts, R*M, hidden]: rows written here are not copied by low_latency_combine(zero_copy=True)."""
        return handle.outputs

    # ---- Lost ranks ----

    def low_latency_update_mask_buffer(self, rank_to_mask: int, mask: bool = False) -> None:
        """Collective over the ranks that stay, or come back. Ranks that turn out to be lost are masked as well."""
        self._check_masks()
        wanted = set(self._group.masked)
        changed = wanted | {rank_to_mask} if mask else wanted - {rank_to_mask}
        if changed != wanted:
            epistle.go_on_without(self._group, changed)

    def low_latency_query_mask_buffer(self, mask_status: torch.Tensor) -> None:
        """int32 [R]: 1 where a rank is masked or lost. Waits for nothing."""
        lost = {*self._group.masked, *self._dispatchers.suspects()}
        mask_status.copy_(torch.tensor([int(rank in lost) for rank in range(self._group.size)], dtype=torch.int32))

    def low_latency_clean_mask_buffer(self) -> None:
        """Ranks that were masked take part again, but for those that are gone or do not call this."""
        if self._group.masked:
            epistle.go_on_without(self._group, ())

    def _check_masks(self) -> None:
        if not self._dispatchers.can_mask():
            raise lacking(
                "a mask with a dispatcher that waits for all ranks",
                "a lost rank is an epistle.Error on all survivors; make a new buffer of them",
            )

    def _next_line(self, key: tuple[int, int, int, int, int, bool, bool, bool]) -> _Line:
        """Its first: of the GPU, -1 for the CPU."""
        lines = self._low_latency.get(key)
        if lines is None:
            options = epistle.Cuda(device=key[0]) if key[0] >= 0 else epistle.Host()
            lines = self._low_latency[key] = self._make_lines(_Shape(options, *key[1:]))
        turn = self._num_low_latency % NUM_OUTSTANDING
        self._num_low_latency += 1
        return lines[turn]

    def _make_lines(self, shape: _Shape) -> list[_Line]:
        # Not for one token more than blocks have room for: what low_latency sends without asking anybody must find room
        # at its receiver.
        config = epistle.DispatcherConfig(
            hidden=shape.hidden,
            num_experts=shape.num_experts,
            top_k=shape.top_k,
            max_tokens=shape.max_tokens,
            wire=shape.wire(),
            layout=epistle.ExpertBlocks(self._group.size * shape.max_tokens),
            sizing=epistle.Capacity(),
            order="flat",
            zero_padding=False,
            max_handles=MAX_HANDLES,
        )
        # What the kernel of few tokens cannot do, the other one does.
        refused = epistle.find_dispatcher("low_latency", shape.device).cannot_serve(config, self._group.size)
        name = "direct" if refused else "low_latency"
        late_weights = epistle.find_dispatcher(name, shape.device).capabilities.late_weights
        return [
            _Line(
                self._dispatchers.make(name, config, shape.options),
                late_weights,
                self._group.size,
                (shape.max_tokens, shape.hidden, shape.num_experts),
            )
            for _ in range(NUM_OUTSTANDING)
        ]


def _keep_places(line: _Line, received: epistle.Received) -> tuple[epistle.Handle, _Places]:
    """The routing of a dispatch, whose lease is given back, and where its rows are."""
    routed = received.handle
    places = line.places
    if places is None:
        places = line.places = _Places.of(received, (routed.num_local_experts, line.num_ranks * line.shape[0]))
    received.release()
    return routed, places


def _check_hooks(async_finish: bool, return_recv_hook: bool) -> None:
    if async_finish and return_recv_hook:
        raise ValueError("async_finish and return_recv_hook exclude each other")


def _refuse_forks(call: str, arguments: dict[str, typing.Any]) -> None:
    """Keywords of forks, which pass them with values that mean nothing where the option is off."""
    used = sorted(name for name, value in arguments.items() if value is not None and value is not False)
    if used:
        raise lacking(f"{', '.join(used)} in {call}", "turn the option off: it is of a fork of DeepEP")
