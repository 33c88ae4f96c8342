"""Buffer: DeepEP's first interface."""

from __future__ import annotations

import typing

import torch

from epistle.deep_ep._config import Config
from epistle.deep_ep._events import EventHandle, EventOverlap
from epistle.deep_ep._low_latency import LowLatencyCalls
from epistle.deep_ep._normal import NormalCalls
from epistle.deep_ep._routes import Dispatchers, join, lacking


class _Runtime:
    """What callers ask of DeepEP's C++ object."""

    def __init__(self, buffer: Buffer) -> None:
        self._rank = buffer.rank

    def is_available(self) -> bool:
        return True

    def get_num_rdma_ranks(self) -> int:
        return 1

    def get_rdma_rank(self) -> int:
        return 0

    def get_local_device_id(self) -> int:
        return torch.cuda.current_device() if torch.cuda.is_available() else self._rank


class Buffer(NormalCalls, LowLatencyCalls):
    """Dispatch and combine for the ranks of a process group of Torch (gloo or nccl), of one host.

    Sizes in bytes are taken and not used: memory is what the calls need. Options of RDMA mean nothing. Any number of
    ranks, experts, SMs, any top-k, and any hidden size whose rows are a multiple of 16 bytes, will do.
    """

    def __init__(
        self,
        group: typing.Any = None,
        num_nvl_bytes: int = 0,
        num_rdma_bytes: int = 0,
        low_latency_mode: bool = False,
        num_qps_per_rank: int = 24,
        allow_nvlink_for_low_latency_mode: bool = True,
        allow_mnnvl: bool = False,
        explicitly_destroy: bool = False,
        enable_shrink: bool = False,
        comm: typing.Any = None,
        **of_forks: typing.Any,
    ) -> None:
        del num_qps_per_rank, allow_nvlink_for_low_latency_mode, allow_mnnvl, of_forks
        if enable_shrink:
            raise lacking(
                "enable_shrink", "a lost rank is an epistle.Error on all survivors; make a new buffer of them"
            )
        self._group = join(group, comm)
        self._dispatchers = Dispatchers(self._group)
        self._low_latency = {}
        self._constants = {}
        self.group = group
        self.rank = self._group.rank
        self.group_size = self._group.size
        self.num_nvl_bytes = num_nvl_bytes
        self.num_rdma_bytes = num_rdma_bytes
        self.low_latency_mode = low_latency_mode
        self.explicitly_destroy = explicitly_destroy
        self.runtime: _Runtime | None = _Runtime(self)

    def destroy(self) -> None:
        if not self.explicitly_destroy:
            raise AssertionError("destroy() is for a Buffer made with explicitly_destroy=True")
        self._dispatchers.clear()
        self._low_latency.clear()
        self.runtime = None

    @staticmethod
    def is_sm90_compiled() -> bool:
        return True

    @classmethod
    def set_num_sms(cls, new_num_sms: int) -> None:
        """SMs of a call on a GPU. Unless it is called, the tuning table says how many."""
        if new_num_sms < 0:
            raise ValueError(f"num_sms is {new_num_sms}; it is 0 (tuned) or more")
        Buffer.num_sms = new_num_sms
        Buffer._num_sms_is_set = True

    @staticmethod
    def capture() -> EventOverlap:
        return EventOverlap(EventHandle())

    @staticmethod
    def get_low_latency_rdma_size_hint(
        num_max_dispatch_tokens_per_rank: int, hidden: int, num_ranks: int, num_experts: int
    ) -> int:
        """Bytes of received rows and expert outputs in bf16, twice. Nothing is allocated by it."""
        rows = num_ranks * num_max_dispatch_tokens_per_rank * -(-num_experts // num_ranks)
        return 2 * 2 * rows * hidden * 2

    def get_comm_stream(self) -> typing.Any:
        """The caller's stream: calls run there."""
        return torch.cuda.current_stream()

    def get_local_buffer_tensor(
        self,
        dtype: torch.dtype,
        size: typing.Any = None,
        offset: int = 0,
        use_rdma_buffer: bool = False,
    ) -> torch.Tensor:
        del dtype, size, offset, use_rdma_buffer
        raise lacking(
            "one buffer that all calls share",
            "get_next_low_latency_combine_buffer gives rows to write to, and so does epistle.Received.expert_outputs",
        )

    @staticmethod
    def get_dispatch_config(num_ranks: int) -> Config:
        del num_ranks
        return Config(Buffer.num_sms, 6, 256)

    @staticmethod
    def get_combine_config(num_ranks: int) -> Config:
        del num_ranks
        return Config(Buffer.num_sms, 4, 256)
