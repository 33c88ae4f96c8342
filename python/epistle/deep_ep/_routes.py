"""What is shared by the buffers: groups, dispatchers made as they are needed, payloads."""

from __future__ import annotations

import struct
import typing

import torch

import epistle

if typing.TYPE_CHECKING:
    from collections.abc import Sequence

NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
_SCALE_BLOCK = 128
# Handles that may live at once: micro-batches times layers of a training step.
MAX_HANDLES = 128


# Of a dispatcher whose rows the caller is given where they lie: one for these, one for the next dispatch.
NUM_BUFFERS = 2


def join(group: typing.Any, comm: typing.Any = None) -> epistle.Group:
    """From what a caller of DeepEP has: a process group of Torch, an mpi4py communicator, or a group of Epistle's."""
    if comm is not None:
        return epistle.Group.from_mpi(comm)
    if isinstance(group, epistle.Group):
        return group
    return epistle.Group.from_torch(group)


def gather_numbers(group: epistle.Group, values: Sequence[int]) -> list[tuple[int, ...]]:
    """Of every rank, as many on each. Collective."""
    layout = f"{len(values)}q"
    return [struct.unpack(layout, part) for part in group.all_gather(struct.pack(layout, *values))]


def largest_of(group: epistle.Group, *values: int) -> list[int]:
    """Each over the ranks. Collective."""
    return [max(column) for column in zip(*gather_numbers(group, values), strict=True)]


def largest(group: epistle.Group, value: int) -> int:
    return largest_of(group, value)[0]


def size_of(group: typing.Any) -> int:
    return group.size if isinstance(group, epistle.Group) else int(group.size())


def rank_starts(num_experts: int, num_ranks: int) -> list[int]:
    """The first expert of every rank, and num_experts: contiguous blocks, the first ranks hold one more."""
    few, more = divmod(num_experts, num_ranks)
    return [rank * few + min(rank, more) for rank in range(num_ranks + 1)]


