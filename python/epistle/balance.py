"""Where experts go: loads of late, plans, and what engines that have balancers of their own call.

``LoadWindow`` keeps what experts were given of late, fed with ``Dispatcher.expert_tokens`` by a ``CounterFeed``;
``plan_placement`` makes a plan of it, which ``WeightStore`` and ``Dispatcher.set_placement`` carry out.

For engines there are pure functions of arrays: ``rebalance_experts`` has the signature and the results of DeepSeek's
EPLB; ``rebalance_experts_sglang`` those of SGLang's algorithms; ``VllmPolicy`` is a policy for vLLM, in both of its
forms. All plan for replicas that share an expert's load evenly, which is what these engines do, and put no two
replicas of an expert on one rank where they can help it.

Arrays are those of NumPy or Torch, and results are of the same kind (and on the same device).
"""

from __future__ import annotations

import dataclasses
import importlib
import typing

from epistle import _arrays, _core
from epistle._config import Placement
from epistle._core import CounterFeed, LoadSnapshot, LoadWindow

if typing.TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Doubles = npt.NDArray[np.float64]
    Ids = npt.NDArray[np.int64]

__all__ = [
    "Copy",
    "CounterFeed",
    "EplbPlan",
    "LoadSnapshot",
    "LoadWindow",
    "PlacementPlan",
    "VllmPolicy",
    "VllmPolicyState",
    "plan_placement",
    "rebalance_experts",
    "rebalance_experts_sglang",
]

_NO_SLOT = -1
# What gains no more balancedness than this over the placement in force is not worth its copies.
_HYSTERESIS = 0.005


def _like(values: Ids, example: typing.Any) -> typing.Any:
    if not _arrays.is_torch(example):
        return values
    import torch

    return torch.from_numpy(values).to(example.device)


# ---- Plans ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Copy:
    """Weights of an expert that travel; places are (rank, slot), slot -1 the staging place of a rank."""

    expert: int
    source: tuple[int, int]
    destination: tuple[int, int]
    num_bytes: int
    link: str
    """local (within a rank), domain, or across (between domains)."""


@dataclasses.dataclass(frozen=True)
class PlacementPlan:
    """Where experts are to be. *Balancedness* is the mean over the largest load of a rank."""

    slot_experts: list[list[int]]
    """For every rank the expert of each slot, -1 for an empty one: what ``WeightStore.begin`` takes."""
    quotas: list[list[float]]
    """For every slot its part of its expert's tokens."""
    copies: list[Copy]
    """In an order in which no expert is ever without a slot; empty where there is no current placement."""
    bytes_between_ranks: int
    bytes_across_domains: int
    before: float
    """Balancedness of the current placement with its best quotas."""
    after: float
    bound: float
    """No placement in these slots can be better."""
    changed: bool
    """The placement is another than the current one."""
    reason: str
    """Where it is not, or less was reached than wanted: why."""

    def placement(
        self,
        generation: int = 0,
        *,
        near_first: bool = False,
        domain_of_rank: typing.Sequence[int] = (),
        max_imbalance: float = 0.0,
    ) -> Placement:
        """For a dispatcher. Slots that are empty are left out."""
        held = [[slot for slot, expert in enumerate(experts) if expert >= 0] for experts in self.slot_experts]
        return Placement(
            num_experts=1 + max(max(experts, default=-1) for experts in self.slot_experts),
            slot_experts=[[self.slot_experts[rank][slot] for slot in slots] for rank, slots in enumerate(held)],
            generation=generation,
            quotas=[[self.quotas[rank][slot] for slot in slots] for rank, slots in enumerate(held)],
            near_first=near_first,
            domain_of_rank=domain_of_rank,
            max_imbalance=max_imbalance,
        )


