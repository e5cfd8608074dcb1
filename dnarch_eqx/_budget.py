import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, get_args, Literal, TypeAlias

import equinox as eqx
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int

from ._custom_types import Cost, Sizes
from ._masks import Masks
from ._misc import as_float, computed_once, in_range, positive, replace
from ._sizes import sizes
from ._stacks import each, Stacks


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
            base = self.of(whole if of == "full" else _whole(masks))
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

    def complexity(self, masks: Masks | Stacks) -> Float[Array, ""]:
        """The present complexity over the target, of the continuous sizes: they agree with what
        is active but for less than a position each.
        """
        complexity = self.of(sizes(masks)) / lax.stop_gradient(self.target)
        return computed_once(complexity)  # every mask's gradient reads it

    def deployed(self, masks: Masks | Stacks) -> Float[Array, ""]:
        """The same of the network that [`dnarch_eqx.freeze`][] gives: of whole positions."""
        return self.of(_whole(masks)) / self.target

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

    def __call__(self, masks: Masks | Stacks) -> Float[Array, ""]:
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


def _whole(masks: Masks | Stacks) -> dict[str, Float[Array, ""]]:
    return each(masks, lambda mask: as_float(mask.count()))


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
