"""The temporary memory of a compiled training step, for the six cases of the benchmark `step`,
over that of networks of the same sizes written by hand, with the same periods of their Fourier
transforms:

- `memory/hand_written`: the worst.
- `memory/full_capacity`: for CCNN_{4,140}, the step at full capacity over the one under the
    plan.
"""

from pathlib import Path

import dnarch_eqx as dn
from benchmarks._common import finish, Row
from benchmarks._networks import by_hand, CASES, Learned


def run(path: Path | None) -> None:
    rows, ratios, full = [], {}, 0.0
    for name, case in CASES.items():
        learned = Learned(case)
        ours = learned.step().temporary
        hand = by_hand(case, learned.plan).temporary
        ratios[name] = ours / hand
        rows += [
            Row(f"memory/{name}/step", ours / 2**20, "MiB"),
            Row(f"memory/{name}/hand_written", hand / 2**20, "MiB"),
        ]
        if name == "1d-140":
            full = learned.step(dn.Plan()).temporary / ours
    rows = [
        Row("memory/hand_written", max(ratios.values()), "x", "<= 1.05"),
        *(Row(f"memory/hand_written/{name}", ratio, "x") for name, ratio in ratios.items()),
        Row("memory/full_capacity", full, "x"),
        *rows,
    ]
    finish(rows, path)
