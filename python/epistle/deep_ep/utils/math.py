"""Small arithmetic of tests and engines."""

from __future__ import annotations

import typing

import torch

_BLOCK = 128
_LARGEST = 448.0  # of e4m3


def align(value: int, alignment: int) -> int:
    return -(-value // alignment) * alignment


def safe_div(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator != 0 else 0.0


def calc_diff(x: torch.Tensor, y: torch.Tensor) -> float:
    """1 - 2<x,y> / (<x,x> + <y,y>), each shifted by 1: 0 for equal tensors."""
    a, b = x.double() + 1, y.double() + 1
    return float(1 - 2 * (a * b).sum() / (a * a + b * b).sum())


def per_token_cast_to_fp8(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """e4m3 rows and one fp32 scale per 128 elements; the hidden size is a multiple of 128."""
    num_tokens, hidden = x.shape
    blocks = x.float().view(num_tokens, hidden // _BLOCK, _BLOCK)
    largest = blocks.abs().amax(dim=2).clamp(1e-4)
    rows = (blocks * (_LARGEST / largest).unsqueeze(2)).to(torch.float8_e4m3fn)
    return rows.view(num_tokens, hidden), largest / _LARGEST


def per_token_cast_back(x_fp8: torch.Tensor, x_scales: torch.Tensor) -> torch.Tensor:
    """bf16 again. Scales of int32 are words of four UE8M0 exponents."""
    if x_fp8.numel() == 0:
        return x_fp8.to(torch.bfloat16)
    if x_scales.dtype == torch.int32:
        exponents = x_scales.reshape(-1).view(torch.uint8).to(torch.int32)
        x_scales = (exponents << 23).view(torch.float32)
    num_tokens, hidden = x_fp8.shape
    scales = x_scales.reshape(num_tokens, -1)[:, : hidden // _BLOCK]
    blocks = x_fp8.float().view(num_tokens, -1, _BLOCK) * scales.unsqueeze(2)
    return blocks.view(num_tokens, hidden).to(torch.bfloat16)


def inplace_unique(x: torch.Tensor, num_slots: int) -> None:
    """Every row keeps each of its values of [0, num_slots) once, the most frequent first, and is filled up with -1."""
    num_rows, width = x.shape
    counts = torch.zeros((num_rows, num_slots + 1), dtype=torch.int64, device=x.device)
    places = torch.where(x < 0, num_slots, x).long()
    counts.scatter_add_(1, places, torch.ones_like(places))
    kept, values = counts[:, :num_slots].sort(dim=1, descending=True, stable=True)
    x.fill_(-1)
    take = min(width, num_slots)
    x[:, :take] = torch.where(kept > 0, values, -1)[:, :take].to(x.dtype)


def hash_tensor(x: torch.Tensor) -> int:
    """The same for the same bits in the same places."""
    flat = x.reshape(-1).view(torch.uint8).to(torch.int64) + 1
    places = torch.arange(1, flat.numel() + 1, device=flat.device) * 0x9E3779B1
    return int((flat * places).sum())


def count_bytes(*tensors: typing.Any) -> int:
    """Of tensors, in tuples and lists as well; None counts nothing."""
    total = 0
    for tensor in tensors:
        if isinstance(tensor, (tuple, list)):
            total += count_bytes(*tensor)
        elif tensor is not None:
            total += tensor.numel() * tensor.element_size()
    return total
