# What makes a trained module learnable without losing what it has learned.

import dataclasses
from collections.abc import Iterable
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ._axes import AxisMap
from ._custom_types import Loss
from ._freeze import settled
from ._layout import Factor, flat, Layout
from ._masks import AbstractMask, Masks
from ._materialize import fits, multiplied
from ._nodes import nodes


_Model = TypeVar("_Model")


def pretrained(model: _Model, axes: AxisMap, masks: Masks) -> _Model:
    """The model whose network under these masks is the one given: what masks multiply in is
    divided out, wherever they are active. So a trained network starts to be learned as the
    function that it is.

    **Arguments:**

    - `model`: trained, at its capacity.
    - `axes`, `masks`: as for [`dnarch_eqx.materialize`][].

    **Returns:**

    The model with other weights.

    Raises `ValueError` as [`dnarch_eqx.materialize`][] does.
    """
    resolved = fits(model, axes, masks)

    def inverse(mask: AbstractMask) -> Float[Array, " capacity"]:
        values = mask(mask.capacity)
        return jnp.where(values > 0, 1 / jnp.where(values > 0, values, 1.0), 1.0)

    factors = {axis: inverse(mask) for axis, mask in masks.items()}
    return settled(multiplied(model, resolved, factors))


def importance(
    model: PyTree,
    axes: AxisMap,
    masks: Masks,
    loss: Loss | None = None,
    batches: Iterable[PyTree] = (),
    *,
    key: PRNGKeyArray | None = None,
) -> dict[str, Float[Array, " capacity"]]:
    """How much each position of each axis matters to a trained model.

    **Arguments:**

    - `model`, `axes`, `masks`: as for [`dnarch_eqx.materialize`][]. Of masks only the
        capacities count.
    - `loss`: `loss(net, batch, key)`. With it importance is the mean over the batches of the
        squared derivative by a factor on the position: to first order the square of what its
        removal does to the loss (Molchanov et al. 2019). Without, it is the squared norm of
        the position's weights over the mean of that over the axis, averaged over the arrays
        that the axis lies on.
    - `batches`: what the loss takes; finitely many.
    - `key`: for the loss.

    **Returns:**

    Axis to the importance of its positions.

    Raises `ValueError` for a loss without batches.
    """
    resolved = fits(model, axes, masks)
    ones = {axis: jnp.ones(mask.capacity) for axis, mask in masks.items()}
    if loss is None:
        return _norms(model, resolved, ones)

    @eqx.filter_jit
    @eqx.filter_grad
    def derivative(factors: Any, batch: PyTree) -> Float[Array, ""]:
        value: Any = loss(multiplied(model, resolved, factors), batch, key)
        return value

    total, count = jtu.tree_map(jnp.zeros_like, ones), 0
    for batch in batches:
        grads = derivative(ones, batch)
        total, count = jtu.tree_map(lambda t, g: t + g**2, total, grads), count + 1
    if count == 0:
        raise ValueError("`batches` is empty: first-order importance needs some.")
    return {axis: x / count for axis, x in total.items()}


def _norms(
    model: PyTree, resolved: Layout, ones: dict[str, Float[Array, " _"]]
) -> dict[str, Float[Array, " capacity"]]:
    shares: dict[str, list[Array]] = {axis: [x] for axis, x in ones.items()}
    arrays = {path: x for path, x in nodes(model) if eqx.is_inexact_array(x)}
    for path, dims in resolved.items():
        x = arrays.get(path)
        on = set(ones).intersection(str(part.axis) for part in flat(*dims))
        if x is None or not on:
            continue
        gated = tuple(tuple(map(_gated, dim)) for dim in dims)

        def total(factors: Any, x=x, gated=gated) -> Float[Array, ""]:
            (x,) = multiplied((x,), {"[0]": gated}, factors)
            return jnp.sum(jnp.abs(x) ** 2).astype(float)

        grads = jax.grad(total)({axis: ones[axis] for axis in on})
        for axis, g in grads.items():
            shares[axis].append(g / jnp.maximum(jnp.mean(g), jnp.finfo(g.dtype).tiny))
    return {axis: jnp.mean(jnp.stack(some[1:] or some), 0) for axis, some in shares.items()}


def _gated(part: Factor) -> Factor:
    """With a factor on every axis of it."""
    parts: tuple[Any, ...] = tuple(tuple(map(_gated, inner)) for inner in part.parts)
    return dataclasses.replace(part, gated=part.axis is not None, parts=parts)
