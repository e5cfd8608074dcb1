import dataclasses
import math

import numpy as np
from jaxtyping import Int

from ..._misc import at_least
from ..._plan import Plan
from .._policy import AbstractPolicy, Observation, with_room


@dataclasses.dataclass(frozen=True)
class BreakEvenState:
    """- `step`: the last step seen.
    - `wasted`: seconds lost to a plan larger than needed, since it was taken.
    - `ran`: seconds that it ran.
    - `growths`: how many plans in a row had to grow before they had paid for themselves.
    """

    step: int = 0
    wasted: float = 0.0
    ran: float = 0.0
    growths: int = 0


@dataclasses.dataclass(frozen=True)
class BreakEven(AbstractPolicy[BreakEvenState]):
    r"""Shrinks once the time wasted on the present plan reaches the cost of compiling the
    next one; grows at once. That is ski rental, jointly for all axes: one compilation shrinks
    all of those that can.

    **Growing.** The new plan holds what the counts hardly exceed within a horizon of $H$
    steps, one standard deviation more than expected, where $H$ minimises
    $C / H + (s(H) - s(0)) / 2$, the compilation and the mean waste a step ($C$ seconds a
    compilation, $s(h)$ seconds a step under the plan that holds the counts $h$ steps ahead):
    the economic order quantity, with $H$ at most as many steps as the run has had. Plans that
    have to grow again before they have run for $C$ seconds double their headroom, so that a
    jump over $n$ buckets takes $O(\log n)$ compilations.

    **Free room.** A plan that has to be compiled gets one bucket more on every axis that the
    model never counts, if the clock may, as on kernels under [`dnarch_eqx.nn.complexity`][];
    and the capacity on those that are free under this plan, as the widths of blocks beyond its
    depth, which are not computed. One that is compiled already, covers and costs as little is
    taken instead.

    **Competitive ratio.** On traces that only shrink it pays at most twice what the best
    sequence of plans, chosen with the whole trace known, pays: `docs/when.md` has the proof. If
    compilations differ in cost, the ratio is 2 times that of the dearest to the cheapest. When
    traces also grow no constant holds: an adversary can grow right after every shrink. This is
    the online specialization problem (Hong 2006, DMTCS 8:97), whose best ratio is logarithmic
    in the number of nested plans.

    - `patience`: how many times its cost has to be wasted before a compilation.
    - `headroom`: of plans that had to grow again at once; it doubles each time.
    - `steps`: how many steps the run has, if that is known: what would not pay for itself by
        then is not compiled, and no room is given for later. (The proof is for an end that is
        not known.)
    """

    patience: float = 1.0
    headroom: float = 0.05
    steps: int | None = None

    def __post_init__(self):
        at_least("patience", self.patience, 0)
        at_least("headroom", self.headroom, 0)
        if self.steps is not None:
            at_least("steps", self.steps, 1)

    def init(self) -> BreakEvenState:
        return BreakEvenState()

    def __call__(self, state, observation):
        plan, timing, now = observation.plan, observation.timing, observation.step
        if plan is None:
            return BreakEvenState(now, ran=math.inf), _widen_for_free(
                observation, observation.roomy(0.0)
            )
        if observation.must_grow:
            again = state.ran < timing.compile
            growths = min(state.growths + 1, 32) if again else 0
            new = _grown(observation, self.headroom * (2**growths - 1), self._left(now))
            if again:  # nor is what others have just grown to given up
                new = observation.grid.plan(np.maximum(new.sizes, plan.sizes))
            new = _widen_for_free(observation, new)
            return BreakEvenState(now, 0.0, timing.step(new), growths), new
        step, since = timing.step(plan), max(now - state.step, 1)
        fit = observation.roomy(0.0)
        if fit != plan and fit not in observation.compiled:
            # With the room that growing axes would be given: it is not taken from them.
            fit = _grown(observation, 0.0, self._left(now))
        fitting = timing.step(fit)
        wasted = state.wasted + since * max(step - fitting, 0.0)
        # Looked up only where it matters: this is done at every step.
        price = lambda: timing.compile if _compiled_cover(observation, fit) is None else 0.0
        due = fitting < step and wasted > self.patience * price()
        if due and self._left(now) * (step - fitting) > price():
            return BreakEvenState(now, ran=math.inf), _widen_for_free(observation, fit)
        return BreakEvenState(now, wasted, state.ran + since * step, state.growths), plan

    def _left(self, step: int) -> float:
        """How many steps there still are."""
        return math.inf if self.steps is None else max(self.steps - step, 1)


def _grown(observation: Observation, headroom: float, left: float) -> Plan:
    """The plan to grow to: with room for as many steps as make up for a compilation, of those
    that are left.
    """
    grid, timing, velocity = observation.grid, observation.timing, observation.velocity
    if velocity.still or not timing.scale > 0:
        return observation.roomy(headroom)
    # Nothing is taken to move on for longer than the run has lasted.
    most = int(min(max(observation.step, 1), left))
    horizons = 2 ** np.arange(most.bit_length())
    # From where axes are between two counts: a whole block more is much.
    position = observation.expected + velocity.fraction
    ahead = np.floor(position + velocity.rise(horizons, 1.0) + 1e-9).astype(int)
    waste = [timing.step(sizes) for sizes in grid.fit(ahead)]
    wanted = ahead[np.argmin(timing.compile / horizons + 0.5 * np.array(waste))]
    return grid.plan(grid.fit(with_room(wanted, headroom)))


def _compiled_cover(observation: Observation, plan: Plan) -> Plan | None:
    """A compiled plan that holds this one and costs no more: itself, if it is compiled."""
    if plan in observation.compiled:
        return plan
    cost = observation.timing.units
    # The same one on every process.
    for other in sorted(observation.compiled, key=lambda other: other.sizes.tolist()):
        if (other.sizes >= plan.sizes).all() and cost(other) <= cost(plan):
            return other
    return None


def _widen_for_free(observation: Observation, plan: Plan) -> Plan:
    """A plan that costs as much and is compiled, or has all the room that costs nothing."""
    if (compiled := _compiled_cover(observation, plan)) is not None:
        return compiled
    grid, units = observation.grid, observation.timing.units
    sizes, cost, full = plan.sizes, units(plan), units(grid.capacity)
    larger = grid.fit(sizes + 1)
    for axis in np.flatnonzero(larger > sizes).tolist():
        # Axes that the model never counts may well cost something by the clock. Others are
        # free where they are not computed at all.
        counted = units(_with(grid.capacity, axis, int(sizes[axis]))) < full
        more = _with(sizes, axis, int((grid.capacity if counted else larger)[axis]))
        sizes = more if units(more) <= cost else sizes
    return grid.plan(sizes)


def _with(sizes: Int[np.ndarray, " axes"], axis: int, size: int) -> Int[np.ndarray, " axes"]:
    other = sizes.copy()
    other[axis] = size
    return other
