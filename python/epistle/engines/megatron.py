"""Megatron-core: a dispatch manager for its flex token dispatcher.

    epistle.engines.megatron.use(layer.token_dispatcher)   # of an MoELayer with moe_token_dispatcher_type="flex"

Rows come permuted by expert, padded as the layer's quantisation wants it; ranks may have different numbers of tokens,
and several layers' handles live at once. Gradients of the probabilities are fp32.
"""

from __future__ import annotations

import typing

import torch

from epistle.deep_ep import HybridEPBuffer
from epistle.engines._bases import base_class, complete

TRIED_WITH = "megatron-core 0.19.2 (its token dispatchers; see python/tests/test_megatron.py)"
_MODULE = "megatron.core.transformer.moe.token_dispatcher"

# One for every group: of all layers.
_buffers: dict[typing.Any, HybridEPBuffer] = {}


class _Dispatch(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: typing.Any,
        hidden: torch.Tensor,
        probs: torch.Tensor,
        buffer: HybridEPBuffer,
        routing_map: torch.Tensor,
        pad_multiple: int | None,
    ) -> tuple[typing.Any, ...]:
        rows, row_probs, _, counts, handle = buffer.dispatch_with_permute(
            hidden=hidden, routing_map=routing_map, probs=probs, pad_multiple=pad_multiple
        )
        ctx.buffer, ctx.handle = buffer, handle
        ctx.mark_non_differentiable(counts)
        return rows, row_probs, counts, handle

    @staticmethod
    def backward(ctx: typing.Any, *gradients: typing.Any) -> tuple[typing.Any, ...]:
        grad_hidden, grad_probs = ctx.buffer.combine_with_unpermute(
            hidden=gradients[0].contiguous(), probs=gradients[1].contiguous(), handle=ctx.handle
        )
        return grad_hidden, grad_probs, None, None, None


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: typing.Any, rows: torch.Tensor, buffer: HybridEPBuffer, handle: tuple[typing.Any, ...]
    ) -> torch.Tensor:
        ctx.buffer, ctx.handle = buffer, handle
        return buffer.combine_with_unpermute(hidden=rows.contiguous(), handle=handle)[0]

    @staticmethod
    def backward(ctx: typing.Any, *gradients: typing.Any) -> tuple[typing.Any, ...]:
        rows = ctx.buffer.dispatch_with_permute(hidden=gradients[0].contiguous(), handle=ctx.handle)[0]
        return rows, None, None


class _Manager:
    """Epistle's manager of the flex token dispatcher."""

    def __init__(
        self,
        group: typing.Any,
        num_local_experts: int,
        num_experts: int,
        config: typing.Any = None,
        pad_multiple: int | None = None,
    ) -> None:
        self.group = group
        self.num_local_experts = num_local_experts
        self.num_experts = num_experts
        self.config = config
        self.pad_multiple = pad_multiple if pad_multiple is not None else _alignment_of(config)
        self.routing_map: torch.Tensor | None = None
        self.token_probs: torch.Tensor | None = None
        self.token_indices: torch.Tensor | None = None
        self.dispatched_probs: torch.Tensor | None = None
        self.dispatched_indices: torch.Tensor | None = None
        self.tokens_per_expert: torch.Tensor | None = None
        self.handle: tuple[typing.Any, ...] | None = None

    def setup_metadata(self, routing_map: torch.Tensor, probs: torch.Tensor) -> None:
        num_tokens = routing_map.shape[0]
        self.routing_map = routing_map.reshape(num_tokens, self.num_experts)
        self.token_probs = probs.reshape(num_tokens, self.num_experts).float()

    def dispatch(
        self, hidden_states: torch.Tensor, async_finish: bool = False, allocate_on_comm_stream: bool = False
    ) -> torch.Tensor:
        del async_finish, allocate_on_comm_stream  # calls run on the caller's stream
        rows, self.dispatched_probs, counts, self.handle = _Dispatch.apply(
            hidden_states, self.token_probs, self._buffer(hidden_states), self.routing_map, self.pad_multiple
        )
        self.tokens_per_expert = counts.to(torch.int64)
        return typing.cast("torch.Tensor", rows)

    def get_permuted_hidden_states_by_experts(
        self, hidden_states: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        return hidden_states, self.dispatched_probs

    def get_number_of_tokens_per_expert(self) -> torch.Tensor | None:
        return self.tokens_per_expert

    def get_restored_hidden_states_by_experts(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states

    def combine(
        self, hidden_states: torch.Tensor, async_finish: bool = False, allocate_on_comm_stream: bool = False
    ) -> torch.Tensor:
        del async_finish, allocate_on_comm_stream
        if self.handle is None:
            raise RuntimeError("combine without a dispatch before it")
        handle, self.handle = self.handle, None
        sums = _Combine.apply(hidden_states, self._buffer(hidden_states), handle)
        return typing.cast("torch.Tensor", sums)

    def _buffer(self, hidden_states: torch.Tensor) -> HybridEPBuffer:
        if self.group not in _buffers:
            _buffers[self.group] = HybridEPBuffer(
                self.group, hidden_states.shape[-1], hidden_states.shape[0], self.num_local_experts
            )
        return _buffers[self.group]


def manager_class(base: type | None = None) -> type:
    """A class of Megatron's ``_DispatchManager``, or of ``base``."""
    return complete(
        _Manager, base_class(base, _MODULE, "_DispatchManager", TRIED_WITH), "EpistleDispatchManager", TRIED_WITH
    )


def use(token_dispatcher: typing.Any, base: type | None = None) -> typing.Any:
    """Gives a flex token dispatcher Epistle's manager in place of its own, and returns the manager."""
    if not hasattr(token_dispatcher, "_comm_manager"):
        raise TypeError(
            f"{type(token_dispatcher).__name__} has no manager to replace; set moe_token_dispatcher_type to flex"
        )
    config = token_dispatcher.config
    manager = manager_class(base)(
        group=token_dispatcher.tp_ep_group,
        num_local_experts=token_dispatcher.num_local_experts,
        num_experts=token_dispatcher.tp_size * config.num_moe_experts,
        config=config,
    )
    token_dispatcher._comm_manager = manager
    return manager


def release() -> None:
    """Forgets the buffers: before process groups are destroyed."""
    _buffers.clear()


def _alignment_of(config: typing.Any) -> int | None:
    if not (getattr(config, "fp8", None) or getattr(config, "fp4", None)):
        return None
    from megatron.core.transformer.moe.moe_utils import get_align_size_for_quantization

    return int(get_align_size_for_quantization(config))
