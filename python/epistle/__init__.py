"""Epistle: expert-parallel dispatch and combine for Mixture-of-Experts models.

A group of ranks shares one set of experts. A dispatcher moves every token's row to the ranks that hold its experts
(dispatch) and brings the sums of the expert outputs back (combine). Tensors may be those of any library that has DLPack
or the array interfaces: NumPy, Torch, JAX, CuPy.

    group = epistle.Group.from_launcher()
    moe = epistle.Dispatcher(group, "direct", epistle.DispatcherConfig(hidden=7168, num_experts=256, top_k=8,
                                                                       max_tokens=4096))
    handle = moe.prepare(ids, weights)            # [num_tokens, 8] each
    received = moe.dispatch(tokens, handle=handle)  # [num_tokens, 7168]
    ...                                           # experts read received.rows, write received.expert_outputs
    moe.combine(out, received=received)           # [num_tokens, 7168]
"""

from epistle._config import (
    AsGiven,
    Capabilities,
    Capacity,
    Cuda,
    CudaSupport,
    DispatcherConfig,
    DType,
    Exact,
    ExpertBlocks,
    ExpertMajor,
    Fp8Blocks,
    Host,
    MemoryPlan,
    MemorySection,
    MigrationStatus,
    Placement,
    RoutingStats,
    SumOrder,
    TokenMajor,
    WireBytes,
)
from epistle._core import (
    Array,
    Dispatcher,
    DispatcherInfo,
    Group,
    Handle,
    Pending,
    Received,
    WeightStore,
    cuda_support,
    dispatchers,
    find_dispatcher,
    generate_routing,
    is_launched,
)
from epistle._core import version as __version__
from epistle._errors import Error, ErrorCode, Phase
from epistle._masks import go_on_without
from epistle._threads import run_threads

__all__ = [
    "Array",
    "AsGiven",
    "Capabilities",
    "Capacity",
    "Cuda",
    "CudaSupport",
    "DType",
    "Dispatcher",
    "DispatcherConfig",
    "DispatcherInfo",
    "Error",
    "ErrorCode",
    "Exact",
    "ExpertBlocks",
    "ExpertMajor",
    "Fp8Blocks",
    "Group",
    "Handle",
    "Host",
    "MemoryPlan",
    "MemorySection",
    "MigrationStatus",
    "Pending",
    "Phase",
    "Placement",
    "Received",
    "RoutingStats",
    "SumOrder",
    "TokenMajor",
    "WeightStore",
    "WireBytes",
    "__version__",
    "cuda_support",
    "dispatchers",
    "find_dispatcher",
    "generate_routing",
    "go_on_without",
    "is_launched",
    "run_threads",
]
