# One budget or several: what they can reach, and what they miss.

import itertools as it
import warnings
from collections.abc import Sequence
from typing import Any, TypeAlias

from ._budget import Budget
from ._masks import Masks


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

    Raises `ValueError` for one that is out of reach, and two of which one excludes the other.
    """
    some = [budget.resolved(masks) for budget in listed(budgets)]
    for budget in some:
        _reach(budget.at(0), masks)
    for one, two in it.permutations(some, 2):
        _agree(one.at(0), two.at(0))
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
