import dataclasses

import numpy as np
from jaxtyping import Float, Real


_SPANS = np.array([16, 64, 256, 1024, 4096])


@dataclasses.dataclass(frozen=True, eq=False)
class Velocity:
    r"""How fast each axis moves, over short spans of steps and long ones. Immutable; plain
    numpy, with an entry an axis.

    Gradients are noisy, and what masks do in a few steps says little of the next thousand. So
    a forecast goes by what was seen over about as many steps as it reaches, and says how sure
    it is: what goes back and forth drifts by $n$ after $n$ steps no more than by $\sqrt n$.

    - `peak`: the fastest of late, in positions a step.
    """

    peak: Float[np.ndarray, " axes"]
    _mean: Float[np.ndarray, "spans axes"]
    # Of what rises alone: an axis that only shrinks has no room to be given.
    _square: Float[np.ndarray, "spans axes"]
    _taken: int = 0
    _last: Float[np.ndarray, " axes"] | None = None

    @staticmethod
    def none(axes: int) -> "Velocity":
        """Of axes that were not seen yet: they do not move."""
        return Velocity(np.zeros(axes), *np.zeros((2, len(_SPANS), axes)))

    def update(self, position: Float[np.ndarray, " axes"]) -> "Velocity":
        """With the positions after one more step."""
        if self._last is None:
            return dataclasses.replace(self, _last=position)
        moved = position - self._last
        taken = self._taken + 1
        # Exponential means, and plain ones until there are as many steps.
        new = 1 / np.minimum(taken, _SPANS)[:, None]
        mean = self._mean + new * (moved - self._mean)
        square = self._square + new * (np.maximum(mean[0], 0.0) ** 2 - self._square)
        peak = np.maximum((1 - 1 / _SPANS[0]) * self.peak, moved)
        return Velocity(peak, mean, square, taken, position)

    def rise(
        self, steps: Real[np.ndarray, "*n"] | float, deviations: float = 0.0
    ) -> Float[np.ndarray, "*n axes"]:
        """By how many positions axes will have risen so many steps from now; not below 0.

        - `steps`: one horizon, or an array of them.
        - `deviations`: how many standard deviations more than expected, or fewer.
        """
        steps = np.asarray(steps, float)
        span = np.minimum(np.searchsorted(_SPANS, steps), len(_SPANS) - 1)
        drift = np.maximum(self._mean, 0.0)
        # Positions are rounded to float32: what is below that is no movement.
        drift *= drift >= 1e-5
        rise = steps[..., None] * drift[span]
        if deviations:
            # The mean over n steps has 1 / 2n of the variance of a step.
            spread = np.sqrt(2 * _SPANS[0] * np.maximum(self._square - drift**2, 0.0))
            rise = rise + deviations * np.sqrt(steps)[..., None] * spread[span]
        return np.maximum(rise, 0.0)
