import dataclasses

import numpy as np
from jaxtyping import Float, Real


# Steps are taken together by so many; spans of so many of these have a mean each.
_BLOCK = 16
_SPANS = np.array([1, 4, 16, 64, 256])
# How many steps each but the last span is gone by for.
_REACH = _BLOCK * _SPANS[:-1]


@dataclasses.dataclass(frozen=True, eq=False)
class Velocity:
    r"""How fast each axis moves, over short spans of steps and long ones. Immutable; plain
    numpy, with an entry an axis.

    Gradients are noisy, and what masks do in a few steps says little of the next thousand. So
    a forecast goes by what was seen over about as many steps as it reaches, from 16 to 4,096,
    and says how sure it is: what only goes back and forth is after $n$ steps no further than
    $\sqrt n$ times what it is after one.

    - `peak`: the fastest of late, in positions a step.
    - `still`: whether no axis is expected to rise, as while all shrink.
    - `fraction`: how much of the next position axes have when last seen, in [0, 1).
    """

    peak: Float[np.ndarray, " axes"]
    # Of blocks: the mean velocity, and the mean square of those that rise alone: an axis that
    # only shrinks needs no room.
    _mean: Float[np.ndarray, "spans axes"]
    _square: Float[np.ndarray, "spans axes"]
    # What follows from these: positions a step, and a root of a step.
    _drift: Float[np.ndarray, "spans axes"]
    _spread: Float[np.ndarray, "spans axes"]
    _steps: int = 0
    _first: Float[np.ndarray, " axes"] | None = None  # of the block
    _last: Float[np.ndarray, " axes"] | None = None
    still: bool = True

    @property
    def fraction(self) -> Float[np.ndarray, " axes"]:
        return np.zeros_like(self.peak) if self._last is None else self._last % 1

    @staticmethod
    def none(axes: int) -> "Velocity":
        """Of axes that were not seen yet: they do not move."""
        zeros = np.zeros((len(_SPANS), axes))
        return Velocity(zeros[0], zeros, zeros, zeros, zeros)

    def update(self, position: Float[np.ndarray, " axes"]) -> "Velocity":
        """With the positions after one more step."""
        if self._last is None or self._first is None:
            return dataclasses.replace(self, _first=position, _last=position)
        first, mean, square = self._first, self._mean, self._square
        drift, spread, still = self._drift, self._spread, self.still
        peak = np.maximum((1 - 1 / _BLOCK) * self.peak, position - self._last)
        steps = self._steps + 1
        if steps < _BLOCK:
            drift = np.maximum(mean + (position - first) / steps, 0.0)
            still = not (drift.any() or spread.any())
        elif steps % _BLOCK == 0:
            # Exponential means, and plain ones until there are as many blocks.
            new = 1 / np.minimum(steps // _BLOCK, _SPANS)[:, None]
            block = (position - first) / _BLOCK
            mean = mean + new * (block - mean)
            square = square + new * (np.maximum(block, 0.0) ** 2 - square)
            # Positions are rounded to float32: what is below that is no movement.
            drift = np.where(mean >= 1e-5, mean, 0.0)
            # The mean over a block has a 16th of the variance of a step.
            spread = np.sqrt(_BLOCK * np.maximum(square - drift**2, 0.0))
            spread = np.where(spread >= 1e-4, spread, 0.0)
            still = not (drift.any() or spread.any())
            first = position
        return Velocity(peak, mean, square, drift, spread, steps, first, position, still)

    def rise(
        self, steps: Real[np.ndarray, "*n"] | float, deviations: float = 0.0
    ) -> Float[np.ndarray, "*n axes"]:
        """By how many positions axes will have risen so many steps from now; not below 0.

        - `steps`: one horizon, or an array of them.
        - `deviations`: how many standard deviations more than expected, or fewer.
        """
        span = np.searchsorted(_REACH, steps)
        if np.ndim(steps):
            steps = np.asarray(steps, float)[:, None]
        rise = steps * self._drift[span]
        if deviations:
            rise += (deviations * steps**0.5) * self._spread[span]
        return np.maximum(rise, 0.0)
