from collections.abc import Mapping, Sequence
from typing import TypeVar

import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ._masks import AbstractMask, Masks
from ._misc import as_float
from ._stacks import each, Stacks


_Tree = TypeVar("_Tree")


def sizes(masks: Masks | Stacks) -> dict[str, Float[Array, ""]]:
    """The continuous, differentiable size of every axis (Eq. 10, 11)."""
    return each(masks, lambda mask: mask.size())


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


def covered(buckets: Mapping[str, int], masks: Masks) -> Bool[Array, ""]:
    """Whether every bucket holds the active positions of its axis. An axis without a
    bucket is at its capacity. Works inside jit.
    """
    held = [mask.active() <= buckets[axis] for axis, mask in masks.items() if axis in buckets]
    return jnp.all(jnp.stack(held)) if held else jnp.array(True)
