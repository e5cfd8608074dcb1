import dataclasses
import itertools as it
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args, Literal, TypeAlias

import equinox as eqx
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int

from ._custom_types import Cost, Sizes
from ._masks import Masks
from ._misc import as_float, computed_once, in_range, positive, replace
from ._sizes import active, sizes


# How a cost is held.
Hold: TypeAlias = Literal["exact", "bound", "penalty"]

# A number that may change with the step, as in Optax.
Schedule: TypeAlias = Callable[[Int[Array, ""]], Float[ArrayLike, ""]]


class Budget(eqx.Module):
    r"""What a complexity is held to, and how.

    - `"exact"`: masks trade with one another at constant cost. Of their gradients only what
        lies along the budget is left, and after each update all sizes change by the same
        factor, so that the cost nears the target, by at most a factor of `1 + rate` a step,
        and stays there. Adds nothing to the loss: there is nothing to tune.
    - `"bound"`: the same, but only where the cost would be above the target.
    - `"penalty"`: $\lambda (C / C_{target} - 1)^2$ is added to the loss (Eq. 2, 12).

    Target, weight and rate are arrays, so that they can be changed without compiling again; the
    cost is static.
    """

    target: Float[Array, ""]
    weight: Float[Array, ""]
    rate: Float[Array, ""]
    cost: Callable = eqx.field(static=True)
    hold: Hold = eqx.field(static=True)
    share: tuple[float, str] | None = eqx.field(static=True)
    steps: int | None = eqx.field(static=True)
    schedules: tuple[Schedule | None, Schedule | None] = eqx.field(static=True)

    def __init__(
        self,
        cost: Cost,
        target: ArrayLike | Sizes | str | Schedule,
        weight: ArrayLike | Schedule | None = None,
        *,
        hold: Hold | None = None,
        steps: int = 400,
    ):
        r"""**Arguments:**

        - `cost`: the complexity as a function of the sizes, which rises with each: of
            [`dnarch_eqx.costs`][], say. Hashable: a function.
        - `target`: the complexity to be held; or a share, `"30%"` of that of the network at its
            capacity, or `"30% of start"`, of the network that training starts with; or the
            sizes of a base network to be held to that network's complexity; or a function of
            the step.
        - `weight`: $\lambda$ of a penalty, or a function of the step. The paper uses 0.1, and 5
            where the task's own loss stays high.
        - `hold`: by default `"penalty"` if a weight is given, else `"exact"`.
        - `steps`: for `"exact"` and `"bound"`: how many steps the cost takes from where it
            starts to the target. The fewer, the less weights can follow.

        Raises `ValueError` for what cannot be held. Values that are traced are not looked at.
        """
        self.cost = _checked(cost)
        self.hold = ("exact" if weight is None else "penalty") if hold is None else hold
        if self.hold not in get_args(Hold):
            raise ValueError(f"`hold` must be one of {get_args(Hold)}, got {hold!r}.")
        if weight is not None and self.hold != "penalty":
            raise ValueError(f"`weight` is that of a penalty; `hold` is {hold!r}.")
        if weight is None:
            weight = 0.1 if self.hold == "penalty" else 0.0
        self.share = _share(target) if isinstance(target, str) else None
        self.schedules = tuple(x if callable(x) else None for x in (target, weight))  # pyright: ignore
        if isinstance(target, Mapping):
            for axis, size in target.items():
                in_range(f"target[{axis!r}]", size)
            target = self.of(target)
        # What follows from masks or from the step is not known yet.
        target = jnp.nan if self.share or self.schedules[0] else target
        weight = jnp.nan if self.schedules[1] else weight
        if not (self.share or self.schedules[0]):
            in_range("target", target, positive=True)
        if not self.schedules[1]:
            in_range("weight", weight)
        self.steps = None if self.hold == "penalty" else positive("steps", steps)
        self.target = as_float(target)  # pyright: ignore
        self.weight = as_float(weight)  # pyright: ignore
        # No slower than doubling would be: masks move, and targets may.
        self.rate = as_float(math.expm1(math.log(2) / self.steps) if self.steps else 0.0)

    def resolved(self, masks: Masks) -> "Budget":
        """With what follows from the masks that training starts with: a target that is a share
        as a number, and by how much the cost may change in a step.
        """
        now = self
        if self.share is not None:
            share, of = self.share
            whole = {axis: mask.capacity for axis, mask in masks.items()}
            base = self.of(whole if of == "full" else _counts(masks))
            now = replace(now, target=as_float(share) * base, share=None)
        if self.steps is not None:
            far = jnp.abs(jnp.log(now.of(sizes(masks)) / _at(now, 0).target))
            now = replace(now, rate=jnp.maximum(now.rate, jnp.expm1(far / self.steps)))
        return now

    def at(self, step: Int[ArrayLike, ""]) -> "Budget":
        """With what goes with the step as numbers."""
        if self.share is not None:
            raise ValueError(
                "`budget` does not know the masks that training starts with, from which its "
                "target follows: `budget.resolved(masks)` does, which `Learner.init` makes."
            )
        return _at(self, step)

    def complexity(self, masks: Masks) -> Float[Array, ""]:
        """The present complexity over the target, of the continuous sizes: they agree with what
        is active but for less than a position each.
        """
        complexity = self.of(sizes(masks)) / lax.stop_gradient(self.target)
        return computed_once(complexity)  # every mask's gradient reads it

    def deployed(self, masks: Masks) -> Float[Array, ""]:
        """The same of the network that [`dnarch_eqx.freeze`][] gives: of whole positions."""
        return self.of(_counts(masks)) / self.target

    def reachable(self, masks: Masks) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """The complexities over the target of the smallest and of the largest network that the
        masks admit, for a cost that rises with every size: the budget can be met if 1 lies
        between.
        """
        now = sizes(masks)
        lowest, highest = dict(now), dict(now)
        for axis, mask in masks.items():
            if mask.learn:
                lowest[axis], highest[axis] = mask.smallest_size(), as_float(mask.capacity)
        return self.of(lowest) / self.target, self.of(highest) / self.target

    def __call__(self, masks: Masks) -> Float[Array, ""]:
        """The loss term of Eq. 12, weighted; 0 unless it is a penalty."""
        if self.hold != "penalty":
            return as_float(0.0)
        return lax.stop_gradient(self.weight) * (self.complexity(masks) - 1) ** 2

    def of(self, sizes: Sizes) -> Float[Array, ""]:
        """The cost of these sizes, as one number."""
        try:
            cost: Any = self.cost(sizes)
        except KeyError as error:
            raise ValueError(
                f"`cost` asks for the size of {error}; there are those of {sorted(sizes)}."
            ) from error
        if not eqx.is_array_like(cost) or jnp.shape(cost) != () or jnp.iscomplexobj(cost):
            shown = f"{cost.dtype} of shape {cost.shape}" if eqx.is_array(cost) else repr(cost)
            raise ValueError(f"`cost` must give one real number, got {shown}.")
        return as_float(cost)

    @property
    def name(self) -> str:
        """What is held: the cost's unit, or its name."""
        found = str(getattr(self.cost, "unit", None) or getattr(self.cost, "__name__", ""))
        return found if found.isidentifier() else "complexity"


