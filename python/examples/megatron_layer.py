"""An MoE layer of megatron-core on Epistle's deep_ep, compared with its own dispatcher alltoall: outputs, gradients of
the input and of all parameters, and the losses of a few training steps. On two GPUs or more:

    torchrun --nproc-per-node 2 megatron_layer.py [--json FILE] [--picture FILE.svg]

--json: what was compared, how far it differed, and the losses. --picture: what the GPUs do in a step of training. Needs
megatron-core (written for 0.19.2), whose layers run on GPUs only; python/tests/test_megatron.py has its token
dispatchers on the CPU.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import json
import os
import pathlib
import sys
import time
import typing

import step_picture
import torch
import torch.distributed as dist

import epistle.deep_ep

HIDDEN, FFN, EXPERTS, TOKENS = 256, 512, 8, 64
BACKENDS = ("deepep", "hybridep")
# Of bf16 rows that were added in another order, relative to the largest.
TOLERANCE = 1.6e-2


def make_layer(dispatcher: str, backend: str | None, top_k: int) -> typing.Any:
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
        moe_router_pre_softmax=top_k == 1,
        moe_router_dtype="fp32",
        moe_router_load_balancing_type="none",
        moe_token_dispatcher_type=dispatcher,
        moe_flex_dispatcher_backend=backend or "deepep",
        # Uneven inputs are padded to the longest.
        moe_hybridep_pad_uneven_dispatch_inputs=backend == "hybridep",
        moe_aux_loss_coeff=0.0,
        expert_model_parallel_size=dist.get_world_size(),
        add_bias_linear=False,
        use_cpu_initialization=True,
        params_dtype=torch.bfloat16,
        bf16=True,
        perform_initialization=True,
    )
    spec: typing.Any = get_moe_module_spec(use_te=False, num_experts=EXPERTS, moe_grouped_gemm=False)
    # A partial of the class since 0.19, a specification before.
    submodules = spec.keywords["submodules"] if isinstance(spec, functools.partial) else spec.submodules
    layer = MoELayer(config, submodules, pg_collection=ProcessGroupCollection.use_mpu_process_groups())
    layer = layer.to(device="cuda", dtype=torch.bfloat16)
    layer.set_layer_number(1)
    # The same in every layer: each expert is drawn of itself.
    for name, parameter in layer.named_parameters():
        expert = name.partition("local_experts.")[2].partition(".")[0]
        first = dist.get_rank() * EXPERTS // dist.get_world_size()
        seed = 1000 + (first + int(expert) if expert else 0) * 10 + ("fc2" in name)
        values = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)) * 0.05
        parameter.data.copy_(values.to(torch.bfloat16))
    return layer


def compare(name: str, got: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, relative to the largest value."""
    scale = expected.abs().max().item() or 1.0
    difference = (got.float() - expected.float()).abs().max().item() / scale
    if difference > TOLERANCE:
        raise AssertionError(f"{name} differs by {difference:.2e} of its largest; {TOLERANCE:.0e} is allowed")
    return difference


def run_once(layer: typing.Any, x: torch.Tensor) -> dict[str, torch.Tensor]:
    x = x.detach().clone().requires_grad_(True)
    layer.zero_grad(set_to_none=True)
    out, _ = layer(x)
    (out.float() * torch.arange(HIDDEN, device=x.device).cos()).sum().backward()
    results = {"output": out.detach(), "gradient of the input": x.grad}
    for name, parameter in layer.named_parameters():
        results[f"gradient of {name}"] = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    return results


def loss_of(layer: typing.Any, x: torch.Tensor) -> torch.Tensor:
    out, _ = layer(x)
    return (out.float() - x.float().roll(1, -1)).square().mean()


def train(layer: typing.Any, inputs: list[torch.Tensor]) -> list[float]:
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.05)
    losses = []
    for x in inputs:
        optimizer.zero_grad()
        loss = loss_of(layer, x)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def watch_step(layer: typing.Any, x: torch.Tensor) -> step_picture.Step:
    """What this GPU does in a step of training."""
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.05)
    made: list[torch.Tensor] = []
    dist.barrier()
    return step_picture.record(
        [
            ("forward", lambda: made.append(loss_of(layer, x))),
            ("backward", lambda: made[0].backward()),
            ("optimizer", optimizer.step),
        ]
    )


