"""The token dispatchers of megatron-core on the drop-in, on tensors of the CPU: outputs and gradients of inputs and
probabilities are those of the dense computation. Its layers run on GPUs only: python/examples/megatron_layer.py."""

from __future__ import annotations

import importlib.util
import socket
import typing
import unittest.mock

import pytest

torch = pytest.importorskip("torch", reason="Torch is not installed: its wheel for Linux brings gigabytes of CUDA")
for package in ("triton", "megatron.core"):  # not imported: megatron-core looks for deep_ep when it is
    if importlib.util.find_spec(package.partition(".")[0]) is None or importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed", allow_module_level=True)

HIDDEN, EXPERTS, RANKS, TOKENS = 64, 4, 2, 24


def make_dispatcher(backend: str, top_k: int) -> typing.Any:
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.core.transformer.moe.token_dispatcher import MoEFlexTokenDispatcher
    from megatron.core.transformer.transformer_config import TransformerConfig

    config = TransformerConfig(
        num_layers=1,
        hidden_size=HIDDEN,
        num_attention_heads=4,
        num_moe_experts=EXPERTS,
        moe_router_topk=top_k,
        moe_router_pre_softmax=top_k == 1,
        moe_router_dtype="fp32",
        moe_token_dispatcher_type="flex",
        moe_flex_dispatcher_backend=backend,
        expert_model_parallel_size=RANKS,
        add_bias_linear=False,
    )
    num_local = EXPERTS // RANKS
    first = torch.distributed.get_rank() * num_local
    zeros = torch.zeros

    def on_cpu(*shape: typing.Any, **options: typing.Any) -> typing.Any:
        return zeros(*shape, **{**options, "device": "cpu"})

    with unittest.mock.patch("torch.zeros", on_cpu):  # the manager of hybridep wants a flag on a GPU
        return MoEFlexTokenDispatcher(
            num_local, list(range(first, first + num_local)), config, ProcessGroupCollection.use_mpu_process_groups()
        )


def run_experts(dispatcher: typing.Any, x: typing.Any, routing_map: typing.Any, probs: typing.Any) -> typing.Any:
    hidden, moved = dispatcher.dispatch_preprocess(x, routing_map, probs)
    hidden, moved = dispatcher.token_dispatch(hidden, moved)
    rows, counts, row_probs = dispatcher.dispatch_postprocess(hidden, moved)
    first = torch.distributed.get_rank() * (EXPERTS // RANKS)
    parts = rows.split(counts.tolist())
    outputs = torch.cat([part @ expert_weights(first + local) for local, part in enumerate(parts)])
    combined = dispatcher.combine_preprocess(outputs * row_probs.unsqueeze(-1))
    return dispatcher.combine_postprocess(dispatcher.token_combine(combined))


def expert_weights(expert: int) -> typing.Any:
    return torch.randn(HIDDEN, HIDDEN, generator=torch.Generator().manual_seed(expert)) / HIDDEN**0.5


def play(rank: int, port: int) -> None:
    import epistle.deep_ep
    import epistle.engines.megatron

    epistle.deep_ep.install()
    from megatron.core import parallel_state

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=RANKS)
    parallel_state.initialize_model_parallel(expert_model_parallel_size=RANKS)
    generator = torch.Generator().manual_seed(rank)
    for backend in ("deepep", "hybridep", "adapter"):
        for top_k in (1, 2, 4):
            if backend == "adapter":
                dispatcher = make_dispatcher("deepep", top_k)
                epistle.engines.megatron.use(dispatcher)
            else:
                dispatcher = make_dispatcher(backend, top_k)
            for num_tokens in (TOKENS, TOKENS - 5 * rank):
                x = torch.randn(num_tokens, 1, HIDDEN, generator=generator, requires_grad=True)
                scores = torch.rand(num_tokens, EXPERTS, generator=generator)
                routing_map = torch.zeros(num_tokens, EXPERTS, dtype=torch.bool)
                routing_map.scatter_(1, scores.topk(top_k).indices, True)
                probs = torch.where(routing_map, scores, 0).requires_grad_(True)
                out = run_experts(dispatcher, x, routing_map, probs)
                dense = sum((x @ expert_weights(expert)) * probs[:, expert].view(-1, 1, 1) for expert in range(EXPERTS))
                slope = torch.linspace(-1, 1, HIDDEN)
                got = torch.autograd.grad((out * slope).sum(), (x, probs))
                wanted = torch.autograd.grad((dense * slope).sum(), (x, probs))
                torch.testing.assert_close(out, dense, rtol=1e-5, atol=1e-5)
                torch.testing.assert_close(got[0], wanted[0], rtol=1e-5, atol=1e-5)
                # Probabilities of experts that were not chosen move nothing.
                torch.testing.assert_close(
                    torch.where(routing_map, got[1], 0), torch.where(routing_map, wanted[1], 0), rtol=1e-5, atol=1e-4
                )
    epistle.engines.megatron.release()
    torch.distributed.destroy_process_group()


def test_flex_dispatchers_equal_the_dense_computation() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(play, args=(port,), nprocs=RANKS)
