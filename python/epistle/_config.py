"""What a dispatcher is created with, and what the library tells of itself: plain values."""

from __future__ import annotations

import dataclasses
import enum
import operator
import typing


class DType(str, enum.Enum):
    """Element type of a payload. The plain strings do as well."""

    BF16 = "bf16"
    FP16 = "fp16"
    FP32 = "fp32"
    FP8 = "fp8"
    """e4m3, with one float32 scale per 128 elements of a row."""
    RAW = "raw"
    """Opaque bytes with opaque scale bytes: dispatched, never summed. ``hidden`` counts bytes."""

    def __str__(self) -> str:
        return self.value


class SumOrder(str, enum.Enum):
    """In which order combine adds; see epistle/dispatcher.hpp for the exact additions."""

    HIERARCHICAL = "hierarchical"
    FLAT = "flat"
    DEEPEP_V2 = "deepep_v2"
    DOMAINS = "domains"

    def __str__(self) -> str:
        return self.value


@dataclasses.dataclass(frozen=True)
class TokenMajor:
    """Each received token once, ordered by (source rank, source token), with the list of its local experts."""


@dataclasses.dataclass(frozen=True)
class ExpertMajor:
    """One row per (token, local expert), grouped by expert, every group padded to a multiple of ``alignment`` rows."""

    alignment: int = 1


@dataclasses.dataclass(frozen=True)
class ExpertBlocks:
    """A block of ``rows_per_expert`` rows for every local expert, filled from its start, plus counts."""

    rows_per_expert: int


@dataclasses.dataclass(frozen=True)
class Exact:
    """The host learns the counts in prepare; buffers grow to what is needed."""


@dataclasses.dataclass(frozen=True)
class Capacity:
    """Static shapes: no call waits for counts on the host. With ExpertBlocks ``rows_per_rank`` is 0."""

    rows_per_rank: int = 0


@dataclasses.dataclass(frozen=True)
class AsGiven:
    """Rows travel as they are given."""


@dataclasses.dataclass(frozen=True)
class Fp8Blocks:
    """Rows of bf16 become fp8 e4m3 on their way, with one scale per 128 elements, and are received so."""

    scales: str = "fp32"
    """fp32, or ue8m0: exponent bytes."""
    powers_of_two: bool = False
    order: str = "rows"
    """rows, or columns: as DeepGEMM reads them, exponents in words of four."""


@dataclasses.dataclass(frozen=True)
class Placement:
    """Logical experts to slots; equal on all ranks of a group, which is checked when it is set.

    An expert that has several slots, on different ranks, is replicated. Which of them serves a token is decided by a
    hash of the token's position and the ``step_seed`` of the call: see "Choice of replica" in epistle/dispatcher.hpp.
    """

    num_experts: int
    slot_experts: typing.Sequence[typing.Sequence[int]]
    """For every rank the logical experts of its slots, in slot order; a rank may have none."""
    generation: int = 0
    """Counts placements of a dispatcher; a newer one is greater."""
    quotas: typing.Sequence[typing.Sequence[float]] = ()
    """For every rank, for every slot: its part of its expert's tokens. Only the ratios among an expert's slots count.
    Empty: all slots of an expert are alike."""
    near_first: bool = False
    """The slot on the token's own rank comes first, then those in its domain, as far as that keeps the quotas when all
    ranks have as many tokens for the expert."""
    domain_of_rank: typing.Sequence[int] = ()
    """Domains are numbered from 0; empty: all ranks are in one."""
    max_imbalance: float = 0.0
    """``near_first``: how much more than its quota a slot may get by taking the tokens of its own rank: 0.05 = 5%."""

    def __post_init__(self) -> None:
        # Of lists, tuples and arrays alike, so that equal placements compare equal, and none changes later.
        as_tuples = {
            "slot_experts": tuple(tuple(operator.index(expert) for expert in slots) for slots in self.slot_experts),
            "quotas": tuple(tuple(float(quota) for quota in slots) for slots in self.quotas),
            "domain_of_rank": tuple(operator.index(domain) for domain in self.domain_of_rank),
        }
        for name, value in as_tuples.items():
            object.__setattr__(self, name, value)

    def replicas_of(self, expert: int) -> list[tuple[int, int]]:
        """Where an expert's copies are: (rank, local slot), by rank."""
        return [
            (rank, slot)
            for rank, slots in enumerate(self.slot_experts)
            for slot, held in enumerate(slots)
            if held == expert
        ]


