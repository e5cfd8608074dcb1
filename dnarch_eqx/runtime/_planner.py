import threading
import weakref
from collections.abc import Callable, Mapping

import jax
from jaxtyping import PRNGKeyArray, PyTree

from .._budgets import Budgets, listed, missed, stated, warn_of
from .._custom_types import Cost
from .._freeze import freeze
from .._masks import Masks
from .._misc import at_least
from .._plan import Plan
from .._state import State
from ..ladders import buckets as by_rule, Ladder, ladders_of, Rule
from ._accepted import AcceptedInfo
from ._compiler import Compiler
from ._engine import Engine
from ._grid import Grid
from ._learner import Learner
from ._nonfinite import NotFiniteError
from ._planner_state import PlannerState
from ._policy import AbstractPolicy
from ._processes import alone
from ._replay import optimum, Outcome, replay
from ._report import summary
from ._run import Given, Run, same
from ._signature import arguments
from ._timing import host_cost, Timing
from ._trace import Trace
from .policies import BreakEven, Oracle


class Planner:
    """Runs the training step, each time under a plan that covers the masks, while a policy
    decides on the plans. What is learned is in the [`dnarch_eqx.State`][] that goes in and
    comes out; what is planned is `planner.state`, a [`dnarch_eqx.runtime.PlannerState`][].

    Training waits neither for the host nor for compilations: masks are looked at once their
    step is done, growth is foreseen from how fast they move, and the next step is compiled on
    another thread while training goes on under the plan it has. Whatever happens, a step that
    would crop an active position is not accepted: it leaves the state as it was, and is done
    again under a larger plan. So every batch is trained on once, in order.

    !!! Example

        ```python
        planner = dn.Planner(learner, masks)
        for batch, key in zip(data, keys):
            state, info = planner.step(state, batch, key=key)
        state = planner.finish(state)
        print(planner.report())
        ```
    """

    learner: Learner

    def __init__(
        self,
        learner: Learner,
        masks: Masks,
        buckets: Mapping[str, Ladder] | Rule | None = None,
        policy: AbstractPolicy = BreakEven(),
        *,
        cost: Cost | None = None,
        background: bool | None = None,
        headroom: float = 0.05,
        in_flight: int = 8,
        timing: Timing | None = None,
        state: PlannerState | None = None,
    ):
        """**Arguments:**

        - `learner`: the training step.
        - `masks`: the masks, for their names and capacities.
        - `buckets`: the ladders, or a rule for them. By default those of
            [`dnarch_eqx.buckets`][].
        - `policy`: decides on the plans.
        - `cost`: what the time of a step goes with, as a function of the sizes. By default
            the budget's complexity; without a budget the mean share of the capacities.
        - `background`: whether training goes on during compilations. By default in a single
            process whose backend can, by a first measurement.
        - `headroom`: how many more positions the first plan is to hold, as a share of the
            active ones: how fast masks move is not known yet.
        - `in_flight`: how many steps may be under way that were not looked at.
        - `timing`: what plans cost. By default that is measured; with it, and with
            `background=False` and `in_flight=1`, plans follow from masks alone, so that a run
            can be repeated bit for bit.
        - `state`: a planner's state to go on from, say of a run that was stopped.

        Raises `ValueError` for ladders that do not rise or do not end at the capacity, and for
        arguments out of range.
        """
        at_least("headroom", headroom, 0)
        at_least("in_flight", in_flight, 1)
        if not isinstance(policy, AbstractPolicy):
            raise ValueError(f"`policy` must be a policy, as `BreakEven()`, not {policy!r}.")
        if buckets is None or callable(buckets):
            buckets = by_rule(masks, buckets)
        if cost is None and learner.budget is not None:
            cost = listed(learner.budget)[0].cost
        self.learner = learner
        self._masks = dict(masks)
        self._buckets = ladders_of(masks, buckets)
        self._grid = Grid(masks, self._buckets)
        self._engine = Engine(
            learner,
            self._grid,
            policy,
            Compiler(learner, background, timing is None),
            host_cost(cost, self._grid),
            timing,
            headroom,
            in_flight,
            jax.default_backend() != "cpu",
        )
        self._lock = threading.RLock()
        if state is None:
            state = PlannerState.start(policy, self._grid)
        elif state.plan is not None and set(state.plan) != set(self._grid.axes):
            raise ValueError(
                f"`state` is of a run with the axes {list(state.plan)}, not {list(masks)}."
            )
        # All that changes; assigned as a whole.
        self._run = Run(state)

    @property
    def plan(self) -> Plan | None:
        """The plan of the last step, or a larger one where masks have outgrown that since."""
        return self._run.planner.plan

    @property
    def state(self) -> PlannerState:
        """What is planned and measured. To be saved beside the training state, after
        [`dnarch_eqx.Planner.finish`][]: a planner made with it goes on as this one would.
        """
        return self._run.planner

    @property
    def timing(self) -> Timing:
        """What plans cost, as given or as measured until now."""
        return self._engine.timing(self._run)

    @property
    def trace(self) -> Trace:
        """The active counts of every step that was looked at, to be replayed with other
        policies, buckets and costs.
        """
        return self._run.planner.recording.trace(self._grid.axes)

    @property
    def compiling(self) -> bool:
        """Whether a plan is being compiled while training goes on."""
        return self._run.pending is not None

    def step(
        self,
        state: State,
        batch: PyTree,
        *,
        key: PRNGKeyArray | None = None,
        budget: Budgets = None,
    ) -> tuple[State, AcceptedInfo]:
        """One update of weights and masks, see [`dnarch_eqx.Learner.step`][]. Returns before
        it is done.

        **Arguments:**

        - `state`: that of the last step, as it is, moved, edited, or another one.
        - `batch`, `key`: for the loss.
        - `budget`: in place of the learner's.

        **Returns:**

        The new state, and what the step reported: see [`dnarch_eqx.runtime.AcceptedInfo`][].

        Whatever is raised, nothing is lost, and the call can be made again: `ValueError` if
        steps have to be done again and `state` was edited meanwhile; `NotFiniteError` once an
        earlier step is seen to be not finite, see [`dnarch_eqx.make_step`][]; what compiling
        raises, if no compiled step covers the masks. Where one does, it is a warning that names
        the plan.
        """
        rest = arguments(batch, key, self.learner.budget if budget is None else budget)
        with self._lock:
            run, last = self._run.copy(), self._run.last
            if run.given is not None and state is run.given() and state is not run.returned:
                if last is not None and all(a is b for a, b in zip(rest, last.rest)):
                    # The same call once more: an interrupt came before its result was taken.
                    assert run.returned is not None
                    return run.returned, last.info
            self._attempt(run, lambda: self._engine.enter(run, state))
            redone, given = run.redone + len(run.todo), Given(rest, AcceptedInfo(self._again))
            run.todo = (*run.todo, given)
            self._attempt(run, lambda: self._engine.advance(run), given)
            run.clean = run.redone == redone == 0
            run.given, run.last = weakref.ref(state), given
            run.returned, run.redone = run.actual, 0
            self._run = run
            assert run.returned is not None
            return run.returned, given.info

    def finish(self, state: State | None = None) -> State:
        """To be called after the last step, and before a state is saved, evaluated or edited:
        waits for all steps, and does those again that were started under a plan that proved too
        small. `planner.plan` then covers the masks.

        - `state`: that of the last step; not needed.

        Raises `ValueError` if `state` is another one.
        """
        with self._lock:
            run = self._run.copy()
            if run.returned is None:
                if state is None:
                    raise ValueError("No step was made yet: there is no state to give.")
                return state
            if not (state is None or state is run.returned or same(state, run.returned)):
                raise ValueError(
                    "`state` is not the one that the last step returned: older, or edited "
                    "since. `planner.finish()` gives the state with all steps; edit that."
                )
            self._attempt(run, lambda: self._engine.settle(run))
            self._engine.cover(run)
            run.returned, run.redone, run.given = run.actual, 0, None
            self._run = run
            assert run.returned is not None
            return run.returned

    def settle(self, state: State | None = None) -> State:
        """[`dnarch_eqx.Planner.finish`][], and masks at whole sizes at which the budgets are
        met, where they stay: see [`dnarch_eqx.Learner.settle`][].
        """
        return self.learner.settle(self.finish(state))

    def deploy(self, state: State | None = None) -> PyTree:
        """[`dnarch_eqx.Planner.finish`][], and the network to be deployed: see
        [`dnarch_eqx.freeze`][]. With its state, if it has one.

        - `state`: that of the last step, or one that was edited since, settled say.

        Warns ([`dnarch_eqx.BudgetWarning`][]) of a budget that it misses.
        """
        last = self._run.returned
        if state is None or last is None or state is last or same(state, last):
            state = self.finish(state)
        warn_of(missed(self.learner.budget, state.masks, int(state.step)))
        axes = self.learner.axes
        return freeze(state.model, axes, state.masks, model_state=state.model_state)

    def forget(self) -> None:
        """Gives up the batches whose steps were not accepted yet, and the state that they led
        to: to go on from an older or another one.
        """
        with self._lock:
            planner = self._run.planner
            planner = planner.replace(forecast=planner.forecast.none(len(self._grid.axes)))
            self._run = Run(planner, pending=self._run.pending)

    def outcome(self) -> Outcome:
        """What the plans of this run cost, by the timing."""
        planner = self._run.planner
        ran = Oracle(tuple(pair for pair in planner.switches if pair[0] < planner.step))
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
        """Every compilation, what they and the plans cost, and what the network costs as it
        would be deployed, as text.
        """
        outcome, regret = self.outcome(), self.regret()
        text = summary(
            self.learner.compilations, self._engine.compiler.background, outcome.waste, regret
        )
        state = self._run.returned
        if state is not None:
            text = f"{text} {stated(self.learner.budget, state.masks, int(state.step))}".strip()
        return text

    def _again(self) -> None:
        """Does steps again that were not accepted."""
        if not alone():
            raise RuntimeError(
                "This step is to be done again, which all processes do in the next call of "
                "`step` or `finish`: look at it then."
            )
        with self._lock:
            run = self._run.copy()
            self._attempt(run, lambda: self._engine.settle(run))
            self._run = run

    def _attempt(self, run: Run, do: Callable[[], None], given: Given | None = None) -> None:
        """What is said of earlier steps is said once; what else is raised undoes the call."""
        try:
            do()
        except (NotFiniteError, Warning):
            run.todo = tuple(other for other in run.todo if other is not given)
            self._run = run
            raise
