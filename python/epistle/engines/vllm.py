"""vLLM: an all-to-all manager, and the two steps around the experts of a modular kernel.

vLLM has no registry for either: name the class where its communicator and its factory choose by string, or run it on
the drop-in (python -m epistle.as_deep_ep), which needs no change.
"""

from __future__ import annotations

import typing

import torch

import epistle
from epistle import deep_ep
from epistle.engines._bases import accepted, base_class, complete, construct

if typing.TYPE_CHECKING:
    from collections.abc import Callable

TRIED_WITH = "vLLM of September 2026, against its abstract classes; not run inside it"
_MANAGERS = "vllm.distributed.device_communicators.base_device_communicator"
_KERNELS = "vllm.model_executor.layers.fused_moe.modular_kernel"
_LOW_LATENCY_KEY, _ELASTIC_KEY = "max_num_tokens_per_dp_rank", "num_max_tokens_per_rank"


class _Manager:
    """Buffers of Epistle's drop-in by what a layer asks for: low-latency, elastic or normal."""

    _base: type

    def __init__(self, cpu_group: typing.Any, tcp_store_group: typing.Any = None, **options: typing.Any) -> None:
        self.cpu_group = cpu_group
        construct(self, self._base, {"cpu_group": cpu_group, "tcp_store_group": tcp_store_group, **options})
        self._buffers: dict[typing.Any, typing.Any] = {}
        self._known_mask: torch.Tensor | None = None

    def get_handle(self, kwargs: dict[str, typing.Any]) -> typing.Any:
        """The buffer for layers that ask for the same. Collective when it is made."""
        key = tuple(sorted(kwargs.items()))
        if key not in self._buffers:
            self._buffers[key] = self._make(kwargs)
        return self._buffers[key]

    def _make(self, kwargs: dict[str, typing.Any]) -> typing.Any:
        if _ELASTIC_KEY in kwargs:
            options = accepted(deep_ep.ElasticBuffer.__init__, kwargs)
            return deep_ep.ElasticBuffer(self.cpu_group, explicitly_destroy=True, **options)
        return deep_ep.Buffer(
            group=self.cpu_group, low_latency_mode=_LOW_LATENCY_KEY in kwargs, explicitly_destroy=True
        )

    def destroy(self) -> None:
        for buffer in self._buffers.values():
            buffer.destroy()
        self._buffers.clear()

    def max_sms_used(self) -> int | None:
        """None: what the tuning table says."""
        return deep_ep.Buffer.num_sms if deep_ep.Buffer._num_sms_is_set else None

    def set_num_sms(self, num_sms: int) -> None:
        deep_ep.Buffer.set_num_sms(num_sms)

    # ---- Faults ----

    @property
    def support_fault_tolerance(self) -> bool:
        """Whether ranks can be masked: not with dispatchers that wait for all ranks. There a lost rank is told of, and
        survivors go on with new buffers."""
        return bool(self._buffers) and all(buffer._dispatchers.can_mask() for buffer in self._buffers.values())

    def query_active_mask(self) -> torch.Tensor:
        """int32 [ranks]: 1 where a rank is lost, as far as this rank knows. Waits for nothing."""
        size = self.cpu_group.size if isinstance(self.cpu_group.size, int) else self.cpu_group.size()
        mask = torch.zeros(size, dtype=torch.int32)
        for buffer in self._buffers.values():
            for rank in {*buffer._group.masked, *buffer._dispatchers.suspects()}:
                mask[rank] = 1
        return mask

    def query_fault(self) -> torch.Tensor:
        """bool: whether ranks were lost since clean_buffers()."""
        mask = self.query_active_mask()
        known = torch.zeros_like(mask) if self._known_mask is None else self._known_mask
        return (mask > known).any()

    def clean_buffers(self) -> None:
        """Nothing is left in buffers: signals carry the number of their call. What is lost now is known from here."""
        self._known_mask = self.query_active_mask()

    def update_mask(self, rank: int, masked: bool = True) -> None:
        """Collective over the ranks that stay, or come back."""
        if not self.support_fault_tolerance:
            raise NotImplementedError(
                f"rank {rank} cannot be {'masked' if masked else 'unmasked'} with a dispatcher that waits for all "
                "ranks; make a new group and manager of the survivors"
            )
        for buffer in self._buffers.values():
            known = set(buffer._group.masked)
            wanted = known | {rank} if masked else known - {rank}
            if wanted != known:
                epistle.go_on_without(buffer._group, wanted)


