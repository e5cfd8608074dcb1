import abc
import functools as ft
import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import equinox as eqx
import jax.lax as lax
import jax.nn as jnn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ._misc import as_float, straight_through


# The admissible range (Appx. E.1): at the lowest offset the first position has value
# 0.95, at the largest one the last position has value 0.85.
_LOWEST, _HIGHEST = 0.95, 0.85

# Below the first the range above is (nearly) empty, beyond the second float32 overflows.
_MIN_TEMPERATURE, _MAX_TEMPERATURE = 1.0, 1e30


def _logit(p: float) -> float:
    return math.log(p / (1 - p))


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


class Sigmoid(AbstractMask):
    r"""Keeps a prefix of an axis: widths, depths, resolutions (Eq. 4).

    $m(x) = \sigma(\tau (\mu - x))$ where that is at least the threshold, else 0, over
    positions that lie evenly on [-1, 1]. The offset $\mu$ is learned, the temperature
    $\tau$ is not; `learn` says otherwise.
    """

    offset: Float[Array, ""]
    temperature: Float[Array, ""]
    capacity: int = eqx.field(static=True)
    unit: float = eqx.field(static=True)
    threshold: float = eqx.field(static=True)
    learn: tuple[str, ...] = eqx.field(static=True)

    def __init__(
        self,
        capacity: int,
        *,
        size: float | None = None,
        temperature: float = 25.0,
        threshold: float = 0.1,
        learn: Sequence[str] = ("offset",),
    ):
        """**Arguments:**

        - `capacity`: how many positions the axis has.
        - `size`: the size to start at. By default the largest admissible offset, whose
            size is the capacity: the last position has value 0.85. That is how the paper
            starts its resolutions.
        - `temperature`: how steep the mask is, on an axis of length 2. The smallest
            admissible size is `2.57 / temperature` of the capacity.
        - `threshold`: values below it are zero; in (0, 0.85).
        - `learn`: which of `offset` and `temperature` have a gradient.

        Raises `ValueError` if an argument is out of its range.
        """
        self.capacity = _positive("capacity", capacity)
        self.threshold = _threshold(threshold)
        self.learn = _names("learn", learn, ("offset", "temperature"))
        if not _MIN_TEMPERATURE <= temperature <= _MAX_TEMPERATURE:
            raise ValueError(
                f"`temperature` must lie between {_MIN_TEMPERATURE} (below it no offset is "
                f"admissible) and {_MAX_TEMPERATURE}, got {temperature}."
            )
        tail = _logit(1 - threshold) / temperature
        # Eq. 11: what one unit of the coordinate is worth. Half the capacity on an axis
        # of length 2, unless the mask starts at its largest offset and is worth N there.
        if size is None:
            offset = 1 + _logit(_HIGHEST) / temperature
            self.unit = capacity / (offset + tail + 1)
        else:
            self.unit = capacity / 2
            smallest = self.unit * (_logit(_LOWEST) / temperature + tail)
            if not smallest <= size <= capacity:
                raise ValueError(
                    f"`size` must lie between {smallest:.4g}, the smallest admissible at "
                    f"temperature {temperature}, and the capacity {capacity}; got {size}. A "
                    "higher temperature admits smaller sizes."
                )
            offset = size / self.unit - 1 - tail
        self.offset = as_float(offset)
        self.temperature = as_float(temperature)

    def coordinates(self) -> np.ndarray:
        return np.linspace(-1, 1, self.capacity)

    def window(self, bucket: int) -> slice:
        return slice(0, _bucket(bucket, self.capacity))

    def smooth(self, x: Float[Array, " x"]) -> Float[Array, " x"]:
        offset, temperature = _parameters(self)
        # Not 1 - 1 / (1 + exp(...)) as printed: the gradient of that exp overflows.
        z = temperature * (offset - as_float(x))
        return jnn.sigmoid(z)

    def extent(self, active: Bool[Array, " capacity"]) -> Int[Array, ""]:
        return jnp.sum(active)

    def cutoff(self) -> Float[Array, ""]:
        offset, temperature = _parameters(self)
        return offset + _logit(1 - self.threshold) / temperature

    def unclipped_size(self) -> Float[Array, ""]:
        return (self.cutoff() + 1) * self.unit

    def reach(self) -> Float[Array, ""]:
        return 1 + 0.5 * (self.cutoff() + 1) * (self.capacity - 1)

    def project(self) -> "Sigmoid":
        temperature = jnp.maximum(self.temperature, _MIN_TEMPERATURE)
        lowest = -1 + _logit(_LOWEST) / temperature
        highest = 1 + _logit(_HIGHEST) / temperature
        offset = jnp.clip(self.offset, lowest, highest)
        return eqx.tree_at(lambda m: (m.offset, m.temperature), self, (offset, temperature))


