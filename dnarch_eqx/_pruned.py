from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
import optax
from jaxtyping import ArrayLike, Float

from ._axes import AxisMap
from ._budgets import Budgets, listed
from ._carried import taken
from ._layout import layout
from ._masks import AbstractMask, Masks
from ._misc import replace
from ._order import free
from ._reordered import in_orders
from ._state import State


_State = TypeVar("_State", bound=State | tuple[Any, Any])
# What a budget may be exceeded by.
_TOLERANCE = 1e-6


def pruned(
    state: _State,
    axes: AxisMap,
    importance: Mapping[str, Float[ArrayLike, " _"]],
    budget: Budgets,
    optim: optax.GradientTransformation | None = None,
) -> _State:
    """The state without its least important positions: so many of them, over all axes, that the
    budget is met. This is how networks are pruned by magnitude, say, without masks that learn.

    A budget whose target changes with the step makes it pruning in steps. The positions that
    are kept come first, in their order: weights, the optimizer's state and running statistics
    follow. Masks are to be ones and zeros, as below: the values of others go by the place.

    On the host, not inside `jax.jit`.

    !!! Example

        ```python
        masks = {axis: dn.Sigmoid(n, temperature=1e6) for axis, n in sizes.items()}  # 0 or 1
        target = optax.linear_schedule(costs.operations(sizes), most, steps)
        budget = dn.Budget(costs.operations, target, hold="bound")
        ...
        if step % 100 == 0:
            importance = dn.importance(state.model, axes, state.masks)
            state = dn.pruned(state, axes, importance, budget, optim)
        ```

    **Arguments:**

    - `state`: what training has come to; or a pair of a model and masks.
    - `axes`: what lies on which axis.
    - `importance`: axis to a number for each position, see [`dnarch_eqx.importance`][]. Axes
        that it lacks stay as they are. Not for axes of inputs or outputs, whose order others
        know.
    - `budget`: one or several: the targets that their costs are not to exceed, at the state's
        step; those of a pair are of step 0. Shares are of the capacity, not of the start.
    - `optim`: the Optax transformation that the state was made with. None is needed for a
        state without an `opt_state`.

    **Returns:**

    The same with smaller masks, at least one position each.

    Raises `ValueError` for an axis without a mask, or whose mask does not keep a prefix, or
    whose positions cannot change places; another number of positions; what is not finite; no
    budget; a budget that is exceeded with one position on each of these axes.
    """
    whole, masks = taken(state)
    scores = _checked(importance, masks, free(whole, layout(whole, axes, masks)))
    step = int(state.step) if isinstance(state, State) else 0
    for one in listed(budget):
        if one.share is not None and one.share[1] == "start":
            raise ValueError(
                "`budget` has a share of the start, which is not known here: give a number, or "
                "a share of the capacity."
            )
    budgets = [one.resolved(masks).at(step) for one in listed(budget)]
    if not budgets:
        raise ValueError("`budget` is None: what is to be pruned is what exceeds it.")
    active = {axis: int(mask.count()) for axis, mask in masks.items()}
    # What is not active is gone.
    scores = {
        axis: np.where(np.arange(len(x)) < active[axis], x, -np.inf)
        for axis, x in scores.items()
    }
    kept = _kept(scores, active, budgets)
    # Those that are left stay in their order: they may be layers.
    lost = {
        axis: ~np.isin(np.arange(len(x)), np.argsort(-x, kind="stable")[: kept[axis]])
        for axis, x in scores.items()
    }
    orders = {axis: np.argsort(x, kind="stable") for axis, x in lost.items()}
    smaller = {axis: masks[axis].with_count(n) for axis, n in kept.items()}
    for axis, mask in smaller.items():
        if int(mask.active()) != kept[axis]:
            raise ValueError(
                f"The mask of axis {axis!r} cannot have {kept[axis]} active positions, but "
                f"{' to '.join(map(str, masks[axis].between()))}: give one that can, such as "
                "`dn.Sigmoid(capacity, temperature=1e6)`."
            )
    return _with(in_orders(state, axes, optim, orders), smaller)


def _kept(
    scores: Mapping[str, Float[np.ndarray, " _"]],
    active: Mapping[str, int],
    budgets: list[Any],
) -> dict[str, int]:
    """How many positions of each axis are left: the most whose scores exceed one number, and
    then those that still fit.
    """
    every = np.unique(np.concatenate([x[np.isfinite(x)] for x in scores.values()]))

    def left(i: int) -> dict[str, int]:
        # Without the positions of the i lowest scores.
        least = every[i] if i < len(every) else np.inf
        return {axis: max(int(np.sum(x >= least)), 1) for axis, x in scores.items()}

    def exceeded(kept: Mapping[str, int]) -> float:
        sizes = {axis: float(n) for axis, n in {**active, **kept}.items()}
        return max(float(one.of(sizes) / one.target) for one in budgets)

    def fit(kept: Mapping[str, int]) -> bool:
        return exceeded(kept) <= 1 + _TOLERANCE

    low, high = 0, len(every)
    if not fit(left(high)):
        raise ValueError(
            "`budget` is out of reach: with one position on each axis of `importance` it is "
            f"exceeded {exceeded(left(high)):.4g} times."
        )
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fit(left(middle)) else (middle + 1, high)
    kept, full = left(low), set()
    ordered = {axis: np.sort(x[np.isfinite(x)])[::-1] for axis, x in scores.items()}
    while some := [a for a in scores if a not in full and kept[a] < len(ordered[a])]:
        axis = max(some, key=lambda a: ordered[a][kept[a]])
        more = kept | {axis: kept[axis] + 1}
        if fit(more):
            kept = more
        else:
            full.add(axis)
    return kept


def _with(state: Any, smaller: Masks) -> Any:
    if isinstance(state, State):
        return replace(state, masks=dict(state.masks) | dict(smaller))
    model, masks = state
    return model, dict(masks) | dict(smaller)


def _checked(
    importance: Any, masks: Masks, can: set[str]
) -> dict[str, Float[np.ndarray, " _"]]:
    if not isinstance(importance, Mapping) or not importance:
        raise ValueError(
            "`importance` must be a dictionary from axis to numbers, not empty, as "
            f"`dn.importance` gives; got {importance!r}."
        )
    found = {}
    for axis, given in importance.items():
        if axis not in masks:
            raise ValueError(f"`importance` names {axis!r}, which has no mask.")
        mask, numbers = masks[axis], np.asarray(given, float)
        prefix = mask.window(1).start == 0 and type(mask).order is AbstractMask.order
        if axis not in can or not prefix:
            raise ValueError(
                f"`importance` names {axis!r}, whose positions cannot change places: leave it "
                "out."
            )
        if numbers.shape != (mask.capacity,) or not np.all(np.isfinite(numbers)):
            shape = numbers.shape != (mask.capacity,)
            what = f"shape {numbers.shape}" if shape else "numbers that are not finite"
            raise ValueError(
                f"`importance` has {what} for axis {axis!r}: it must be {mask.capacity} finite "
                "numbers."
            )
        found[axis] = numbers
    return found
