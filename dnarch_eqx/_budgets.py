# One budget or several: what they can reach, and what they miss.

import itertools as it
import warnings
from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ._budget import Budget
from ._masks import Masks
from ._misc import as_float


# One, several, or none.
Budgets: TypeAlias = Budget | Sequence[Budget] | None


def listed(budgets: Budgets) -> tuple[Budget, ...]:
    """As a tuple. Raises `ValueError` for what is none."""
    some: Any = () if budgets is None else budgets
    some = (some,) if isinstance(some, Budget) else some
    if not isinstance(some, Sequence) or not all(isinstance(x, Budget) for x in some):
        raise ValueError(f"`budget` must be a `dn.Budget`, or several, not {budgets!r}.")
    return tuple(some)


def resolve(budgets: Budgets, masks: Masks) -> Budgets:
    """With targets that are numbers, checked against what masks can reach.

    Raises `ValueError` for one that is out of reach, and several that exclude each other.
    """
    some = [budget.resolved(masks) for budget in listed(budgets)]
    for budget in some:
        _reach(budget.at(0), masks)
    for one, two in it.permutations(some, 2):
        _agree(one.at(0), two.at(0))
    held = [budget.at(0) for budget in some if budget.hold != "penalty"]
    if len(held) > 1:
        _meet(held, masks)
    return some[0] if isinstance(budgets, Budget) else tuple(some) if some else None


def _agree(one: Budget, two: Budget) -> None:
    """Of the same cost."""
    if one.cost != two.cost or one.hold != "exact" or two.hold == "penalty":
        return
    a, b = float(one.target), float(two.target)
    if b < 0.99 * a or (two.hold == "exact" and a < 0.99 * b):
        how = "at most" if two.hold == "bound" else "exactly"
        raise ValueError(
            f"Two of `budget` contradict each other: {one.name} of exactly {a:.4g}, and of "
            f"{how} {b:.4g}."
        )


def _reach(budget: Budget, masks: Masks) -> None:
    if budget.hold == "penalty" and budget.weight == 0:
        return
    lowest, highest = map(float, budget.reachable(masks))
    target = float(budget.target)
    if not lowest <= 1.001 or (budget.hold != "bound" and not 1.001 <= 1.002 * highest):
        raise ValueError(
            f"The budget's `target` is out of reach: it is {target:.4g}, and with these masks "
            f"{budget.name} goes from {lowest * target:.4g} to {highest * target:.4g}, from "
            f"{lowest:.4g} to {highest:.4g} times as much."
        )


# By how much budgets have to miss each other to be refused: a search is no proof.
_APART = 0.05


def _meet(budgets: Sequence[Budget], masks: Masks) -> None:
    """Whether some sizes meet all, by a search from three networks."""
    from scipy.optimize import minimize  # takes longer to import than this library

    axes = sorted(axis for axis, mask in masks.items() if mask.learn)
    fixed = {axis: mask.size() for axis, mask in masks.items() if not mask.learn}
    now = np.array([float(masks[axis].size()) for axis in axes])
    low = np.array([max(float(masks[axis].smallest_size()), 1e-3) for axis in axes])
    high = np.array([float(masks[axis].capacity) for axis in axes])
    bounds = np.array([budget.hold == "bound" for budget in budgets])

    @jax.jit
    def ratios(logs: Float[Array, " axes"]) -> Float[Array, " budgets"]:
        sizes = fixed | dict(zip(axes, jnp.exp(logs)))
        return jnp.stack([budget.of(sizes) / budget.target for budget in budgets])

    def off(logs: Float[Array, " axes"]) -> Float[Array, ""]:
        far = jnp.log(ratios(logs))
        return jnp.sum(jnp.where(bounds & (far < 0), 0.0, far) ** 2)

    value = jax.jit(jax.value_and_grad(off))

    def both(logs: Any) -> tuple[float, Any]:
        total, slope = value(as_float(logs))
        return float(total), np.asarray(slope, float)

    ranges: Any = list(zip(np.log(low), np.log(high)))
    starts = (np.clip(now, low, high), np.sqrt(low * high), 0.9 * high)
    search = lambda x: minimize(both, np.log(x), jac=True, method="L-BFGS-B", bounds=ranges)
    best = min(map(search, starts), key=lambda found: found.fun).x if axes else now
    given = np.asarray(ratios(as_float(best)))
    misses = np.where(bounds, np.maximum(given - 1, 0), np.abs(given - 1))
    if np.max(misses) > _APART:
        listed = ", ".join(
            f"{budget.name} {float(of * budget.target):.4g} in place of "
            f"{'at most ' * bool(bound)}{float(budget.target):.4g}"
            for budget, of, bound in zip(budgets, given, bounds)
        )
        raise ValueError(
            f"Some of `budget` contradict each other with these masks. The nearest sizes "
            f"found have {listed}."
        )


def missed(budgets: Budgets, masks: Masks, step: int = 0) -> list[str]:
    """What is said of budgets that the network of these masks misses as it is deployed: by more
    than 1 %; by more than 5 % where it is a penalty.
    """
    found = []
    for budget in (budget.at(step) for budget in listed(budgets)):
        if budget.hold == "penalty" and budget.weight == 0:
            continue
        off = float(budget.deployed(masks)) - 1
        tolerance = 0.05 if budget.hold == "penalty" else 0.01
        if off > tolerance or (budget.hold != "bound" and off < -tolerance):
            target = float(budget.target)
            found.append(
                f"The network has {1 + off:.4g} times the {budget.name} of its budget: "
                f"{(1 + off) * target:.4g} in place of {target:.4g}."
            )
    return found


def stated(budgets: Budgets, masks: Masks, step: int = 0) -> str:
    """What the network of these masks costs as it is deployed, in words; nothing without a
    budget.
    """
    some = [budget.at(step) for budget in listed(budgets)]
    said = [
        f"{budget.name} {float(of * budget.target):.4g}, {float(of):.4g} of the target"
        for budget in some
        for of in [budget.deployed(masks)]
    ]
    return f"As deployed: {'; '.join(said)}." if said else ""


class BudgetWarning(UserWarning):
    """A budget is missed by the network that is deployed."""


def warn_of(lines: Sequence[str]) -> None:
    for line in lines:
        warnings.warn(line, BudgetWarning, stacklevel=3)
