import abc
import dataclasses
from typing import Generic, TypeVar

import numpy as np
from jaxtyping import Int

from .._plan import Plan
from ._grid import Grid
from ._timing import Timing
from ._velocity import Velocity


_State = TypeVar("_State")


@dataclasses.dataclass(frozen=True, eq=False)
class Observation:
    """What a policy sees before a step.

    - `step`: the step, counted from 0.
    - `active`: the active count of every axis, in the order of the axes' names.
    - `expected`: the largest counts foreseen until a compilation that starts now is done;
        at least `active`.
    - `velocity`: how fast axes move: `velocity.rise(steps)` is by how many positions they grow.
    - `plan`: the present plan, or `None` before the first step.
    - `grid`: the ladders. `grid.fit(counts)` gives the smallest buckets that hold counts, and
        `grid.plan(sizes)` the plan of buckets.
    - `timing`: what plans cost.
    - `compiled`: the plans that are compiled already, hence free.
    """

    step: int
    active: Int[np.ndarray, " axes"]
    expected: Int[np.ndarray, " axes"]
    velocity: Velocity
    plan: Plan | None
    grid: Grid
    timing: Timing
    compiled: frozenset[Plan] = frozenset()

    @property
    def must_grow(self) -> bool:
        """Whether the present plan does not hold what is active or foreseen."""
        return self.plan is None or bool((self.expected > self.plan.sizes).any())

    def covered(self, plan: Plan | None) -> bool:
        """Whether a plan holds what is active."""
        return plan is not None and bool((self.active <= plan.sizes).all())

    def roomy(self, headroom: float) -> Plan:
        """The smallest plan that holds what is foreseen, and a share more."""
        counts = with_room(self.expected, headroom) if headroom else self.expected
        return self.grid.plan(self.grid.fit(counts))


class AbstractPolicy(abc.ABC, Generic[_State]):
    """When to give up a plan, and for which.

    A policy is immutable, and a pure function of its state and an observation: on several
    processes it decides alike, and a recorded run can be decided again by another. What it
    answers has to hold `observation.active`, and should hold `observation.expected`.

    Its state is a frozen dataclass, a tuple or `None`, of numbers, plans and arrays of NumPy,
    so that it can be saved.
    """

    @abc.abstractmethod
    def init(self) -> _State:
        """The state to start from."""

    @abc.abstractmethod
    def __call__(self, state: _State, observation: Observation) -> tuple[_State, Plan]:
        """The next state, and the plan to run under: `observation.plan` to stay."""


def with_room(counts: Int[np.ndarray, " axes"], headroom: float) -> Int[np.ndarray, " axes"]:
    """So many more positions, as a share. Rounded down: a depth of 4 has no room at 0.1.
    Bounded, so that it is an integer.
    """
    return np.floor(np.minimum(counts * (1 + headroom), 2.0**40)).astype(int)
