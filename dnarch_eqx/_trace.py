import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Int

from ._masks import Masks
from ._plan import Ladder, Plan
from ._policy import AbstractPolicy, Observation, Oracle
from ._timing import Grid, Timing
from ._velocity import Velocity


@dataclasses.dataclass(frozen=True, eq=False)
class Trace:
    """The active counts of every axis over a run.

    - `axes`: the names, in their order.
    - `steps`: the steps at which any count changed, from 0 on.
    - `active`: the counts from each of these steps on.
    - `length`: how many steps the run had.
    """

    axes: tuple[str, ...]
    steps: Int[np.ndarray, " changes"]
    active: Int[np.ndarray, "changes axes"]
    length: int

    @staticmethod
    def of(axes: tuple[str, ...], active: Int[np.ndarray, "steps axes"]) -> "Trace":
        """From the counts of every step."""
        if tuple(sorted(axes)) != tuple(axes):
            raise ValueError(f"`axes` must be in the order of their names, got {axes}.")
        if active.ndim != 2 or active.shape[1] != len(axes) or not len(active):
            raise ValueError(
                f"`active` must have a row a step and {len(axes)} columns, got shape "
                f"{active.shape}."
            )
        changed = np.any(active[1:] != active[:-1], axis=1)
        steps = np.concatenate([[0], 1 + np.flatnonzero(changed)])
        return Trace(tuple(axes), steps, active[steps].astype(int), len(active))

    def every_step(self) -> Int[np.ndarray, "steps axes"]:
        """The counts of every step."""
        return np.repeat(self.active, self.lengths(), axis=0)

    def lengths(self) -> Int[np.ndarray, " changes"]:
        """How many steps the counts stay as they are."""
        return np.diff(np.append(self.steps, self.length))

    def save(self, path: Path) -> None:
        """Writes it to a file, of the format `.npz`."""
        names = np.array(self.axes)
        with path.open("wb") as file:
            np.savez_compressed(
                file, axes=names, steps=self.steps, active=self.active, length=self.length
            )

    @staticmethod
    def load(path: Path) -> "Trace":
        """What [`dnarch_eqx.Trace.save`][] wrote."""
        with np.load(path, allow_pickle=False) as file:
            return Trace(
                tuple(file["axes"].tolist()),
                file["steps"],
                file["active"],
                int(file["length"]),
            )


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
    - `keep`: how many compiled plans are kept; returning to one of them is free.
    - `foresight`: how many steps ahead growth is foreseen from the velocities.
    """
    grid = _grid(trace, masks, buckets)
    if keep < 1 or foresight < 0:
        raise ValueError(f"`keep` must be at least 1 and `foresight` 0, got {keep, foresight}.")
    velocity = Velocity.none(len(trace.axes))
    state, sizes, held = policy.init(), None, []
    compilations, compiling, stepping, exact, waste = 0, 0.0, 0.0, 0.0, 0.0
    plans: list[tuple[int, Plan]] = []
    for step, active in enumerate(trace.every_step()):
        # A count is a position rounded down; how far is not in the trace.
        velocity = velocity.update(active + 0.5)
        ahead = np.floor(active + velocity.rise(foresight, -1.0) + 1e-9).astype(int)
        free = frozenset(key for key in held)
        now = dataclasses.replace(timing, held=timing.held | free)
        seen = Observation(
            step,
            active,
            np.minimum(np.maximum(active, ahead), grid.capacity),
            velocity,
            sizes,
            grid,
            now,
        )
        state, new = policy(state, seen)
        if np.any(active > new):
            raise ValueError(f"{policy} took a plan that does not cover, at step {step}.")
        if sizes is None or np.any(new != sizes):
            plans.append((step, grid.plan(new)))
            price = now.switch(new)
            key = new.tobytes()
            compilations += int(key not in now.held)
            compiling += price
            held = [key, *(k for k in held if k != key)][:keep]
        sizes = new
        stepping += timing.step(sizes)
        smallest = np.maximum(active, 1)
        exact += timing.step(smallest)
        waste += timing.cost(sizes) / timing.cost(smallest)
    return Outcome(compilations, compiling, stepping, exact, waste / trace.length, tuple(plans))


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
        sizes = fits[begin:end].max(0)
        switches.append((int(steps[begin]), tuple(sizes.tolist())))
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
    timing = timing.replace(held=frozenset())
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
