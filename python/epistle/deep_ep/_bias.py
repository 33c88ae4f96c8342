"""ElasticBuffer.combine with a bias, which DeepEP's second version adds first, in fp32, before the sum is rounded.

Combine starts its sums at zero. So a bias is one more row to add: that of an expert of its own on the token's own
rank, the first in the token's top-k, in a dispatcher that adds in top-k order and rounds once. The rows behind it are
those of the ranks, in the order of the last place that each has in the top-k, or those of the experts where a sum is
made once.
"""

from __future__ import annotations

import dataclasses
import typing

import torch

import epistle
from epistle.deep_ep._ep_handle import EPHandle, most_experts
from epistle.deep_ep._routes import MAX_HANDLES, NAMES, align_up, options_for, rank_starts, ranks_of, tensor_of


@dataclasses.dataclass(frozen=True)
class _Terms:
    """Experts that stand for what is added: those of the rows of a rank, then one for each bias."""

    num_rows_experts: int  # of a rank
    num_biases: int
    alignment: int

    @property
    def per_rank(self) -> int:
        return self.num_rows_experts + self.num_biases


def sum_with_bias(handle: EPHandle, x: torch.Tensor, biases: tuple[torch.Tensor, ...], num_sms: int) -> torch.Tensor:
    """[T, hidden]: round(bias + rows), of token rows or expanded ones `x`. Collective."""
    for bias in biases:
        if bias.shape != (handle.topk_idx.shape[0], x.shape[1]):
            raise ValueError(f"a bias is {tuple(bias.shape)}; [{handle.topk_idx.shape[0]}, {x.shape[1]}] is expected")
    if handle.sums_once:
        num_local = most_experts(handle.num_experts, handle.group.size)
        terms = _Terms(num_local, len(biases), handle.expert_alignment)
    else:
        terms = _Terms(1, len(biases), 1)
        if handle.do_expand:
            x = _fold(handle, x)
    dispatcher, prepared = _prepared(handle, terms, x)
    rows = x.new_zeros((prepared.num_rows, x.shape[1]))
    rows[: x.shape[0]] = x
    begin = tensor_of(prepared.expert_begin).long()
    tokens = torch.arange(handle.topk_idx.shape[0], device=x.device)
    for position, bias in enumerate(biases):
        rows.index_copy_(0, begin[terms.num_rows_experts + position] + tokens, bias.to(x.dtype))
    out = x.new_empty((handle.topk_idx.shape[0], x.shape[1]))
    dispatcher.combine(out, rows=rows, handle=prepared, num_sms=num_sms)
    return out


def _fold(handle: EPHandle, x: torch.Tensor) -> torch.Tensor:
    """Token rows of expanded ones: the rows of each token, in top-k order, in fp32, rounded."""
    places = handle.expanded_rows()
    total = torch.zeros((places.shape[0], x.shape[1]), dtype=torch.float32, device=x.device)
    for position in range(places.shape[1]):
        place = places[:, position : position + 1]
        total += torch.where(place >= 0, x[place.squeeze(1).clamp(min=0)].float(), 0)
    return total.to(x.dtype)


def _prepared(handle: EPHandle, terms: _Terms, x: torch.Tensor) -> tuple[epistle.Dispatcher, epistle.Handle]:
    key = (terms, x.dtype, x.shape[1])
    if key not in handle.biased:
        ids = _ids(handle, terms)
        num_ranks, max_tokens = handle.group.size, handle.num_max_tokens_per_rank
        fields: dict[str, typing.Any] = {
            "hidden": x.shape[1],
            "input": NAMES[x.dtype],
            "num_experts": num_ranks * terms.per_rank,
            "top_k": ids.shape[1],
            "layout": epistle.ExpertMajor(terms.alignment),
            "order": "flat",
            "apply_weights": False,
            "max_handles": MAX_HANDLES,
        }
        if handle.is_static:
            room = align_up(x.shape[0], terms.alignment) + terms.num_biases * align_up(max_tokens, terms.alignment)
            fields["sizing"] = epistle.Capacity(rows_per_rank=room)
        dispatcher = handle.dispatchers.get("direct", fields, options_for(ids), max_tokens)
        handle.biased[key] = (dispatcher, dispatcher.prepare(ids))
    return handle.biased[key]


def _ids(handle: EPHandle, terms: _Terms) -> torch.Tensor:
    """[T, biases + top_k]: in the order of the sum."""
    ids = handle.topk_idx.long()
    ranks = ranks_of(ids, handle.num_experts, handle.group.size)
    if handle.sums_once:
        starts = torch.tensor(rank_starts(handle.num_experts, handle.group.size), device=ids.device)
        rows = torch.where(ids < 0, -1, ranks * terms.per_rank + ids - starts[ranks.clamp(min=0)])
    else:
        is_last = torch.ones_like(ids, dtype=torch.bool)
        for position in range(ids.shape[1]):
            is_last[:, position] = (ranks[:, position + 1 :] != ranks[:, position : position + 1]).all(1)
        rows = torch.where(is_last & (ranks >= 0), ranks * terms.per_rank, -1)
        # A top-k is at most the number of experts: as many places as there are ranks, in the same order.
        order = (rows < 0).to(torch.int32).sort(dim=1, stable=True).indices
        rows = rows.gather(1, order)[:, : handle.group.size]
    first = handle.group.rank * terms.per_rank + terms.num_rows_experts
    biases = torch.arange(first, first + terms.num_biases, device=ids.device).expand(ids.shape[0], -1)
    return torch.cat([biases, rows], dim=1)
