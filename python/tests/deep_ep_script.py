"""A script as users of DeepEP have them; it does not know of Epistle. Ranks are forked, to import Torch once."""

from __future__ import annotations

import os
import socket
import sys

import deep_ep
import torch
import torch.distributed as dist
import torch.multiprocessing
from deep_ep.utils import EventHandle, EventOverlap
from deep_ep.utils.envs import dist_print, init_dist
from deep_ep.utils.testing import bench

NUM_EXPERTS, HIDDEN = 8, 128


def play(local_rank: int, num_ranks: int) -> None:
    rank, num_ranks, group = init_dist(local_rank, num_ranks)
    buffer = deep_ep.Buffer(group, int(1e8), 0, explicitly_destroy=True)
    topk_idx = (torch.arange(16).unsqueeze(1) + torch.tensor([0, 3 + rank])) % NUM_EXPERTS
    topk_idx = topk_idx.to(deep_ep.topk_idx_t)
    x = torch.full((16, HIDDEN), rank + 1, dtype=torch.bfloat16)
    per_rank, _, per_expert, in_rank, event = buffer.get_dispatch_layout(topk_idx, NUM_EXPERTS)
    sent = torch.stack([per_rank, per_rank])
    dist.all_reduce(per_rank_sum := per_rank.clone(), group=group)
    recv_x, _, _, _, handle, event = buffer.dispatch(
        x,
        num_tokens_per_rank=per_rank,
        is_token_in_rank=in_rank,
        num_tokens_per_expert=per_expert,
        topk_idx=topk_idx,
        topk_weights=torch.ones(16, 2),
        previous_event=EventOverlap(EventHandle()),
        async_finish=True,
    )
    event.current_stream_wait()
    assert recv_x.shape[0] == per_rank_sum[rank] and sent.shape == (2, num_ranks)
    combined, _, _ = buffer.combine(recv_x, handle)
    assert torch.equal(combined, x * in_rank.sum(1, keepdim=True).to(x.dtype))
    mean, shortest, longest = bench(lambda: buffer.combine(recv_x, handle), num_warmups=1, num_tests=3)
    assert 0 < shortest <= mean <= longest
    dist_print(f"rank {rank}: passed")
    buffer.destroy()
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        os.environ["MASTER_PORT"] = str(free.getsockname()[1])
    torch.multiprocessing.start_processes(play, args=(int(sys.argv[1]),), nprocs=int(sys.argv[1]), start_method="fork")
