"""Adapters for engines, against stubs that hold the engines' abstract classes, called as the engines call them."""

from __future__ import annotations

import abc
import enum
import threading
import types
import typing

import pytest

torch = pytest.importorskip("torch", reason="Torch is not installed: its wheel for Linux brings gigabytes of CUDA")

import epistle  # noqa: E402
from epistle.engines import megatron, sglang, trtllm, vllm  # noqa: E402

RANKS, EXPERTS, TOP_K, HIDDEN = 2, 8, 3, 256
LOCAL = EXPERTS // RANKS


class Inputs:
    def __init__(self, rank: int) -> None:
        generator = torch.Generator().manual_seed(rank)
        num_tokens = 12 - 3 * rank
        self.weights, self.ids = torch.rand(num_tokens, EXPERTS, generator=generator).topk(TOP_K)
        self.x = torch.randn(num_tokens, HIDDEN, generator=generator).bfloat16()
        # Every expert multiplies by one plus its number.
        factors = (self.weights * (self.ids + 1)).sum(1, keepdim=True)
        self.expected = self.x.float() * factors


def assert_near(got: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(got.float(), expected, rtol=2e-2, atol=2e-2)


# ---- Megatron --------------------------------------------------------------------------------------------------------


class DispatchManager(abc.ABC):
    @abc.abstractmethod
    def setup_metadata(self, routing_map: typing.Any, probs: typing.Any) -> None: ...

    @abc.abstractmethod
    def dispatch(self, hidden_states: typing.Any, async_finish: bool, allocate_on_comm_stream: bool) -> typing.Any: ...

    @abc.abstractmethod
    def combine(self, hidden_states: typing.Any, async_finish: bool, allocate_on_comm_stream: bool) -> typing.Any: ...

    @abc.abstractmethod
    def get_permuted_hidden_states_by_experts(self, hidden_states: typing.Any) -> typing.Any: ...

    @abc.abstractmethod
    def get_restored_hidden_states_by_experts(self, hidden_states: typing.Any) -> typing.Any: ...

    @abc.abstractmethod
    def get_number_of_tokens_per_expert(self) -> typing.Any: ...


def test_megatrons_manager_permutes_sums_and_has_gradients() -> None:
    def play(group: epistle.Group) -> None:
        given = Inputs(group.rank)
        flex = types.SimpleNamespace(
            _comm_manager=None,
            tp_ep_group=group,
            tp_size=1,
            num_local_experts=LOCAL,
            config=types.SimpleNamespace(num_moe_experts=EXPERTS, fp8=None, fp4=None),
        )
        manager = megatron.use(flex, DispatchManager)
        assert flex._comm_manager is manager and isinstance(manager, DispatchManager)
        x = given.x.clone().requires_grad_(True)
        routing_map = torch.zeros(x.shape[0], EXPERTS, dtype=torch.bool).scatter_(1, given.ids, True)
        probs = torch.zeros(x.shape[0], EXPERTS).scatter_(1, given.ids, given.weights).requires_grad_(True)
        manager.setup_metadata(routing_map.view(-1, RANKS, LOCAL), probs.view(-1, RANKS, LOCAL))
        hidden = manager.dispatch(x, async_finish=True, allocate_on_comm_stream=True)
        hidden, row_probs = manager.get_permuted_hidden_states_by_experts(hidden)
        counts = manager.get_number_of_tokens_per_expert()
        factors = torch.cat(
            [torch.full((count,), group.rank * LOCAL + e + 1.0) for e, count in enumerate(counts.tolist())]
        )
        outputs = (hidden.float() * (factors * row_probs).unsqueeze(1)).bfloat16()
        out = manager.combine(manager.get_restored_hidden_states_by_experts(outputs), True, True)
        assert_near(out, given.expected)
        out.float().sum().backward()
        numbers = torch.arange(EXPERTS) + 1.0
        assert_near(x.grad, (probs * numbers).sum(1, keepdim=True).expand(-1, HIDDEN).detach())
        wanted = x.float().sum(1, keepdim=True) * numbers * routing_map
        torch.testing.assert_close(probs.grad, wanted.detach(), rtol=5e-2, atol=0.5)
        with pytest.raises(RuntimeError, match="without a dispatch"):
            manager.combine(outputs)

    try:
        epistle.run_threads(RANKS, play, timeout=30)
    finally:
        megatron.release()


def test_what_an_engine_has_come_to_ask_for_is_named() -> None:
    class Newer(DispatchManager):
        @abc.abstractmethod
        def check_over_budget(self) -> typing.Any: ...

    with pytest.raises(NotImplementedError, match=r"asks for check_over_budget.*0\.19\.2"):
        megatron.manager_class(Newer)
    with pytest.raises(ImportError, match="Give the class as base="):
        trtllm.communication_class()


# ---- vLLM ------------------------------------------------------------------------------------------------------------


class All2AllManagerBase:
    def __init__(self, cpu_group: typing.Any, tcp_store_group: typing.Any = None) -> None:
        self.cpu_group = cpu_group
        self.tcp_store_group = tcp_store_group


class ActivationFormat(enum.Enum):
    Standard = "standard"


class ExpertTokensMetadata(typing.NamedTuple):
    expert_num_tokens: typing.Any

    @staticmethod
    def make_from_list(counts: list[int], device: typing.Any) -> ExpertTokensMetadata:
        return ExpertTokensMetadata(torch.tensor(counts, device=device))


class PrepareAndFinalizeModular(abc.ABC):
    @property
    @abc.abstractmethod
    def activation_format(self) -> typing.Any: ...

    @abc.abstractmethod
    def topk_indices_dtype(self) -> typing.Any: ...

    @abc.abstractmethod
    def max_num_tokens_per_rank(self) -> typing.Any: ...

    @abc.abstractmethod
    def num_dispatchers(self) -> int: ...

    @abc.abstractmethod
    def output_is_reduced(self) -> bool: ...

    @abc.abstractmethod
    def prepare(self, *arguments: typing.Any) -> typing.Any: ...

    @abc.abstractmethod
    def finalize(self, *arguments: typing.Any) -> None: ...


KERNELS = types.SimpleNamespace(
    FusedMoEPrepareAndFinalizeModular=PrepareAndFinalizeModular,
    FusedMoEActivationFormat=ActivationFormat,
    ExpertTokensMetadata=ExpertTokensMetadata,
)


class WeightAndReduce:
    """What experts leave to be done: weights times rows, summed over a token's experts of this rank."""

    def __init__(self, first: int) -> None:
        self.first = first

    def apply(
        self,
        output: typing.Any,
        fused_expert_output: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        apply_router_weight_on_input: bool,
    ) -> torch.Tensor:
        here = (topk_ids >= self.first) & (topk_ids < self.first + LOCAL)
        factors = torch.where(here, topk_weights * (topk_ids + 1), 0).sum(1, keepdim=True)
        return (fused_expert_output.float() * factors).bfloat16()


def test_vllms_manager_and_steps() -> None:
    together = threading.Barrier(RANKS)

    def play(group: epistle.Group) -> None:
        given = Inputs(group.rank)
        manager = vllm.manager_class(All2AllManagerBase)(group, tcp_store_group="store")
        assert manager.tcp_store_group == "store"
        buffer = manager.get_handle({})
        assert manager.get_handle({}) is buffer
        elastic = manager.get_handle(
            {"num_max_tokens_per_rank": 16, "hidden": HIDDEN, "num_topk": TOP_K, "num_experts": EXPERTS}
        )
        assert elastic.num_max_tokens_per_rank == 16
        low_latency = manager.get_handle({"max_num_tokens_per_dp_rank": 16, "token_hidden_size": HIDDEN})
        assert low_latency.low_latency_mode and manager.max_sms_used() is None

        first = group.rank * LOCAL
        steps = vllm.prepare_finalize_class(KERNELS)(buffer, num_dispatchers=RANKS, rank_expert_offset=first)
        assert steps.activation_format is ActivationFormat.Standard and steps.num_dispatchers() == RANKS
        rows, scales, meta, ids, weights = steps.prepare(
            given.x, given.weights, given.ids, EXPERTS, None, False, types.SimpleNamespace(), False
        )
        counts = [((ids == first + expert) & (weights != 0)).sum().item() for expert in range(LOCAL)]
        assert scales is None and meta.expert_num_tokens.tolist() == counts
        assert ids.min() >= 0 and ids.max() < EXPERTS
        output = torch.empty_like(given.x)
        steps.finalize(
            output=output,
            fused_expert_output=rows,
            topk_weights=weights,
            topk_ids=ids,
            apply_router_weight_on_input=False,
            weight_and_reduce_impl=WeightAndReduce(first),
        )
        assert_near(output, given.expected)

        assert manager.support_fault_tolerance
        assert manager.query_active_mask().tolist() == [0] * RANKS and not manager.query_fault()
        manager.clean_buffers()
        # No barrier of the group: who is masked out before it has woken from that is told so. Who ends counts as lost.
        together.wait(30)
        if group.rank != 1:
            manager.update_mask(1, True)
            assert manager.query_active_mask().tolist() == [int(rank == 1) for rank in range(RANKS)]
            assert manager.query_fault()
        together.wait(30)
        manager.destroy()

    epistle.run_threads(RANKS, play, timeout=30)


# ---- SGLang ----------------------------------------------------------------------------------------------------------


class BaseDispatcher(abc.ABC):
    @abc.abstractmethod
    def dispatch(self, hidden_states: typing.Any, topk_output: typing.Any) -> typing.Any: ...

    @abc.abstractmethod
    def combine(self, combine_input: typing.Any) -> typing.Any: ...


class NormalOutput(typing.NamedTuple):
    hidden_states: typing.Any
    hidden_states_scale: typing.Any
    topk_ids: typing.Any
    topk_weights: typing.Any
    num_recv_tokens_per_expert: list[int]


class LowLatencyOutput(typing.NamedTuple):
    hidden_states: typing.Any
    hidden_states_scale: typing.Any
    topk_ids: typing.Any
    topk_weights: typing.Any
    masked_m: typing.Any
    expected_m: int


class CombineInput(typing.NamedTuple):
    hidden_states: typing.Any
    topk_ids: typing.Any
    topk_weights: typing.Any


OUTPUTS = types.SimpleNamespace(DeepEPNormalDispatchOutput=NormalOutput, DeepEPLLDispatchOutput=LowLatencyOutput)


@pytest.mark.parametrize("low_latency", [False, True])
def test_sglangs_halves(low_latency: bool) -> None:
    def play(group: epistle.Group) -> None:
        given = Inputs(group.rank)
        dispatcher = sglang.dispatcher_class(BaseDispatcher, OUTPUTS)(
            group=group,
            router_topk=TOP_K,
            num_experts=EXPERTS,
            num_local_experts=LOCAL,
            hidden_size=HIDDEN,
            low_latency=lambda: low_latency,
            max_dispatch_tokens_per_rank=16,
            use_fp8=False,
        )
        topk = types.SimpleNamespace(topk_ids=given.ids.to(torch.int32), topk_weights=given.weights)
        dispatcher.dispatch_a(given.x, topk)
        with pytest.raises(RuntimeError, match="dispatch_b is to come"):
            dispatcher.combine_a(None)
        out = dispatcher.dispatch_b()
        first = group.rank * LOCAL
        if low_latency:
            assert isinstance(out, LowLatencyOutput) and out.masked_m.shape == (LOCAL,)
            factors = torch.arange(first + 1, first + 1 + LOCAL, dtype=torch.float32).view(-1, 1, 1)
            rows = (out.hidden_states.float() * factors).bfloat16()
        else:
            assert isinstance(out, NormalOutput)
            local = torch.where(out.topk_ids >= 0, out.topk_weights * (out.topk_ids + first + 1), 0)
            assert out.num_recv_tokens_per_expert == [
                -(-int((out.topk_ids == expert).sum()) // 128) * 128 for expert in range(LOCAL)
            ]
            rows = (out.hidden_states.float() * local.sum(1, keepdim=True)).bfloat16()
        dispatcher.combine_a(CombineInput(rows, given.ids, given.weights))
        assert_near(dispatcher.combine_b(), given.expected)
        dispatcher.destroy()

    epistle.run_threads(RANKS, play, timeout=30)


# ---- TensorRT-LLM ----------------------------------------------------------------------------------------------------


class Communication(abc.ABC):
    def __init__(self, mapping: typing.Any) -> None:
        self.mapping = mapping
        if not self.is_platform_supported():
            raise RuntimeError("not supported")

    @staticmethod
    @abc.abstractmethod
    def is_platform_supported() -> bool: ...

    @abc.abstractmethod
    def is_workload_feasible(self, all_rank_num_tokens: list[int], num_chunks: int) -> bool: ...

    @abc.abstractmethod
    def dispatch(self, *arguments: typing.Any, **options: typing.Any) -> typing.Any: ...

    @abc.abstractmethod
    def combine(self, final_hidden_states: typing.Any, **options: typing.Any) -> typing.Any: ...


def test_tensorrt_llms_communication() -> None:
    def play(group: epistle.Group) -> None:
        given = Inputs(group.rank)
        counts = [Inputs(rank).x.shape[0] for rank in range(RANKS)]
        made = trtllm.communication_class(Communication)("mapping", group, EXPERTS)
        assert made.mapping == "mapping" and made.is_workload_feasible(counts, 3)
        assert not made.is_workload_feasible([1], 1)
        slots = given.ids.to(torch.int32)
        statistics = torch.full((EXPERTS,), group.rank, dtype=torch.int32)
        gathered = made.prepare_dispatch(slots, counts, local_statistic_tensor=statistics)
        assert gathered.tolist() == [[rank] * EXPERTS for rank in range(RANKS)]
        assert made.get_eplb_gathered_statistics() is gathered
        rows, scales, ids, weights = made.dispatch(given.x, None, slots, given.weights, counts, use_dp_padding=False)
        assert scales is None and ids.dtype == torch.int32
        here = ids < EXPERTS
        first = group.rank * LOCAL
        assert ((ids[here] >= first) & (ids[here] < first + LOCAL)).all()
        factors = torch.where(here, weights * (ids + 1), 0).sum(1, keepdim=True)
        assert_near(made.combine((rows.float() * factors).bfloat16()), given.expected)
        made.destroy()

    epistle.run_threads(RANKS, play, timeout=30)
