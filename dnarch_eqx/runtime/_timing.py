import dataclasses
import functools as ft
import statistics
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np
from jaxtyping import Float, Int

from .._custom_types import Cost
from .._misc import at_least
from .._plan import Plan
from ._grid import Grid


# Of a plan of all axes, or of as many sizes.
_Sizes: TypeAlias = Plan | Int[np.ndarray, " axes"] | Float[np.ndarray, " axes"]


@dataclasses.dataclass(frozen=True)
class Timing:
    """What a plan costs: seconds a step, and seconds to have it compiled.

    A step takes `overhead + scale * cost(sizes)` seconds.

    - `cost`: of a vector of sizes, in units of its own. See [`dnarch_eqx.runtime.host_cost`][].
    - `compile`: seconds of training that one compilation costs.
    - `scale`, `overhead`: from these units to seconds.

    Raises `ValueError` for numbers below 0 and NaN.
    """

    cost: Callable[[Any], float]
    compile: float
    scale: float = 1.0
    overhead: float = 0.0

    def __post_init__(self):
        for name in ("compile", "scale", "overhead"):
            at_least(name, getattr(self, name), 0)

    def units(self, sizes: _Sizes) -> float:
        """The cost of a plan, or of sizes, in its own units."""
        return self.cost(sizes.sizes if isinstance(sizes, Plan) else sizes)

    def step(self, sizes: _Sizes) -> float:
        """Seconds a step under a plan, or at these sizes."""
        return self.overhead + self.scale * self.units(sizes)


@dataclasses.dataclass(frozen=True)
class Measured:
    """What steps and compilations were seen to take, in seconds.

    - `samples`: plan to means over some steps, the last of them.
    - `compilations`: what the last ones cost of training.
    - `seconds`: how long the last one lasted.
    - `compile`, `scale`, `overhead`: what follows, see [`dnarch_eqx.runtime.Timing`][].
    """

    samples: tuple[tuple[Plan, tuple[float, ...]], ...] = ()
    compilations: tuple[float, ...] = ()
    seconds: float = 0.0
    compile: float = 0.0
    scale: float = 0.0
    overhead: float = 0.0

    def timing(self, cost: Callable[[Any], float]) -> Timing:
        """What plans cost by it, given the cost of sizes in its own units."""
        return Timing(cost, self.compile, self.scale, self.overhead)

    def taken(self, plan: Plan) -> tuple[float, ...]:
        """The samples of a plan."""
        return next((samples for other, samples in self.samples if other == plan), ())

    def sampled(self, plan: Plan, seconds: float) -> "Measured":
        """With the mean of some more steps."""
        others = tuple(pair for pair in self.samples if pair[0] != plan)
        samples = (*self.taken(plan), seconds)[-64:]
        return dataclasses.replace(self, samples=(*others[-31:], (plan, samples)))

    def compiled(self, price: float, seconds: float) -> "Measured":
        """With a compilation that lasted so long and cost so much of training."""
        last = (*self.compilations, price)[-5:]
        return dataclasses.replace(
            self, compilations=last, seconds=seconds, compile=statistics.median(last)
        )

    def fitted(self, cost: Callable[[Any], float]) -> tuple[float, float]:
        """Scale and overhead that fit the samples best."""
        pairs = [(plan, statistics.median(samples)) for plan, samples in self.samples]
        found = calibrated(self.timing(cost), pairs)
        return found.scale, found.overhead


def calibrated(timing: Timing, measured: Sequence[tuple[_Sizes, float]]) -> Timing:
    """The timing that fits measurements best.

    **Arguments:**

    - `timing`: for its cost.
    - `measured`: pairs of a plan, or of sizes, and its seconds a step.
    """
    if not measured:
        return timing
    costs = np.array([timing.units(sizes) for sizes, _ in measured])
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
    """A cost as a function of a vector of sizes, computed on the host; the last ones are
    remembered. Without a cost: the mean over the axes of the share of their capacity.
    """
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

    @ft.lru_cache(maxsize=4096)
    def remembered(sizes: bytes, dtype: np.dtype) -> float:
        return compute(np.frombuffer(sizes, dtype))

    return lambda sizes: remembered(sizes.tobytes(), sizes.dtype)
