import dataclasses

from ..._misc import at_least
from .._policy import AbstractPolicy


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
        return state, observation.roomy(self.headroom)
