# Capacities that are extended, and given back.

from collections.abc import Mapping
from typing import Any, TypeVar

import equinox as eqx
import optax
from jaxtyping import PyTree

from ._axes import AxisMap
from ._carried import axes_in, carried, inside, parts, taken
from ._extended import at_capacities, stand_ins, windows
from ._layout import capacities as capacities_of, layout
from ._masks import as_single, Masks
from ._materialize import fits
from ._misc import positive
from ._plan import counts
from ._regrown import cut, Regrown
from ._state import State


_State = TypeVar("_State", bound=State | tuple[Any, Any])


def grow(
    state: _State,
    axes: AxisMap,
    fresh: PyTree,
    optim: optax.GradientTransformation | None = None,
    *,
    capacities: Mapping[str, int] | None = None,
    masks: Masks | None = None,
) -> _State:
    """Extends capacities: weights, masks, the optimizer's state and running statistics go to
    their places in a larger network, which is the same function at that moment, to rounding.
    New positions are those of the fresh network, inactive until their mask reaches them.

    A mask that presses against its capacity reaches beyond it: it would have new positions
    active at once. It is made to end where the axis did, and what its values become smaller by
    is multiplied into the weights that they scale, or kept in the [`dnarch_eqx.Gate`][] or the
    block; moments of their gradients are divided by it. Else arrays are what they were.

    The next update of old positions is what it would have been, but for masks, whose offset is
    in units of the axis, and for optimizers that look at a whole array: at the norm of weights,
    or as Adafactor at the size of an update. Moments of new positions begin as the optimizer
    begins.

    On the host, not inside `jax.jit`: shapes change, so that the step is compiled anew. What a
    module computes from a capacity itself, as a grid of coordinates, is the fresh one's.

    **Arguments:**

    - `state`: what training has come to; or an average of those; or a pair of a model and
        masks. Give an average the same `fresh`.
    - `axes`: what lies on which axis, in `fresh`.
    - `fresh`: the module, built anew at larger capacities: by its own constructor, with another
        key. It differs from the model in shapes of arrays, in static fields, and in lengths of
        lists that lie on axes. With an [`equinox.nn.State`][] the pair of both.
    - `optim`: the Optax transformation that the state was made with. None is needed for a
        state without an `opt_state`.
    - `capacities`: axis to new capacity, where `fresh` is larger than that, or where parts of
        fused dimensions cannot be told apart. By default those of `fresh`.
    - `masks`: of axes that are new, say of blocks that the model has not had.

    **Returns:**

    The same at the new capacities.

    Raises `ValueError` for a `fresh` that is not the model at larger capacities, by the path
    that differs; for masks that cannot have that capacity; an axis that is learned and lies
    nowhere, or is not learned and changes; a state that is not the optimizer's.

    !!! Example

        ```python
        larger = dn.pressing(state.masks)
        if larger:
            sizes = sizes | larger
            state = dn.grow(state, axes, Network(sizes, key=key), optim)
        ```
    """
    whole, known = taken(state)
    new = _whole(fresh, parts(state)[2])
    given = {} if capacities is None else _checked(capacities)
    added = {} if masks is None else as_single(masks)
    if twice := sorted(set(added) & set(known)):
        raise ValueError(f"`masks` has one for axis {twice[0]!r}, which has a mask already.")
    before = capacities_of(whole, axes_in(axes, whole), known)
    sizes, largest = _sizes_of(new, axes, known | added, given)
    _check_larger(before, known, sizes, given)
    smaller = {
        axis: largest[axis].window(size) for axis, size in given.items() if size < sizes[axis]
    }
    if smaller:
        new = cut(new, layout(new, axes, largest), smaller)
        sizes |= {axis: given[axis] for axis in smaller}
    return _moved(state, whole, axes, new, optim, {axis: sizes[axis] for axis in known}, added)


