"""A package with the names and keywords of nccl-extensions 0.1.0, low latency, expert-major; in Python."""

from dataclasses import dataclass
from enum import IntEnum

import torch
from outcome import reach

reach("import")


class Algorithm(IntEnum):
    LOW_LATENCY = 0


class Layout(IntEnum):
    EXPERT_MAJOR = 1


def get_lib_version():
    return "0.1.0"


class Tensor:
    def __init__(self, buffer):
        self.buffer = buffer


@dataclass
class GroupConfig:
    algorithm: Algorithm = Algorithm.LOW_LATENCY
    num_experts: int = 0
    max_dispatch_tokens_per_rank: int = 0
    max_token_bytes: int = 0


@dataclass
class LayoutInfo:
    expert_counters: Tensor = None


@dataclass
class DispatchInputs:
    tokens: Tensor = None


@dataclass
class DispatchOutputs:
    tokens: Tensor = None


@dataclass
class CombineInputs:
    tokens: Tensor = None


@dataclass
class CombineOutputs:
    tokens: Tensor = None
    topk_weights: Tensor = None


class Group:
    def __init__(self, config):
        self.config = config

    @classmethod
    def create(cls, comm, config):
        assert comm == "a communicator" and config.max_token_bytes > 0
        reach("init")
        return cls(config)

    def create_handle(self, layout, topk_idx, *, stream):
        assert layout == Layout.EXPERT_MAJOR and topk_idx.buffer.dtype is torch.int64 and stream in (0, 7)
        return Handle(self.config, topk_idx)

    def destroy(self):
        reach("leaving")


class Handle:
    def __init__(self, config, topk_idx):
        self.config = config
        self.ids = topk_idx.buffer

    def update(self, topk_idx, *, stream):
        self.ids = topk_idx.buffer

    def dispatch(self, inputs, outputs, *, layout_info, stream):
        reach("iterations")
        rows = inputs.tokens.buffer
        sent = [
            (expert, token, slot, rows[token].tolist())
            for token in range(len(rows))
            for slot, expert in enumerate(self.ids[token].tolist())
            if expert >= 0
        ]
        out, counts = outputs.tokens.buffer, layout_info.expert_counters.buffer
        num_local, room, hidden = out.shape
        self.places = [[] for _ in range(num_local)]
        for source, assignments in enumerate(torch.distributed.exchange(sent)):
            for expert, token, slot, row in assignments:
                if expert // num_local != torch.distributed.rank:
                    continue
                local = expert % num_local
                at = (local * room + len(self.places[local])) * hidden
                for idx, element in enumerate(row):
                    out.values[at + idx] = element
                self.places[local].append((source, token, slot))
        for local, places in enumerate(self.places):
            counts.values[local] = len(places)

    def combine(self, inputs, outputs, *, stream):
        blocks, out, weights = inputs.tokens.buffer, outputs.tokens.buffer, outputs.topk_weights.buffer
        back = [
            (source, token, slot, blocks[local][row].tolist())
            for local, places in enumerate(self.places)
            for row, (source, token, slot) in enumerate(places)
        ]
        mine = {}
        for rows in torch.distributed.exchange(back):
            for source, token, slot, row in rows:
                if source == torch.distributed.rank:
                    total, _ = mine.get(token, (0.0, None))
                    mine[token] = (total + weights[token].tolist()[slot], row)
        hidden = out.shape[1]
        for token, (total, row) in mine.items():
            for idx, element in enumerate(torch.scaled(row, total)):
                out.values[token * hidden + idx] = element

    def destroy(self):
        pass
