import dataclasses
from typing import Any

from ..._misc import at_least
from .._policy import AbstractPolicy
from ._every_step import EveryStep


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
