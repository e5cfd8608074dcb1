import dataclasses

from ..._misc import at_least
from .._policy import AbstractPolicy


@dataclasses.dataclass(frozen=True)
class Hysteresis(AbstractPolicy[None]):
    """Shrinks once a step would be so much cheaper, whatever the compilation costs.

    - `slack`: how much dearer the present plan may be: 0.25 is 25 %.
    - `headroom`: of a new plan, see [`dnarch_eqx.runtime.EveryStep`][].
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
        fit = observation.roomy(self.headroom)
        if plan is None or observation.must_grow or step(plan) > (1 + self.slack) * step(fit):
            return state, fit
        return state, plan
