import dataclasses

import numpy as np
from jaxtyping import Float, Int

from ._velocity import Velocity


@dataclasses.dataclass(frozen=True, eq=False)
class Forecast:
    """Where the masks are, and where they will be. Immutable; plain numpy.

    - `velocity`: how fast axes move.
    - `active`: the active counts of the last step that was looked at.
    - `position`: the same before rounding; `None` if the masks are not that step's, moved.
    """

    velocity: Velocity
    active: Int[np.ndarray, " axes"] | None = None
    position: Float[np.ndarray, " axes"] | None = None

    @staticmethod
    def none(axes: int) -> "Forecast":
        """Of masks that were not looked at yet."""
        return Forecast(Velocity.none(axes))

    def update(
        self, active: Int[np.ndarray, " axes"], position: Float[np.ndarray, " axes"]
    ) -> "Forecast":
        """With one more step."""
        return Forecast(self.velocity.update(position), active, position)

    def forget(self) -> "Forecast":
        """Where masks are is not known; how fast they move is."""
        return Forecast(self.velocity, self.active)

    def bound(self, steps: int, capacity: Int[np.ndarray, " axes"]) -> Int[np.ndarray, " axes"]:
        """What the active counts hardly exceed so many steps later."""
        return self._moved(steps * self.velocity.peak, capacity)

    def expected(
        self, steps: float, capacity: Int[np.ndarray, " axes"]
    ) -> Int[np.ndarray, " axes"]:
        """The active counts that are expected to be exceeded so many steps later, unless
        they only went back and forth.
        """
        rise = 0.0 if self.velocity.still else self.velocity.rise(steps, -1.0)
        return self._moved(rise, capacity)

    def _moved(
        self, by: Float[np.ndarray, " axes"] | float, capacity: Int[np.ndarray, " axes"]
    ) -> Int[np.ndarray, " axes"]:
        assert self.position is not None
        return np.minimum(self.position + by, capacity).astype(int)
