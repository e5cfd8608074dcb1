import abc

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ._masks import AbstractMask, bucket_in_range
from ._misc import as_float


class AbstractCurve(AbstractMask):
    """A mask whose values are those of a curve at the coordinates of the positions, zero where
    it lies below the threshold (Eq. 3, 4).
    """

    @abc.abstractmethod
    def coordinates(self) -> np.ndarray:
        """Where the positions of the axis lie, in [-1, 1]."""

    @abc.abstractmethod
    def smooth(self, x: Float[Array, " x"]) -> Float[Array, " x"]:
        """The mask at the coordinates `x`, before the threshold."""

    @abc.abstractmethod
    def cutoff(self) -> Float[Array, ""]:
        """The coordinate $x_{T_m}$ at which the mask meets the threshold (Eq. 5, 6)."""

    def at(self, x: Float[Array, " x"]) -> Float[Array, " x"]:
        """The mask at the coordinates `x`: zero below the threshold."""
        smooth = self.smooth(x)
        # Not `smooth >= threshold`: what is no number is to stay none.
        return jnp.where(smooth < self.threshold, jnp.zeros_like(smooth), smooth)

    def __call__(self, bucket: int | None = None) -> Float[Array, " bucket"]:
        kept = self.window(self.capacity if bucket is None else bucket)
        # Coordinates are constants, the same whatever the bucket: values agree exactly.
        return self.at(as_float(self.coordinates()[kept]))


# A little beyond its place, in positions: at a whole size rounding is not to decide whether a
# position is active.
BEYOND = 1e-3


class AbstractPrefix(AbstractCurve):
    """A curve that falls: the first positions are kept, over an axis of length 2 that begins at
    -1, on which position k lies at size k. It is active as soon as some of it is counted, and
    the active count is the size rounded up. (The paper's last position lies at 1.)
    """

    def coordinates(self) -> np.ndarray:
        # But the first, which no admissible mask is to lose.
        k = np.arange(self.capacity)
        return -1 + 2 * (k + BEYOND * (k > 0)) / self.capacity

    def window(self, bucket: int) -> slice:
        return slice(0, bucket_in_range(bucket, self.capacity))

    def smallest_bucket(self, active: Bool[Array, " capacity"]) -> Int[Array, ""]:
        return jnp.sum(active)

    def unclipped_size(self) -> Float[Array, ""]:
        # Not Eq. 11's unit, which depends on where the mask started: the same for all.
        return (self.cutoff() + 1) * (self.capacity / 2)

    def position(self) -> Float[Array, ""]:
        return self.unclipped_size() + (1 - BEYOND)
