"""What the tests share. Data is chosen so that sums are exact: results are compared bit by bit."""

from __future__ import annotations

import typing

import numpy as np
import numpy.typing as npt

import epistle

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]

HIDDEN, EXPERTS, TOP_K, TOKENS = 64, 8, 3, 24


def config(**changes: typing.Any) -> epistle.DispatcherConfig:
    fields: dict[str, typing.Any] = {
        "hidden": HIDDEN,
        "num_experts": EXPERTS,
        "top_k": TOP_K,
        "max_tokens": TOKENS,
        "input": "fp32",
    }
    return epistle.DispatcherConfig(**{**fields, **changes})


def routing(rank: int, num_ranks: int, num_tokens: int = TOKENS) -> tuple[Ints, Floats]:
    """Expert ids with gaps, and weights that are powers of two."""
    ids, _ = epistle.generate_routing(
        "zipf:0.8", num_tokens=num_tokens, num_experts=EXPERTS, top_k=TOP_K, rank=rank, num_ranks=num_ranks
    )
    table = np.array(ids.numpy())
    table[1::5, 1] = -1
    weights = np.tile(np.array([0.5, 0.25, 0.25], dtype=np.float32), (num_tokens, 1))
    return table, weights


def small_integers(shape: tuple[int, ...], seed: int) -> Floats:
    return np.random.default_rng(seed).integers(-2, 3, size=shape).astype(np.float32)


def starts_of(num_ranks: int) -> list[int]:
    """The first expert of every rank, and EXPERTS: the first ranks hold one more."""
    few, more = divmod(EXPERTS, num_ranks)
    return [rank * few + min(rank, more) for rank in range(num_ranks + 1)]
