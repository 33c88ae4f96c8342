"""Scores of a router that tests make up."""

from __future__ import annotations

import torch

from epistle.deep_ep._routes import lacking

_NUM_HALVINGS = 20
_LARGEST_FACTOR = 100.0


def get_unbalanced_scores(
    num_tokens: int, num_experts: int, num_ranks: int, num_topk: int, ratio: float, precise: bool = False
) -> torch.Tensor:
    """fp32 [T, E], uniform. With a ``ratio`` above 1 the experts of rank 0 are drawn from a wider range, so that it
    gets about that many times the tokens of another rank."""
    if precise:
        raise lacking("scores with a precise ratio", "leave it out: the ratio is then met on average")
    factor = 1.0
    if ratio != 1.0:
        low, high = 1.0, _LARGEST_FACTOR
        for _ in range(_NUM_HALVINGS):
            factor = (low + high) / 2
            scores = _scores(num_tokens, num_experts, num_ranks, factor)
            if _ratio_of(scores, num_ranks, num_topk) > ratio:
                high = factor
            else:
                low = factor
        factor = low
    return _scores(num_tokens, num_experts, num_ranks, factor)


def _scores(num_tokens: int, num_experts: int, num_ranks: int, factor: float) -> torch.Tensor:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    scores = torch.rand(num_tokens, num_experts, dtype=torch.float32, device=device)
    scores[:, : num_experts // num_ranks] *= factor
    return scores


def _ratio_of(scores: torch.Tensor, num_ranks: int, num_topk: int) -> float:
    """Tokens of rank 0 over those of the others on average."""
    num_tokens, num_experts = scores.shape
    ranks = torch.div(scores.topk(num_topk).indices, num_experts // num_ranks, rounding_mode="floor")
    there = torch.zeros(num_tokens, num_ranks, dtype=torch.float32, device=scores.device).scatter_(1, ranks, 1.0)
    counts = there.sum(0)
    return float(counts[0] / counts[1:].mean()) if num_ranks > 1 else 1.0