class Comparison:
    """Of the backends with alltoall, on one rank."""

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.generator = torch.Generator().manual_seed(self.rank)

    def draw(self, num_tokens: int) -> torch.Tensor:
        values = torch.randn(num_tokens, 1, HIDDEN, generator=self.generator)
        return values.to(device="cuda", dtype=torch.bfloat16)

    def say(self, text: str) -> None:
        if self.rank == 0:
            print(text, flush=True)

    def layers(self, backend: str, top_k: int) -> tuple[dict[str, typing.Any], typing.Any, typing.Any]:
        """Outputs and all gradients; and the two layers."""
        begin = time.monotonic()
        reference, layer = make_layer("alltoall", None, top_k), make_layer("flex", backend, top_k)
        largest = 0.0
        for num_tokens in (TOKENS, TOKENS - 5 * self.rank):  # as many on every rank, and not
            x = self.draw(num_tokens)
            expected = run_once(reference, x)
            for name, got in run_once(layer, x).items():
                difference = compare(f"{backend}, top-{top_k}, rank {self.rank}: {name}", got, expected[name])
                largest = max(largest, difference)
        seconds = time.monotonic() - begin  # most of it is what Torch compiles of Megatron
        self.say(f"{backend}: equal to alltoall with top-{top_k}, within {largest:.1e}, {seconds:.1f} s")
        found = {"top_k": top_k, "tensors": len(expected), "largest_difference": largest, "tolerance": TOLERANCE}
        return found, layer, reference

    def backend(
        self, name: str, top_ks: list[int], num_steps: int
    ) -> tuple[dict[str, typing.Any], typing.Callable[[], step_picture.Step]]:
        """What was found, and what watches another step of the layer."""
        equal = []
        for top_k in top_ks:
            found, layer, reference = self.layers(name, top_k)
            equal.append(found)
        inputs = [self.draw(TOKENS) for _ in range(num_steps)]
        losses, wanted_losses = train(layer, inputs), train(reference, inputs)
        for index, (loss, wanted) in enumerate(zip(losses, wanted_losses, strict=True)):
            if abs(loss - wanted) > TOLERANCE * abs(wanted):
                raise AssertionError(f"{name}: the loss of step {index} is {loss}; that of alltoall {wanted}")
        self.say(f"{name}: losses {' '.join(f'{loss:.4f}' for loss in losses)}")
        self.say(f"alltoall: losses {' '.join(f'{loss:.4f}' for loss in wanted_losses)}")
        result = {"backend": name, "equal": equal, "losses": losses, "losses_of_alltoall": wanted_losses}
        return result, lambda: watch_step(layer, inputs[-1])


def write_record(file: pathlib.Path, backends: list[dict[str, typing.Any]]) -> None:
    """Of this rank's own differences and losses."""
    record = {
        "tool": "python/examples/megatron_layer.py",
        "device": torch.cuda.get_device_name(),
        "ranks": dist.get_world_size(),
        "epistle": epistle.__version__,
        "torch": torch.__version__,
        "megatron_core": importlib.metadata.version("megatron-core"),
        "shape": {"hidden": HIDDEN, "ffn": FFN, "experts": EXPERTS, "tokens": TOKENS},
        "backends": backends,
    }
    file.write_text(json.dumps(record, indent=2) + "\n")


def write_picture(file: pathlib.Path, title: str, step: step_picture.Step) -> None:
    """Of all ranks, by rank 0. Collective."""
    steps: list[typing.Any] = [None] * dist.get_world_size()
    dist.all_gather_object(steps, step)
    if dist.get_rank() == 0:
        file.write_text(step_picture.draw(title, steps))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20, help="of training, with the largest top-k")
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=BACKENDS)
    parser.add_argument("--top-k", nargs="+", type=int, default=(1, 2, 8))
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--picture", type=pathlib.Path)
    options = parser.parse_args()
    if "LOCAL_RANK" not in os.environ:
        sys.exit("error: start it with torchrun --nproc-per-node 2")
    epistle.deep_ep.install()
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl")
    parallel_state.initialize_model_parallel(expert_model_parallel_size=dist.get_world_size())
    model_parallel_cuda_manual_seed(0)
    comparison = Comparison()
    found = []
    for backend in options.backends:
        result, watch = comparison.backend(backend, options.top_k, options.steps)
        found.append(result)
    if options.json is not None and comparison.rank == 0:
        write_record(options.json, found)
    if options.picture is not None:
        title = f"A step of a Megatron MoE layer, backend {backend}, top-{options.top_k[-1]}"
        write_picture(options.picture, title, watch())
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