class Gaussian(AbstractMask):
    r"""Keeps a centred window of an axis: kernel extents (Eq. 3).

    $m(x) = \exp(-(x - \mu)^2 / 2 \sigma^2)$ where that is at least the threshold, else 0,
    over an odd number of positions that lie evenly on [-1, 1], so that one lies at 0. The
    deviation $\sigma$ is learned, the mean is fixed at 0; `learn` says otherwise.
    """

    sigma: Float[Array, ""]
    mean: Float[Array, ""]
    capacity: int = eqx.field(static=True)
    unit: float = eqx.field(static=True)
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
        self.capacity = _positive("capacity", capacity)
        if capacity < 3 or capacity % 2 == 0:
            raise ValueError(
                "`capacity` of a Gaussian mask must be odd, so that a position lies at its "
                f"centre, and at least 3; got {capacity}."
            )
        self.threshold = _threshold(threshold)
        self.learn = _names("learn", learn, ("sigma", "mean"))
        # `reach` sigmas from the mean the mask meets the threshold (Eq. 5).
        reach = math.sqrt(-2 * math.log(threshold))
        lowest, highest = self._admissible()
        if size is not None and sigma is not None:
            raise ValueError("Give one of `size` and `sigma`, not both.")
        if size is not None:
            smallest = 2 / (capacity - 1) * capacity
            if not smallest <= size <= capacity:
                raise ValueError(
                    f"`size` must lie between {smallest:.4g}, the smallest admissible, and "
                    f"the capacity {capacity}; got {size}."
                )
            sigma = max(size / capacity / reach, lowest)
        sigma = 0.5 if sigma is None else sigma
        if not lowest <= sigma <= highest:
            raise ValueError(
                f"`sigma` must lie between {lowest:.4g} (three positions of {capacity} are "
                f"active) and {highest:.4g} (the last has value {_HIGHEST}); got {sigma}."
            )
        # Eq. 10, with N the part of the axis that the mask covers when it starts: a mask
        # that starts beyond the ends has size N there, and shrinks from the first step.
        self.unit = capacity / max(reach * sigma, 1.0)
        self.sigma = as_float(sigma)
        self.mean = as_float(0.0)

    def _admissible(self) -> tuple[float, float]:
        # At the lowest deviation the centre's two neighbours are just active: with the
        # centre alone the mask would be constant, and could never grow again. The upper
        # bound is our choice: it mirrors the one of the sigmoid.
        step = 2 / (self.capacity - 1)
        lowest = (1 + 1e-4) * step / math.sqrt(-2 * math.log(self.threshold))
        highest = 1 / math.sqrt(-2 * math.log(_HIGHEST))
        return lowest, highest

    def coordinates(self) -> np.ndarray:
        return np.linspace(-1, 1, self.capacity)

    def window(self, bucket: int) -> slice:
        bucket = _bucket(bucket, self.capacity)
        if bucket % 2 == 0:
            raise ValueError(f"A bucket of a Gaussian mask must be odd, got {bucket}.")
        start = (self.capacity - bucket) // 2
        return slice(start, start + bucket)

    def smooth(self, x: Float[Array, " x"]) -> Float[Array, " x"]:
        sigma, mean = _parameters(self)
        # The bound keeps 1 / sigma^2 finite, so that 0 * inf never makes a NaN gradient.
        z = (as_float(x) - mean) / jnp.maximum(sigma, 1e-8)
        return jnp.exp(-0.5 * z**2)

    def extent(self, active: Bool[Array, " capacity"]) -> Int[Array, ""]:
        centre = self.capacity // 2
        distance = np.abs(np.arange(self.capacity) - centre)
        return 1 + 2 * jnp.max(jnp.where(active, distance, 0))

    def cutoff(self) -> Float[Array, ""]:
        sigma, mean = _parameters(self)
        return mean + sigma * math.sqrt(-2 * math.log(self.threshold))

    def unclipped_size(self) -> Float[Array, ""]:
        _, mean = _parameters(self)
        return (self.cutoff() - mean) * self.unit

    def reach(self) -> Float[Array, ""]:
        _, mean = _parameters(self)
        return 1 + (self.cutoff() - mean + jnp.abs(mean)) * (self.capacity - 1)

    def project(self) -> "Gaussian":
        sigma = jnp.clip(self.sigma, *self._admissible())
        mean = jnp.clip(self.mean, -1, 1)
        return eqx.tree_at(lambda m: (m.sigma, m.mean), self, (sigma, mean))


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


def _parameters(mask: "Sigmoid | Gaussian") -> tuple[Array, Array]:
    """The two parameters, without a gradient where they are not learned."""
    names = ("offset", "temperature") if isinstance(mask, Sigmoid) else ("sigma", "mean")
    first, second = (
        getattr(mask, name) if name in mask.learn else lax.stop_gradient(getattr(mask, name))
        for name in names
    )
    return first, second


def _positive(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ValueError(f"`{name}` must be a positive integer, got {value!r}.")
    return int(value)


def _threshold(value: float) -> float:
    # Above, the end of a mask at its largest offset would not be active.
    if not 0 < value < _HIGHEST:
        raise ValueError(f"`threshold` must lie in (0, {_HIGHEST}), got {value}.")
    return float(value)


def _names(name: str, given: Sequence[str], allowed: tuple[str, ...]) -> tuple[str, ...]:
    if isinstance(given, str) or not set(given) <= set(allowed):
        raise ValueError(
            f"`{name}` must be a sequence of names among {allowed}, got {given!r}."
        )
    return tuple(given)


def _bucket(bucket: int, capacity: int) -> int:
    if not 0 < bucket <= capacity:
        raise ValueError(f"A bucket must lie between 1 and {capacity}, got {bucket}.")
    return bucket
