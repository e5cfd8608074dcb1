import math
from collections.abc import Sequence

import equinox as eqx
import jax.nn as jnn
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from ._curve import AbstractPrefix
from ._made import made
from ._masks import (
    AbstractMask,
    HIGHEST,
    LOWEST,
    names,
    threshold_in_range,
)
from ._misc import as_float, number, positive, replace


# Below the first the admissible range is (nearly) empty, beyond the second float32 overflows.
_MIN_TEMPERATURE, _MAX_TEMPERATURE = 1.0, 1e30


class Sigmoid(AbstractPrefix):
    r"""Keeps a prefix of an axis: widths, depths, resolutions (Eq. 4).

    $m(x) = \sigma(\tau (\mu - x))$ where that is at least the threshold, else 0, over
    an axis of length 2 that begins at -1, on which position k lies at size k (the paper's
    last one lies at 1): it is active as soon as some of it is counted, and the active count is
    the size rounded up. The offset $\mu$ is learned, the temperature $\tau$ is not; `learn`
    says otherwise.
    """

    offset: Float[Array, ""]
    temperature: Float[Array, ""]
    made: Float[Array, " numbers"] = eqx.field(repr=False)
    capacity: int = eqx.field(static=True)
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
        - `size`: the size to start at. By default the largest admissible offset, with value
            0.85 at the end of the axis. That is how the paper starts its resolutions.
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
        if size is None:
            offset = 1 + _logit(HIGHEST) / temperature
        else:
            smallest = capacity / 2 * (_logit(LOWEST) / temperature + tail)
            size = number("size", size)
            if not smallest <= size <= capacity:
                raise ValueError(
                    f"`size` must lie between {smallest:.4g}, the smallest admissible at "
                    f"temperature {temperature}, and the capacity {capacity}; got {size}. A "
                    "higher temperature admits smaller sizes."
                )
            offset = 2 * size / capacity - 1 - tail
        self.offset = as_float(offset)
        self.temperature = as_float(temperature)
        self.made = made(self)

    def smooth(self, x: Float[Array, " x"]) -> Float[Array, " x"]:
        offset, temperature = self.learned("offset", "temperature")
        # Not 1 - 1 / (1 + exp(...)) as printed: the gradient of that exp overflows.
        z = temperature * (offset - as_float(x))
        return jnn.sigmoid(z)

    def cutoff(self) -> Float[Array, ""]:
        offset, temperature = self.learned("offset", "temperature")
        return offset + _logit(1 - self.threshold) / temperature

    def resized(self, size: Float[ArrayLike, ""]) -> AbstractMask:
        if "offset" not in self.learn:
            return super().resized(size)
        offset = self.offset + (size - self.unclipped_size()) * (2 / self.capacity)
        return replace(self, offset=offset).project()

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
