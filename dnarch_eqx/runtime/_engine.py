import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from .._plan import counts, Plan
from .._state import State
from ._compiler import Compiler
from ._grid import Grid
from ._learner import Learner
from ._nonfinite import NotFiniteError, raised, skipped
from ._policy import AbstractPolicy
from ._processes import alone
from ._program import Program
from ._run import Given, InFlight, Rejected, Run, same
from ._signature import is_ready, Key
from ._stopwatch import timed
from ._timing import Timing


_Counts = Int[np.ndarray, " axes"]


@dataclasses.dataclass(frozen=True, eq=False)
class Engine:
    """What a planner does with a run: it has nothing of its own that changes. See
    [`dnarch_eqx.Planner`][] for the fields.
    """

    learner: Learner
    grid: Grid
    policy: AbstractPolicy
    compiler: Compiler
    cost: Callable[[Any], float]
    fixed: Timing | None
    headroom: float
    in_flight: int
    fetches: bool

    def timing(self, run: Run) -> Timing:
        """What plans cost."""
        if self.fixed is not None:
            return self.fixed
        measured = run.planner.measured
        if run.timing is None or run.timing[0] is not measured:
            run.timing = measured, measured.timing(self.cost)
        return run.timing[1]

    def enter(self, run: Run, state: State) -> None:
        """Goes on from this state: the one returned last, an edited or another one, or that
        which the last call was given, if its result was lost.

        Raises `ValueError` if the state lacks steps that were or are to be done again.
        """
        if run.returned is not None and state is run.returned:
            return
        signature = self.learner.signature(state)
        if run.given is not None and state is run.given():
            if run.clean and not run.redone and run.flight and run.flight[-1].given is run.last:
                # As if the last call had not been made.
                run.flight = run.flight[:-1]
                run.actual, run.returned, run.signature = state, state, signature
                return
        elif run.returned is not None and same(state, run.returned):
            run.returned = state
            run.actual = state if not run.redone else run.actual
            return
        try:
            self.collect(run, ahead=0)
        except Rejected:
            run.reject()
        if run.redone or run.todo:
            raise ValueError(
                f"`state` is not the one that the last step returned, and lacks {run.redone} "
                "batches given before, whose steps had to be done again. Nothing is lost: "
                "`planner.finish()` gives the state with all of them. Call it before you edit, "
                "replace or average a state; `planner.forget()` gives these batches up."
            )
        self.grid.check(state.masks)
        # A planner that goes on from a saved state knows how masks move.
        if run.returned is not None or run.planner.step == 0:
            run.planner = run.planner.replace(
                forecast=run.planner.forecast.none(len(self.grid.axes))
            )
        run.actual, run.returned, run.signature = state, state, signature
        run.lap, run.deferred = None, None

    def advance(self, run: Run) -> None:
        """Starts the steps of all batches that are to be done."""
        while run.todo:
            given = run.todo[0]
            try:
                self.collect(run, self.in_flight - 1)
                program = self._prepare(run, given)
            except Rejected:
                run.reject()
                continue
            self._start(run, program, given)

    def settle(self, run: Run) -> None:
        """Until all steps are accepted."""
        while run.todo or run.flight:
            self.advance(run)
            try:
                self.collect(run, ahead=0)
            except Rejected:
                run.reject()

    def cover(self, run: Run) -> None:
        """Has a plan that holds what is active after the last step; it may not be compiled."""
        assert run.actual is not None
        active = self._counted(run.actual)
        plan = run.planner.plan
        if plan is None or (active > plan.sizes).any():
            self._ask(run, active, active, frozenset(run.planner.compiled))

    def collect(self, run: Run, ahead: int) -> None:
        """Takes in the steps that are done; waits until no more than `ahead` are not.

        Raises `Rejected` if one was not accepted, `NotFiniteError` if one is not finite and the
        learner says so.
        """
        while run.flight:
            step = run.flight[0]
            # Several processes see the same only if they look at the same step.
            waits = len(run.flight) > ahead
            if not (waits or (alone() and is_ready(step.info.signals))):
                return
            active, position = np.asarray(step.info.signals)
            if not active[0]:
                raise Rejected
            run.flight = run.flight[1:]
            run.planner = run.planner.saw(active[1:].astype(int), position[1:])
            self._time(run)
            if not position[0]:
                self._notice(run, np.asarray(step.info.flags))

    def _start(self, run: Run, program: Program, given: Given) -> None:
        assert run.actual is not None and run.signature is not None
        new, info, signature = self.learner.run(program, run.actual, run.signature, given.rest)
        if self.fetches:
            info.signals.copy_to_host_async()
        given.info.start(info)
        run.todo = run.todo[1:]
        run.flight = (*run.flight, InFlight(given, info))
        run.actual, run.signature = new, signature

    def _prepare(self, run: Run, given: Given) -> Program:
        """A compiled step whose plan covers the masks, as far as is foreseen."""
        assert run.actual is not None and run.signature is not None
        key = self.learner.key(run.signature, given.rest)
        active, expected = self._foresee(run)
        covers = lambda plan: plan is not None and bool((active <= plan.sizes).all())
        wait = run.pending is not None and not covers(run.planner.plan)
        new = self.compiler.receive(run, wait)
        if new is not None and covers(new) and self._is_wanted(run, new, expected):
            self._switch(run, new)
        if run.pending is None:
            self._choose(run, given, key, active, expected)
        plan = run.planner.plan
        assert plan is not None
        program = self.learner.store.get(plan, key)
        return self.compiler.now(run, given, key, plan) if program is None else program

    def _choose(
        self, run: Run, given: Given, key: Key, active: _Counts, expected: _Counts
    ) -> None:
        """Asks the policy for a plan. Switches to it, or has it compiled if training can go on
        under another.
        """
        covers = lambda plan: plan is not None and bool((active <= plan.sizes).all())
        store, before = self.learner.store, run.planner.plan
        if run.deferred is not None and covers(run.deferred[0]):
            target = run.deferred[0]
        else:
            free = frozenset(run.planner.compiled)
            target = self._ask(run, active, expected, free, switch=False)
        if target == before:
            return
        if store.get(target, key) is not None:
            return self._switch(run, target)
        order = lambda plan: (self.timing(run).step(plan), plan.sizes.tolist())
        held = [] if covers(before) else sorted(filter(covers, store.plans(key)), key=order)
        if held and (self.compiler.background or target in run.planner.failed):
            self._switch(run, held[0])
        if covers(run.planner.plan):
            if target in run.planner.failed:
                return
            if self.compiler.background:
                return self._later(run, given, key, target)
        try:
            self.compiler.now(run, given, key, target)
        except Exception as error:
            if not (held or covers(run.planner.plan)):
                raise
            self.compiler.fail(run, target, error)
            # A larger one stands in.
            return self._switch(run, held[0]) if held else None
        self._switch(run, target)

    def _later(self, run: Run, given: Given, key: Key, target: Plan) -> None:
        """Starts to compile once enough steps are under way to keep the device busy while this
        thread traces.
        """
        # The policy may have taken so long that they are done.
        self.collect(run, self.in_flight - 1)
        calls = self.in_flight if run.deferred is None else run.deferred[1]
        if calls > 0 and len(run.flight) < self.in_flight - 1:
            run.deferred = (target, calls - 1)
            return
        run.deferred = None
        self.compiler.later(run, given, key, target)

    def _ask(
        self,
        run: Run,
        active: _Counts,
        expected: _Counts,
        compiled: frozenset[Plan],
        switch: bool = True,
    ) -> Plan:
        run.planner, plan = run.planner.decide(
            self.policy,
            self.grid,
            self.timing(run),
            active,
            expected,
            compiled=compiled,
            ahead=len(run.flight),
        )
        if switch:
            self._switch(run, plan)
        return plan

    def _switch(self, run: Run, plan: Plan) -> None:
        # No step may be accepted after one that was not.
        self.collect(run, ahead=0)
        run.deferred = None
        run.planner = run.planner.switched(plan)

    def _is_wanted(self, run: Run, plan: Plan, expected: _Counts) -> bool:
        """Whether a plan that was compiled for what was expected then is good now."""
        before, units = run.planner.plan, self.timing(run).units
        if before is None or (expected > before.sizes).any():
            return True
        return units(plan) < units(before)

    def _foresee(self, run: Run) -> tuple[_Counts, _Counts]:
        """The active counts of the next step, and the largest until a compilation that starts
        now could be done.
        """
        plan, capacity = run.planner.plan, self.grid.capacity
        if run.planner.forecast.position is None or plan is None:
            assert run.actual is not None
            active = self._counted(run.actual)  # this waits
            roomy = active * (1 + (self.headroom if plan is None else 0.0))
            return active, np.minimum(roomy, capacity).astype(int)
        bound = run.planner.forecast.bound(len(run.flight) + 1, capacity)
        if run.deferred is None and len(run.flight) > 1 and (bound > plan.sizes).any():
            # Close to a boundary: one step is started ahead, even if it may be rejected.
            self.collect(run, ahead=1)
            bound = run.planner.forecast.bound(len(run.flight) + 1, capacity)
        forecast = run.planner.forecast
        # What is foreseen is rounded, the last count is not.
        assert forecast.active is not None
        active = np.maximum(np.minimum(bound, plan.sizes), forecast.active)
        if not self.compiler.background:
            return active, active
        step, seconds = self.timing(run).step(plan), run.planner.measured.seconds
        horizon = min(1.25 * seconds / step, 1e4) if step > 0 else 0.0
        ahead = forecast.expected(len(run.flight) + 1 + horizon, capacity)
        return active, np.maximum(active, ahead)

    def _counted(self, state: State) -> _Counts:
        now = counts(state.masks)
        return np.array([now[axis] for axis in self.grid.axes], int)

    def _time(self, run: Run) -> None:
        """One more step is done. What goes on during a compilation is slower, and not timed."""
        if self.fixed is not None or run.pending is not None:
            run.lap = None
            return
        assert run.planner.plan is not None
        run.lap, measured = timed(run.lap, run.planner.plan, run.planner.measured, self.cost)
        if measured is not run.planner.measured:
            run.planner = run.planner.replace(measured=measured)

    def _notice(self, run: Run, flags: Bool[np.ndarray, " flags"]) -> None:
        """Something of the step that was looked at last is not finite."""
        how, step = self.learner.on_nonfinite, run.planner.step - 1
        assert run.actual is not None
        if how == "raise":
            raise NotFiniteError(raised(run.actual, flags, step))
        if how == "skip":
            warnings.warn(skipped(run.actual, flags, step))
