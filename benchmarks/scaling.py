"""How the time of a training step grows with the sizes: exponents, the slopes of four times
on a log-log scale by least squares, the other sizes fixed and small. For materialized networks,
where widths and depths are plans of one model that is at the largest, and for networks of the
same sizes written by hand.
"""

import dataclasses
from pathlib import Path

import numpy as np

from benchmarks._common import finish, medians, Row
from benchmarks._networks import by_hand, Case, Learned
from dnarch_eqx import nn


_BASE = Case(2, 48, (512,), 8, capacity=nn.Base(8, 192))
_SWEEPS = {
    "length": {n: dataclasses.replace(_BASE, shape=(n,)) for n in (256, 512, 1024, 2048)},
    "width": {n: dataclasses.replace(_BASE, width=n) for n in (24, 48, 96, 192)},
    "depth": {n: dataclasses.replace(_BASE, depth=n) for n in (1, 2, 4, 8)},
}
_REPEATS = 15


def run(path: Path | None) -> None:
    contestants = {}
    for case in {case for sweep in _SWEEPS.values() for case in sweep.values()}:
        learned = Learned(case)
        contestants[str(case)] = learned.step().run
        contestants[f"{case}/hand_written"] = by_hand(case, learned.plan).run
    seconds = medians(contestants, _REPEATS, in_a_row=2)

    exponents, rows = [], []
    for what, sweep in _SWEEPS.items():
        for suffix in ("", "/hand_written"):
            times = {size: seconds[f"{case}{suffix}"] for size, case in sweep.items()}
            slope, _ = np.polyfit(np.log(list(times)), np.log(list(times.values())), 1)
            exponents.append(Row(f"scaling/{what}{suffix}", float(slope), ""))
            rows += [
                Row(f"scaling/{what}/{size}{suffix}", 1e3 * time, "ms")
                for size, time in times.items()
            ]
    finish(exponents + rows, path)
