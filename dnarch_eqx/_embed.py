from collections.abc import Mapping
from typing import Any, TypeVar

import equinox as eqx
import jax.lax as lax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Int, PyTree

from ._axes import AxisMap
from ._layout import Dims, Factor, layout
from ._masks import Masks
from ._nodes import nodes
from ._stateful import apart, together


_Model = TypeVar("_Model")


def embed(
    small: PyTree, full: _Model, axes: AxisMap, masks: Masks, plan: Mapping[str, int]
) -> _Model:
    """Puts the arrays of a small network into their places in a larger one: the inverse of the
    slicing of [`dnarch_eqx.materialize`][]. Masks that were multiplied in stay in, see
    [`dnarch_eqx.pretrained`][].

    **Arguments:**

    - `small`: arrays at the paths of `full`, of the sizes of the plan.
    - `full`: the model at its capacity, which keeps what is outside.
    - `axes`, `masks`: what lies on which axis, and where the plan's windows are.
    - `plan`: the sizes of `small`; an axis that it lacks is at its capacity.

    **Returns:**

    `full` with other arrays.

    Raises `ValueError` for an array of `small` that is not of the plan's size.
    """
    resolved = layout(full, axes, masks)
    windows = {axis: mask.window(plan.get(axis, mask.capacity)) for axis, mask in masks.items()}
    given = dict(nodes(small))

    def walk(node, path: str, at: str) -> Any:
        dims = resolved.get(path)
        if isinstance(node, (list, tuple)) and dims is not None:
            window = windows.get(dims[0][0].axis or "", slice(0, len(node)))
            here = range(len(node))[window]
            return type(node)(
                walk(x, f"{path}[{i}]", f"{at}[{i - window.start}]") if i in here else x
                for i, x in enumerate(node)
            )
        array: Any = node
        new: Any = given.get(at)
        if eqx.is_array(array):
            return _into(array, new, dims or (), windows, at) if eqx.is_array(new) else array
        pairs, treedef = jtu.tree_flatten_with_path(node, is_leaf=lambda x: x is not node)
        if not pairs or not pairs[0][0]:
            return node
        keys = [jtu.keystr(key) for key, _ in pairs]
        children = [walk(x, path + key, at + key) for key, (_, x) in zip(keys, pairs)]
        return treedef.unflatten(children)

    return walk(full, "", "")


def embed_state(
    small: eqx.nn.State,
    full: eqx.nn.State,
    model: PyTree,
    axes: AxisMap,
    masks: Masks,
    plan: Mapping[str, int],
) -> eqx.nn.State:
    """The same for the state of a model."""
    inside = tuple(
        f"{path}.init" for path, node in nodes(model) if isinstance(node, eqx.nn.StateIndex)
    )
    only = {path: spec for path, spec in axes.items() if path.startswith(inside)}
    copy = jtu.tree_map(lambda x: x, full)
    return apart(embed(together(model, small), together(model, copy), only, masks, plan))[1]


def _into(
    full: Array, small: Array, dims: Dims, windows: Mapping[str, slice], path: str
) -> Array:
    """An array with another in its window."""
    shape = tuple(len(positions(dim, windows)) for dim in dims) or full.shape
    if small.shape != shape:
        raise ValueError(f"{path!r} of `small` has shape {small.shape}, under `plan` {shape}.")
    if small.shape == full.shape:
        return small.astype(full.dtype)
    whole = all(len(dim) == 1 and not dim[0].parts for dim in dims)
    if whole:
        starts = [int(positions(dim, windows)[0]) for dim in dims]
        return lax.dynamic_update_slice(full, small.astype(full.dtype), starts)
    at = np.ix_(*(positions(dim, windows) for dim in dims))
    return jnp.asarray(full).at[at].set(small.astype(full.dtype))


def positions(
    dim: tuple[Factor, ...], kept: Mapping[str, slice | Int[np.ndarray, " _"]]
) -> Int[np.ndarray, " _"]:
    """Which positions of a dimension are kept, in which order."""
    found = np.zeros(1, int)
    for part in dim:
        if part.parts:
            ends = np.cumsum([0, *(_capacity(inner) for inner in part.parts)])
            here = [positions(p, kept) + start for p, start in zip(part.parts, ends)]
            inside = np.concatenate(here)
        else:
            inside = np.arange(part.capacity)[kept.get(part.axis or "", slice(None))]
        found = (found[:, None] * part.capacity + inside).ravel()
    return found


def _capacity(dim: tuple[Factor, ...]) -> int:
    return int(np.prod([part.capacity for part in dim]))
