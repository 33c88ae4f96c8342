"""A package that moves rows as DeepEP's Buffer does, in Python."""

import torch
from outcome import is_wrong, reach

__version__ = "1.2.1"
reach("import")


class Config:
    def get_nvl_buffer_size_hint(self, hidden_bytes, num_ranks):
        return hidden_bytes * num_ranks


class Buffer:
    def __init__(self, group, num_nvl_bytes, num_rdma_bytes, explicitly_destroy):
        assert group == torch.distributed.group.WORLD and num_nvl_bytes > 0 and explicitly_destroy
        reach("init")
        torch.distributed.barrier()

    @staticmethod
    def get_dispatch_config(num_ranks):
        return Config()

    get_combine_config = get_dispatch_config

    def get_dispatch_layout(self, topk_idx, num_experts):
        return None, None, num_experts, None, None

    def dispatch(
        self,
        x,
        num_tokens_per_rank,
        num_tokens_per_rdma_rank,
        is_token_in_rank,
        num_tokens_per_expert,
        topk_idx,
        topk_weights,
    ):
        reach("iterations")
        dist = torch.distributed
        per_rank = num_tokens_per_expert // dist.size
        sent = [[] for _ in range(dist.size)]
        for token in range(len(x)):
            for rank in sorted({expert // per_rank for expert in topk_idx[token].tolist() if expert >= 0}):
                sent[rank].append((token, x[token].tolist()))
        received = [(source, *row) for source, rows in enumerate(dist.exchange(sent)) for row in rows[dist.rank]]
        rows = [element for _, _, row in received for element in row]
        if is_wrong("rows"):
            rows[0] ^= 1
        places = [(source, token) for source, token, _ in received]
        return torch.Tensor(rows, torch.bfloat16, (len(received), x.shape[1])), None, None, [], (places, len(x)), None

    def combine(self, x, handle):
        dist = torch.distributed
        places, num_tokens = handle
        back = [{} for _ in range(dist.size)]
        for row, (source, token) in enumerate(places):
            back[source][token] = x[row].tolist()
        parts = [part[dist.rank] for part in dist.exchange(back)]
        sums = []
        for token in range(num_tokens):
            rows = [part[token] for part in parts if token in part]
            sums += torch.scaled(rows[0], len(rows))
        if is_wrong("sums"):
            sums[-1] ^= 0x4000
        return torch.Tensor(sums, torch.bfloat16, (num_tokens, x.shape[1])), None, None

    def destroy(self):
        reach("leaving")
