"""epistle.torch: gradients against a dense computation, and torch.compile."""

from __future__ import annotations

import pathlib
import runpy

import pytest

torch = pytest.importorskip("torch", reason="Torch is not installed: its wheel for Linux brings gigabytes of CUDA")

from conftest import EXPERTS, HIDDEN, TOKENS, TOP_K, config, routing, small_integers  # noqa: E402

import epistle  # noqa: E402
import epistle.torch  # noqa: E402

EXAMPLE = pathlib.Path(__file__).parent.parent / "examples" / "moe_layer.py"


def inputs(rank: int, num_ranks: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    ids, weights = (torch.from_numpy(table) for table in routing(rank, num_ranks))
    x, grad = (torch.from_numpy(small_integers((TOKENS, HIDDEN), seed + rank)) for seed in (3, 7))
    return x, ids, weights, grad


LAYOUTS = [
    {"layout": epistle.ExpertMajor(4)},
    {"layout": epistle.ExpertBlocks(2 * TOKENS), "sizing": epistle.Capacity()},
    {"layout": epistle.ExpertMajor(4), "apply_weights": False},
    {"layout": epistle.TokenMajor(), "sizing": epistle.Capacity(2 * TOKENS)},
]


@pytest.mark.parametrize("changes", LAYOUTS)
def test_gradients_are_those_of_the_dense_computation(changes: dict[str, object]) -> None:
    def play(group: epistle.Group) -> None:
        ep = epistle.torch.ExpertParallel(group, config(**changes))
        x, ids, weights, grad = inputs(group.rank, group.size)
        x.requires_grad_()
        weights.requires_grad_()
        received = ep.dispatch(x, ids, weights)
        rows = received.rows * 3
        if not ep.applies_weights:
            rows = rows * received.weights.unsqueeze(1)
        y = ep.combine(rows, received.weights, received.handle, num_tokens=TOKENS)
        y.backward(grad)

        dense_x, dense_weights = (tensor.detach().clone().requires_grad_() for tensor in (x, weights))
        dense_y = 3 * dense_x * (dense_weights * (ids >= 0)).sum(1, keepdim=True)
        dense_y.backward(grad)
        assert torch.equal(y, dense_y)
        assert torch.equal(x.grad, dense_x.grad)
        assert torch.equal(weights.grad, dense_weights.grad)
        ep.close()

    epistle.run_threads(2, play, timeout=30)


def test_an_old_handle_is_named() -> None:
    [group] = epistle.Group.threads(1)
    ep = epistle.torch.ExpertParallel(group, config(max_handles=2))
    x, ids, weights, _ = inputs(0, 1)
    received = [ep.dispatch(x, ids, weights) for _ in range(3)]
    for made in received[1:]:
        ep.combine(made.rows, made.weights, made.handle, num_tokens=TOKENS)
    with pytest.raises(epistle.Error, match="max_handles") as error:
        ep.combine(received[0].rows, received[0].weights, received[0].handle, num_tokens=TOKENS)
    assert error.value.code is epistle.ErrorCode.HANDLE_MISMATCH


def test_compile_traces_through() -> None:
    [group] = epistle.Group.threads(1)
    ep = epistle.torch.ExpertParallel(group, config(layout=epistle.ExpertBlocks(TOKENS), sizing=epistle.Capacity()))

    def layer(x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        rows, row_weights, _, handle = ep.dispatch(x, ids, weights)
        return ep.combine(torch.relu(rows), row_weights, handle, num_tokens=x.shape[0])

    # aot_eager: fake kernels, and the graphs of both passes; no compiler is needed.
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    results = []
    for function in (layer, compiled):
        x, ids, weights, grad = inputs(0, 1)
        x.requires_grad_()
        weights.requires_grad_()
        y = function(x, ids, weights)
        y.backward(grad)
        results.append((y.detach(), x.grad, weights.grad))
    for eager, traced in zip(*results, strict=True):
        assert torch.equal(eager, traced)


def test_operators_keep_their_promises() -> None:
    [group] = epistle.Group.threads(1)
    ep = epistle.torch.ExpertParallel(group, config(layout=epistle.ExpertBlocks(TOKENS), sizing=epistle.Capacity()))
    x, ids, weights, _ = inputs(0, 1)
    checks = ("test_schema", "test_faketensor")
    arguments = (x.requires_grad_(), ids, weights.requires_grad_(), ep._number)
    torch.library.opcheck(torch.ops.epistle.dispatch.default, arguments, test_utils=checks)
    rows, row_weights, _, handle = ep.dispatch(x, ids, weights)
    assert rows.shape == (EXPERTS * TOKENS, HIDDEN) and weights.shape == (TOKENS, TOP_K)
    arguments = (rows.detach(), row_weights.detach(), handle, ep._number, TOKENS)
    torch.library.opcheck(torch.ops.epistle.combine.default, arguments, test_utils=checks)


def test_what_has_no_gradients_is_refused() -> None:
    [group] = epistle.Group.threads(1)
    with pytest.raises(epistle.Error, match="no gradients"):
        epistle.torch.ExpertParallel(group, config(input="bf16", wire=epistle.Fp8Blocks()))


def test_the_example_trains_as_the_dense_layer() -> None:
    train = runpy.run_path(str(EXAMPLE))["train"]
    losses = epistle.run_threads(2, lambda group: train(group, torch.device("cpu"), 10), timeout=30)
    assert losses[0] == losses[1] and losses[0][-1] < losses[0][0]
