"""Dispatch and combine for models in Torch: gradients of rows and of routing weights, and safe under torch.compile.

    ep = epistle.torch.ExpertParallel(group, epistle.DispatcherConfig(..., layout=epistle.ExpertMajor(alignment=128)))
    rows, weights, counts, handle = ep.dispatch(x, ids, probs)   # rows by expert, in this rank's memory
    y = ep.combine(experts(rows, counts), weights, handle, num_tokens=x.shape[0])

What the calls do is in custom operators (``torch.ops.epistle``) with fake kernels. A handle is a tensor with one number
there, so that it can go through a graph; the dispatcher keeps the newest ``max_handles`` of them.
"""

from __future__ import annotations

import collections
import itertools
import typing

import torch

from epistle import _config, _core
from epistle._errors import Error, ErrorCode

__all__ = ["Dispatched", "ExpertParallel"]

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


class Dispatched(typing.NamedTuple):
    """What ExpertParallel.dispatch gives."""

    rows: torch.Tensor
    """[num_rows, hidden], as the layout has them; zero at padding."""
    weights: torch.Tensor
    """float32 [num_rows], or [num_rows, top_k] in token_major: the routing weights of the rows, 0 at padding."""
    expert_counts: torch.Tensor
    """int32 [num_local_experts]: rows of every local expert, padding left out."""
    handle: torch.Tensor


class _Registered:
    """A dispatcher and its newest handles, by number."""

    def __init__(self, dispatcher: _core.Dispatcher, config: _config.DispatcherConfig) -> None:
        self.dispatcher = dispatcher
        self.config = config
        self.handles: collections.OrderedDict[int, _core.Handle] = collections.OrderedDict()
        self.numbers = itertools.count()
        group = dispatcher.group
        self.num_local = config.num_experts // group.size + (group.rank < config.num_experts % group.size)
        self.dtype = _TYPES[str(config.input)]

    def keep(self, handle: _core.Handle) -> int:
        number = next(self.numbers)
        self.handles[number] = handle
        return number

    def make_room(self) -> None:
        if len(self.handles) >= self.config.max_handles:
            self.handles.popitem(last=False)

    def find(self, number: int) -> _core.Handle:
        try:
            return self.handles[number]
        except KeyError:
            raise Error(
                f"the handle of dispatch {number} is gone: the newest {self.config.max_handles} are kept; "
                "raise max_handles to the number of dispatches whose combine or backward pass is still to come",
                ErrorCode.HANDLE_MISMATCH,
                rank=self.dispatcher.group.rank,
            ) from None

    def num_rows(self) -> int | None:
        """Where it is static."""
        if isinstance(self.config.layout, _config.ExpertBlocks):
            return self.num_local * self.config.layout.rows_per_expert
        if isinstance(self.config.sizing, _config.Capacity):
            return self.config.sizing.rows_per_rank
        return None

    def weights_shape(self, num_rows: typing.Any) -> tuple[typing.Any, ...]:
        if isinstance(self.config.layout, _config.TokenMajor):
            return (num_rows, self.config.top_k)
        return (num_rows,)


# By the number that the operators carry. A dispatcher stays until ExpertParallel.close().
_registered: dict[int, _Registered] = {}
_numbers = itertools.count()


class ExpertParallel:
    """Dispatch and combine of one shape, with gradients. Collective: all ranks make the same calls in the same order,
    backward passes included; gradients of the weights are always computed."""

    def __init__(
        self,
        group: _core.Group,
        config: _config.DispatcherConfig,
        options: _config.Host | _config.Cuda | None = None,
        name: str = "direct",
    ) -> None:
        """``config``: rows of bf16, fp16 or fp32 as they are given."""
        self._number = next(_numbers)
        if str(config.input) not in _TYPES or not isinstance(config.wire, _config.AsGiven):
            raise Error(
                f"rows of {config.input} with wire {config.wire} have no gradients; epistle.torch takes bf16, fp16 and "
                "fp32 as they are given",
                ErrorCode.UNSUPPORTED,
            )
        _registered[self._number] = _Registered(_core.Dispatcher(group, name, config, options), config)

    @property
    def dispatcher(self) -> _core.Dispatcher:
        return _registered[self._number].dispatcher

    @property
    def applies_weights(self) -> bool:
        """Whether combine multiplies by the weights."""
        return _registered[self._number].config.apply_weights

    def close(self) -> None:
        """Lets the dispatcher go. Idempotent."""
        _registered.pop(self._number, None)

    def __del__(self) -> None:
        self.close()

    def dispatch(self, x: torch.Tensor, expert_ids: torch.Tensor, weights: torch.Tensor) -> Dispatched:
        """``x`` [num_tokens, hidden]; ``expert_ids`` [num_tokens, top_k] int32 or int64, -1 for no expert; ``weights``
        [num_tokens, top_k], taken as float32."""
        return Dispatched(*torch.ops.epistle.dispatch(x, expert_ids, weights.float(), self._number))

    def combine(
        self, rows: torch.Tensor, weights: torch.Tensor, handle: torch.Tensor, *, num_tokens: int
    ) -> torch.Tensor:
        """Sums of ``rows`` at their tokens: [num_tokens, hidden]. ``weights``: those that dispatch gave. Where the
        configuration says apply_weights they multiply the rows, and get gradients."""
        result: torch.Tensor = torch.ops.epistle.combine(rows, weights, handle, self._number, num_tokens)
        return result


# ---- The operators --------------------------------------------------------------------------------------------------


