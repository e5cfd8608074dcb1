import collections
import dataclasses
import weakref
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Int, PRNGKeyArray, PyTree

from ._clock import Clock
from ._compiler import Compiler, is_ready
from ._custom_types import Cost
from ._learner import Aux, Learner, State
from ._masks import Masks
from ._misc import at_least
from ._motion import Motion
from ._plan import counts, Ladder, Plan
from ._policy import AbstractPolicy, BreakEven, Observation, Oracle
from ._report import table
from ._timing import Grid, host_cost, Timing
from ._trace import optimum, Outcome, replay, Trace


_Sizes = Int[np.ndarray, " axes"]


@dataclasses.dataclass(frozen=True)
class _Flight:
    """A step that was started and not yet looked at."""

    aux: Aux
    sizes: _Sizes
    batch: PyTree
    key: Any


@dataclasses.dataclass(frozen=True)
class _Wish:
    """A plan that is to be compiled, in so many calls at the latest."""

    sizes: _Sizes
    calls: int


class Planner:
    """Runs the training step, each time under a plan that covers the masks, while a policy
    decides on the plans. What is planned, measured and compiled meanwhile lies here; what is
    learned is in the [`dnarch_eqx.State`][] that goes in and comes out.

    Training waits neither for the host nor for compilations: masks are looked at once their
    step is done, growth is foreseen from how fast they move, and the next step is compiled on
    another thread while training goes on under the plan it has. Whatever happens, a step that
    would crop an active position is not accepted: it leaves the state as it was, and is done
    again under a larger plan. Where masks come close to a boundary only one step is started
    ahead, so that little is lost.

    !!! Example

        ```python
        planner = dn.Planner(learner, masks, buckets)
        for batch, key in zip(data, keys):
            state, aux = planner.step(state, batch, key=key)
        state = planner.finish(state)
        print(planner.report())
        ```
    """

    learner: Learner
    plan: Plan | None

    def __init__(
        self,
        learner: Learner,
        masks: Masks,
        buckets: Mapping[str, Ladder],
        policy: AbstractPolicy = BreakEven(),
        *,
        cost: Cost | None = None,
        background: bool | None = None,
        headroom: float = 0.05,
        in_flight: int = 8,
    ):
        """**Arguments:**

        - `learner`: the training step.
        - `masks`: the masks, for their names and capacities.
        - `buckets`: the ladders.
        - `policy`: decides on the plans.
        - `cost`: what the time of a step goes with, as a function of the sizes. By default
            the budget's complexity; without a budget the mean share of the capacities.
        - `background`: whether training goes on during compilations. By default in a single
            process whose backend can, by a first measurement.
        - `headroom`: how many more positions the first plan is to hold, as a share of the
            active ones: how fast masks move is not known yet.
        - `in_flight`: how many steps may be under way that were not looked at.

        Raises `ValueError` for ladders that do not rise or do not end at the capacity.
        """
        at_least("headroom", headroom, 0)
        at_least("in_flight", in_flight, 1)
        if cost is None and learner.budget is not None:
            cost = learner.budget.cost
        self.learner = learner
        self.plan = None
        self._masks, self._buckets = dict(masks), dict(buckets)
        self._grid = Grid(masks, buckets)
        self._policy = policy
        self._memory = policy.init()
        self._headroom = headroom
        self._in_flight = in_flight
        self._alone = jax.process_count() == 1
        self._fetches = jax.default_backend() != "cpu"
        timing = Timing(host_cost(cost, self._grid), compile=0.0, scale=0.0)
        self._clock = Clock(timing)
        self._compiler = Compiler(learner, self._grid, self._clock, background)
        self._sizes: _Sizes | None = None
        self._wish: _Wish | None = None
        self._switches: list[tuple[int, tuple[int, ...]]] = []
        self._flight: collections.deque[_Flight] = collections.deque()
        self._rejected: list[_Flight] = []
        self._last: weakref.ref[State] | None = None
        self._motion = Motion(self._grid)

    def step(
        self, state: State, batch: PyTree, *, key: PRNGKeyArray | None = None
    ) -> tuple[State, Aux]:
        """One update of weights and masks, see [`dnarch_eqx.Learner.step`][]. Returns before
        it is done.

        A compilation that fails is a warning that names its plan, and training goes on under
        the plan that it has. It is an error only where no compiled step covers the masks:
        then nothing is lost, and the call can be made again.
        """
        if self._last is None or self._last() is not state:
            self._adopt()
        self._look()
        self._decide(state, batch, key)
        while self._rejected:
            state = self._again(state)
            self._decide(state, batch, key)
        return self._run(state, batch, key)

    def finish(self, state: State) -> State:
        """To be called after the last step, with its state: waits for all steps, and does
        those again that were started under a plan that proved too small.
        """
        while self._flight and self._last is not None and self._last() is state:
            self._look(ahead=0)
            state = self._again(state)
        return state

    @property
    def timing(self) -> Timing:
        """What plans cost, as measured until now."""
        return self._clock.timing

    @property
    def trace(self) -> Trace:
        """The active counts of every step that was looked at, to be replayed with other
        policies, buckets and costs.
        """
        return self._motion.trace

    def outcome(self) -> Outcome:
        """What the plans of this run cost, by the timing measured."""
        ran = Oracle(
            tuple((at, sizes) for at, sizes in self._switches if at < self._motion.seen)
        )
        args = (self._masks, self._buckets, self.timing)
        return replay(self.trace, ran, *args, keep=self.learner.keep)

    def regret(self) -> float:
        """What the plans of this run cost over what the best would have, chosen with the
        whole run known; compilations included.
        """
        args = (self._masks, self._buckets, self.timing)
        best = optimum(self.trace, *args)
        return self.outcome().seconds / replay(self.trace, best, *args).seconds

    def report(self) -> str:
        """Every compilation, and what they and the plans cost, as text."""
        compilations = self.learner.compilations
        rows = [("step", "seconds", "hidden", "cache", "changes")]
        for c in compilations:
            listed = [f"{axis} {a}->{b}" for axis, (a, b) in c.changes.items()]
            more = f", and {len(listed) - 3} more" if len(listed) > 3 else ""
            changes = ", ".join(listed[:3]) + more
            cells = (f"{c.seconds:.2f}", f"{c.hidden / c.seconds:.0%}")
            rows.append((str(c.call), *cells, "hit" if c.cached else "miss", changes or "new"))
        total = sum(c.seconds for c in compilations)
        hidden = sum(c.hidden for c in compilations)
        mode = "in the background" if self._compiler.background else "while training waits"
        return (
            f"{table(rows)}\n\n{len(compilations)} compilations ({mode}): {total:.1f} s, "
            f"{hidden / max(total, 1e-9):.0%} of it hidden behind steps. Operations over those "
            f"of exact sizes: {self.outcome().waste:.3f}. Cost over that of the best plans: "
            f"{self.regret():.2f}."
        )

    def _adopt(self) -> None:
        """Another state than the last: what was known of the masks does not hold for it."""
        self._flight.clear()
        self._rejected.clear()
        self._wish = None
        self._motion.restart()
        self._clock.restart()

    def _look(self, ahead: int | None = None) -> None:
        """Takes in the steps that are done; waits until no more than `ahead` are not."""
        ahead = self._in_flight - 1 if ahead is None else ahead
        while self._flight and (
            self._rejected
            or len(self._flight) > ahead
            # Several processes see the same only if they look at the same step.
            or (self._alone and is_ready(self._flight[0].aux.active))
        ):
            flight = self._flight.popleft()
            if not self._see(flight):
                self._rejected.append(flight)

    def _see(self, flight: _Flight) -> bool:
        """Whether the step was accepted."""
        if not self._motion.see(flight.aux):
            return False
        if self._compiler.busy:
            self._clock.restart()  # steps are slower meanwhile
        else:
            self._clock.saw(flight.sizes)
        return True

    def _again(self, state: State) -> State:
        """Does steps again that were not accepted, in their order."""
        rejected, self._rejected = self._rejected, []
        for flight in rejected:
            self._motion.lose()
            self._decide(state, flight.batch, flight.key)
            state, _ = self._run(state, flight.batch, flight.key)
        return state

    def _foresee(self, state: State) -> tuple[_Sizes, _Sizes]:
        """The active counts of `state`, and the largest until a compilation could be done."""
        if not self._motion.known or self._sizes is None:
            now = counts(state.masks)  # this waits
            active = np.array([now[axis] for axis in self._grid.axes], int)
            roomy = active * (1 + (self._headroom if self._sizes is None else 0.0))
            return active, np.minimum(roomy, self._grid.capacity).astype(int)
        active = self._motion.bound(len(self._flight) + 1)
        if self._wish is None and (active > self._sizes).any():
            # Close to a boundary: one step is started ahead, even if it may be rejected.
            self._look(ahead=1)
            active = self._motion.bound(len(self._flight) + 1)
        # What is foreseen is rounded, the last count is not.
        active = np.maximum(np.minimum(active, self._sizes), self._motion.last())
        if not self._compiler.background:
            return active, active
        step = self.timing.step(self._sizes)
        horizon = 1.25 * self._compiler.seconds / step if step > 0 else 0.0
        ahead = self._motion.expected(len(self._flight) + 1 + min(horizon, 1e4))
        return active, np.maximum(active, ahead)

    def _decide(self, state: State, batch: PyTree, key) -> None:
        """Has a plan that covers the masks of `state`, and asks the policy for a better."""
        active, expected = self._foresee(state)
        if self._rejected:
            return  # what is foreseen is of a state that did not come to be
        covers = lambda sizes: sizes is not None and bool((active <= sizes).all())
        waiting = self._compiler.busy and not covers(self._sizes)
        new = self._compiler.receive(wait=waiting)
        if new is not None and covers(new) and self._wanted(new, expected):
            self._switch(new)
        if self._compiler.busy or self._rejected:
            return
        timing = self._compiler.timing()
        seen = Observation(
            self._motion.seen + len(self._flight),
            active,
            expected,
            self._motion.velocity,
            self._sizes,
            self._grid,
            timing,
        )
        if self._wish is None or not covers(self._wish.sizes):
            memory, target = self._policy(self._memory, seen)
        else:
            memory, target = self._memory, self._wish.sizes
        target = np.asarray(target, int)  # by whose bytes plans are known
        if not covers(target):
            raise ValueError(
                f"{self._policy} gave {self._grid.plan(target)}, which does not cover the "
                f"active counts {dict(zip(self._grid.axes, active.tolist()))}."
            )
        if self._sizes is None or (target != self._sizes).any():
            self._get(state, batch, key, target, covers, timing.held)
        self._memory = memory

    def _wanted(self, sizes: _Sizes, expected: _Sizes) -> bool:
        """Whether plans that were compiled for what was expected then are good now."""
        if self._sizes is None or (expected > self._sizes).any():
            return True
        return self.timing.cost(sizes) < self.timing.cost(self._sizes)

    def _get(self, state: State, batch: PyTree, key, target: _Sizes, covers, held) -> None:
        """Switches to a plan, or starts to compile it if training can go on under another."""
        if target.tobytes() in held:
            return self._switch(target)
        if not covers(self._sizes):
            others = [np.frombuffer(other, target.dtype) for other in held]
            if covering := list(filter(covers, others)):
                self._switch(min(covering, key=self.timing.step))
        if covers(self._sizes):
            if self._compiler.failed(target):
                return None
            if self._compiler.background:
                return self._later(state, batch, key, target)
        try:
            self._compiler.now(state, batch, key, target)
        except Exception as error:
            if not covers(self._sizes):
                raise
            return self._compiler.fail(target, error)
        self._switch(target)

    def _later(self, state: State, batch: PyTree, key, target: _Sizes) -> None:
        """Starts to compile once enough steps are under way to keep the device busy while this
        thread traces.
        """
        # The policy may have taken so long that they are done.
        self._look()
        if self._rejected:
            return
        calls = self._in_flight if self._wish is None else self._wish.calls
        if calls > 0 and len(self._flight) < self._in_flight - 1:
            self._wish = _Wish(target, calls - 1)
            return
        self._wish = None
        last = self._flight[-1].aux.active if self._flight else None
        self._compiler.later(state, batch, key, target, last)

    def _switch(self, sizes: _Sizes) -> None:
        # No step may be accepted after one that was not.
        self._look(ahead=0)
        self._wish = None
        self._sizes, self.plan = sizes, self._grid.plan(sizes)
        self._switches.append((self._motion.seen, tuple(sizes.tolist())))

    def _run(self, state: State, batch: PyTree, key) -> tuple[State, Aux]:
        assert self.plan is not None and self._sizes is not None
        known, new, aux = self.learner._call(state, batch, self.plan, key)
        self._compiler.ran(self._sizes, known)
        if self._fetches:
            for x in (aux.covered, aux.active, aux.reach):
                x.copy_to_host_async()
        self._flight.append(_Flight(aux, self._sizes, batch, key))
        self._last = weakref.ref(new)
        return new, aux
