"""Config: what DeepEP's kernels are tuned with. Here only the number of SMs means something; the rest is checked."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Config:
    num_sms: int = 20
    num_max_nvl_chunked_send_tokens: int = 6
    num_max_nvl_chunked_recv_tokens: int = 256
    num_max_rdma_chunked_send_tokens: int = 6
    num_max_rdma_chunked_recv_tokens: int = 256

    def __post_init__(self) -> None:
        if self.num_sms < 0:
            raise ValueError(f"num_sms is {self.num_sms}; it is 0 (tuned) or more")
        for link in ("nvl", "rdma"):
            send = getattr(self, f"num_max_{link}_chunked_send_tokens")
            receive = getattr(self, f"num_max_{link}_chunked_recv_tokens")
            if not 0 < send < receive:
                raise ValueError(
                    f"{link} chunks: {send} tokens sent, {receive} received; 0 < sent < received is expected"
                )

    def get_nvl_buffer_size_hint(self, hidden_bytes: int, num_ranks: int) -> int:
        """The bytes that DeepEP's ring buffers would take. Nothing is allocated by it: see DispatcherInfo.memory."""
        return num_ranks * self.num_max_nvl_chunked_recv_tokens * hidden_bytes

    def get_rdma_buffer_size_hint(self, hidden_bytes: int, num_ranks: int) -> int:
        """0: ranks share one host."""
        del hidden_bytes, num_ranks
        return 0