@dataclasses.dataclass(frozen=True)
class DispatcherConfig:
    """The shape of a dispatcher's calls; equal on all ranks of a group, which is checked when it is created."""

    hidden: int
    """Elements of a row; bytes for raw. A row must have a multiple of 16 bytes."""
    num_experts: int
    top_k: int
    max_tokens: int
    """Most tokens that any rank gives in one call."""
    input: DType | str = DType.BF16
    raw_scale_bytes: int = 0
    wire: AsGiven | Fp8Blocks = AsGiven()
    expert_output: DType | str | None = None
    """Type of the rows given to combine; None: ``input``, or bf16 where that cannot be summed."""
    expert_output_hidden: int | None = None
    layout: TokenMajor | ExpertMajor | ExpertBlocks = TokenMajor()
    sizing: Exact | Capacity = Exact()
    overflow: str = "error"
    """error, or drop: what does not fit is left out and counted."""
    order: SumOrder | str | None = None
    """None: the dispatcher's own."""
    apply_weights: bool = True
    """combine multiplies by the routing weights."""
    zero_padding: bool = True
    num_buffers: int = 1
    """Leases that may live at once."""
    max_handles: int = 8
    placement: Placement | None = None
    """In force until ``Dispatcher.set_placement`` sets another; None: experts in contiguous blocks, one slot each."""
    slots_per_rank: int = 0
    """Most slots that a rank has in any placement that will be set: buffers are made for them. 0: those of
    ``placement``; a dispatcher without one keeps its blocks."""


@dataclasses.dataclass(frozen=True)
class Host:
    """Rows in host memory."""

    num_workers: int = 1
    """Threads that copy and sum for each rank, the caller's included."""


@dataclasses.dataclass(frozen=True)
class Cuda:
    """Rows in GPU memory."""

    device: int = -1
    """CUDA ordinal of this rank's GPU; -1: ranks are spread evenly over the visible GPUs."""
    num_sms: int = 0
    """Streaming multiprocessors that one call may occupy; 0: what the tuning table says."""
    mover: str = "auto"
    """auto, vector, bulk or copy_engines."""


@dataclasses.dataclass(frozen=True)
class RoutingStats:
    """Counts of one prepared routing as this rank saw it."""

    num_tokens: int
    sent_rows: int
    sent_remote_rows: int
    received_rows: int
    received_remote_rows: int
    sent_remote_assignments: int
    output_rows: int
    padding_rows: int
    dropped_by_this_rank: int
    dropped_here: int
    dropped_in_group: int
    lost_by_this_rank: int
    """Assignments of this rank to experts of ranks that are masked out."""


@dataclasses.dataclass(frozen=True)
class WireBytes:
    """Bytes that cross from one rank's memory to another's for one rank's tokens, rows and scales."""

    dispatch: int
    combine: int


@dataclasses.dataclass(frozen=True)
class Capabilities:
    """What a dispatcher can do, as data; see epistle/dispatcher_info.hpp."""

    layouts: tuple[str, ...]
    inputs: tuple[str, ...]
    scales: tuple[str, ...]
    outputs: tuple[str, ...]
    orders: tuple[str, ...]
    scale_orders: tuple[str, ...]
    exact_sizing: bool
    capacity_sizing: bool
    quantises: bool
    backward: bool
    graph_capture: bool
    device_token_count: bool
    late_weights: bool
    placement: bool
    masks: bool
    joins_domains: bool
    joins_hosts: bool
    agrees_on_host: bool
    one_rank_per_gpu: bool
    row_flags: bool
    copy_engines: bool
    max_ranks: int
    max_top_k: int
    max_tokens: int
    needs: tuple[str, ...]
    missing: str


@dataclasses.dataclass(frozen=True)
class MigrationStatus:
    """How far a ``WeightStore`` has come with the placement that ``begin`` was given."""

    state: str
    """idle: none was begun; copying: weights travel; done: the wanted placement is in force; cancelled: a rank has
    cancelled it or is lost, and the placement before its last round stays in force everywhere."""
    num_rounds: int
    """Switches that the migration takes."""
    rounds_done: int
    bytes_into_rank: int
    """What comes to this rank, all rounds together."""
    bytes_copied: int
    """Of these."""


@dataclasses.dataclass(frozen=True)
class MemorySection:
    name: str
    kind: str
    """shared (by all ranks), private or pinned_host."""
    initial_bytes: int
    largest_bytes: int


@dataclasses.dataclass(frozen=True)
class MemoryPlan:
    """The memory of one rank. The numbers come from the same objects that allocate it."""

    sections: tuple[MemorySection, ...]

    def initial_bytes(self, kind: str) -> int:
        return sum(section.initial_bytes for section in self.sections if section.kind == kind)

    def largest_bytes(self, kind: str) -> int:
        return sum(section.largest_bytes for section in self.sections if section.kind == kind)


@dataclasses.dataclass(frozen=True)
class CudaSupport:
    """What a build and this machine can do."""

    compiled: bool
    num_devices: int
    reason: str
