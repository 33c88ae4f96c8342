"""A mixture-of-experts layer over several ranks that trains as the dense computation does.

python moe_layer.py                                    # four ranks as threads of this process, on the CPU
torchrun --nproc-per-node 2 moe_layer.py --device cuda  # a process for every GPU
"""

from __future__ import annotations

import argparse
import sys

import torch
from torch import nn

import epistle
import epistle.torch

HIDDEN, FFN, EXPERTS, TOP_K, TOKENS = 32, 64, 8, 2, 48


class Experts(nn.Module):
    """``num_experts`` small networks, relu(x W1) W2, over rows that are grouped by expert."""

    def __init__(self, num_experts: int) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(num_experts, HIDDEN, FFN) / HIDDEN**0.5)
        self.down = nn.Parameter(torch.randn(num_experts, FFN, HIDDEN) / FFN**0.5)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """``rows`` [num_experts, rows_per_expert, hidden]."""
        return torch.bmm(torch.relu(torch.bmm(rows, self.up)), self.down)


class MoELayer(nn.Module):
    """A router, and this rank's share of the experts. Every expert has room for all tokens of all ranks."""

    def __init__(self, group: epistle.Group, options: epistle.Host | epistle.Cuda | None = None) -> None:
        super().__init__()
        self.num_local = EXPERTS // group.size
        self.rows_per_expert = group.size * TOKENS
        self.router = nn.Linear(HIDDEN, EXPERTS, bias=False)
        self.experts = Experts(self.num_local)
        self.ep = epistle.torch.ExpertParallel(
            group,
            epistle.DispatcherConfig(
                hidden=HIDDEN,
                num_experts=EXPERTS,
                top_k=TOP_K,
                max_tokens=TOKENS,
                input="fp32",
                layout=epistle.ExpertBlocks(self.rows_per_expert),
                sizing=epistle.Capacity(),
            ),
            options,
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        probs, ids = torch.topk(torch.softmax(self.router(x), dim=-1), TOP_K)
        rows, weights, _, handle = self.ep.dispatch(x, ids, probs)
        outputs = self.experts(rows.view(self.num_local, self.rows_per_expert, HIDDEN))
        return self.ep.combine(outputs.view(-1, HIDDEN), weights, handle, num_tokens=x.shape[0])


class DenseLayer(nn.Module):
    """The same without ranks: every expert sees every token."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(HIDDEN, EXPERTS, bias=False)
        self.experts = Experts(EXPERTS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        probs, ids = torch.topk(torch.softmax(self.router(x), dim=-1), TOP_K)
        weights = torch.zeros(x.shape[0], EXPERTS, device=x.device).scatter(1, ids, probs)
        outputs = self.experts(x.expand(EXPERTS, -1, -1))
        return torch.einsum("te,eth->th", weights, outputs)


def sum_over_ranks(group: epistle.Group, values: torch.Tensor) -> torch.Tensor:
    parts = group.all_gather(values.detach().cpu().numpy().tobytes())
    stacked = torch.stack([torch.frombuffer(bytearray(part), dtype=torch.float32) for part in parts])
    return stacked.sum(0).view_as(values).to(values.device)


def train(group: epistle.Group, device: torch.device, num_steps: int = 20) -> list[float]:
    """Trains the layer of this rank and the dense one side by side; returns the losses, which it compares."""
    generator = torch.Generator().manual_seed(1)
    dense = DenseLayer()
    for parameter in dense.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) / HIDDEN**0.5)
    options = epistle.Cuda(device=device.index) if device.type == "cuda" else None
    layer = MoELayer(group, options).to(device)
    dense = dense.to(device)
    mine = slice(group.rank * layer.num_local, (group.rank + 1) * layer.num_local)
    layer.router.load_state_dict(dense.router.state_dict())
    layer.experts.up.data.copy_(dense.experts.up.data[mine])
    layer.experts.down.data.copy_(dense.experts.down.data[mine])

    # Every rank draws the tokens of all, and takes its own.
    x = torch.randn(group.size, TOKENS, HIDDEN, generator=generator).to(device)
    target = torch.randn(group.size, TOKENS, HIDDEN, generator=generator).to(device)
    optimizers = [torch.optim.SGD(module.parameters(), lr=0.05) for module in (layer, dense)]
    losses = []
    for _ in range(num_steps):
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss = (layer(x[group.rank]) - target[group.rank]).square().sum() / x.numel()
        loss.backward()
        # The router is on every rank; an expert's tokens of all ranks have met in its one place.
        assert layer.router.weight.grad is not None
        layer.router.weight.grad = sum_over_ranks(group, layer.router.weight.grad)

        dense_loss = (dense(x.view(-1, HIDDEN)) - target.view(-1, HIDDEN)).square().sum() / x.numel()
        dense_loss.backward()
        torch.testing.assert_close(layer.router.weight.grad, dense.router.weight.grad, rtol=1e-4, atol=1e-6)
        for ours, all_experts in zip(layer.experts.parameters(), dense.experts.parameters(), strict=True):
            assert all_experts.grad is not None
            torch.testing.assert_close(ours.grad, all_experts.grad[mine], rtol=1e-4, atol=1e-6)
        for optimizer in optimizers:
            optimizer.step()
        losses.append(float(sum_over_ranks(group, loss.view(1))))
        torch.testing.assert_close(losses[-1], float(dense_loss.detach()), rtol=1e-4, atol=1e-6)
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--ranks", type=int, default=4, help="as threads, where no launcher has started this process")
    arguments = parser.parse_args()
    if epistle.is_launched():
        group = epistle.Group.from_launcher()
        device = torch.device(arguments.device, group.rank) if arguments.device == "cuda" else torch.device("cpu")
        losses = train(group, device)
        is_first = group.rank == 0
    else:
        if arguments.device == "cuda":
            sys.exit("error: --device cuda needs a process for every GPU; start it with torchrun or `epistle run`")
        losses = epistle.run_threads(arguments.ranks, lambda group: train(group, torch.device("cpu")))[0]
        is_first = True
    if is_first:
        print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f} in {len(losses)} steps, as the dense layer's")


if __name__ == "__main__":
    main()
