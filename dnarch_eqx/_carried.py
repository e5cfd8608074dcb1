# A training state taken apart, and carried over to a model whose positions are other ones.

import functools as ft
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.tree_util as jtu
import numpy as np
import optax
from jax.core import Tracer
from jax.sharding import NamedSharding
from jaxtyping import PyTree

from ._axes import AxisMap
from ._extended import slope
from ._masks import check_masks, Masks
from ._misc import replace
from ._moments import moved, Number
from ._nodes import nodes
from ._order import Orders
from ._plan import counts
from ._regrown import Place
from ._state import State
from ._stateful import apart, is_apart, together


def parts(state: Any) -> tuple[Any, Any, Any, Any]:
    """Model, masks, the model's state and the optimizer's, of a state or an average."""
    if isinstance(state, State):
        return state.model, state.masks, state.model_state, state.opt_state
    if isinstance(state, tuple) and len(state) == 2:
        return *state, None, None
    raise ValueError(
        "`state` must be a `dn.State`, or a pair of a model and masks; got "
        f"{type(state).__name__}."
    )


def taken(state: Any) -> tuple[PyTree, dict[str, Any]]:
    """The model with its state inside, and the masks."""
    model, masks, model_state, _ = parts(state)
    check_masks(masks)
    if any(isinstance(x, Tracer) for x in jtu.tree_leaves((model, masks))):
        raise ValueError("`state` is traced: its positions change on the host, outside of jit.")
    counts(masks)
    return inside(model, model_state), dict(masks)


def inside(model: PyTree, state: eqx.nn.State | None) -> PyTree:
    """The model with its state inside."""
    # A copy, as one that was used is invalid.
    return model if state is None else together(model, jtu.tree_map(lambda x: x, state))


def axes_in(axes: AxisMap, model: PyTree) -> AxisMap:
    """The axes of what is in a model: it may have fewer blocks than they were declared for."""
    every = list(nodes(model))
    paths = {path for path, _ in every}
    outside = tuple(f"{path}.init" for path, node in every if is_apart(node))
    return {p: spec for p, spec in axes.items() if p in paths or p.startswith(outside)}


def carried(
    state: Any,
    whole: PyTree,
    masks: Masks,
    places: Mapping[Any, Place],
    optim: optax.GradientTransformation | None,
    orders: Orders | None = None,
) -> Any:
    """The state with another model and other masks.

    - `whole`: the new model, with its state inside; `places`: what in it comes from where.
    - `orders`: of masks whose positions have changed places.
    """
    model, known, model_state, opt_state = parts(state)
    new, new_state = (whole, None) if model_state is None else apart(whole)
    if not isinstance(state, State):
        return new, masks
    if opt_state is not None:
        if optim is None:
            raise ValueError("`optim` is needed: `state` has an `opt_state`.")
        after = eqx.filter((new, masks), eqx.is_inexact_array)
        before = eqx.filter((model, dict(known)), eqx.is_inexact_array)
        first = jtu.SequenceKey(0)
        there = {
            (first, *keys): place._replace(was=(first, *place.was))
            for keys, place in places.items()
        }
        of_masks, numbers = _of_masks(known, masks, orders or {})
        opt_state = moved(optim, opt_state, before, after, there | of_masks, numbers)
    fields = {"opt_state": opt_state, "model_state": new_state}
    moved_state = replace(state, model=new, masks=masks, **fields)
    return jtu.tree_map(_placed, moved_state, state) if orders else moved_state


def _placed(new: Any, old: Any) -> Any:
    """Spread over devices as before."""
    spread = isinstance(getattr(old, "sharding", None), NamedSharding)
    return jax.device_put(new, old.sharding) if spread else new


def _of_masks(
    old: Masks, new: Masks, orders: Orders
) -> tuple[dict[Any, Place], dict[Any, Number]]:
    """Where the numbers of masks come from, and how they change."""
    places, numbers = {}, {}
    for axis in set(old) & set(new):
        for (keys, before), after in zip(
            jtu.tree_leaves_with_path(old[axis]), jtu.tree_leaves(new[axis]), strict=True
        ):
            at = (jtu.SequenceKey(1), jtu.DictKey(axis), *keys)
            common = min(old[axis].capacity, new[axis].capacity)
            learned = keys[0].name in old[axis].learn
            if learned and before.shape == (old[axis].capacity,):
                # A number a position.
                order = orders.get(axis, np.arange(common))
                places[at] = Place(at, before.shape, (order,), (np.arange(common),))
            elif before.shape == after.shape:
                every = tuple(np.arange(n) for n in before.shape)
                places[at] = Place(at, before.shape, every, every)
                if axis not in orders:
                    by = ft.partial(slope, old[axis], keys[0].name, new[axis].capacity)
                    numbers[at] = Number(before, after, by)
    return places, numbers