def plan_placement(
    loads: typing.Any,
    slots_of_rank: typing.Sequence[int],
    *,
    domain_of_rank: typing.Sequence[int] = (),
    current: typing.Sequence[typing.Sequence[int]] | None = None,
    method: str | None = None,
    objective: str = "tokens",
    num_groups: int = 0,
    half_life: float = 0.0,
    num_candidates: int = 1,
    expert_bytes: int = 0,
    budget_bytes: int | None = None,
    max_bytes_into_rank: int | None = None,
    max_bytes_across_domains: int | None = None,
    target: float = 0.98,
    min_gain: float = 0.0,
) -> PlacementPlan:
    """Plans the placement of one layer. Pure: the same request gives the same plan on every rank.

    ``loads`` [experts], or [windows, experts] with the oldest window first, each counting alike, or by half after
    every ``half_life`` windows. ``slots_of_rank`` and ``domain_of_rank`` (none: all in one) describe the ranks,
    ``current`` what they hold (slots as in ``PlacementPlan.slot_experts``). ``method``: "incremental", from
    ``current`` with as few copies as bring it to the balancedness ``target``, or "fresh", from nothing; unless given,
    by whether there is a current placement. ``objective``: "tokens", or "activated", experts that a window needs at
    all. ``num_groups``: groups of experts to keep in one domain each. ``num_candidates`` above 1, with several
    windows: a plan from nothing looks for experts that are hot together. The byte limits bound the copies of experts
    of ``expert_bytes``, None: not at all. A plan that gains less than ``min_gain`` changes nothing.
    """
    windows = _arrays.numbers_of(loads)
    if windows.ndim == 1:
        windows = windows[None]
    if windows.ndim != 2:
        raise ValueError(f"the loads have the shape {windows.shape}, expected [experts] or [windows, experts]")
    if method is None:
        method = "fresh" if current is None else "incremental"
    if method not in ("fresh", "incremental"):
        raise ValueError(f"method is {method!r}, expected 'fresh' or 'incremental'")
    if objective not in ("tokens", "activated"):
        raise ValueError(f"objective is {objective!r}, expected 'tokens' or 'activated'")
    return _core.plan_placement(
        windows.astype(float).tolist(),
        slots_of_rank=[int(slots) for slots in slots_of_rank],
        domain_of_rank=[int(domain) for domain in domain_of_rank],
        current=None if current is None else [[int(expert) for expert in experts] for experts in current],
        from_nothing=method == "fresh",
        counts_activated=objective == "activated",
        num_groups=num_groups,
        half_life=half_life,
        num_candidates=num_candidates,
        expert_bytes=expert_bytes,
        budget_bytes=budget_bytes,
        max_bytes_into_rank=max_bytes_into_rank,
        max_bytes_across_domains=max_bytes_across_domains,
        target=target,
        min_gain=min_gain,
    )


# ---- EPLB and SGLang ------------------------------------------------------------------------------------------------


def _loads(weight: typing.Any) -> Doubles:
    """[layers, experts]; samples of loads, [samples, layers, experts], are added up."""
    import numpy as np

    loads = _arrays.numbers_of(weight).astype(np.float64)
    if loads.ndim == 3:
        loads = loads.sum(axis=0)
    if loads.ndim != 2 or 0 in loads.shape:
        raise ValueError(
            f"the loads have the shape {tuple(_arrays.numbers_of(weight).shape)}, expected [layers, experts] or "
            "[samples, layers, experts], none of them empty"
        )
    if not np.isfinite(loads).all() or (loads < 0).any():
        raise ValueError("a load is negative or not finite, expected 0 or more")
    return np.ascontiguousarray(loads)


def _plan(
    weight: typing.Any,
    *,
    num_slots: int,
    num_groups: int | None,
    num_nodes: int,
    num_ranks: int,
    current: typing.Any = None,
    as_eplb: bool = False,
) -> Ids:
    """The expert of every slot, [layers, num_slots]."""
    import numpy as np

    loads = _loads(weight)
    placement = None
    if current is not None:
        placement = np.ascontiguousarray(_arrays.numbers_of(current).astype(np.int64))
        # Placements of another size, or with slots that were never filled, are none to start from.
        if (
            placement.shape != (loads.shape[0], num_slots)
            or (placement < 0).any()
            or any(np.unique(layer).size < loads.shape[1] for layer in placement)
        ):
            placement = None
    slots = _core.plan_for_engine(
        loads,
        num_slots=num_slots,
        num_groups=num_groups or 1,
        num_nodes=num_nodes,
        num_ranks=num_ranks,
        current=placement,
        hysteresis=_HYSTERESIS,
        as_eplb=as_eplb,
    )
    return np.array(slots, dtype=np.int64)


def _maps_of(slots: Ids, num_experts: int) -> tuple[Ids, Ids]:
    """Slots of every expert [layers, experts, most replicas], -1 where there are fewer; and how many there are."""
    import numpy as np

    num_layers, num_slots = slots.shape
    counts = np.zeros((num_layers, num_experts), dtype=np.int64)
    for layer in range(num_layers):
        counts[layer] = np.bincount(slots[layer], minlength=num_experts)
    slots_of = np.full((num_layers, num_experts, int(counts.max())), _NO_SLOT, dtype=np.int64)
    taken = np.zeros((num_layers, num_experts), dtype=np.int64)
    layers = np.arange(num_layers)
    for slot in range(num_slots):
        experts = slots[:, slot]
        slots_of[layers, experts, taken[layers, experts]] = slot
        taken[layers, experts] += 1
    return slots_of, counts


def rebalance_experts(
    weight: typing.Any, num_replicas: int, num_groups: int, num_nodes: int, num_gpus: int, *, algorithm: str = "epistle"
) -> tuple[typing.Any, typing.Any, typing.Any]:
    """As EPLB's function of this name.

    ``weight`` [layers, experts]: loads. Returns the expert of every slot [layers, num_replicas], the slots of every
    expert [layers, experts, most replicas] (-1 = none), and the number of replicas [layers, experts].
    ``algorithm="eplb"`` is the published algorithm itself; it wants numbers that divide.
    """
    if algorithm not in ("epistle", "eplb"):
        raise ValueError(f"algorithm is {algorithm!r}, expected 'epistle' or 'eplb'")
    slots = _plan(
        weight,
        num_slots=num_replicas,
        num_groups=num_groups,
        num_nodes=num_nodes,
        num_ranks=num_gpus,
        as_eplb=algorithm == "eplb",
    )
    slots_of, counts = _maps_of(slots, int(_arrays.numbers_of(weight).shape[-1]))
    return _like(slots, weight), _like(slots_of, weight), _like(counts, weight)


