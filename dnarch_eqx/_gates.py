import math
from collections.abc import Sequence

import equinox as eqx
import jax.lax as lax
import jax.nn as jnn
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PRNGKeyArray

from ._made import made
from ._masks import AbstractMask, bucket_in_range, HIGHEST, names
from ._misc import as_float, number, positive, replace, straight_through


# What the concrete distribution is stretched to before it is cut to [0, 1], and its
# temperature: those of the paper.
_LOW, _HIGH, _TEMPERATURE = -0.1, 1.1, 2 / 3


class HardConcrete(AbstractMask):
    r"""Keeps any positions of an axis: a random gate each (Louizos et al. 2018, "Learning
    sparse neural networks through $L_0$ regularization").

    While it trains a gate is $\min(1, \max(0, 1.2\, \sigma((\log\alpha + l) / \beta) - 0.1))$
    with logistic noise $l$ and $\beta = 2/3$; when it is evaluated, and once sizes are settled,
    $\min(1, \max(0, 1.2\, \sigma(\log\alpha) - 0.1))$. What that makes 0 (or what is not above
    the threshold) is not active, and shut in every draw, too, so that networks of all plans are
    the same: the paper's gate opens now and then. The size that a budget sees agrees with the
    count of active positions but for less than one; its gradient is that of the expected count.

    A slice that holds all active positions ends at the last: [`dnarch_eqx.reordered`][] puts
    them first. [`dnarch_eqx.Planner.settle`][], [`dnarch_eqx.Planner.deploy`][] and
    [`dnarch_eqx.freeze`][] do that themselves.
    """

    log_alpha: Float[Array, " capacity"]
    made: Float[Array, " numbers"] = eqx.field(repr=False)
    noise: Float[Array, " capacity"] | None = eqx.field(repr=False)
    still: Bool[Array, ""] | None = eqx.field(repr=False)
    capacity: int = eqx.field(static=True)
    threshold: float = eqx.field(static=True)
    learn: tuple[str, ...] = eqx.field(static=True)

    def __init__(
        self,
        capacity: int,
        *,
        size: float | None = None,
        probability: float = 0.9,
        threshold: float = 0.0,
        learn: Sequence[str] = ("log_alpha",),
    ):
        """**Arguments:**

        - `capacity`: how many positions the axis has.
        - `size`: how many are open at first: all, by default.
        - `probability`: that one of them is open in a draw, at first.
        - `threshold`: a gate that is not above it when evaluated is shut; in [0, 0.85).
        - `learn`: `("log_alpha",)`, or nothing.

        Raises `ValueError` if an argument is out of its range.
        """
        self.capacity = positive("capacity", capacity)
        if not 0 <= number("threshold", threshold) < HIGHEST:
            raise ValueError(f"`threshold` must lie in [0, {HIGHEST}), got {threshold}.")
        self.threshold = float(threshold)
        self.learn = names("learn", learn, ("log_alpha",))
        size = float(capacity) if size is None else number("size", size)
        if not 0 < size <= capacity:
            raise ValueError(
                f"`size` must lie above 0 and at most at the capacity {capacity}, got {size}."
            )
        often = _logit(number("probability", probability)) if 0 < probability < 1 else None
        smallest = jnn.sigmoid((1 - _TEMPERATURE) * self._end)
        if often is None or often + _TEMPERATURE * self._end <= self._end:
            raise ValueError(
                f"`probability` must lie between {float(smallest):.2g}, that of a gate that is "
                f"just active, and 1; got {probability}."
            )
        at = np.arange(capacity)
        open_ = at < math.ceil(size)
        start = np.where(open_, often + _TEMPERATURE * self._end, self._end - 1)
        # No two the same: what is cut off first is to be defined.
        self.log_alpha = as_float(start - 0.02 * at / capacity)
        self.noise = self.still = None
        self.made = made(self)

    @property
    def _end(self) -> float:
        """Where a gate that is evaluated meets the threshold."""
        return _logit((self.threshold - _LOW) / (_HIGH - _LOW))

    def window(self, bucket: int) -> slice:
        return slice(0, bucket_in_range(bucket, self.capacity))

    def __call__(self, bucket: int | None = None) -> Float[Array, " bucket"]:
        kept = self.window(self.capacity if bucket is None else bucket)
        (every,) = self.learned("log_alpha")
        log_alpha = every[kept]
        values = _stretched(log_alpha)
        if self.noise is not None and self.still is not None:
            drawn = _stretched((log_alpha + self.noise[kept]) / _TEMPERATURE)
            values = jnp.where(self.still, values, drawn)
        # Not `log_alpha > end`: what is no number is to stay none.
        return jnp.where(log_alpha <= self._end, jnp.zeros_like(values), values)

    def _open(self) -> Bool[Array, " capacity"]:
        return jnp.logical_not(self.log_alpha <= self._end)

    def smallest_bucket(self, active: Bool[Array, " capacity"]) -> Int[Array, ""]:
        return jnp.max(jnp.where(active, np.arange(1, self.capacity + 1), 0))

    def active(self) -> Int[Array, ""]:
        return self.smallest_bucket(self._open())

    def count(self) -> Int[Array, ""]:
        return jnp.sum(self._open())

    def expected(self) -> Float[Array, ""]:
        """How many gates are open in a draw of the paper's, in the mean."""
        (log_alpha,) = self.learned("log_alpha")
        return jnp.sum(jnn.sigmoid(log_alpha - _TEMPERATURE * self._end))

    def unclipped_size(self) -> Float[Array, ""]:
        expected, count = self.expected(), as_float(self.count())
        near = jnp.clip(expected, count - 0.999, count)
        return straight_through(near, expected)

    def counted(self, count: int) -> AbstractMask:
        ends = -jnp.sort(-self.log_alpha)
        ends = jnp.concatenate([ends, ends[-1:] - 1])
        shift = self._end - (ends[count - 1] + ends[count]) / 2
        return replace(self, log_alpha=self.log_alpha + shift)

    def drawn(self, key: PRNGKeyArray | None, still: Bool[ArrayLike, ""]) -> AbstractMask:
        if key is None:
            raise ValueError("A mask of `dn.HardConcrete` is random: give the step a `key`.")
        noise = jr.logistic(key, (self.capacity,), self.log_alpha.dtype)
        return replace(self, noise=lax.stop_gradient(noise), still=jnp.asarray(still))

    def order(self) -> Int[np.ndarray, " capacity"] | None:
        shut = np.asarray(self.log_alpha) <= self._end
        # Stable: layers that are left stay in their order.
        order = np.argsort(shut, kind="stable")
        return None if np.array_equal(shut, shut[order]) else order

    def permuted(self, order: Int[np.ndarray, " capacity"]) -> AbstractMask:
        return replace(self, log_alpha=self.log_alpha[order])

    def project(self) -> "HardConcrete":
        # The largest gate is never shut: an axis without positions could not open again.
        lift = jnp.maximum(self._end + 0.1 - jnp.max(self.log_alpha), 0)
        return replace(self, log_alpha=self.log_alpha + lift)


def _stretched(logits: Float[Array, " _"]) -> Float[Array, " _"]:
    return jnp.clip(jnn.sigmoid(logits) * (_HIGH - _LOW) + _LOW, 0, 1)


def _logit(p: float) -> float:
    return math.log(p / (1 - p))
