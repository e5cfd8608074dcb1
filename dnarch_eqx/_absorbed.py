# Axes that are decided: their masks become part of the weights.

import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np
import optax

from ._axes import Axes, AxisMap, Concatenated, Fused, Gated
from ._carried import axes_in, carried, taken
from ._freeze import settled
from ._layout import capacities, layout
from ._masks import Masks
from ._materialize import check_plan, fits
from ._misc import replace
from ._plan import check_covers, exact
from ._regrown import cut, Regrown
from ._reordered import reordered
from ._sigmoid import Sigmoid
from ._state import State


_State = TypeVar("_State", bound=State | tuple[Any, Any])


def absorbed(
    state: _State,
    axes: AxisMap,
    optim: optax.GradientTransformation | None = None,
    *,
    names: Iterable[str] | None = None,
    plan: Mapping[str, int] | None = None,
) -> tuple[_State, AxisMap]:
    """Ends the search for the sizes of some axes. Their active positions are put first (see
    [`dnarch_eqx.reordered`][]), the others are given back, and their masks are multiplied into
    the weights, or kept as constants where they enter by a [`dnarch_eqx.Gate`][] or a block.
    What is left is the same function, and trains on as a network written by hand does: with
    arrays of these sizes, and no gradients of masks.

    Moments of weights that are multiplied by a mask are divided by it, as their gradients are
    from then on. For optimizers that keep no more than powers of gradients, such as Adam, the
    moments are what they would have been.

    On the host, not inside `jax.jit`: shapes change, so that the step is compiled anew, by a
    new learner.

    **Arguments:**

    - `state`: what training has come to, settled say: see [`dnarch_eqx.Learner.settle`][]; or
        an average of states; or a pair of a model and masks.
    - `axes`: what lies on which axis.
    - `optim`: the Optax transformation that the state was made with. None is needed for a
        state without an `opt_state`.
    - `names`: the axes; by default all that have a mask.
    - `plan`: buckets of those that are not to be at their exact sizes. Give the resolutions
        that the network was trained at.

    **Returns:**

    The same without the masks of these axes, nor those that lie nowhere any more, as of blocks
    that are gone; and what of it lies on which of the axes that are left. Masks that are left
    move on, also those of a state that was settled.

    Raises `ValueError` for an axis without a mask, and a plan that does not cover or that has
    more than the capacity.

    !!! Example

        ```python
        state, axes = dn.absorbed(learner.settle(state), axes, optim)
        learner = dn.Learner(loss, optim, axes)
        ```
    """
    chosen = _chosen(names, taken(state)[1])
    state = reordered(state, axes, optim, masks={a: taken(state)[1][a] for a in chosen})
    whole, known = taken(state)
    sizes = {axis: n for axis, n in exact(known).items() if axis in chosen}
    check_plan({} if plan is None else plan, known)
    sizes |= {} if plan is None else {a: n for a, n in plan.items() if a in chosen}
    check_covers(sizes, {axis: known[axis] for axis in sizes})

    windows = {axis: known[axis].window(size) for axis, size in sizes.items()}
    factors = {axis: np.asarray(known[axis]())[window] for axis, window in windows.items()}
    before = layout(whole, axes_in(axes, whole), known)
    new = cut(whole, before, windows)
    left = axes_in(axes, new)
    # Of the sizes that are decided: masks say how large the parts of a dimension are.
    after = {
        axis: Sigmoid(sizes[axis], temperature=1e3) if axis in sizes else mask
        for axis, mask in known.items()
    }
    both = {axis: (window, slice(0, sizes[axis])) for axis, window in windows.items()}
    regrown = Regrown(layout(new, left, after), before, both, factors)
    new = settled(regrown(new, whole))
    others = set(capacities(new, left, after)) - chosen
    masks = {axis: mask for axis, mask in known.items() if axis in others}
    left = _without(left, sizes)
    fits(new, left, masks)
    moved: Any = carried(state, new, masks, regrown.places, optim)
    if isinstance(moved, State):
        moved = replace(moved, settled=jnp.zeros_like(moved.settled))
    return moved, left


def _chosen(names: Iterable[str] | None, masks: Masks) -> set[str]:
    chosen = set(masks if names is None else names)
    if unknown := sorted(chosen - set(masks)):
        raise ValueError(
            f"`names` has {unknown[0]!r}, which has no mask. These have: {sorted(masks)}."
        )
    return chosen


def _without(axes: AxisMap, sizes: Mapping[str, int]) -> AxisMap:
    """The axis map without these axes, of these sizes: their dimensions lie on none."""

    def part(of: Any) -> Any:
        axis = of.axis if isinstance(of, Gated) else of
        if isinstance(axis, str):
            return sizes.get(axis, of)
        if not isinstance(of, Fused | Concatenated):
            return of
        parts = tuple(map(part, of.parts))
        if all(isinstance(n, int) for n in parts):
            return math.prod(parts) if isinstance(of, Fused) else sum(parts)
        return type(of)(parts)

    def dim(of: Any) -> Any:
        new = part(of)
        return None if isinstance(new, int) else new

    found = {path: Axes(*map(dim, spec.dims)) for path, spec in axes.items()}
    return {path: spec for path, spec in found.items() if any(spec.dims)}
