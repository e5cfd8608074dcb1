"""Policies that do not look at the clock, so that a run can be repeated bit for bit."""

import dataclasses
from typing import Any

import numpy as np

import dnarch_eqx as dn


@dataclasses.dataclass(frozen=True)
class Supposed(dn.AbstractPolicy[Any]):
    """Another policy, told that times are what they are supposed to be: a step takes its
    complexity, without overhead, and a compilation always the same.

    What is measured differs from run to run; with it plans would, and with plans the rounding,
    and on resolutions the network itself.

    - `compile`: what a compilation takes, in the units of the complexity.
    """

    compile: float
    policy: dn.AbstractPolicy = dn.BreakEven()

    def init(self) -> Any:
        return self.policy.init()

    def __call__(self, state, observation):
        # Nor does it count what is compiled already: after an interruption nothing is.
        timing = observation.timing.replace(
            compile=self.compile, scale=1.0, overhead=0.0, held=frozenset()
        )
        return self.policy(state, dataclasses.replace(observation, timing=timing))


@dataclasses.dataclass(frozen=True)
class Onward(dn.AbstractPolicy[Any]):
    """Another policy, from a plan on that a run has already.

    - `plan`: the buckets, in the order of the axes' names.
    """

    plan: tuple[int, ...]
    policy: dn.AbstractPolicy

    def init(self) -> Any:
        return self.policy.init()

    def __call__(self, state, observation):
        plan = np.array(self.plan, int)
        if observation.plan is not None or np.any(observation.active > plan):
            return self.policy(state, observation)
        # What it would have begun with is not taken.
        return self.policy(state, observation)[0], plan
