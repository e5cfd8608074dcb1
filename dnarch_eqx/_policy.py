import abc
import dataclasses
import math
from typing import Any, Generic, TypeVar

import numpy as np
from jaxtyping import Int

from ._misc import at_least
from ._timing import Grid, Timing
from ._velocity import Velocity


_State = TypeVar("_State")


@dataclasses.dataclass(frozen=True)
class Observation:
    """What a policy sees before a step.

    - `step`: the step, counted from 0.
    - `active`: the active count of every axis, in the order of the axes' names.
    - `expected`: the largest counts foreseen until a compilation that starts now is done;
        at least `active`.
    - `velocity`: how fast axes move: `velocity.rise(steps)` is by how many positions they grow.
    - `plan`: the present buckets, or `None` before the first step.
    - `grid`: the ladders. `grid.fit(counts)` gives the smallest buckets that hold counts.
    - `timing`: what plans cost.
    """

    step: int
    active: Int[np.ndarray, " axes"]
    expected: Int[np.ndarray, " axes"]
    velocity: Velocity
    plan: Int[np.ndarray, " axes"] | None
    grid: Grid
    timing: Timing

    @property
    def must_grow(self) -> bool:
        """Whether the present plan does not hold what is active or foreseen."""
        return self.plan is None or bool((self.expected > self.plan).any())


class AbstractPolicy(abc.ABC, Generic[_State]):
    """When to give up a plan, and for which.

    A policy is immutable, and a pure function of its state and an observation: on several
    processes it decides alike, and a recorded run can be decided again by another. What it
    answers has to hold `observation.active`, and should hold `observation.expected`.
    """

    @abc.abstractmethod
    def init(self) -> _State:
        """The state to start from."""

    @abc.abstractmethod
    def __call__(
        self, state: _State, observation: Observation
    ) -> tuple[_State, Int[np.ndarray, " axes"]]:
        """The next state, and the buckets to run under: `observation.plan` to stay."""


@dataclasses.dataclass(frozen=True)
class EveryStep(AbstractPolicy[None]):
    """The smallest plan, always: every boundary that is crossed is a compilation.

    - `headroom`: how many more positions a new plan is to hold, as a share of the active
        ones.
    """

    headroom: float = 0.0

    def __post_init__(self):
        at_least("headroom", self.headroom, 0)

    def init(self) -> None:
        return None

    def __call__(self, state, observation):
        return state, observation.grid.fit(_roomy(observation.expected, self.headroom))


@dataclasses.dataclass(frozen=True)
class Every(AbstractPolicy[Any]):
    """Another policy, but asked only every so many steps, or when the plan has to grow.

    - `steps`: how many.
    - `policy`: which.
    """

    steps: int
    policy: AbstractPolicy = EveryStep()

    def __post_init__(self):
        at_least("steps", self.steps, 1)

    def init(self) -> Any:
        return self.policy.init()

    def __call__(self, state, observation):
        plan = observation.plan
        if plan is None or observation.step % self.steps == 0 or observation.must_grow:
            return self.policy(state, observation)
        return state, plan


@dataclasses.dataclass(frozen=True)
class Hysteresis(AbstractPolicy[None]):
    """Shrinks once a step would be so much cheaper, whatever the compilation costs.

    - `slack`: how much dearer the present plan may be: 0.25 is 25 %.
    - `headroom`: of a new plan, see [`dnarch_eqx.EveryStep`][].
    """

    slack: float = 0.25
    headroom: float = 0.05

    def __post_init__(self):
        at_least("slack", self.slack, 0)
        at_least("headroom", self.headroom, 0)

    def init(self) -> None:
        return None

    def __call__(self, state, observation):
        plan, step = observation.plan, observation.timing.step
        fit = observation.grid.fit(_roomy(observation.expected, self.headroom))
        if plan is None or observation.must_grow or step(plan) > (1 + self.slack) * step(fit):
            return state, fit
        return state, plan


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

    **Competitive ratio.** *On traces that only shrink it pays at most twice what the best
    sequence of plans, chosen with the whole trace known, pays.* Let $f_t$ be the smallest
    plan at step $t$, or any that costs the same, $s$ the seconds of a step, monotone in the
    plan, $I = \sum_t s(f_t)$
    the time without waste and $C$ the cost of every compilation. Let there be $k$ switches
    after the first plan, the $i$-th plan taken at step $t_i$, so that it is $f_{t_i}$, and
    let $w_i$ be its waste. We switch *before* the step that would bring the waste above $C$,
    so $w_i \le C$ and our cost is $I + (k + 1) C + \sum_{i=0}^k w_i$. The best sequence
    either compiles in $(t_i, t_{i+1}]$, at $C$, or runs there under a plan taken at or before
    $t_i$, which covers the counts there, so costs $s(f_{t_i})$ or more and wastes at each step
    as much as ours or more: with
    the step at which we switched, more than $C$. After $t_k$ it likewise pays at least
    $\min(C, w_k) = w_k$. So it pays at least $I + (k + 1) C + w_k$, the first plan included,
    and twice that is $2 I + 2 (k + 1) C + 2 w_k$, more than our $I + (k + 1) C + k C + w_k$.

    If compilations differ in cost, the ratio is 2 times that of the dearest to the
    cheapest. When traces also grow no constant holds: an adversary can grow right after every
    shrink. This is the online specialization problem (Hong 2006, DMTCS 8:97), whose best
    ratio is logarithmic in the number of nested plans.

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
            fit = observation.grid.fit(observation.expected)
            return BreakEvenState(now, ran=math.inf), _free(observation, fit)
        if observation.must_grow:
            again = state.ran < timing.compile
            growths = min(state.growths + 1, 32) if again else 0
            new = _grown(observation, self.headroom * (2**growths - 1), self._left(now))
            # Nor is what others have just grown to given up.
            new = _free(observation, np.maximum(new, plan) if again else new)
            return BreakEvenState(now, 0.0, timing.step(new), growths), new
        step, since = timing.step(plan), max(now - state.step, 1)
        fit = observation.grid.fit(observation.expected)
        if (fit != plan).any() and fit.tobytes() not in timing.held:
            # With the room that growing axes would be given: it is not taken from them.
            fit = _grown(observation, 0.0, self._left(now))
        fitting = timing.step(fit)
        wasted = state.wasted + since * max(step - fitting, 0.0)
        # Looked up only where it matters: this is done at every step.
        price = lambda: timing.compile if _held(observation, fit) is None else 0.0
        due = fitting < step and wasted > self.patience * price()
        if due and self._left(now) * (step - fitting) > price():
            return BreakEvenState(now, ran=math.inf), _free(observation, fit)
        return BreakEvenState(now, wasted, state.ran + since * step, state.growths), plan

    def _left(self, step: int) -> float:
        """How many steps there still are."""
        return math.inf if self.steps is None else max(self.steps - step, 1)


