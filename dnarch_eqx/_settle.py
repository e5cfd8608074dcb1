# Whole sizes at which budgets are met as the network is deployed.

import itertools as it
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ._budget import Budget
from ._budgets import Budgets, listed
from ._gaussian import Gaussian
from ._masks import AbstractMask, Masks
from ._misc import as_float
from ._plan import counts


# What is not looked at, and what counts as met.
_TOLERANCE, _MET = 0.002, 0.008
# Beyond so many axes pairs of them are not tried.
_PAIRS = 48

_Sizes = Float[np.ndarray, " axes"]


def settled(masks: Masks, budgets: Budgets, step: int = 0) -> dict[str, AbstractMask]:
    """The masks at whole sizes near theirs, at which budgets are met as the network is
    deployed.

    **Arguments:**

    - `masks`: not traced.
    - `budgets`: one, several or none. Penalties are not regarded.
    - `step`: of budgets that change with it.

    **Returns:**

    The masks. Where no sizes meet all budgets, those that miss them least.
    """
    some = [b.resolved(masks).at(step) for b in listed(budgets) if b.hold != "penalty"]
    found = _whole(masks, _counting(masks, some), some)
    return {
        axis: mask.with_count(found[axis]) if axis in found else mask
        for axis, mask in masks.items()
    }


def _counting(masks: Masks, budgets: Sequence[Budget]) -> list[str]:
    """The axes that are learned and cost something."""
    now = {axis: as_float(n) for axis, n in counts(masks).items()}
    slopes = [jax.grad(budget.of)(now) for budget in budgets]
    return [a for a, m in masks.items() if m.learn and any(s[a] > 0 for s in slopes)]


def _whole(masks: Masks, learned: list[str], budgets: Sequence[Budget]) -> dict[str, int]:
    steps = np.array([2 if isinstance(masks[a], Gaussian) else 1 for a in learned])
    if not learned:
        return {}
    costs = _costs(masks, learned, budgets)
    start = np.array([float(masks[a].size()) for a in learned])
    lowest, highest = np.array([masks[a].between() for a in learned]).T

    def rounded(sizes: _Sizes) -> _Sizes:
        near = np.where(steps == 2, 2 * np.round((sizes - 1) / 2) + 1, np.round(sizes))
        return np.clip(near, lowest, highest)

    def scores(
        some: Float[np.ndarray, "networks axes"], nearness: float
    ) -> Float[np.ndarray, " networks"]:
        off = _violation(costs(some), budgets)
        far = np.sum(np.abs(np.log(some / start)), axis=1)
        return np.where(off > _TOLERANCE, off, 0.0) + nearness * far

    # All by one factor, as in training; then one or two axes by a position. What was learned
    # counts as much as there are sizes near it at which budgets are met.
    factors = np.exp(np.linspace(-1.5, 1.5, 601))
    tried = np.stack([rounded(start * factor) for factor in factors])
    found = tried[int(np.argmin(scores(tried, 0.1)))]
    # The fewer axes, the farther at last: else none of their sizes may be near enough.
    far = max(1, min(4, 24 // len(learned)))
    for nearness, reach, enough in ((0.02, 1, _MET), (0.0, 1, 0.01), (0.01, far, 0.01)):
        moves = _moves(len(learned), reach) * steps
        for _ in range(4 * len(learned) + 20):
            near = np.clip(np.concatenate([found + moves, found[None]]), lowest, highest)
            some = scores(near, nearness)
            if some[best := int(np.argmin(some))] >= some[-1]:
                break
            found = near[best]
        if scores(found[None], 0.0)[0] <= enough:
            break
    return dict(zip(learned, map(int, found)))


def _moves(axes: int, reach: int) -> Float[np.ndarray, "moves axes"]:
    one = np.concatenate([by * np.eye(axes) for by in range(-reach, reach + 1) if by])
    if axes > _PAIRS:
        return one
    two = [a + b for a, b in it.combinations(one, 2) if np.any(a + b)]
    return np.concatenate([one, *([np.stack(two)] if two else [])])


def _costs(masks: Masks, learned: list[str], budgets: Sequence[Budget]) -> Any:
    """From sizes of several networks to their costs over the targets."""
    others = {a: float(n) for a, n in counts(masks).items() if a not in learned}

    @jax.jit
    @jax.vmap
    def of(sizes: Any) -> Any:
        every: Mapping[str, Any] = others | dict(zip(learned, sizes))
        return jnp.stack([budget.of(every) / budget.target for budget in budgets])

    def padded(sizes: Any) -> Any:
        # Few shapes: each is a compilation.
        room = 1 << (len(sizes) - 1).bit_length() if len(sizes) > 1 else 1
        more = np.concatenate([sizes, np.repeat(sizes[:1], room - len(sizes), axis=0)])
        return np.asarray(of(jnp.asarray(more, float)))[: len(sizes)]

    return padded


def _violation(costs: Any, budgets: Sequence[Budget]) -> Float[np.ndarray, " networks"]:
    """The largest, of each network."""
    off = costs - 1
    bounds = np.array([budget.hold == "bound" for budget in budgets])
    return np.max(np.where(bounds, np.maximum(off, 0), np.abs(off)), axis=1)
