import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from ._custom_types import Cost
from ._masks import Masks
from ._plan import check_ladder, Ladder, Plan


# Everything here and in the policies runs between two steps: plain numpy on vectors with an
# entry an axis, in the order of the axes' names, and no device.


class Grid:
    """The ladders of all axes as one array, so that all are searched at once."""

    axes: tuple[str, ...]
    capacity: Int[np.ndarray, " axes"]

    def __init__(self, masks: Masks, buckets: Mapping[str, Ladder]):
        """**Arguments:**

        - `masks`: the masks, for their names and capacities.
        - `buckets`: the ladders. An axis without one is at its capacity.
        """
        if unknown := set(buckets) - set(masks):
            raise ValueError(f"`buckets` names axes without a mask: {sorted(unknown)}.")
        self.axes = tuple(sorted(masks))
        ladders = [buckets.get(axis, (masks[axis].capacity,)) for axis in self.axes]
        for axis, ladder in zip(self.axes, ladders):
            check_ladder(axis, ladder, masks[axis])
        most = max(map(len, ladders), default=1)
        padded = [(*ladder, *(most - len(ladder)) * ladder[-1:]) for ladder in ladders]
        ladders = np.array(padded, int).reshape(len(self.axes), most)
        self.capacity = ladders[:, -1]
        # The bucket of every count, all axes one behind the other.
        fits = [row[np.searchsorted(row, np.arange(row[-1] + 1))] for row in ladders]
        self._fits = np.concatenate([*fits, np.zeros(0, int)])
        self._starts = np.cumsum([0, *map(len, fits)])[:-1]

    def fit(self, counts: Int[np.ndarray, "*n axes"]) -> Int[np.ndarray, "*n axes"]:
        """The smallest buckets that hold these counts, of one plan or of an array of them."""
        return self._fits[self._starts + np.minimum(counts, self.capacity)]

    def plan(self, sizes: Int[np.ndarray, " axes"]) -> Plan:
        """The plan of these buckets."""
        return Plan(dict(zip(self.axes, sizes.tolist())))

    def sizes(self, plan: Mapping[str, int]) -> Int[np.ndarray, " axes"]:
        """The buckets of a plan; the capacity of an axis that it does not name."""
        full = zip(self.axes, self.capacity.tolist())
        return np.array([plan.get(axis, capacity) for axis, capacity in full], int)


@dataclasses.dataclass(frozen=True)
class Timing:
    """What a plan costs: seconds a step, and seconds to have it compiled.

    A step takes `overhead + scale * cost(sizes)` seconds.

    - `cost`: of a vector of sizes, in units of its own. See [`host_cost`][].
    - `compile`: seconds of training that one compilation costs.
    - `scale`, `overhead`: from these units to seconds.
    - `held`: the plans that are compiled already, hence free.
    """

    cost: Callable[[Int[np.ndarray, " axes"]], float]
    compile: float
    scale: float = 1.0
    overhead: float = 0.0
    held: frozenset[bytes] = frozenset()

    def __post_init__(self):
        for name in ("compile", "scale", "overhead"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"`{name}` must be at least 0, got {getattr(self, name)}.")

    def replace(self, **changes: Any) -> "Timing":
        """The same with some fields changed."""
        return dataclasses.replace(self, **changes)

    def step(self, sizes: Int[np.ndarray, " axes"]) -> float:
        """Seconds a step under a plan."""
        return self.overhead + self.scale * self.cost(sizes)

    def switch(self, sizes: Int[np.ndarray, " axes"]) -> float:
        """Seconds until a plan can run."""
        return 0.0 if sizes.tobytes() in self.held else self.compile


def calibrated(
    timing: Timing, measured: Sequence[tuple[Int[np.ndarray, " axes"], float]]
) -> Timing:
    """The timing that fits measurements best.

    **Arguments:**

    - `timing`: for its cost.
    - `measured`: pairs of a plan's sizes and its seconds a step.
    """
    if not measured:
        return timing
    costs = np.array([timing.cost(sizes) for sizes, _ in measured])
    seconds = np.array([s for _, s in measured])
    if not costs.mean() > 0:
        return dataclasses.replace(timing, scale=0.0, overhead=float(seconds.mean()))
    scale, overhead = seconds.mean() / costs.mean(), 0.0
    if np.ptp(costs) > 0.2 * costs.mean():
        slope, intercept = np.polyfit(costs, seconds, 1)
        # A line with a negative part would be an effect of noise.
        if slope > 0 and intercept > 0:
            scale, overhead = slope, intercept
    return dataclasses.replace(timing, scale=float(scale), overhead=float(overhead))


def host_cost(
    cost: Cost | None, grid: Grid
) -> Callable[[Int[np.ndarray, " axes"] | Float[np.ndarray, " axes"]], float]:
    """A cost as a function of a vector of sizes, computed on the host and remembered.
    Without a cost: the mean over the axes of the share of their capacity.
    """
    known: dict[bytes, float] = {}
    if cost is None:
        compute = lambda sizes: float(np.mean(sizes / grid.capacity)) if len(sizes) else 1.0
    else:
        # On the CPU: an accelerator would put it behind the steps in its queue.
        try:
            device = jax.local_devices(backend="cpu")[0]
        except RuntimeError:
            device = None
        jitted = jax.jit(lambda sizes: cost(dict(zip(grid.axes, sizes))))

        def compute(sizes):
            with jax.default_device(device):
                return float(jitted(np.asarray(sizes, np.float32)))

    def remembered(sizes):
        key = sizes.tobytes()
        if key not in known:
            known[key] = compute(sizes)
        return known[key]

    return remembered