def ranks_of(expert_ids: torch.Tensor, num_experts: int, num_ranks: int) -> torch.Tensor:
    """Of every id; -1 for none."""
    if num_experts % num_ranks == 0:
        return torch.div(expert_ids, num_experts // num_ranks, rounding_mode="floor")
    starts = torch.tensor(rank_starts(num_experts, num_ranks)[1:-1], device=expert_ids.device)
    return torch.where(expert_ids < 0, -1, torch.bucketize(expert_ids, starts, right=True))


class Payload(typing.NamedTuple):
    """What is dispatched: rows of ``dtype`` with ``scale_bytes`` of scales each."""

    dtype: torch.dtype
    hidden: int
    scale_dtype: torch.dtype | None = None
    num_scales: int = 0

    @staticmethod
    def of(x: torch.Tensor, scales: torch.Tensor | None) -> Payload:
        if scales is None:
            return Payload(x.dtype, x.shape[1])
        return Payload(x.dtype, x.shape[1], scales.dtype, 1 if scales.dim() == 1 else scales.shape[1])

    @property
    def output(self) -> torch.dtype:
        """What is summed: bf16 where the payload cannot be."""
        return self.dtype if self.dtype in NAMES and not self.is_raw else torch.bfloat16

    @property
    def is_plain_fp8(self) -> bool:
        return (
            self.dtype == torch.float8_e4m3fn
            and self.scale_dtype == torch.float32
            and self.num_scales == -(-self.hidden // _SCALE_BLOCK)
        )

    @property
    def is_raw(self) -> bool:
        """Rows that Epistle moves without knowing what they are, such as fp8 with packed UE8M0 scales."""
        return not self.is_plain_fp8 and (self.dtype not in NAMES or self.num_scales > 0)

    def config(self) -> dict[str, typing.Any]:
        """Fields of a DispatcherConfig."""
        fields: dict[str, typing.Any] = {"expert_output": NAMES[self.output], "expert_output_hidden": self.hidden}
        if not self.is_raw:
            return {**fields, "hidden": self.hidden, "input": NAMES.get(self.dtype, "fp8")}
        scale_bytes = self.num_scales * self.scale_dtype.itemsize if self.scale_dtype is not None else 0
        return {
            **fields,
            "hidden": self.hidden * self.dtype.itemsize,
            "input": "raw",
            "raw_scale_bytes": scale_bytes,
        }

    def given(self, x: torch.Tensor, scales: torch.Tensor | None) -> dict[str, typing.Any]:
        """Arguments of a dispatch. Strides of fp32 scales are taken as they are."""
        return {"tokens": x} if scales is None else {"tokens": x, "scales": self.scales_given(scales)}

    def scales_given(self, scales: torch.Tensor) -> torch.Tensor:
        """As dispatch takes them."""
        if scales.dim() == 1:
            scales = scales.unsqueeze(1)
        return scales.contiguous() if self.is_raw else scales

    def received(self, rows: epistle.Array, scales: epistle.Array | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        return self.as_known(rows.torch(), None if scales is None else scales.torch())

    def as_known(self, rows: torch.Tensor, scales: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """To the caller: the same memory."""
        if self.num_scales == 0 and self.dtype in NAMES:
            return rows, None
        if self.is_raw:
            rows = rows.view(self.dtype)
        if scales is None or self.scale_dtype is None:
            return rows, None
        return rows, scales.view(self.scale_dtype)


def tensor_of(array: epistle.Array | None) -> torch.Tensor:
    """Of an array that the layout in question has."""
    assert array is not None
    tensor: torch.Tensor = array.torch()
    return tensor


def has_cuda_work() -> bool:
    cuda: typing.Any = torch.cuda  # without types
    return bool(cuda.is_available() and cuda.is_initialized())


def options_for(tensor: torch.Tensor) -> epistle.Host | epistle.Cuda:
    if tensor.is_cuda:
        return epistle.Cuda(device=tensor.get_device())
    return epistle.Host()


class Dispatchers:
    """The dispatchers of one buffer, made when a shape is first used, which all ranks do in the same call."""

    def __init__(self, group: epistle.Group) -> None:
        self.group = group
        self._made: dict[typing.Any, tuple[int, epistle.Dispatcher]] = {}
        # The same by shorter keys of those who ask in every call.
        self._found: dict[typing.Any, tuple[int, epistle.Dispatcher]] = {}
        self._others: list[epistle.Dispatcher] = []

    def get(
        self,
        name: str,
        fields: dict[str, typing.Any],
        options: epistle.Host | epistle.Cuda,
        max_tokens: int,
    ) -> epistle.Dispatcher:
        """``max_tokens``: as all ranks know it. A dispatcher that is too small gives way to a larger one, and lives on
        in its handles."""
        return self._get(name, fields, options, max_tokens)[1]

    def _get(
        self,
        name: str,
        fields: dict[str, typing.Any],
        options: epistle.Host | epistle.Cuda,
        max_tokens: int,
    ) -> tuple[int, epistle.Dispatcher]:
        key = (name, tuple(sorted((key, repr(value)) for key, value in fields.items())), options)
        size, dispatcher = self._made.get(key, (-1, None))
        if dispatcher is None or size < max_tokens:
            # Powers of two: a batch that grows step by step makes few of them.
            size = max(16, 1 << max(0, max_tokens - 1).bit_length())
            config = epistle.DispatcherConfig(max_tokens=size, **fields)
            dispatcher = epistle.Dispatcher(self.group, name, config, options)
            self._made[key] = (size, dispatcher)
        return size, dispatcher

    def make(
        self, name: str, config: epistle.DispatcherConfig, options: epistle.Host | epistle.Cuda
    ) -> epistle.Dispatcher:
        """One that the caller keeps: of just this configuration, and for nobody else."""
        dispatcher = epistle.Dispatcher(self.group, name, config, options)
        self._others.append(dispatcher)
        return dispatcher

    def find(self, key: typing.Any, max_tokens: int) -> tuple[int, epistle.Dispatcher] | None:
        """What was kept by this key, where it is large enough, and for how many tokens it is."""
        found = self._found.get(key)
        return found if found is not None and found[0] >= max_tokens else None

    def keep(
        self,
        key: typing.Any,
        name: str,
        fields: dict[str, typing.Any],
        options: epistle.Host | epistle.Cuda,
        max_tokens: int,
    ) -> tuple[int, epistle.Dispatcher]:
        """As get(), for find()."""
        self._found[key] = made = self._get(name, fields, options, max_tokens)
        return made

    def suspects(self) -> set[int]:
        return {rank for dispatcher in self._all() for rank in dispatcher.suspects()}

    def can_mask(self) -> bool:
        """Whether all that were made go on when ranks are masked out."""
        return all(dispatcher.info.capabilities.masks for dispatcher in self._all())

    def clear(self) -> None:
        self._made.clear()
        self._found.clear()
        self._others.clear()

    def _all(self) -> list[epistle.Dispatcher]:
        return [*self._others, *(dispatcher for _, dispatcher in self._made.values())]


def sum_rows(
    dispatcher: epistle.Dispatcher,
    prepared: epistle.Handle,
    x: torch.Tensor,
    topk_weights: torch.Tensor | None,
    shape: tuple[int, ...],
    num_sms: int,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Sums of the rows `x` and, where `topk_weights` are given, of these, for a routing of `shape` [T, top_k]: both as
    combine of upstream's Buffer and ElasticBuffer returns them."""
    num_tokens, top_k = shape
    out = x.new_empty((num_tokens, x.shape[1]))
    if topk_weights is None:
        dispatcher.combine(out, rows=x, handle=prepared, num_sms=num_sms)
        return out, None
    weights = topk_weights.new_empty((num_tokens, top_k))
    dispatcher.dispatch_backward(
        prepared, x, out, grad_weights=topk_weights.contiguous(), grad_probs=weights, num_sms=num_sms
    )
    return out, weights


def lacking(what: str, instead: str) -> NotImplementedError:
    return NotImplementedError(f"epistle's deep_ep has no {what}; {instead}")


def align_up(value: int, alignment: int) -> int:
    return -(-value // alignment) * alignment
