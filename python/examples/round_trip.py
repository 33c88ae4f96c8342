"""Dispatch and combine with NumPy: four ranks, two experts each, and an expert that multiplies by its number.

python round_trip.py                              # ranks as threads of this process
epistle run -n 4 -- python round_trip.py          # ranks as processes
"""

from __future__ import annotations

import numpy as np

import epistle

HIDDEN, EXPERTS, TOP_K, TOKENS = 64, 8, 2, 24


def play(group: epistle.Group) -> float:
    moe = epistle.Dispatcher(
        group,
        "direct",
        epistle.DispatcherConfig(
            hidden=HIDDEN,
            num_experts=EXPERTS,
            top_k=TOP_K,
            max_tokens=TOKENS,
            input=epistle.DType.FP32,
            layout=epistle.ExpertMajor(alignment=4),
        ),
    )
    ids, weights = epistle.generate_routing(
        "zipf:0.8", num_tokens=TOKENS, num_experts=EXPERTS, top_k=TOP_K, rank=group.rank, num_ranks=group.size
    )
    tokens = np.random.default_rng(group.rank).standard_normal((TOKENS, HIDDEN), dtype=np.float32)

    handle = moe.prepare(ids, weights)
    received = moe.dispatch(tokens, handle=handle)
    rows, outputs = np.asarray(received.rows), np.asarray(received.expert_outputs)
    begin, counts = np.asarray(received.expert_begin), np.asarray(received.expert_counts)
    for local_expert in range(received.num_local_experts):
        mine = slice(begin[local_expert], begin[local_expert] + counts[local_expert])
        outputs[mine] = rows[mine] * np.float32(received.first_expert + local_expert)
    result = np.empty_like(tokens)
    moe.combine(result, received=received)

    factor = (np.asarray(ids) * np.asarray(weights)).sum(axis=1, keepdims=True)
    error = float(np.abs(result - tokens * factor).max())
    print(f"rank {group.rank}: {handle.wait_stats().output_rows} rows received, largest error {error:.1e}")
    return error


if __name__ == "__main__":
    errors = [play(epistle.Group.from_launcher())] if epistle.is_launched() else epistle.run_threads(4, play)
    if max(errors) > 1e-5:
        raise SystemExit("the result differs from the dense computation")
