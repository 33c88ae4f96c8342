"""What all packages need: tensors of the rank's inputs, the group of torch.distributed, clocks and copies to files."""

import ctypes
import json
import os
import time

FNV_OFFSET = 0xCBF29CE484222325
FNV_PRIME = 0x100000001B3
MASK = (1 << 64) - 1


class World:
    """One rank's place in a job. `torch` is imported by whoever makes it, so that a failure is told as one."""

    def __init__(self, torch, job, rank):
        self.torch = torch
        self.job = job
        self.rank = rank
        self.size = job["num_ranks"]
        self.hidden = job["hidden"]
        self.num_experts = job["num_experts"]
        self.top_k = job["top_k"]
        self.max_tokens = max(1, max(job["tokens_per_rank"]))
        self.num_tokens = job["tokens_per_rank"][rank]
        self.num_local_experts = self.num_experts // self.size
        self.on_gpu = job["device"] == "cuda"
        self.device = "cpu"
        if self.on_gpu:
            torch.cuda.set_device(rank)
            self.device = f"cuda:{rank}"
        self.group = None

    def join(self):
        dist = self.torch.distributed
        dist.init_process_group(
            "nccl" if self.on_gpu else "gloo",
            init_method="file://" + os.path.join(self.job["folder"], "meeting"),
            rank=self.rank,
            world_size=self.size,
        )
        self.group = dist.group.WORLD

    def leave(self):
        if self.group is not None:
            self.torch.distributed.destroy_process_group()

    def _load(self, name, dtype, shape):
        with open(os.path.join(self.job["folder"], f"{name}{self.rank}.bin"), "rb") as file:
            raw = bytearray(file.read())
        if not raw:
            return self.torch.empty(shape, dtype=dtype, device=self.device)
        return self.torch.frombuffer(raw, dtype=dtype).reshape(shape).to(self.device)

    def inputs(self):
        """Rows in bf16, ids in int64, weights in fp32; a rank without tokens has none of them."""
        torch = self.torch
        routes = (self.num_tokens, self.top_k)
        ids = self._load("ids", torch.int32, routes)
        return (
            self._load("rows", torch.bfloat16, (self.num_tokens, self.hidden)),
            ids.to(torch.int64),
            self._load("weights", torch.float32, routes),
        )

    def save(self, name, tensor):
        tensor = tensor.contiguous().cpu()
        num_bytes = tensor.numel() * tensor.element_size()
        with open(os.path.join(self.job["folder"], f"{name}{self.rank}.bin"), "wb") as file:
            if num_bytes:
                file.write(ctypes.string_at(tensor.data_ptr(), num_bytes))

    def synchronise(self):
        if self.on_gpu:
            self.torch.cuda.synchronize()

    def barrier(self):
        self.synchronise()
        self.torch.distributed.barrier()

    def stream(self):
        return self.torch.cuda.current_stream().cuda_stream if self.on_gpu else 0

    def free_bytes(self):
        return self.torch.cuda.mem_get_info()[0] if self.on_gpu else None

    def time_us(self, call, num_calls):
        """Mean of calls in a row. On a GPU between two events behind one call that brings the ranks together."""
        self.barrier()
        if not self.on_gpu:
            begin = time.perf_counter_ns()
            for _ in range(num_calls):
                call()
            return (time.perf_counter_ns() - begin) / 1e3 / num_calls
        begin, end = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
        call()
        begin.record()
        for _ in range(num_calls):
            call()
        end.record()
        self.synchronise()
        return begin.elapsed_time(end) * 1e3 / num_calls

    def time_steps_us(self, opening, steps, names):
        """One call of each, in a row, and what each took. On a GPU behind `opening`, as in time_us."""
        self.barrier()
        if not self.on_gpu:
            marks = [time.perf_counter_ns()]
            for step in steps:
                step()
                marks.append(time.perf_counter_ns())
            return {name: (marks[idx + 1] - marks[idx]) / 1e3 for idx, name in enumerate(names)}
        events = [self.torch.cuda.Event(enable_timing=True) for _ in range(len(steps) + 1)]
        opening()
        events[0].record()
        for idx, step in enumerate(steps):
            step()
            events[idx + 1].record()
        self.synchronise()
        return {name: events[idx].elapsed_time(events[idx + 1]) * 1e3 for idx, name in enumerate(names)}


def routing_hash(job):
    """FNV-1a over 32-bit words: token counts, ids and weights of all ranks, as epistle computes it."""
    value = FNV_OFFSET
    for rank, num_tokens in enumerate(job["tokens_per_rank"]):
        value = ((value ^ num_tokens) * FNV_PRIME) & MASK
        for name in ("ids", "weights"):
            with open(os.path.join(job["folder"], f"{name}{rank}.bin"), "rb") as file:
                raw = file.read()
            for at in range(0, len(raw), 4):
                value = ((value ^ int.from_bytes(raw[at : at + 4], "little")) * FNV_PRIME) & MASK
    return f"{value:016x}"


class Report:
    """Lines of JSON, on disk as soon as they are known: what a crash leaves of a rank."""

    def __init__(self, folder, rank):
        self._path = os.path.join(folder, f"rank{rank}.jsonl")

    def add(self, **line):
        with open(self._path, "a") as file:
            file.write(json.dumps(line) + "\n")
