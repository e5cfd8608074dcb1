import dataclasses
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from .._plan import Plan
from ._processes import largest
from ._timing import Measured


@dataclasses.dataclass(frozen=True)
class Lap:
    """Steps under one plan that are timed together.

    - `samples`: how many laps this plan has had.
    """

    start: float
    plan: Plan
    samples: int
    steps: int = 0


def timed(
    lap: Lap | None, plan: Plan, measured: Measured, cost: Callable[[Any], float]
) -> tuple[Lap, Measured]:
    """With one more step of a plan, which is seen to be done now. No step is waited for; on
    several processes the slowest counts.
    """
    now = time.perf_counter()
    if lap is None or lap.plan != plan:
        return Lap(now, plan, len(measured.taken(plan))), measured
    # The first samples are short, so that there is something to go by.
    if lap.steps + 1 < min(2 ** (1 + lap.samples), 16):
        return Lap(lap.start, plan, lap.samples, lap.steps + 1), measured
    measured = measured.sampled(plan, (now - lap.start) / (lap.steps + 1))
    samples = lap.samples + 1
    if samples & (samples - 1) == 0:  # ever more rarely
        scale, overhead = largest(np.array(measured.fitted(cost), np.float32)).tolist()
        measured = dataclasses.replace(measured, scale=scale, overhead=overhead)
    return Lap(now, plan, samples), measured
