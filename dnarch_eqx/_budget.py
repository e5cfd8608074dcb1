from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from ._custom_types import Cost, Sizes
from ._masks import Masks
from ._misc import as_float, computed_once, in_range
from ._sizes import sizes


class Budget(eqx.Module):
    r"""What a complexity is held to: $\lambda (C / C_{target} - 1)^2$ (Eq. 2, 12).

    Target and weight are arrays, so that they can be changed or scheduled without compiling
    again; the cost is static.
    """

    target: Float[Array, ""]
    weight: Float[Array, ""]
    cost: Callable = eqx.field(static=True)

    def __init__(
        self,
        cost: Cost,
        target: ArrayLike | Sizes,
        weight: ArrayLike = 0.1,
    ):
        r"""**Arguments:**

        - `cost`: the complexity as a function of the sizes. Hashable: a function.
        - `target`: the complexity to be held, or the sizes of a base network to be held to
            that network's complexity.
        - `weight`: $\lambda$. The paper uses 0.1, and 5 where the task's own loss stays
            high.

        Raises `ValueError` for what cannot be held. Values that are traced are not looked at.
        """
        if not callable(cost):
            raise ValueError(f"`cost` must be a function of the sizes, got {cost!r}.")
        try:
            hash(cost)
        except TypeError:
            raise ValueError(
                "`cost` is part of the compiled program and must be hashable: give a function, "
                f"not {cost!r}."
            ) from None
        self.cost = cost
        if isinstance(target, Mapping):
            for axis, size in target.items():
                in_range(f"target[{axis!r}]", size)
            target = self._of(target)
        for name, value in {"target": target, "weight": weight}.items():
            in_range(name, value, positive=name == "target")
        self.target = as_float(target)
        self.weight = as_float(weight)

    def complexity(self, masks: Masks) -> Float[Array, ""]:
        """The present complexity over the target."""
        complexity = self._of(sizes(masks)) / lax.stop_gradient(self.target)
        return computed_once(complexity)  # every mask's gradient reads it

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
        return self._of(lowest) / self.target, self._of(highest) / self.target

    def __call__(self, masks: Masks) -> Float[Array, ""]:
        """The loss term of Eq. 12, weighted."""
        return lax.stop_gradient(self.weight) * (self.complexity(masks) - 1) ** 2

    def _of(self, sizes: Sizes) -> Float[Array, ""]:
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
