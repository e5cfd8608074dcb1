# Positions in another order: of arrays and of masks.

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Int, PyTree

from ._axes import AxisMap, Gate
from ._embed import positions
from ._layout import flat, Layout, layout
from ._masks import AbstractMask, check_masks, Masks
from ._misc import Constant, constant, replace
from ._nodes import is_shape, nodes


Orders = Mapping[str, Int[np.ndarray, " _"]]


def permuted(model: Any, resolved: Layout, orders: Orders) -> Any:
    """A model with the positions of axes in another order, on all arrays that they lie on."""

    def walk(node: Any, path: str) -> Any:
        if isinstance(node, Gate):
            order = orders.get(node.axis)
            if order is None or node.values is None:
                return node
            kept = node.values[order]
            return replace(
                node, stored=constant(kept) if isinstance(node.stored, Constant) else kept
            )
        if eqx.is_array(node):
            dims = resolved.get(path, ())
            if not any(part.axis in orders for part in flat(*dims)):
                return node
            return node[np.ix_(*(positions(dim, orders) for dim in dims))]
        pairs, treedef = jtu.tree_flatten_with_path(node, is_leaf=lambda x: x is not node)
        if not pairs or not pairs[0][0]:
            return node
        return treedef.unflatten([walk(x, path + jtu.keystr(key)) for key, x in pairs])

    return walk(model, "")


def active_first(
    model: PyTree, axes: AxisMap, masks: Masks
) -> tuple[PyTree, dict[str, AbstractMask]]:
    """Model and masks with active positions before the others, wherever they can change places:
    the same function.
    """
    check_masks(masks)
    orders = orders_of(masks)
    if not orders:
        return model, dict(masks)
    resolved = layout(model, axes, masks)
    can = free(model, resolved)
    orders = {axis: order for axis, order in orders.items() if axis in can}
    new = {axis: masks[axis].permuted(order) for axis, order in orders.items()}
    return permuted(model, resolved, orders), {**masks, **new}


def orders_of(masks: Masks) -> dict[str, Int[np.ndarray, " _"]]:
    """The orders that masks ask for."""
    orders = {axis: mask.order() for axis, mask in masks.items()}
    return {axis: order for axis, order in orders.items() if order is not None}


def free(model: PyTree, resolved: Layout) -> set[str]:
    """The axes whose positions can change places: not those of blocks in a list, nor those that
    lie on a [`dnarch_eqx.Gate`][] alone, as kernels do, nor those of which a module says so.
    """
    lie, stay = set(), set()
    for path, node in nodes(model):
        on = {part.axis for part in flat(*resolved.get(path, ()))}
        if eqx.is_array(node):
            lie |= on
        elif isinstance(node, list | tuple) and not is_shape(node):
            stay |= on
        says = getattr(node, "fixed_axes", None)
        if says is not None:
            stay |= says(lambda at, path=path: _first(resolved.get(path + at)))
    return {str(axis) for axis in lie - stay if axis is not None}


def _first(dims: Any) -> str | None:
    return dims[0][0].axis if dims else None