def _at(budget: Budget, step: Any) -> Budget:
    target, weight = budget.schedules
    if target is not None:
        budget = replace(budget, target=as_float(target(jnp.asarray(step))))
    if weight is not None:
        budget = replace(budget, weight=as_float(weight(jnp.asarray(step))))
    return budget


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
    for budget in listed(budgets):
        off = float(budget.at(step).deployed(masks)) - 1
        tolerance = 0.05 if budget.hold == "penalty" else 0.01
        if off > tolerance or (budget.hold != "bound" and off < -tolerance):
            target = float(budget.at(step).target)
            found.append(
                f"The network has {1 + off:.4g} times the {budget.name} of its budget: "
                f"{(1 + off) * target:.4g} in place of {target:.4g}."
            )
    return found


class BudgetWarning(UserWarning):
    """A budget is missed by the network that is deployed."""


def warn_of(lines: Sequence[str]) -> None:
    for line in lines:
        warnings.warn(line, BudgetWarning, stacklevel=3)


def _counts(masks: Masks) -> dict[str, Float[Array, ""]]:
    return {axis: as_float(count) for axis, count in active(masks).items()}


def _checked(cost: Any) -> Callable:
    if dataclasses.is_dataclass(cost) and not callable(cost):
        fields = [field.name for field in dataclasses.fields(cost)]
        raise ValueError(f"`cost` must be one of the costs: give its {' or '.join(fields)}.")
    if not callable(cost):
        raise ValueError(f"`cost` must be a function of the sizes, got {cost!r}.")
    try:
        hash(cost)
    except TypeError:
        raise ValueError(
            "`cost` is part of the compiled program and must be hashable: give a function, "
            f"not {cost!r}."
        ) from None
    return cost


_SHARE = re.compile(r"\s*([^%\s]+)\s*%(?:\s+of\s+(full|start))?\s*")


def _share(text: str) -> tuple[float, str]:
    match = _SHARE.fullmatch(text)
    try:
        share = float(match[1]) / 100 if match else None
    except ValueError:
        share = None
    if match is None or share is None:
        raise ValueError(
            "`target` must be a number, sizes, a function of the step or a share as '30%', "
            f"'30% of full' or '30% of start'; got {text!r}."
        )
    of = match[2] or "full"
    if not 0 < share < float("inf") or (of == "full" and share > 1):
        raise ValueError(
            f"`target` is {text!r}: a share of the network at its capacity lies above 0 % and "
            "at most at 100 %; one of the network at the start lies above 0 %."
        )
    return share, of
