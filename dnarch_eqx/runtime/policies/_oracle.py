import dataclasses

from ..._plan import Plan
from .._policy import AbstractPolicy


@dataclasses.dataclass(frozen=True)
class Oracle(AbstractPolicy[int]):
    """Takes plans at steps that were chosen beforehand, say by
    [`dnarch_eqx.runtime.optimum`][]. A run that turns out otherwise grows when it has to.

    - `switches`: pairs of a step and the plan from then on, by step.

    Raises `ValueError` if the steps are not in their order.
    """

    switches: tuple[tuple[int, Plan], ...]

    def __post_init__(self):
        steps = [step for step, _ in self.switches]
        if steps != sorted(set(steps)):
            raise ValueError(f"`switches` must be in the order of their steps, got {steps}.")

    def init(self) -> int:
        return 0

    def __call__(self, state, observation):
        plan = observation.plan
        while state < len(self.switches) and self.switches[state][0] <= observation.step:
            plan = observation.grid.complete(self.switches[state][1])
            state += 1
        if plan is None or not observation.covered(plan):
            plan = observation.roomy(0.0)
        return state, plan
