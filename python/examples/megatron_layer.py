"""An MoE layer of megatron-core on Epistle's deep_ep, compared with its own alltoall dispatcher: outputs, gradients of
the input and of all parameters, and the losses of a few training steps.

    python megatron_layer.py                                        # on the CPU, two processes
    torchrun --nproc-per-node 2 megatron_layer.py --device cuda     # on GPUs

Needs the package megatron-core (tried with 0.19.2), which imports Triton. Backend hybridep asks for a GPU.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import typing

import torch
import torch.distributed as dist
import torch.multiprocessing

import epistle.deep_ep

HIDDEN, FFN, EXPERTS, TOKENS = 256, 512, 8, 64
BACKENDS = {"cpu": ("deepep",), "cuda": ("deepep", "hybridep")}
# Of bf16 rows that were added in another order.
TOLERANCE = {torch.bfloat16: 1.6e-2, torch.float32: 1e-5}


def make_layer(dispatcher: str, backend: str | None, top_k: int, dtype: torch.dtype, device: str) -> typing.Any:
    from megatron.core import parallel_state
    from megatron.core.models.gpt.moe_module_specs import get_moe_module_spec
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.core.transformer.moe.moe_layer import MoELayer
    from megatron.core.transformer.transformer_config import TransformerConfig

    config = TransformerConfig(
        num_layers=1,
        hidden_size=HIDDEN,
        ffn_hidden_size=FFN,
        num_attention_heads=4,
        num_moe_experts=EXPERTS,
        moe_ffn_hidden_size=FFN,
        moe_router_topk=top_k,
        moe_router_dtype="fp32",
        moe_router_load_balancing_type="none",
        moe_token_dispatcher_type=dispatcher,
        moe_flex_dispatcher_backend=backend or "deepep",
        moe_aux_loss_coeff=0.0,
        expert_model_parallel_size=dist.get_world_size(),
        add_bias_linear=False,
        use_cpu_initialization=True,
        params_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        perform_initialization=True,
    )
    submodules = get_moe_module_spec(use_te=False, num_experts=EXPERTS, moe_grouped_gemm=False).submodules
    assert parallel_state.is_initialized()
    layer = MoELayer(config, submodules, pg_collection=ProcessGroupCollection.use_mpu_process_groups())
    layer = layer.to(device=device, dtype=dtype)
    layer.set_layer_number(1)
    # The same in every layer: each expert is drawn of itself.
    for name, parameter in layer.named_parameters():
        expert = name.partition("local_experts.")[2].partition(".")[0]
        first = dist.get_rank() * EXPERTS // dist.get_world_size()
        seed = 1000 + (first + int(expert) if expert else 0) * 10 + ("fc2" in name)
        values = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)) * 0.05
        parameter.data.copy_(values.to(dtype))
    return layer


def compare(name: str, got: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    scale = expected.abs().max().item() or 1.0
    difference = (got.float() - expected.float()).abs().max().item() / scale
    if difference > TOLERANCE[dtype]:
        raise AssertionError(f"{name} differs by {difference:.2e} of its largest; {TOLERANCE[dtype]:.0e} is allowed")


def run_once(layer: typing.Any, x: torch.Tensor) -> dict[str, torch.Tensor]:
    x = x.detach().clone().requires_grad_(True)
    layer.zero_grad(set_to_none=True)
    out, _ = layer(x)
    (out.float() * torch.arange(HIDDEN, device=x.device).cos()).sum().backward()
    results = {"output": out.detach(), "gradient of the input": x.grad}
    for name, parameter in layer.named_parameters():
        results[f"gradient of {name}"] = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    return results


def train(layer: typing.Any, inputs: list[torch.Tensor]) -> list[float]:
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.05)
    losses = []
    for x in inputs:
        optimizer.zero_grad()
        out, _ = layer(x)
        loss = (out.float() - x.float().roll(1, -1)).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def main_of_rank(rank: int, num_ranks: int, device: str, num_steps: int) -> None:
    epistle.deep_ep.install()
    from megatron.core import parallel_state

    if device == "cuda":
        torch.cuda.set_device(rank)
        device = f"cuda:{rank}"
    dist.init_process_group("nccl" if device != "cpu" else "gloo", rank=rank, world_size=num_ranks)
    parallel_state.initialize_model_parallel(expert_model_parallel_size=num_ranks)
    if device != "cpu":
        from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

        model_parallel_cuda_manual_seed(0)
    dtype = torch.bfloat16 if device != "cpu" else torch.float32
    generator = torch.Generator().manual_seed(rank)

    def draw(num_tokens: int) -> torch.Tensor:
        return torch.randn(num_tokens, 1, HIDDEN, generator=generator).to(device=device, dtype=dtype)

    for backend in BACKENDS[device.partition(":")[0]]:
        for top_k in (1, 2, 8):
            reference = make_layer("alltoall", None, top_k, dtype, device)
            layer = make_layer("flex", backend, top_k, dtype, device)
            # Ranks with other numbers of tokens than their neighbours.
            x = draw(TOKENS - 5 * rank if backend == "deepep" else TOKENS)
            expected = run_once(reference, x)
            for name, got in run_once(layer, x).items():
                compare(f"{backend}, top-{top_k}, rank {rank}: {name}", got, expected[name], dtype)
        inputs = [draw(TOKENS) for _ in range(num_steps)]
        losses = [train(each, inputs) for each in (layer, reference)]
        for step, (got, wanted) in enumerate(zip(*losses, strict=True)):
            if abs(got - wanted) > TOLERANCE[dtype] * abs(wanted):
                raise AssertionError(f"{backend}: loss {got} in step {step}; alltoall has {wanted}")
        if rank == 0:
            print(f"{backend}: equal to alltoall for top-1, 2 and 8; losses {losses[0][0]:.4f} to {losses[0][-1]:.4f}")
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    if "LOCAL_RANK" in os.environ:
        main_of_rank(int(os.environ["LOCAL_RANK"]), int(os.environ["WORLD_SIZE"]), options.device, options.steps)
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    torch.multiprocessing.spawn(main_of_rank, args=(2, options.device, options.steps), nprocs=2)


if __name__ == "__main__":
    sys.exit(main())