@dataclasses.dataclass(frozen=True)
class AtMost(AbstractPolicy[Any]):
    """Another policy, until it has had so many plans; from then on plans only grow, and by
    half at least.

    - `plans`: how many.
    - `policy`: which.
    """

    plans: int
    policy: AbstractPolicy = BreakEven()

    def __post_init__(self):
        at_least("plans", self.plans, 1)

    def init(self) -> Any:
        return 0, self.policy.init()

    def __call__(self, state, observation):
        taken, inner = state
        plan = observation.plan
        if plan is None or taken < self.plans:
            inner, sizes = self.policy(inner, observation)
            changed = plan is None or bool(np.any(sizes != plan))
            return (taken + int(changed), inner), sizes
        if observation.must_grow:
            roomy = observation.grid.fit(_roomy(observation.expected, 0.5))
            return state, np.maximum(roomy, plan)
        return state, plan


@dataclasses.dataclass(frozen=True)
class Oracle(AbstractPolicy[int]):
    """Takes plans at steps that were chosen beforehand, say by [`dnarch_eqx.optimum`][]. A
    run that turns out otherwise grows when it has to.

    - `switches`: pairs of a step and the buckets from then on, by step.
    """

    switches: tuple[tuple[int, tuple[int, ...]], ...]

    def __post_init__(self):
        steps = [step for step, _ in self.switches]
        if steps != sorted(set(steps)):
            raise ValueError(f"`switches` must be in the order of their steps, got {steps}.")

    def init(self) -> int:
        return 0

    def __call__(self, state, observation):
        plan = observation.plan
        while state < len(self.switches) and self.switches[state][0] <= observation.step:
            plan = np.array(self.switches[state][1], int)
            state += 1
        if plan is None or np.any(observation.active > plan):
            plan = observation.grid.fit(observation.expected)
        return state, plan


def _grown(observation: Observation, headroom: float, left: float) -> Int[np.ndarray, " axes"]:
    """The plan to grow to: with room for as many steps as make up for a compilation, of those
    that are left.
    """
    fit, timing = observation.grid.fit, observation.timing
    # Nothing is taken to move on for longer than the run has lasted.
    most = int(min(max(observation.step, 1), left))
    horizons = 2 ** np.arange(most.bit_length())
    rises = observation.velocity.rise(horizons, 1.0)
    wanted = observation.expected
    if timing.scale > 0 and rises.any():
        # From where axes are between two counts: a whole block more is much.
        position = observation.expected + observation.velocity.part
        ahead = np.floor(position + rises + 1e-9).astype(int)
        waste = [timing.step(sizes) for sizes in fit(ahead)]
        wanted = ahead[np.argmin(timing.compile / horizons + 0.5 * np.array(waste))]
    return fit(_roomy(wanted, headroom))


def _held(
    observation: Observation, sizes: Int[np.ndarray, " axes"]
) -> Int[np.ndarray, " axes"] | None:
    """A compiled plan that covers these sizes and costs no more: themselves, if they are."""
    timing = observation.timing
    if sizes.tobytes() in timing.held:
        return sizes
    for plan in sorted(timing.held):  # the same one on every process
        other = np.frombuffer(plan, sizes.dtype)
        if (other >= sizes).all() and timing.cost(other) <= timing.cost(sizes):
            return other
    return None


def _free(
    observation: Observation, sizes: Int[np.ndarray, " axes"]
) -> Int[np.ndarray, " axes"]:
    """A plan that costs as much and is compiled, or has all the room that costs nothing."""
    if (held := _held(observation, sizes)) is not None:
        return held
    timing, grid = observation.timing, observation.grid
    cost, full, next_ = timing.cost(sizes), timing.cost(grid.capacity), grid.fit(sizes + 1)
    for axis in np.flatnonzero(next_ > sizes).tolist():
        # Axes that the model never counts may well cost something by the clock. Others are
        # free where they are not computed at all.
        counted = timing.cost(_with(grid.capacity, axis, int(sizes[axis]))) < full
        more = _with(sizes, axis, int((grid.capacity if counted else next_)[axis]))
        sizes = more if timing.cost(more) <= cost else sizes
    return sizes


def _with(sizes: Int[np.ndarray, " axes"], axis: int, size: int) -> Int[np.ndarray, " axes"]:
    other = sizes.copy()
    other[axis] = size
    return other


def _roomy(counts: Int[np.ndarray, " axes"], headroom: float) -> Int[np.ndarray, " axes"]:
    # Rounded down: a depth of 4 has no room at 0.1. Bounded, so that it is an integer.
    return np.floor(np.minimum(counts * (1 + headroom), 2.0**40)).astype(int)
