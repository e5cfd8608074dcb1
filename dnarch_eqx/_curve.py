import abc

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ._masks import AbstractMask
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
