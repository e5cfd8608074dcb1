import math
from collections.abc import Sequence

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from ._curve import AbstractCurve
from ._made import made
from ._masks import AbstractMask, bucket_in_range, HIGHEST, names, threshold_in_range
from ._misc import as_float, number, positive, replace


class Gaussian(AbstractCurve):
    r"""Keeps a centred window of an axis: kernel extents (Eq. 3).

    $m(x) = \exp(-(x - \mu)^2 / 2 \sigma^2)$ where that is at least the threshold, else 0,
    over an odd number of positions that lie evenly on [-1, 1], so that one lies at 0. The
    deviation $\sigma$ is learned, the mean is fixed at 0; `learn` says otherwise.
    """

    sigma: Float[Array, ""]
    mean: Float[Array, ""]
    made: Float[Array, " numbers"] = eqx.field(repr=False)
    capacity: int = eqx.field(static=True)
    threshold: float = eqx.field(static=True)
    learn: tuple[str, ...] = eqx.field(static=True)

    def __init__(
        self,
        capacity: int,
        *,
        size: float | None = None,
        sigma: float | None = None,
        threshold: float = 0.1,
        learn: Sequence[str] = ("sigma",),
    ):
        """**Arguments:**

        - `capacity`: how many positions the axis has; odd, at least 3.
        - `size`: the size to start at. Give this or `sigma`.
        - `sigma`: the deviation to start at, in units of half the axis: the paper uses
            0.0325 (small) and 0.5 (global, the default).
        - `threshold`: values below it are zero; in (0, 0.85).
        - `learn`: which of `sigma` and `mean` have a gradient.

        Raises `ValueError` if an argument is out of its range.
        """
        self.capacity = capacity = positive("capacity", capacity)
        if capacity < 3 or capacity % 2 == 0:
            raise ValueError(
                "`capacity` of a Gaussian mask must be odd, so that a position lies at its "
                f"centre, and at least 3; got {capacity}."
            )
        self.threshold = threshold_in_range(threshold)
        self.learn = names("learn", learn, ("sigma", "mean"))
        # `cutoff_sigmas` sigmas from the mean the mask meets the threshold (Eq. 5).
        cutoff_sigmas = math.sqrt(-2 * math.log(self.threshold))
        lowest, highest = self._admissible()
        if size is not None and sigma is not None:
            raise ValueError("Give one of `size` and `sigma`, not both.")
        if size is not None:
            smallest = 2
            size = number("size", size)
            if not smallest <= size <= capacity:
                raise ValueError(
                    f"`size` must lie between {smallest:.4g}, the smallest admissible, and "
                    f"the capacity {capacity}; got {size}."
                )
            sigma = max(size / (capacity - 1) / cutoff_sigmas, lowest)
        sigma = number("sigma", 0.5 if sigma is None else sigma)
        if not lowest <= sigma <= highest:
            raise ValueError(
                f"`sigma` must lie between {lowest:.4g} (three positions of {capacity} are "
                f"active) and {highest:.4g} (the last has value {HIGHEST}); got {sigma}."
            )
        self.sigma = as_float(sigma)
        self.mean = as_float(0.0)
        self.made = made(self)

    def _admissible(self) -> tuple[float, float]:
        # At the lowest deviation the centre's two neighbours are just active: with the
        # centre alone the mask would be constant, and could never grow again. The upper
        # bound is our choice: it mirrors the one of the sigmoid.
        step = 2 / (self.capacity - 1)
        lowest = (1 + 1e-4) * step / math.sqrt(-2 * math.log(self.threshold))
        highest = 1 / math.sqrt(-2 * math.log(HIGHEST))
        return lowest, highest

    def coordinates(self) -> np.ndarray:
        return np.linspace(-1, 1, self.capacity)

    def window(self, bucket: int) -> slice:
        bucket = bucket_in_range(bucket, self.capacity)
        if bucket % 2 == 0:
            raise ValueError(f"A bucket of a Gaussian mask must be odd, got {bucket}.")
        start = (self.capacity - bucket) // 2
        return slice(start, start + bucket)

    def smooth(self, x: Float[Array, " x"]) -> Float[Array, " x"]:
        sigma, mean = self.learned("sigma", "mean")
        # The bound keeps 1 / sigma^2 finite, so that 0 * inf never makes a NaN gradient.
        z = (as_float(x) - mean) / jnp.maximum(sigma, 1e-8)
        return jnp.exp(-0.5 * z**2)

    def smallest_bucket(self, active: Bool[Array, " capacity"]) -> Int[Array, ""]:
        centre = self.capacity // 2
        distance = np.abs(np.arange(self.capacity) - centre)
        return 1 + 2 * jnp.max(jnp.where(active, distance, 0))

    def cutoff(self) -> Float[Array, ""]:
        sigma, mean = self.learned("sigma", "mean")
        return mean + sigma * math.sqrt(-2 * math.log(self.threshold))

    def unclipped_size(self) -> Float[Array, ""]:
        (mean,) = self.learned("mean")
        # Not Eq. 10's unit, which depends on where the mask started: the extent, which is
        # the active count but for less than one.
        return (self.cutoff() - mean) * (self.capacity - 1)

    def resized(self, size: Float[ArrayLike, ""]) -> AbstractMask:
        if "sigma" not in self.learn:
            return super().resized(size)
        sigma = self.sigma * (size / self.unclipped_size())
        return replace(self, sigma=sigma).project()

    def position(self) -> Float[Array, ""]:
        (mean,) = self.learned("mean")
        return 1 + (self.cutoff() - mean + jnp.abs(mean)) * (self.capacity - 1)

    def smallest_size(self) -> Float[Array, ""]:
        low = jnp.zeros_like(self.sigma) if "sigma" in self.learn else self.sigma
        return replace(self, sigma=low).project().size()

    def project(self) -> "Gaussian":
        sigma = jnp.clip(self.sigma, *self._admissible())
        mean = jnp.clip(self.mean, -1, 1)
        return eqx.tree_at(lambda m: (m.sigma, m.mean), self, (sigma, mean))
