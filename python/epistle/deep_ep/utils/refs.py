"""Dispatch and combine in a few lines of Torch, and data for them: what tests compare with, not what anything runs on.
Ranks are those of the default process group."""

from __future__ import annotations

import math
import typing

import torch
import torch.distributed as dist

from epistle.deep_ep.utils.envs import get_global_seed

_PRIME = 131071

Rows = typing.Union[torch.Tensor, "tuple[torch.Tensor, torch.Tensor]"]


def _of_all_ranks(x: torch.Tensor, max_tokens: int) -> torch.Tensor:
    """[ranks, max_tokens, ...]: rows beyond a rank's own are zero."""
    padded = x.new_zeros((max_tokens, *x.shape[1:]))
    padded[: x.shape[0]] = x
    everything = padded.new_empty((dist.get_world_size(), *padded.shape))
    # As bytes: not every backend knows every type.
    dist.all_gather_into_tensor(everything.view(torch.uint8).flatten(), padded.contiguous().view(torch.uint8).flatten())
    return everything


def dispatch(
    x: Rows,
    topk_idx: torch.Tensor,
    topk_weights: torch.Tensor | None,
    num_max_tokens_per_rank: int,
    num_experts: int,
) -> tuple[Rows, torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor]:
    """(rows, local experts or -1, weights or None, source rank * M + source token, tokens of each source int32 on the
    CPU): what this rank gets, in the order of (source rank, source token)."""
    num_ranks, rank = dist.get_world_size(), dist.get_rank()
    num_local = num_experts // num_ranks
    # 0 is no token's: rows beyond a rank's own.
    ids = _of_all_ranks(topk_idx + 1, num_max_tokens_per_rank).flatten(0, 1) - 1
    local = ids - rank * num_local
    local = torch.where((ids >= 0) & (local >= 0) & (local < num_local), local, -1)
    places = (local >= 0).any(1).nonzero().squeeze(1)

    def taken(tensor: torch.Tensor) -> torch.Tensor:
        gathered = _of_all_ranks(tensor, num_max_tokens_per_rank).flatten(0, 1)
        return gathered.view(torch.uint8)[places].view(tensor.dtype)

    rows: Rows = (taken(x[0]), taken(x[1])) if isinstance(x, tuple) else taken(x)
    weights = None if topk_weights is None else taken(topk_weights)
    sources = torch.div(places, num_max_tokens_per_rank, rounding_mode="floor")
    counts = torch.bincount(sources, minlength=num_ranks).to(device="cpu", dtype=torch.int32)
    return rows, local[places], weights, places.to(torch.int32), counts


def generate_pre_combine_data(
    src_token_global_idx: torch.Tensor, num_max_tokens_per_rank: int, num_topk: int, hidden: int
) -> torch.Tensor:
    """bf16 [tokens, top_k, hidden]: what the expert at each place of a token's top-k makes of it. Any rank that knows
    where a token comes from makes the same."""
    device = src_token_global_idx.device
    largest = dist.get_world_size() * num_max_tokens_per_rank * num_topk
    seeds = src_token_global_idx.long().unsqueeze(1) * num_topk + torch.arange(num_topk, device=device)
    slopes = ((seeds * _PRIME % largest).float() + 1) / largest
    steps = torch.arange(1, hidden + 1, device=device, dtype=torch.float32)
    return torch.sin(slopes.unsqueeze(-1) * steps + math.sin(float(get_global_seed()))).to(torch.bfloat16)


def ordered_accumulate(data: torch.Tensor, initial_value: torch.Tensor | None = None) -> torch.Tensor:
    """[tokens, hidden] of [tokens, top_k, hidden]: added in top-k order in fp32, rounded once."""
    total = torch.zeros_like(data[:, 0], dtype=torch.float32) if initial_value is None else initial_value.float()
    for position in range(data.shape[1]):
        total = total + data[:, position].float()
    return total.to(data.dtype)


def _sum_groups(y: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """Rows of a token whose places are of one group become one: their ordered sum, at the last of the places."""
    summed = torch.zeros_like(y)
    for last in range(y.shape[1]):
        total = torch.zeros_like(y[:, 0], dtype=torch.float32)
        for position in range(last + 1):
            is_same = (groups[:, position] == groups[:, last]).unsqueeze(1)
            total = total + torch.where(is_same, y[:, position].float(), 0)
        is_last = (groups[:, last + 1 :] != groups[:, last : last + 1]).all(1, keepdim=True)
        summed[:, last] = torch.where(is_last, total, 0).to(y.dtype)
    return summed


def combine(
    y: torch.Tensor,
    topk_idx: torch.Tensor,
    num_scaleout_ranks: int,
    num_scaleup_ranks: int,
    num_experts: int,
    bias: torch.Tensor | tuple[torch.Tensor, torch.Tensor] | None,
    reduce_in_local: bool,
    reduce_in_scaleup: bool,
) -> torch.Tensor:
    """[tokens, hidden] of the rows y [tokens, top_k, hidden]: summed within ranks, within domains, and over these, as
    far as each is asked for, rounding after every step; the bias comes first in the last sum."""
    if reduce_in_scaleup and not reduce_in_local:
        raise ValueError("sums over the ranks of a domain are of sums over the experts of a rank")
    num_local = num_experts // (num_scaleout_ranks * num_scaleup_ranks)
    if reduce_in_local:
        y = _sum_groups(y, torch.div(topk_idx, num_local, rounding_mode="floor"))
    if reduce_in_scaleup:
        y = _sum_groups(y, torch.div(topk_idx, num_local * num_scaleup_ranks, rounding_mode="floor"))
    start = None
    if bias is not None:
        start = bias[0].float() + bias[1].float() if isinstance(bias, tuple) else bias.float()
    return ordered_accumulate(y, start)
