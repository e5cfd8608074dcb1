import math
from collections.abc import Sequence
from typing import Any

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
# What an active gate is drawn as, at least; and how far from the threshold one is put.
_LEAST, _CLEAR = 1e-6, 0.1


class HardConcrete(AbstractMask):
    r"""Keeps any positions of an axis: a random gate each (Louizos et al. 2018, "Learning
    sparse neural networks through $L_0$ regularization").

    While it trains a gate is $\min(1, \max(0, 1.2\, \sigma((\log\alpha + l) / \beta) - 0.1))$
    with logistic noise $l$ and $\beta = 2/3$. When it is evaluated, and once sizes are settled,
    it is $\min(1, \max(0, 1.2\, \sigma(\log\alpha) - 0.1))$: a position whose gate is then not
    above the threshold is not active. It is shut in every draw, too, so that networks of all
    plans are the same (the paper's gate opens now and then), and an active one is drawn as at
    least 1e-6, so that norms count the same positions in every draw. The size that a budget
    sees is within one position of the active count; its gradient is that of the expected count.

    A slice that holds all active positions ends at the last: [`dnarch_eqx.reordered`][] puts
    them first, and [`dnarch_eqx.freeze`][] does that itself.
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
        probability = number("probability", probability)
        often = _logit(probability) if 0 < probability < 1 else None
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
            drawn = jnp.maximum(drawn, _LEAST)
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
        """The expected number of open gates of the paper's distribution."""
        (log_alpha,) = self.learned("log_alpha")
        return self._often(log_alpha)

    def _often(self, log_alpha: Float[Array, " capacity"]) -> Float[Array, ""]:
        return jnp.sum(jnn.sigmoid(log_alpha - _TEMPERATURE * self._end))

    def unclipped_size(self) -> Float[Array, ""]:
        expected, count = self.expected(), as_float(self.count())
        near = jnp.clip(expected, count - 0.999, count)
        return straight_through(near, expected)

    def resized(self, size: Float[ArrayLike, ""]) -> AbstractMask:
        """All gates are moved alike, so that the expected count changes by the same factor: the
        active count follows. Not at once, as gates that are alike would be shut at once.
        """
        if not self.learn:
            return self
        wanted = self._often(self.log_alpha) * (size / self.unclipped_size())
        wanted = jnp.clip(wanted, 0.01, self.capacity - 0.001)

        def halved(_: Any, ends: Any) -> Any:
            low, high = ends
            middle = (low + high) / 2
            more = self._often(self.log_alpha + middle) > wanted
            return jnp.where(more, low, middle), jnp.where(more, middle, high)

        far = jnp.full_like(self.made[0], 40.0)
        low, high = lax.fori_loop(0, 30, halved, (-far, far))
        shift = (low + high) / 2
        return replace(self, log_alpha=self.log_alpha + shift).project()

    def between(self) -> tuple[int, int]:
        count = int(self.count())
        return (1, self.capacity) if self.learn else (count, count)

    def with_count(self, count: int) -> AbstractMask:
        if not self.learn or int(self.count()) == count:
            return self
        order = np.argsort(-np.asarray(self.log_alpha), kind="stable")
        kept = np.isin(np.arange(self.capacity), order[:count])
        opened = jnp.maximum(self.log_alpha, self._end + _CLEAR)
        shut = jnp.minimum(self.log_alpha, self._end - _CLEAR)
        return replace(self, log_alpha=jnp.where(kept, opened, shut))

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
        largest = jnp.arange(self.capacity) == jnp.argmax(self.log_alpha)
        lifted = jnp.maximum(self.log_alpha, self._end + _CLEAR)
        return replace(self, log_alpha=jnp.where(largest, lifted, self.log_alpha))


def _stretched(logits: Float[Array, " _"]) -> Float[Array, " _"]:
    return jnp.clip(jnn.sigmoid(logits) * (_HIGH - _LOW) + _LOW, 0, 1)


def _logit(p: float) -> float:
    return math.log(p / (1 - p))
