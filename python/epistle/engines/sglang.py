"""SGLang: a dispatcher for its customised all-to-all backend (moe_a2a_backend=customized), in halves as its two-batch
overlap calls them."""

from __future__ import annotations

import typing

import torch

from epistle import deep_ep
from epistle.engines._bases import base_class, complete, construct

TRIED_WITH = "SGLang of September 2026, against its abstract classes; not run inside it"
_MODULE = "sglang.srt.layers.moe.token_dispatcher"
# Halves in the order in which they must come.
_ORDER = ("dispatch_a", "dispatch_b", "combine_a", "combine_b")
_ALIGNMENT = 128


class _Dispatcher:
    """Normal mode gives rows as they come, with counts on the host; low latency blocks of experts, with masks. Which of
    both a batch takes is said by ``low_latency``: a value, or a function that is asked for every batch."""

    _base: type
    _outputs: typing.Any

    def __init__(
        self,
        group: typing.Any,
        router_topk: int,
        num_experts: int,
        num_local_experts: int,
        hidden_size: int,
        params_dtype: torch.dtype = torch.bfloat16,
        low_latency: typing.Any = False,
        max_dispatch_tokens_per_rank: int = 128,
        use_fp8: bool = True,
        **options: typing.Any,
    ) -> None:
        construct(self, self._base, options)
        self._buffer = deep_ep.Buffer(group, low_latency_mode=True, explicitly_destroy=True)
        self.router_topk = router_topk
        self.num_experts, self.num_local_experts = num_experts, num_local_experts
        self.hidden_size, self.params_dtype = hidden_size, params_dtype
        self._low_latency = low_latency
        self._max_tokens = max_dispatch_tokens_per_rank
        self._use_fp8 = use_fp8
        self._next = 0
        self._between: typing.Any = None
        self._handle: typing.Any = None
        self._mode = False
        self._config: dict[str, typing.Any] = {}

    def set_quant_config(self, quant_config: dict[str, typing.Any]) -> None:
        self._config = dict(quant_config)

    def _step(self, name: str) -> None:
        if _ORDER[self._next] != name:
            raise RuntimeError(f"{name} is called where {_ORDER[self._next]} is to come")
        self._next = (self._next + 1) % len(_ORDER)

    def dispatch(self, hidden_states: torch.Tensor, topk_output: typing.Any, **options: typing.Any) -> typing.Any:
        self.dispatch_a(hidden_states, topk_output, **options)
        return self.dispatch_b()

    def dispatch_a(self, hidden_states: torch.Tensor, topk_output: typing.Any, **options: typing.Any) -> None:
        del options
        self._step("dispatch_a")
        self._mode = bool(self._low_latency() if callable(self._low_latency) else self._low_latency)
        ids, weights = topk_output.topk_ids.to(torch.int64), topk_output.topk_weights.float()
        if self._mode:
            made = self._buffer.low_latency_dispatch(
                hidden_states, ids, self._max_tokens, self.num_experts, use_fp8=self._use_fp8, return_recv_hook=True
            )
            # As many as an expert gets on average, for kernels that choose their shape by it.
            expected = -(-hidden_states.shape[0] * self._buffer.group_size * ids.shape[1] // self.num_experts)
            self._between = (made, ids, weights, expected)
            return
        per_rank, per_node, per_expert, in_rank, _ = self._buffer.get_dispatch_layout(ids, self.num_experts)
        made = self._buffer.dispatch(
            hidden_states,
            num_tokens_per_rank=per_rank,
            num_tokens_per_rdma_rank=per_node,
            is_token_in_rank=in_rank,
            num_tokens_per_expert=per_expert,
            topk_idx=ids,
            topk_weights=weights,
            expert_alignment=_ALIGNMENT,
            async_finish=True,
        )
        self._between = (made, ids, weights, 0)

    def dispatch_b(self) -> typing.Any:
        self._step("dispatch_b")
        made, ids, weights, expected = self._between
        self._between = None
        if self._mode:
            rows, counts, self._handle, _, hook = made
            hook()
            rows, scales = rows if isinstance(rows, tuple) else (rows, None)
            return self._output(
                "DeepEPLLDispatchOutput",
                hidden_states=rows,
                hidden_states_scale=scales,
                topk_ids=ids,
                topk_weights=weights,
                masked_m=counts,
                expected_m=expected,
            )
        rows, recv_ids, recv_weights, counts, self._handle, event = made
        event.current_stream_wait()
        rows, scales = rows if isinstance(rows, tuple) else (rows, None)
        return self._output(
            "DeepEPNormalDispatchOutput",
            hidden_states=rows,
            hidden_states_scale=scales,
            topk_ids=recv_ids,
            topk_weights=recv_weights,
            num_recv_tokens_per_expert=counts,
        )

    def _output(self, name: str, **fields: typing.Any) -> typing.Any:
        """By name, of the engine's tuple: fields that a version lacks are left out."""
        made = getattr(self._outputs, name)
        return made(**{field: fields[field] for field in made._fields if field in fields})

    def combine(self, combine_input: typing.Any, **options: typing.Any) -> torch.Tensor:
        self.combine_a(combine_input, **options)
        return self.combine_b()

    def combine_a(self, combine_input: typing.Any, **options: typing.Any) -> None:
        del options
        self._step("combine_a")
        if self._mode:
            sums, _, hook = self._buffer.low_latency_combine(
                combine_input.hidden_states,
                combine_input.topk_ids,
                combine_input.topk_weights,
                self._handle,
                return_recv_hook=True,
            )
        else:
            sums, _, event = self._buffer.combine(combine_input.hidden_states, self._handle, async_finish=True)
            hook = event.current_stream_wait
        self._between = (sums, hook)

    def combine_b(self) -> torch.Tensor:
        self._step("combine_b")
        (sums, hook), self._between, self._handle = self._between, None, None
        hook()
        return typing.cast("torch.Tensor", sums)

    def destroy(self) -> None:
        self._buffer.destroy()


def dispatcher_class(base: type | None = None, outputs: typing.Any = None) -> type:
    """A class of SGLang's ``BaseDispatcher``, or of ``base``; ``outputs`` stands for its module token_dispatcher, which
    has the tuples of a dispatch."""
    base = base_class(base, _MODULE + ".base", "BaseDispatcher", TRIED_WITH)
    if outputs is None:
        import importlib

        outputs = importlib.import_module(_MODULE)
    made = complete(_Dispatcher, base, "EpistleDispatcher", TRIED_WITH)
    made._base, made._outputs = base, outputs  # type: ignore[attr-defined]
    return made
