# How budgets are held without a penalty: masks trade with one another at constant cost.

import itertools as it
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Float

from ._budget import Budget
from ._masks import AbstractMask
from ._misc import as_float, computed_once
from ._stacks import rows, Stacks


# By how much all sizes may change in a step, as the logarithm of the factor.
_MOST = 0.1


def along(grads: Stacks, masks: Stacks, budgets: Sequence[Budget]) -> Stacks:
    """The gradients of masks without what only changes the cost of what is held: what is left
    is a trade at constant cost. Of a bound only where it is reached, and what would exceed it.
    """
    done: list[Stacks] = []
    found = grads
    for budget in sorted(budgets, key=lambda b: b.hold == "bound"):
        if budget.hold == "penalty":
            continue
        value, normal = eqx.filter_value_and_grad(lambda m, b=budget: b.complexity(m))(masks)
        for other in done:
            normal = _without(normal, other, _share(normal, other))
        share = _share(found, normal)
        if budget.hold == "bound":
            # Descent goes against the gradient.
            share = jnp.where(value >= 0.999, jnp.minimum(share, 0.0), 0.0)
        # One gradient that is not finite is not to be all of them.
        share = jnp.where(jnp.isfinite(share), share, 0.0)
        found = _without(found, normal, computed_once(share))
        done.append(normal)
    return found


def held(masks: Stacks, budgets: Sequence[Budget]) -> Stacks:
    """Masks after an update, nearer to where the budgets are met: all sizes that count, and
    can, are changed by one factor. Bounds come last, as they hold whatever else does not.
    """
    pace = as_float(0.0)
    for hold in ("exact", "bound"):
        for budget in budgets:
            if budget.hold == hold and masks.groups:
                # Bounds are quicker than what goes against them.
                masks = _nearer(masks, budget, budget.rate + (pace if hold == "bound" else 0.0))
                pace = pace + budget.rate
    return masks


def _nearer(masks: Stacks, budget: Budget, pace: Float[Array, ""]) -> Stacks:
    axes = sorted(it.chain(*masks.names))
    size = masks.vector(lambda mask: mask.size())
    relative = lambda sizes: budget.of(dict(zip(axes, rows(sizes)))) / budget.target
    value, slope = jax.value_and_grad(relative)(size)
    wanted = jnp.clip(1.0, value / (1 + pace), value * (1 + pace))
    if budget.hold == "bound":
        wanted = jnp.minimum(wanted, value)
    lowest = masks.vector(lambda mask: as_float(mask.smallest_size()))
    capacity = masks.vector(lambda mask: as_float(mask.capacity))
    learned = masks.vector(lambda mask: jnp.array(len(mask.learn) > 0))
    shrinks = wanted < value
    can = jnp.where(shrinks, size > 1.0001 * lowest, size < 0.9999 * capacity) & learned
    # What a factor on these sizes does to the cost, to first order.
    each = jnp.sum(jnp.where(can, size * slope / value, 0.0))
    change = jnp.where(each > 0, jnp.log(wanted / value) / jnp.where(each > 0, each, 1.0), 0.0)
    by = computed_once(jnp.exp(jnp.clip(change, -_MOST, _MOST)))
    # What costs nothing is left alone.
    factors = jnp.where(slope > 0, by, 1.0)
    return masks.map(_resized, factors)


def _resized(mask: AbstractMask, factor: Float[Array, ""]) -> AbstractMask:
    if not mask.learn:
        return mask
    new = mask.resized(factor * mask.unclipped_size())
    return jtu.tree_map(lambda x, y: y.astype(x.dtype), mask, new)


def _share(x: Stacks, direction: Stacks) -> Float[Array, ""]:
    """How much of a direction there is."""
    norm = _dot(direction, direction)
    return jnp.where(norm > 0, _dot(x, direction) / jnp.where(norm > 0, norm, 1.0), 0.0)


def _without(x: Any, direction: Any, share: Float[Array, ""]) -> Any:
    return jtu.tree_map(lambda a, b: a - share * b, x, direction)


def _dot(x: Stacks, y: Stacks) -> Float[Array, ""]:
    pairs = zip(jtu.tree_leaves(x), jtu.tree_leaves(y))
    return sum((jnp.sum(a * b) for a, b in pairs), start=as_float(0.0))