@torch.library.custom_op("epistle::dispatch", mutates_args=())
def _dispatch(
    x: torch.Tensor, expert_ids: torch.Tensor, weights: torch.Tensor, dispatcher: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    of = _registered[dispatcher]
    of.make_room()
    handle = of.dispatcher.prepare(expert_ids.contiguous(), weights.contiguous())
    received = of.dispatcher.dispatch(x, handle=handle)
    number = torch.tensor([of.keep(handle)], dtype=torch.int64)
    # Copies: a graph may keep them as long as it likes, and leases are few.
    return (
        received.rows.torch().clone(),
        handle.weights.torch().clone(),
        handle.expert_counts.torch().clone(),
        number,
    )


@_dispatch.register_fake
def _(
    x: torch.Tensor, expert_ids: torch.Tensor, weights: torch.Tensor, dispatcher: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    of = _registered[dispatcher]
    num_rows: typing.Any = of.num_rows()
    if num_rows is None:
        num_rows = torch.library.get_ctx().new_dynamic_size()
    return (
        x.new_empty((num_rows, of.config.hidden)),
        weights.new_empty(of.weights_shape(num_rows)),
        x.new_empty((of.num_local,), dtype=torch.int32),
        torch.empty((1,), dtype=torch.int64),
    )


@torch.library.custom_op("epistle::dispatch_backward", mutates_args=())
def _dispatch_backward(
    grad_rows: torch.Tensor, grad_weights: torch.Tensor, handle: torch.Tensor, dispatcher: int, num_tokens: int
) -> tuple[torch.Tensor, torch.Tensor]:
    of = _registered[dispatcher]
    grad_x = grad_rows.new_empty((num_tokens, of.config.hidden))
    grad_probs = grad_weights.new_empty((num_tokens, of.config.top_k))
    of.dispatcher.dispatch_backward(
        of.find(int(handle.item())),
        grad_rows.contiguous(),
        grad_x,
        grad_weights=grad_weights.contiguous(),
        grad_probs=grad_probs,
    )
    return grad_x, grad_probs


@_dispatch_backward.register_fake
def _(
    grad_rows: torch.Tensor, grad_weights: torch.Tensor, handle: torch.Tensor, dispatcher: int, num_tokens: int
) -> tuple[torch.Tensor, torch.Tensor]:
    config = _registered[dispatcher].config
    return grad_rows.new_empty((num_tokens, config.hidden)), grad_weights.new_empty((num_tokens, config.top_k))


@torch.library.custom_op("epistle::combine", mutates_args=())
def _combine(
    rows: torch.Tensor, weights: torch.Tensor, handle: torch.Tensor, dispatcher: int, num_tokens: int
) -> torch.Tensor:
    of = _registered[dispatcher]
    out = rows.new_empty((num_tokens, of.config.hidden))
    of.dispatcher.combine(out, rows=rows.contiguous(), handle=of.find(int(handle.item())))
    return out


@_combine.register_fake
def _(
    rows: torch.Tensor, weights: torch.Tensor, handle: torch.Tensor, dispatcher: int, num_tokens: int
) -> torch.Tensor:
    return rows.new_empty((num_tokens, _registered[dispatcher].config.hidden))


@torch.library.custom_op("epistle::combine_backward", mutates_args=())
def _combine_backward(
    grad_out: torch.Tensor, saved_rows: torch.Tensor, weights: torch.Tensor, handle: torch.Tensor, dispatcher: int
) -> tuple[torch.Tensor, torch.Tensor]:
    of = _registered[dispatcher]
    found = of.find(int(handle.item()))
    grad_weights = torch.zeros_like(weights)
    given: dict[str, typing.Any] = {}
    if of.config.apply_weights:
        given = {"saved_rows": saved_rows.contiguous(), "grad_weights": grad_weights}
    received = of.dispatcher.combine_backward(found, grad_out.contiguous(), **given)
    return received.rows.torch().clone(), grad_weights


@_combine_backward.register_fake
def _(
    grad_out: torch.Tensor, saved_rows: torch.Tensor, weights: torch.Tensor, handle: torch.Tensor, dispatcher: int
) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(saved_rows), torch.empty_like(weights)


def _save_dispatch(ctx: typing.Any, inputs: tuple[typing.Any, ...], output: tuple[typing.Any, ...]) -> None:
    x, _, _, ctx.dispatcher = inputs
    ctx.num_tokens = x.shape[0]
    ctx.save_for_backward(output[3])


def _differentiate_dispatch(
    ctx: typing.Any, grad_rows: typing.Any, grad_weights: typing.Any, *_: typing.Any
) -> tuple[typing.Any, ...]:
    (handle,) = ctx.saved_tensors
    grad_x, grad_probs = torch.ops.epistle.dispatch_backward(
        grad_rows, grad_weights, handle, ctx.dispatcher, ctx.num_tokens
    )
    return grad_x, None, grad_probs, None


def _save_combine(ctx: typing.Any, inputs: tuple[typing.Any, ...], output: typing.Any) -> None:
    rows, weights, handle, ctx.dispatcher, _ = inputs
    ctx.save_for_backward(rows, weights, handle)


def _differentiate_combine(ctx: typing.Any, grad_out: typing.Any) -> tuple[typing.Any, ...]:
    rows, weights, handle = ctx.saved_tensors
    grad_rows, grad_weights = torch.ops.epistle.combine_backward(grad_out, rows, weights, handle, ctx.dispatcher)
    return grad_rows, grad_weights, None, None, None


_dispatch.register_autograd(_differentiate_dispatch, setup_context=_save_dispatch)
_combine.register_autograd(_differentiate_combine, setup_context=_save_combine)
