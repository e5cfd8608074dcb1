import dataclasses
import weakref
from concurrent.futures import Future
from typing import Any

import jax.tree_util as jtu

from .._plan import Plan
from .._state import State, StepInfo
from ._accepted import AcceptedInfo
from ._planner_state import PlannerState
from ._program import Program
from ._signature import Key, Signature
from ._stopwatch import Lap
from ._timing import Measured, Timing


@dataclasses.dataclass(frozen=True, eq=False)
class Given:
    """A batch that a planner was given: the arguments of its step, and what is told of it."""

    rest: tuple[Any, Any, Any]  # batch, key, budget
    info: AcceptedInfo


@dataclasses.dataclass(frozen=True, eq=False)
class InFlight:
    """A step that was started and not yet looked at."""

    given: Given
    info: StepInfo


@dataclasses.dataclass(frozen=True, eq=False)
class Pending:
    """A step that another thread compiles.

    - `traced_while_busy`: tracing it kept no device waiting.
    """

    plan: Plan
    key: Key
    program: Program
    future: Future[Any]
    traced_while_busy: bool


class Rejected(Exception):
    """The plan of the steps in flight proved too small: none of them is accepted."""


@dataclasses.dataclass(eq=False)
class Run:
    """Where a run is. Every call works on a copy, which takes the place of the last one at the
    end of the call: whatever is raised in between, Ctrl-C too, the call did not happen.

    Every batch given is in `actual`, in flight, or in `todo`, in this order.

    - `planner`: what decides on plans.
    - `actual`: the state after all steps that were started.
    - `returned`: as the caller has it. It may lack `redone` steps, which were done again since.
    - `given`: the state that the last call was given, with the batch `last`.
    - `clean`: whether that call did no steps again.
    - `todo`: batches whose steps were not accepted, before any new one.
    - `deferred`: a plan that is to be compiled, in so many calls at the latest.
    """

    planner: PlannerState
    actual: State | None = None
    returned: State | None = None
    redone: int = 0
    given: weakref.ref[State] | None = None
    last: Given | None = None
    clean: bool = True
    signature: Signature | None = None
    flight: tuple[InFlight, ...] = ()
    todo: tuple[Given, ...] = ()
    pending: Pending | None = None
    deferred: tuple[Plan, int] | None = None
    lap: Lap | None = None
    # What plans cost, as long as what was measured is this.
    timing: tuple[Measured, Timing] | None = None

    def copy(self) -> "Run":
        """The same, to work on."""
        new = object.__new__(Run)
        new.__dict__.update(self.__dict__)
        return new

    def reject(self) -> None:
        """The steps in flight are to be done again. They left the state as it was."""
        self.todo = (*(step.given for step in self.flight), *self.todo)
        self.redone += len(self.flight)
        self.flight = ()
        self.lap = None
        self.planner = self.planner.replace(forecast=self.planner.forecast.forget())


def same(a: State, b: State) -> bool:
    """Whether two states hold the same arrays, and not only the same values."""
    (xs, one), (ys, two) = jtu.tree_flatten(a), jtu.tree_flatten(b)
    return one == two and all(x is y for x, y in zip(xs, ys))
