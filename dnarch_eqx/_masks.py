import abc
import functools as ft
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import equinox as eqx
import jax.lax as lax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ._misc import as_float, straight_through


# The admissible range (Appx. E.1): at the lowest offset the first position has value
# 0.95, at the largest one the last position has value 0.85.
LOWEST, HIGHEST = 0.95, 0.85


class AbstractMask(eqx.Module):
    """A differentiable mask over the positions of one axis (Section 2, Appx. A).

    A mask is data: a few scalars beside the weights. Everything that the library asks of
    it is a pure function of those.
    """

    capacity: eqx.AbstractVar[int]
    threshold: eqx.AbstractVar[float]
    learn: eqx.AbstractVar[tuple[str, ...]]

    @abc.abstractmethod
    def coordinates(self) -> np.ndarray:
        """Where the positions of the axis lie, in [-1, 1]."""

    @abc.abstractmethod
    def window(self, bucket: int) -> slice:
        """The positions that a bucket of this size keeps."""

    @abc.abstractmethod
    def smooth(self, x: Float[Array, " x"]) -> Float[Array, " x"]:
        """The mask at the coordinates `x`, before the threshold."""

    @abc.abstractmethod
    def extent(self, active: Bool[Array, " capacity"]) -> Int[Array, ""]:
        """The smallest bucket whose window holds all positions marked `active`."""

    @abc.abstractmethod
    def cutoff(self) -> Float[Array, ""]:
        """The coordinate $x_{T_m}$ at which the mask meets the threshold (Eq. 5, 6)."""

    @abc.abstractmethod
    def unclipped_size(self) -> Float[Array, ""]:
        """The continuous size, not limited to the capacity (Eq. 10, 11)."""

    def reach(self) -> Float[Array, ""]:
        """The active count, continuous: it says how far the next one is. A step of a plan
        is foreseen by it; without one, from the counts alone.
        """
        return as_float(self.active())

    @abc.abstractmethod
    def project(self) -> "AbstractMask":
        """The same mask with its parameters in the admissible range (Appx. E.1)."""

    def learned(self, *names: str) -> tuple[Float[Array, ""], ...]:
        """Parameters by their names, without a gradient where they are not learned."""
        values = {name: getattr(self, name) for name in names}
        return tuple(
            value if name in self.learn else lax.stop_gradient(value)
            for name, value in values.items()
        )

    def at(self, x: Float[Array, " x"]) -> Float[Array, " x"]:
        """The mask at the coordinates `x`: zero below the threshold (Eq. 3, 4)."""
        smooth = self.smooth(x)
        return jnp.where(smooth >= self.threshold, smooth, jnp.zeros_like(smooth))

    def __call__(self, bucket: int | None = None) -> Float[Array, " bucket"]:
        """The mask at the positions that `bucket` keeps; by default at all of them."""
        kept = self.window(self.capacity if bucket is None else bucket)
        # Coordinates are constants, the same whatever the bucket: values agree exactly.
        return self.at(as_float(self.coordinates()[kept]))

    def size(self) -> Float[Array, ""]:
        """The continuous size: at most the capacity, by a clip whose gradient passes
        straight through, so that a mask that has reached it can shrink again (Appx. E.1).
        """
        size = self.unclipped_size()
        return straight_through(jnp.minimum(size, self.capacity), size)

    def active(self) -> Int[Array, ""]:
        """How many positions a slice must hold so that no active one is lost: exactly
        the count of positions whose mask is at or above the threshold (of a Gaussian
        whose mean was moved: those of the smallest centred window that holds them).
        """
        return self.extent(self() > 0)


# An immutable view: a dictionary, wherever masks are made.
Masks: TypeAlias = Mapping[str, AbstractMask]


def product(*values: Float[Array, " _"]) -> Float[Array, "..."]:
    """The values of an N-dimensional mask, from those of its N axes (Appx. A.2).

    **Arguments:**

    - `values`: the values on each axis, of shapes `(n1,)`, `(n2,)`, ...

    **Returns:**

    Their outer product, of shape `(n1, n2, ...)`.
    """
    if not values:
        raise ValueError("`product` needs the values of at least one axis.")
    return ft.reduce(jnp.multiply.outer, values)


def positive(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ValueError(f"`{name}` must be a positive integer, got {value!r}.")
    return int(value)


def threshold_in_range(value: float) -> float:
    # Above, the end of a mask at its largest offset would not be active.
    if not 0 < value < HIGHEST:
        raise ValueError(f"`threshold` must lie in (0, {HIGHEST}), got {value}.")
    return float(value)


def names(name: str, given: Sequence[str], allowed: tuple[str, ...]) -> tuple[str, ...]:
    if isinstance(given, str) or not set(given) <= set(allowed):
        raise ValueError(
            f"`{name}` must be a sequence of names among {allowed}, got {given!r}."
        )
    return tuple(given)


def bucket_in_range(bucket: int, capacity: int) -> int:
    if not 0 < bucket <= capacity:
        raise ValueError(f"A bucket must lie between 1 and {capacity}, got {bucket}.")
    return bucket
