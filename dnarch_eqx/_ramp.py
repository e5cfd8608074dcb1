from collections.abc import Sequence

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from ._curve import AbstractPrefix, BEYOND
from ._made import made
from ._masks import (
    AbstractMask,
    HIGHEST,
    LOWEST,
    names,
    threshold_in_range,
)
from ._misc import as_float, number, positive, replace


class Ramp(AbstractPrefix):
    r"""Keeps a prefix of an axis, and falls linearly at its end: the mask of adaptive attention
    spans (Sukhbaatar et al. 2019) and of DiffStride (Riad et al. 2022, "Learning strides in
    convolutional neural networks"), which puts it on frequencies.

    $m(x) = \min(1, \max(0, (\mu - x) / r))$ where that is at least the threshold, else 0, over
    the axis of [`dnarch_eqx.Sigmoid`][]. The end $\mu$ is learned. Only the positions on the
    ramp give it a gradient.
    """

    offset: Float[Array, ""]
    ramp: Float[Array, ""]
    made: Float[Array, " numbers"] = eqx.field(repr=False)
    capacity: int = eqx.field(static=True)
    threshold: float = eqx.field(static=True)
    learn: tuple[str, ...] = eqx.field(static=True)

    def __init__(
        self,
        capacity: int,
        *,
        size: float | None = None,
        ramp: float | None = None,
        threshold: float = 0.1,
        learn: Sequence[str] = ("offset",),
    ):
        """**Arguments:**

        - `capacity`: how many positions the axis has; at least 2.
        - `size`: the size to start at. By default the largest admissible, at which the last
            position has value 0.85.
        - `ramp`: over how many positions it falls. At most the capacity, and by default 4, as
            in DiffStride, where that has so many.
        - `threshold`: values below it are zero; in (0, 0.85).
        - `learn`: `("offset",)`, or nothing.

        Raises `ValueError` if an argument is out of its range.
        """
        self.capacity = positive("capacity", capacity)
        if capacity < 2:
            raise ValueError(f"`capacity` of a ramp must be at least 2, got {capacity}.")
        self.threshold = threshold_in_range(threshold)
        self.learn = names("learn", learn, ("offset",))
        ramp = min(4.0, capacity) if ramp is None else number("ramp", ramp)
        if not 0 < ramp <= capacity:
            raise ValueError(
                f"`ramp` must lie above 0 and at most at the capacity {capacity}, got {ramp}."
            )
        smallest = (LOWEST - self.threshold) * ramp
        largest = capacity - 1 + BEYOND + (HIGHEST - self.threshold) * ramp
        size = largest if size is None else number("size", size)
        if not smallest <= size <= largest:
            raise ValueError(
                f"`size` must lie between {smallest:.4g} and {largest:.4g}, which are "
                f"admissible with a ramp of {ramp} positions of {capacity}; got {size}."
            )
        self.offset = as_float(2 * (size + self.threshold * ramp) / capacity - 1)
        self.ramp = as_float(ramp)
        self.made = made(self)

    def smooth(self, x: Float[Array, " x"]) -> Float[Array, " x"]:
        offset, ramp = self.learned("offset", "ramp")
        return jnp.clip((offset - as_float(x)) * (self.capacity / (2 * ramp)), 0, 1)

    def cutoff(self) -> Float[Array, ""]:
        offset, ramp = self.learned("offset", "ramp")
        return offset - self.threshold * (2 * ramp / self.capacity)

    def resized(self, size: Float[ArrayLike, ""]) -> AbstractMask:
        if not self.learn:
            return self
        offset = self.offset + (size - self.unclipped_size()) * (2 / self.capacity)
        return replace(self, offset=offset).project()

    def smallest_size(self) -> Float[Array, ""]:
        if not self.learn:
            return self.size()
        return replace(self, offset=jnp.full_like(self.offset, -jnp.inf)).project().size()

    def project(self) -> "Ramp":
        # Beyond them no position would be on the ramp.
        length = 2 * self.ramp / self.capacity
        last = float(self.coordinates()[-1])
        offset = jnp.clip(self.offset, -1 + LOWEST * length, last + HIGHEST * length)
        return replace(self, offset=offset)
