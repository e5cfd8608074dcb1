import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np

from .._masks import Masks
from .._misc import at_least
from .._plan import Plan
from ..ladders import Ladder
from ._grid import Grid
from ._planner_state import PlannerState
from ._policy import AbstractPolicy
from ._timing import Timing
from ._trace import Trace
from .policies import Oracle


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a run costs, or would have cost. All in seconds but for the first and the last
    two.

    - `compilations`: how many.
    - `compiling`: spent on them.
    - `stepping`: spent on steps.
    - `exact`: what the steps would have taken at exact sizes.
    - `waste`: operations in buckets over operations in exact sizes, the mean over the steps.
    - `plans`: pairs of a step and the plan taken there.
    """

    compilations: int
    compiling: float
    stepping: float
    exact: float
    waste: float
    plans: tuple[tuple[int, Plan], ...]

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.compiling + self.stepping

    @property
    def efficiency(self) -> float:
        """What is left if sizes were exact and compilations free, as a share."""
        return self.exact / self.seconds


def replay(
    trace: Trace,
    policy: AbstractPolicy,
    masks: Masks,
    buckets: Mapping[str, Ladder],
    timing: Timing,
    *,
    compiled: Iterable[Plan] = (),
    keep: int = 1,
    foresight: int = 0,
) -> Outcome:
    """What a policy would have done on a recorded run, and what that would have cost. Other
    buckets and costs than those of the run can be tried.

    **Arguments:**

    - `trace`: the run.
    - `policy`: decides before every step.
    - `masks`: for the capacities.
    - `buckets`: the ladders.
    - `timing`: what plans cost.
    - `compiled`: plans that are compiled before the run, hence free.
    - `keep`: how many compiled plans are kept; returning to one of them is free.
    - `foresight`: how many steps ahead growth is foreseen from the velocities.
    """
    grid = _grid(trace, masks, buckets)
    at_least("keep", keep, 1)
    at_least("foresight", foresight, 0)
    state = PlannerState.start(policy, grid)
    free = frozenset(map(grid.complete, compiled))
    kept: tuple[Plan, ...] = ()
    plans: list[tuple[int, Plan]] = []
    compilations, stepping, exact, waste = 0, 0.0, 0.0, 0.0
    for active in trace.every_step():
        # A count is a position rounded down; how far is not in the trace.
        forecast = state.forecast.update(active, active + 0.5)
        state = state.replace(forecast=forecast)
        ahead = np.floor(active + forecast.velocity.rise(foresight, -1.0) + 1e-9).astype(int)
        now = free | frozenset(kept)
        state, plan = state.decide(policy, grid, timing, active, ahead, compiled=now)
        if plan != state.plan:
            state = state.switched(plan)
            plans.append((state.step, plan))
            compilations += plan not in now
            kept = (*(other for other in kept if other != plan), plan)[-keep:]
        stepping += timing.step(plan)
        smallest = np.maximum(active, 1)
        exact += timing.step(smallest)
        waste += timing.units(plan) / timing.units(smallest)
        state = state.replace(step=state.step + 1)
    compiling = compilations * timing.compile
    waste = waste / trace.length
    return Outcome(compilations, compiling, stepping, exact, waste, tuple(plans))


def optimum(
    trace: Trace, masks: Masks, buckets: Mapping[str, Ladder], timing: Timing
) -> Oracle:
    """The cheapest plans for a recorded run, the whole of it known, as a policy; every plan
    taken is compiled (none is kept).

    By dynamic programming over the first steps of segments: a segment's cheapest plan is the
    smallest that covers it, given that a larger plan is never faster.
    """
    grid = _grid(trace, masks, buckets)
    # Only the smallest plans matter, and of those only the changes.
    fits = np.stack([grid.fit(active) for active in trace.active])
    new = np.concatenate([[True], np.any(fits[1:] != fits[:-1], axis=1)])
    fits, steps = fits[new], trace.steps[new]
    lengths = np.diff(np.append(steps, trace.length))
    best = np.concatenate([[0.0], np.full(len(fits), np.inf)])
    start = np.zeros(len(fits) + 1, int)
    for i in range(len(fits)):
        sizes, ran = fits[i], 0
        for j in range(i, len(fits)):
            sizes = np.maximum(sizes, fits[j])
            ran += lengths[j]
            total = best[i] + timing.compile + ran * timing.step(sizes)
            if total < best[j + 1]:
                best[j + 1], start[j + 1] = total, i
    switches = []
    end = len(fits)
    while end > 0:
        begin = start[end]
        switches.append((int(steps[begin]), grid.plan(fits[begin:end].max(0))))
        end = begin
    return Oracle(tuple(reversed(switches)))


def regret(
    trace: Trace,
    policy: AbstractPolicy,
    masks: Masks,
    buckets: Mapping[str, Ladder],
    timing: Timing,
) -> float:
    """What a policy pays on a recorded run over what the optimum pays, compilations
    included; 1 is perfect.
    """
    paid = replay(trace, policy, masks, buckets, timing)
    best = replay(trace, optimum(trace, masks, buckets, timing), masks, buckets, timing)
    return paid.seconds / best.seconds


def _grid(trace: Trace, masks: Masks, buckets: Mapping[str, Ladder]) -> Grid:
    if trace.axes != tuple(sorted(masks)):
        raise ValueError(
            f"The trace has the axes {list(trace.axes)}, the masks {sorted(masks)}."
        )
    grid = Grid(masks, buckets)
    if np.any(beyond := trace.active.max(0) > grid.capacity):
        axis = int(np.argmax(beyond))
        raise ValueError(
            f"The trace has {trace.active.max(0)[axis]} active positions on axis "
            f"{trace.axes[axis]!r}, whose capacity is {grid.capacity[axis]}."
        )
    return grid