def compact(
    state: _State,
    axes: AxisMap,
    optim: optax.GradientTransformation | None,
    capacities: Mapping[str, int],
) -> _State:
    """Gives back capacity: the inverse of [`dnarch_eqx.grow`][]. Positions that are cut off are
    lost; the network is the same function.

    **Arguments:**

    - `state`, `optim`: as for [`dnarch_eqx.grow`][].
    - `axes`: what lies on which axis. Of what is left see [`dnarch_eqx.axes_in`][].
    - `capacities`: axis to new capacity, which holds all active positions.

    **Returns:**

    The same at the new capacities; without the masks of axes that lie nowhere any more, as
    those of blocks that were cut off.

    Raises `ValueError` for an axis without a mask, and a capacity that is larger, too small, or
    that the mask cannot have.
    """
    whole, known = taken(state)
    given, active = _checked(capacities), counts(known)
    for axis, size in given.items():
        if axis not in known:
            raise ValueError(
                f"`capacities` names {axis!r}, which has no mask. These have: {sorted(known)}."
            )
        if not active[axis] <= size <= known[axis].capacity:
            raise ValueError(
                f"`capacities` has {size} for axis {axis!r}, of whose {known[axis].capacity} "
                f"positions {active[axis]} are active: it must lie between these."
            )
    sizes = {axis: mask.capacity for axis, mask in known.items()} | given
    smaller_masks = stand_ins(known, sizes)  # says what cannot be
    smaller = {axis: known[axis].window(size) for axis, size in given.items()}
    new = cut(whole, layout(whole, axes_in(axes, whole), known), smaller)
    axes = axes_in(axes, new)
    left = capacities_of(new, axes, smaller_masks)
    kept = {axis: size for axis, size in sizes.items() if axis in left}
    return _moved(state, whole, axes, new, optim, kept, {})


def _moved(
    state: Any,
    old: PyTree,
    axes: AxisMap,
    new: PyTree,
    optim: optax.GradientTransformation | None,
    sizes: Mapping[str, int],
    added: Masks,
) -> Any:
    """The state in a model of other capacities, as large as `sizes` says."""
    known = parts(state)[1]
    masks, factors = at_capacities(known, sizes)
    both = {axis: windows(known[axis], mask) for axis, mask in masks.items()}
    masks |= added
    regrown = Regrown(
        layout(new, axes, masks), layout(old, axes_in(axes, old), known), both, factors
    )
    whole = regrown(new, old)
    fits(whole, axes, masks)
    return carried(state, whole, masks, regrown.places, optim)


#
# Arguments.
#


def _checked(capacities: Any) -> dict[str, int]:
    if not isinstance(capacities, Mapping):
        raise ValueError(
            f"`capacities` must be a dictionary from axis to capacity, got {capacities!r}."
        )
    return {axis: positive(f"capacities[{axis!r}]", n) for axis, n in capacities.items()}


def _whole(model: PyTree, model_state: Any) -> PyTree:
    pair = isinstance(model, tuple) and len(model) == 2
    has_state = pair and isinstance(model[1], eqx.nn.State)
    if has_state != (model_state is not None):
        wanted = "the model alone" if model_state is None else "the pair of model and state"
        raise ValueError(f"`fresh` must be {wanted}, as in `state`.")
    return inside(*model) if has_state else model


def _sizes_of(
    fresh: PyTree, axes: AxisMap, masks: Masks, given: Mapping[str, int]
) -> tuple[dict[str, int], dict[str, Any]]:
    """The capacities of the fresh model, and masks of them."""
    if absent := sorted(set(given) - set(masks)):
        raise ValueError(f"`capacities` names {absent[0]!r}, which has no mask.")
    try:
        sizes = capacities_of(fresh, axes)
    except ValueError as error:
        apart = "cannot be told apart" in str(error)
        if not (apart and given):
            advice = " Here: give `capacities`." if apart else ""
            raise ValueError(f"`fresh`: {error}{advice}") from error
        sizes = capacities_of(fresh, axes, stand_ins(masks, given))
    if absent := sorted(set(masks) - set(sizes)):
        raise ValueError(f"Axis {absent[0]!r} has a mask, but lies nowhere in `fresh`.")
    for axis, size in given.items():
        if size > sizes[axis]:
            raise ValueError(
                f"`capacities` has {size} for axis {axis!r}, and `fresh` has {sizes[axis]}: "
                "it must be as large."
            )
    return sizes, stand_ins(masks, {axis: sizes[axis] for axis in masks})


def _check_larger(
    before: Mapping[str, int], masks: Masks, sizes: Mapping[str, int], given: Mapping[str, int]
) -> None:
    for axis, size in before.items():
        wanted = given.get(axis, sizes.get(axis))
        if axis in masks and wanted is not None and wanted < size:
            raise ValueError(
                f"Axis {axis!r} has capacity {size}, and is to have {wanted}: it can only grow "
                "here. See `dn.compact`."
            )
        if axis not in masks and wanted is not None and wanted != size:
            raise ValueError(
                f"Axis {axis!r} has no mask, and cannot change from {size} to {wanted}: what "
                "is added would be active at once."
            )
