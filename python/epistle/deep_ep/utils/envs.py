"""Process groups and seeds of a test."""

from __future__ import annotations

import os
import random
import typing

import torch
import torch.distributed as dist


class _Seeds:
    global_seed = 0
    local_seed = 0


def init_dist(local_rank: int, num_local_ranks: int, seed: int = 0) -> tuple[int, int, typing.Any]:
    """(rank, number of ranks, group of all): nccl with a GPU for each rank, gloo on the CPU. MASTER_ADDR, MASTER_PORT,
    WORLD_SIZE and RANK, which count hosts here, are read from the environment."""
    address = os.getenv("MASTER_ADDR", "127.0.0.1")
    port = int(os.getenv("MASTER_PORT", "8361"))
    num_hosts = int(os.getenv("WORLD_SIZE", "1"))
    host = int(os.getenv("RANK", "0"))
    num_ranks, rank = num_hosts * num_local_ranks, host * num_local_ranks + local_rank
    has_gpu = torch.cuda.is_available()
    if has_gpu:
        torch.cuda.set_device(local_rank)
        torch.set_default_device("cuda")
        torch.set_default_dtype(torch.bfloat16)
    dist.init_process_group(
        backend="nccl" if has_gpu else "gloo",
        init_method=f"tcp://{address}:{port}",
        world_size=num_ranks,
        rank=rank,
        device_id=torch.device("cuda", local_rank) if has_gpu else None,
    )
    init_seed(seed)
    return rank, num_ranks, dist.new_group(list(range(num_ranks)))


def init_seed(global_seed: int = 0) -> None:
    """Different random numbers on every rank, the same in every run."""
    _Seeds.global_seed = global_seed
    _Seeds.local_seed = global_seed + (dist.get_rank() if dist.is_initialized() else 0)
    torch.manual_seed(_Seeds.local_seed)
    random.seed(_Seeds.local_seed)


def get_global_seed() -> int:
    """What init_seed was given, the same on all ranks."""
    return _Seeds.global_seed


def get_local_seed() -> int:
    return _Seeds.local_seed


def dist_print(*values: typing.Any, once_in_node: bool = False, **options: typing.Any) -> None:
    """Prints rank by rank, or on the first rank only; all ranks call it."""
    rank, num_ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    for turn in range(1 if once_in_node else num_ranks):
        if turn == rank:
            print(*values, flush=True, **options)
        if dist.is_initialized():
            dist.barrier()
