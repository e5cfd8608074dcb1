import math
from collections.abc import Sequence

import equinox as eqx
import jax.nn as jnn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ._masks import (
    AbstractMask,
    bucket_in_range,
    HIGHEST,
    LOWEST,
    made,
    names,
    threshold_in_range,
)
from ._misc import as_float, number, positive, replace


# Below the first the admissible range is (nearly) empty, beyond the second float32 overflows.
_MIN_TEMPERATURE, _MAX_TEMPERATURE = 1.0, 1e30


class Sigmoid(AbstractMask):
    r"""Keeps a prefix of an axis: widths, depths, resolutions (Eq. 4).

    $m(x) = \sigma(\tau (\mu - x))$ where that is at least the threshold, else 0, over
    positions that lie evenly on [-1, 1]. The offset $\mu$ is learned, the temperature
    $\tau$ is not; `learn` says otherwise.
    """

    offset: Float[Array, ""]
    temperature: Float[Array, ""]
    made: Float[Array, " numbers"] = eqx.field(repr=False)
    capacity: int = eqx.field(static=True)
    unit: float = eqx.field(static=True)
    threshold: float = eqx.field(static=True)
    learn: tuple[str, ...] = eqx.field(static=True)

    def __init__(
        self,
        capacity: int,
        *,
        size: float | None = None,
        open: bool = False,
        temperature: float = 25.0,
        threshold: float = 0.1,
        learn: Sequence[str] = ("offset",),
    ):
        """**Arguments:**

        - `capacity`: how many positions the axis has.
        - `size`: the size to start at. By default the largest admissible offset, whose
            size is the capacity: the last position has value 0.85. That is how the paper
            starts its resolutions.
        - `open`: start there too, but with a size that agrees with the active count all the
            way down, where the default is worth the capacity at the start and less than
            the count later.
        - `temperature`: how steep the mask is, on an axis of length 2. The smallest
            admissible size is `2.57 / temperature` of the capacity.
        - `threshold`: values below it are zero; in (0, 0.85).
        - `learn`: which of `offset` and `temperature` have a gradient.

        Raises `ValueError` if an argument is out of its range.
        """
        self.capacity = positive("capacity", capacity)
        self.threshold = threshold_in_range(threshold)
        self.learn = names("learn", learn, ("offset", "temperature"))
        temperature = number("temperature", temperature)
        if not _MIN_TEMPERATURE <= temperature <= _MAX_TEMPERATURE:
            raise ValueError(
                f"`temperature` must lie between {_MIN_TEMPERATURE} (below it no offset is "
                f"admissible) and {_MAX_TEMPERATURE}, got {temperature}."
            )
        capacity, tail = self.capacity, _logit(1 - self.threshold) / temperature
        # Eq. 11: what one unit of the coordinate is worth. Half the capacity on an axis
        # of length 2, unless the mask starts at its largest offset and is worth N there.
        if size is not None and open:
            raise ValueError(f"A mask starts `open` or at a `size`, not both; got {size}.")
        if size is None:
            offset = 1 + _logit(HIGHEST) / temperature
            self.unit = capacity / 2 if open else capacity / (offset + tail + 1)
        else:
            self.unit = capacity / 2
            smallest = self.unit * (_logit(LOWEST) / temperature + tail)
            size = number("size", size)
            if not smallest <= size <= capacity:
                raise ValueError(
                    f"`size` must lie between {smallest:.4g}, the smallest admissible at "
                    f"temperature {temperature}, and the capacity {capacity}; got {size}. A "
                    "higher temperature admits smaller sizes."
                )
            offset = size / self.unit - 1 - tail
        self.offset = as_float(offset)
        self.temperature = as_float(temperature)
        self.made = made(self)

    def coordinates(self) -> np.ndarray:
        return np.linspace(-1, 1, self.capacity)

    def window(self, bucket: int) -> slice:
        return slice(0, bucket_in_range(bucket, self.capacity))

    def smooth(self, x: Float[Array, " x"]) -> Float[Array, " x"]:
        offset, temperature = self.learned("offset", "temperature")
        # Not 1 - 1 / (1 + exp(...)) as printed: the gradient of that exp overflows.
        z = temperature * (offset - as_float(x))
        return jnn.sigmoid(z)

    def smallest_bucket(self, active: Bool[Array, " capacity"]) -> Int[Array, ""]:
        return jnp.sum(active)

    def cutoff(self) -> Float[Array, ""]:
        offset, temperature = self.learned("offset", "temperature")
        return offset + _logit(1 - self.threshold) / temperature

    def unclipped_size(self) -> Float[Array, ""]:
        return (self.cutoff() + 1) * self.unit

    def position(self) -> Float[Array, ""]:
        return 1 + 0.5 * (self.cutoff() + 1) * (self.capacity - 1)

    def smallest_size(self) -> Float[Array, ""]:
        ends = {"offset": -jnp.inf, "temperature": _MAX_TEMPERATURE}
        ends = {name: jnp.full_like(getattr(self, name), ends[name]) for name in self.learn}
        return replace(self, **ends).project().size()

    def project(self) -> "Sigmoid":
        temperature = jnp.maximum(self.temperature, _MIN_TEMPERATURE)
        lowest = -1 + _logit(LOWEST) / temperature
        highest = 1 + _logit(HIGHEST) / temperature
        offset = jnp.clip(self.offset, lowest, highest)
        return eqx.tree_at(lambda m: (m.offset, m.temperature), self, (offset, temperature))


def _logit(p: float) -> float:
    return math.log(p / (1 - p))
