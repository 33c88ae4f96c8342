"""Hot experts: what dispatch counts, a plan of it, and weights that move while dispatch goes on.

Four ranks with three slots each hold eight experts, whose weights are one number: expert e multiplies by e + 1. The
router likes some of them much more than others. Result and dense computation are compared in every step, before,
during and after the move.

python moving_experts.py                              # ranks as threads of this process
epistle run -n 4 -- python moving_experts.py          # ranks as processes
"""

from __future__ import annotations

import numpy as np

import epistle
from epistle import balance

HIDDEN, EXPERTS, TOP_K, TOKENS, SLOTS = 64, 8, 2, 64, 3
STEPS_BEFORE, STEPS_AFTER = 4, 4


class Layer:
    """One rank's part of a layer of experts."""

    def __init__(self, group: epistle.Group) -> None:
        self.group = group
        # Two experts on each rank, and an empty slot.
        blocks = [[2 * rank, 2 * rank + 1, -1] for rank in range(group.size)]
        # Copied by advance(), so much at a time. Without that a thread copies, where a core has nothing else to do.
        self.store = epistle.WeightStore(
            group, blocks, num_experts=EXPERTS, expert_bytes=np.float32().nbytes, bytes_per_advance=1 << 20
        )
        for slot, expert in enumerate(self.store.placement.slot_experts[group.rank]):
            self.weights(slot)[:] = expert + 1
        group.barrier()  # all weights are there before any is moved
        self.slot_experts = blocks
        config = epistle.DispatcherConfig(
            hidden=HIDDEN,
            num_experts=EXPERTS,
            top_k=TOP_K,
            max_tokens=TOKENS,
            input=epistle.DType.FP32,
            layout=epistle.ExpertMajor(alignment=4),
            placement=self.store.placement,
            slots_per_rank=SLOTS,
        )
        self.moe = epistle.Dispatcher(group, "direct", config)
        self.window = balance.LoadWindow(EXPERTS)
        self.feed = balance.CounterFeed(self.window)

    def weights(self, slot: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        return np.asarray(self.store.weights(slot)).view(np.float32)

    def step(self, number: int) -> tuple[float, int]:
        """One step: (largest error, rows that this rank's experts had to compute)."""
        ids, weights = epistle.generate_routing(
            "zipf:1.5",
            num_tokens=TOKENS,
            num_experts=EXPERTS,
            top_k=TOP_K,
            rank=self.group.rank,
            num_ranks=self.group.size,
            seed=1,
        )
        tokens = np.random.default_rng(number).standard_normal((TOKENS, HIDDEN), dtype=np.float32)
        received = self.moe.dispatch(tokens, expert_ids=ids, weights=weights, step_seed=number)
        rows, outputs = np.asarray(received.rows), np.asarray(received.expert_outputs)
        begin, counts = np.asarray(received.expert_begin), np.asarray(received.expert_counts)
        for slot in range(received.num_local_experts):
            mine = slice(begin[slot], begin[slot] + counts[slot])
            outputs[mine] = rows[mine] * self.weights(slot)
        result = np.empty_like(tokens)
        self.moe.combine(result, received=received)
        factor = ((np.asarray(ids) + 1) * np.asarray(weights)).sum(axis=1, keepdims=True)
        return float(np.abs(result - tokens * factor).max()), int(counts.sum())

    def plan(self) -> balance.PlacementPlan:
        """The same on all ranks: each knows its own tokens, together they know all."""
        self.feed.update(self.moe.expert_tokens())
        loads = self.window.snapshot().gather(self.group).loads[0]
        return balance.plan_placement(
            loads, [SLOTS] * self.group.size, current=self.slot_experts, expert_bytes=np.float32().nbytes
        )

    def between_steps(self) -> bool:
        """True when the weights have moved; dispatch goes by the new placement from then on."""
        if not self.store.advance():
            return False
        self.moe.set_placement(self.store.placement)
        return True


def balancedness(group: epistle.Group, num_rows: int) -> float:
    """Mean over largest load of a rank."""
    loads = [int.from_bytes(part, "little") for part in group.all_gather(num_rows.to_bytes(8, "little"))]
    return sum(loads) / len(loads) / max(loads)


def play(group: epistle.Group) -> float:
    layer = Layer(group)
    errors, rows = zip(*(layer.step(number) for number in range(STEPS_BEFORE)), strict=True)
    before = balancedness(group, sum(rows))
    plan = layer.plan()
    layer.store.begin(plan.slot_experts)
    number = STEPS_BEFORE
    while layer.store.status.state == "copying":
        errors = (*errors, layer.step(number)[0])
        number += 1
        layer.between_steps()
    # Weights are where they shall be; the quotas of the plan say how much each replica takes.
    layer.moe.set_placement(plan.placement(generation=layer.store.placement.generation + 1))
    more, rows = zip(*(layer.step(number + idx) for idx in range(STEPS_AFTER)), strict=True)
    after = balancedness(group, sum(rows))
    worst = float(max(*errors, *more))
    print(
        f"rank {group.rank}: {len(plan.copies)} copies within {number - STEPS_BEFORE} steps, balancedness {before:.2f} "
        f"before, {after:.2f} after (planned {plan.after:.2f}), largest error {worst:.1e}"
    )
    if after <= before:
        raise SystemExit("moving experts has gained nothing")
    return worst


if __name__ == "__main__":
    worst = [play(epistle.Group.from_launcher())] if epistle.is_launched() else epistle.run_threads(4, play)
    if max(worst) > 1e-5:
        raise SystemExit("the result differs from the dense computation")
