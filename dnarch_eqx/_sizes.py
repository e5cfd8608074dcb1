from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from ._custom_types import Cost, Sizes
from ._masks import AbstractMask, Masks
from ._misc import as_float


_Tree = TypeVar("_Tree")


def sizes(masks: Masks) -> dict[str, Float[Array, ""]]:
    """The continuous, differentiable size of every axis (Eq. 10, 11)."""
    return {axis: mask.size() for axis, mask in masks.items()}


def active(masks: Masks) -> dict[str, Int[Array, ""]]:
    """How many positions of every axis are active. Exact, not differentiable."""
    return {axis: mask.active() for axis, mask in masks.items()}


def project(masks: Masks) -> dict[str, AbstractMask]:
    """The masks with their parameters in the admissible range (Appx. E.1)."""
    return {axis: mask.project() for axis, mask in masks.items()}


def stack(history: Sequence[_Tree]) -> _Tree:
    """Many masks as one, with time as the leading axis of every parameter: all functions
    of masks then work under `jax.vmap`.

    !!! Example

        ```python
        path = dn.stack(history)
        jax.vmap(dn.sizes)(path)["depth"]  # an array of shape (time,)
        ```
    """
    if len(history) == 0:
        raise ValueError("`history` is empty: there is nothing to stack.")
    return jtu.tree_map(lambda *xs: jnp.stack(xs), *history)


def present(depth: Float[Array, ""] | float, blocks: int) -> Float[Array, " blocks"]:
    """How much of each of `blocks` blocks a network of continuous depth `depth` has: 1 below
    the depth, 0 above it, and the fraction in between (Appx. C.1).
    """
    return jnp.clip(as_float(depth) - as_float(np.arange(blocks)), 0.0, 1.0)


class Budget(eqx.Module):
    r"""What a complexity is held to: $\lambda (C / C_{target} - 1)^2$ (Eq. 2, 12)."""

    cost: Callable
    target: Float[Array, ""]
    weight: Float[Array, ""]

    def __init__(
        self,
        cost: Cost,
        target: ArrayLike | Sizes,
        weight: ArrayLike = 0.1,
    ):
        r"""**Arguments:**

        - `cost`: the complexity as a function of the sizes.
        - `target`: the complexity to be held, or the sizes of a base network to be held to
            that network's complexity.
        - `weight`: $\lambda$. The paper uses 0.1, and 5 where the task's own loss stays
            high.
        """
        if isinstance(target, Mapping):
            target = cost(target)
        self.cost = cost
        self.target = as_float(target)
        self.weight = as_float(weight)
        if not (self.target.shape == () and 0 < self.target < jnp.inf):
            raise ValueError(f"`target` must be a positive, finite number, got {target}.")
        if not (self.weight.shape == () and self.weight >= 0):
            raise ValueError(f"`weight` must be a number of at least 0, got {weight}.")

    def relative(self, masks: Masks) -> Float[Array, ""]:
        """The present complexity over the target."""
        return self.cost(sizes(masks)) / jax.lax.stop_gradient(self.target)

    def __call__(self, masks: Masks) -> Float[Array, ""]:
        """The loss term of Eq. 12, weighted."""
        return jax.lax.stop_gradient(self.weight) * (self.relative(masks) - 1) ** 2


def covered(buckets: Mapping[str, int], masks: Masks) -> Bool[Array, ""]:
    """Whether every bucket holds the active positions of its axis. An axis without a
    bucket is at its capacity. Works inside jit.
    """
    held = [mask.active() <= buckets[axis] for axis, mask in masks.items() if axis in buckets]
    return jnp.all(jnp.stack(held)) if held else jnp.array(True)
