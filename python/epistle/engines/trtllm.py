"""TensorRT-LLM: a communication strategy for its fused MoE."""

from __future__ import annotations

import typing

import torch

from epistle import deep_ep
from epistle.deep_ep._routes import gather_numbers, rank_starts
from epistle.engines._bases import base_class, complete, construct

TRIED_WITH = "TensorRT-LLM of September 2026, against its abstract class; not run inside it"
_MODULE = "tensorrt_llm._torch.modules.fused_moe.communication.base"


class _Communication:
    """Rows as they come, each token once; rows without an expert do not exist. The state of a dispatch is kept for the
    combine that follows."""

    _base: type

    def __init__(self, mapping: typing.Any, group: typing.Any, num_slots: int, **options: typing.Any) -> None:
        construct(self, self._base, {"mapping": mapping, **options})
        self._buffer = deep_ep.Buffer(group, explicitly_destroy=True)
        self._num_slots = num_slots
        self._handle: typing.Any = None
        self._statistics: torch.Tensor | None = None

    @staticmethod
    def is_platform_supported() -> bool:
        return True

    def is_workload_feasible(self, all_rank_num_tokens: list[int], num_chunks: int) -> bool:
        """Any numbers of tokens, none included, in any number of chunks."""
        del num_chunks
        return len(all_rank_num_tokens) == self._buffer.group_size

    def supports_post_quant_dispatch(self) -> bool:
        """Rows of any type travel with their scales."""
        return True

    def prepare_dispatch(
        self,
        token_selected_slots: torch.Tensor,
        all_rank_num_tokens: list[int],
        local_statistic_tensor: torch.Tensor | None = None,
    ) -> torch.Tensor | None:
        """The statistics of all ranks [ranks, experts], where some are given. On the host."""
        del token_selected_slots, all_rank_num_tokens
        self._statistics = None
        if local_statistic_tensor is None:
            return None
        local = local_statistic_tensor.to("cpu", torch.int64).tolist()
        gathered = torch.tensor(gather_numbers(self._buffer._group, local))
        self._statistics = gathered.to(local_statistic_tensor)
        return self._statistics

    def dispatch(
        self,
        hidden_states: torch.Tensor,
        hidden_states_sf: torch.Tensor | None,
        token_selected_slots: torch.Tensor,
        token_final_scales: torch.Tensor | None,
        all_rank_num_tokens: list[int],
        use_dp_padding: bool | None = None,
        **options: typing.Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor | None]:
        """(rows, their scales, slots [rows, top_k] with num_slots where a slot is not here, weights)."""
        del all_rank_num_tokens, use_dp_padding, options
        slots = token_selected_slots.to(torch.int64)
        slots = torch.where((slots >= 0) & (slots < self._num_slots), slots, -1)
        per_rank, per_node, per_slot, in_rank, _ = self._buffer.get_dispatch_layout(slots, self._num_slots)
        weights = token_final_scales
        received, local, recv_weights, _, self._handle, _ = self._buffer.dispatch(
            hidden_states if hidden_states_sf is None else (hidden_states, hidden_states_sf),
            num_tokens_per_rank=per_rank,
            num_tokens_per_rdma_rank=per_node,
            is_token_in_rank=in_rank,
            num_tokens_per_expert=per_slot,
            topk_idx=slots,
            topk_weights=None if weights is None else weights.float(),
        )
        rows, scales = received if isinstance(received, tuple) else (received, None)
        first = rank_starts(self._num_slots, self._buffer.group_size)[self._buffer.rank]
        global_slots = torch.where(local < 0, self._num_slots, local + first).to(token_selected_slots.dtype)
        if recv_weights is not None and weights is not None:
            recv_weights = recv_weights.to(weights.dtype)
        return rows, scales, global_slots, recv_weights

    def combine(self, final_hidden_states: torch.Tensor, **options: typing.Any) -> torch.Tensor:
        """Sums over ranks [tokens of this rank, hidden]."""
        del options
        if self._handle is None:
            raise RuntimeError("combine without a dispatch before it")
        handle, self._handle = self._handle, None
        return self._buffer.combine(final_hidden_states, handle)[0]

    def get_eplb_gathered_statistics(self) -> torch.Tensor | None:
        return self._statistics

    def destroy(self) -> None:
        self._buffer.destroy()


def communication_class(base: type | None = None) -> type:
    """A class of TensorRT-LLM's ``Communication``, or of ``base``."""
    base = base_class(base, _MODULE, "Communication", TRIED_WITH)
    made = complete(_Communication, base, "EpistleCommunication", TRIED_WITH)
    made._base = base  # type: ignore[attr-defined]
    return made