class _PrepareFinalize:
    """Rows as they come, each token once; the sums over ranks. Payloads are quantised by the caller or not at all."""

    _base: type
    _kernels: typing.Any

    def __init__(
        self,
        buffer: deep_ep.Buffer,
        num_dispatchers: int,
        rank_expert_offset: int,
        quantise: Callable[..., tuple[torch.Tensor, torch.Tensor | None]] | None = None,
        **options: typing.Any,
    ) -> None:
        construct(self, self._base, options)
        self.buffer = buffer
        self._num_dispatchers = num_dispatchers
        self._rank_expert_offset = rank_expert_offset
        self._quantise = quantise
        self._handle: typing.Any = None

    @property
    def activation_format(self) -> typing.Any:
        return self._kernels.FusedMoEActivationFormat.Standard

    def topk_indices_dtype(self) -> torch.dtype:
        return torch.int64

    def max_num_tokens_per_rank(self) -> int | None:
        return None

    def num_dispatchers(self) -> int:
        return self._num_dispatchers

    def output_is_reduced(self) -> bool:
        return True

    def supports_async(self) -> bool:
        return True

    def prepare_async(
        self,
        a1: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        num_experts: int,
        expert_map: torch.Tensor | None,
        apply_router_weight_on_input: bool,
        quant_config: typing.Any,
        defer_input_quant: bool = False,
    ) -> Callable[[], tuple[typing.Any, ...]]:
        del expert_map
        if apply_router_weight_on_input:
            if topk_ids.shape[1] != 1:
                raise ValueError(f"weights on the input need a top-k of 1, not {topk_ids.shape[1]}")
            a1 = a1 * topk_weights.to(a1.dtype)
        x: typing.Any = a1
        if self._quantise is not None and not defer_input_quant:
            rows, scales = self._quantise(a1, quant_config)
            x = rows if scales is None else (rows, scales)
        per_rank, per_node, per_expert, in_rank, _ = self.buffer.get_dispatch_layout(
            topk_idx=topk_ids, num_experts=num_experts
        )
        received, ids, weights, counts, handle, event = self.buffer.dispatch(
            x=x,
            num_tokens_per_rank=per_rank,
            num_tokens_per_rdma_rank=per_node,
            is_token_in_rank=in_rank,
            num_tokens_per_expert=per_expert,
            topk_idx=topk_ids,
            topk_weights=topk_weights.float(),
            async_finish=True,
        )
        self._handle = handle

        def receive() -> tuple[typing.Any, ...]:
            event.current_stream_wait()
            rows, scales = received if isinstance(received, tuple) else (received, None)
            # Experts of this rank by their global number. Kernels take every id for one, so places without an expert
            # get one of another rank, which the expert map leaves out.
            elsewhere = num_experts - 1 if self._rank_expert_offset == 0 else 0
            global_ids = torch.where(ids < 0, elsewhere, ids + self._rank_expert_offset)
            meta = self._kernels.ExpertTokensMetadata.make_from_list(counts, device=rows.device)
            return rows, scales, meta, global_ids, weights

        return receive

    def prepare(self, *arguments: typing.Any, **options: typing.Any) -> tuple[typing.Any, ...]:
        return self.prepare_async(*arguments, **options)()

    def finalize_async(
        self,
        output: torch.Tensor,
        fused_expert_output: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        apply_router_weight_on_input: bool,
        weight_and_reduce_impl: typing.Any,
    ) -> Callable[[], None]:
        rows = fused_expert_output
        if rows.numel() > 0:
            rows = weight_and_reduce_impl.apply(
                output=None,
                fused_expert_output=rows,
                topk_weights=topk_weights,
                topk_ids=topk_ids,
                apply_router_weight_on_input=apply_router_weight_on_input,
            )
        else:
            rows = rows.reshape(0, output.shape[1])
        sums, _, event = self.buffer.combine(x=rows, handle=self._handle, async_finish=True)

        def receive() -> None:
            event.current_stream_wait()
            output.copy_(sums, non_blocking=True)

        return receive

    def finalize(self, *arguments: typing.Any, **options: typing.Any) -> None:
        self.finalize_async(*arguments, **options)()


def manager_class(base: type | None = None) -> type:
    """A class of vLLM's ``All2AllManagerBase``, or of ``base``."""
    base = base_class(base, _MANAGERS, "All2AllManagerBase", TRIED_WITH)
    made = complete(_Manager, base, "EpistleAll2AllManager", TRIED_WITH)
    made._base = base  # type: ignore[attr-defined]
    return made


def prepare_finalize_class(kernels: typing.Any = None) -> type:
    """A class of vLLM's ``FusedMoEPrepareAndFinalizeModular``; ``kernels`` stands for its module modular_kernel. With
    weight_and_reduce_impl, experts have weighted and summed the rows of a token before they go back."""
    if kernels is None:
        import importlib

        kernels = importlib.import_module(_KERNELS)
    base = kernels.FusedMoEPrepareAndFinalizeModular
    made = complete(_PrepareFinalize, base, "EpistlePrepareAndFinalize", TRIED_WITH)
    made._base, made._kernels = base, kernels  # type: ignore[attr-defined]
    return made