def rebalance_experts_sglang(
    tokens_per_expert: typing.Any,
    num_physical_experts: int,
    num_local_physical_experts: int,
    num_groups: int | None,
    num_nodes: int,
    algorithm: typing.Any = None,
) -> tuple[typing.Any, typing.Any, typing.Any]:
    """As ``sglang.srt.eplb.eplb_algorithms.rebalance_experts``, of whatever algorithm.

    ``tokens_per_expert`` [samples, layers, experts]. Returns what ``rebalance_experts`` returns.
    """
    del algorithm
    if num_local_physical_experts < 1 or num_physical_experts % num_local_physical_experts != 0:
        raise ValueError(
            f"{num_physical_experts} slots, {num_local_physical_experts} on each rank; expected a whole number of ranks"
        )
    return rebalance_experts(
        tokens_per_expert,
        num_physical_experts,
        num_groups or 1,
        num_nodes,
        num_physical_experts // num_local_physical_experts,
    )


# ---- vLLM -----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class EplbPlan:
    """Stands for vLLM's class of this name where vLLM has none."""

    physical_to_logical_map: typing.Any


@dataclasses.dataclass
class VllmPolicyState:
    """Of one model: how many layers it has, and which plans of how many of them are in force."""

    num_moe_layers: int
    num_plans: int = 0
    committed_layers: set[int] = dataclasses.field(default_factory=set)


def _attribute_of_vllm(module: str, name: str) -> typing.Any:
    try:
        return getattr(importlib.import_module(f"vllm.distributed.eplb.policy{module}"), name, None)
    except ImportError:
        return None


def _wants_triple(policy: typing.Any) -> bool:
    """Whether the vLLM that is there takes all three maps from rebalance_experts, as older ones do."""
    method = getattr(policy, "rebalance_experts", None)
    annotation = getattr(method, "__annotations__", {}).get("return", "")
    return "tuple" in str(annotation).lower()


_AbstractPolicy: typing.Any = _attribute_of_vllm(".abstract", "AbstractEplbPolicy") or object


class VllmPolicy(_AbstractPolicy):  # type: ignore[misc]
    """A policy for vLLM's expert load balancer: few weights move from plan to plan.

    The classmethod form (``rebalance_experts``) returns one map, or all three where the installed vLLM says so
    (``returns_triple``). The form with a context (``create_state``, ``plan_rebalance``, ``on_layer_committed``) gets
    the window of loads and the placement in force.
    """

    returns_triple: typing.ClassVar[bool] = _wants_triple(_AbstractPolicy)

    @classmethod
    def rebalance_experts(
        cls,
        weight: typing.Any,
        num_replicas: int,
        num_groups: int,
        num_nodes: int,
        num_ranks: int,
        old_global_expert_indices: typing.Any = None,
    ) -> typing.Any:
        slots = _plan(
            weight,
            num_slots=num_replicas,
            num_groups=num_groups,
            num_nodes=num_nodes,
            num_ranks=num_ranks,
            current=old_global_expert_indices,
        )
        if not cls.returns_triple:
            return _like(slots, weight)
        slots_of, counts = _maps_of(slots, int(_arrays.numbers_of(weight).shape[-1]))
        return _like(slots, weight), _like(slots_of, weight), _like(counts, weight)

    @classmethod
    def create_state(cls, num_moe_layers: int) -> VllmPolicyState:
        return VllmPolicyState(num_moe_layers)

    @classmethod
    def plan_rebalance(cls, context: typing.Any, policy_state: VllmPolicyState) -> typing.Any:
        window = context.load_window_cpu
        if int(window.shape[1]) != policy_state.num_moe_layers:
            raise ValueError(f"loads of {int(window.shape[1])} layers, expected {policy_state.num_moe_layers}")
        topology = context.topology
        slots = _plan(
            window,
            num_slots=context.num_replicas,
            num_groups=topology.num_groups,
            num_nodes=topology.num_nodes,
            num_ranks=topology.num_ranks,
            current=context.physical_to_logical_map_cpu,
        )
        policy_state.num_plans += 1
        policy_state.committed_layers.clear()
        plan_class = _attribute_of_vllm("", "EplbPlan") or EplbPlan
        return plan_class(physical_to_logical_map=_like(slots, window))

    @classmethod
    def on_layer_committed(cls, policy_state: VllmPolicyState, plan: typing.Any, layer_idx: int) -> None:
        del plan
        if not 0 <= layer_idx < policy_state.num_moe_layers:
            raise ValueError(f"layer {layer_idx}, expected 0 to {policy_state.num_moe_layers - 1}")
        policy_state.committed_layers.add(layer_idx)
