# A model at other capacities: which entries of its arrays are which of another's.

from collections.abc import Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Float, Int

from ._axes import Gate
from ._blocks import faded, is_faded
from ._counterpart import counterpart, refit, registered
from ._embed import positions
from ._fit import Fit
from ._layout import Factor, flat, Layout
from ._misc import constant, recast, replace
from ._nodes import is_shape, static_numbers


Keys = tuple[Any, ...]
# A window of positions, or these positions.
Kept = slice | Int[np.ndarray, " _"]
Factors = Mapping[str, Float[np.ndarray, " _"]]


class Place(NamedTuple):
    """Where an array of the model comes from.

    - `was`: the path of the old array, and `shape` its shape.
    - `old`, `new`: by dimension, which positions of it are which of the new one.
    - `scale`: what its entries are multiplied by there, to be broadcast; 1 if `None`.
    """

    was: Keys
    shape: tuple[int, ...]
    old: tuple[Int[np.ndarray, " _"], ...]
    new: tuple[Int[np.ndarray, " _"], ...]
    scale: Float[np.ndarray, "..."] | None = None

    @property
    def stays(self) -> bool:
        """Whether entries are where they were, if the array has the same shape."""
        return all(np.array_equal(a, b) for a, b in zip(self.old, self.new))

    def put(self, new: Any, old: Any, scaled: bool = False) -> Array:
        """The old array's entries in their places of the new one, in the old one's dtype."""
        if new.shape == old.shape and self.stays and not (scaled and self.scale is not None):
            return old
        part = np.asarray(old)[np.ix_(*self.old)] if self.old else np.asarray(old)
        if scaled and self.scale is not None:
            part = (part * self.scale).astype(old.dtype)
        whole = np.array(new, dtype=old.dtype)
        whole[np.ix_(*self.new) if self.new else ()] = part
        return jnp.asarray(whole)


class Regrown:
    """One pass over a new model and the old one, which puts the old one's arrays into it and
    notes where they went.
    """

    def __init__(
        self,
        new: Layout,
        old: Layout,
        windows: Mapping[str, tuple[Kept, Kept]],
        factors: Factors,
    ):
        self.new, self.old = new, old
        self.there = {axis: window for axis, (_, window) in windows.items()}
        self.here = {axis: window for axis, (window, _) in windows.items()}
        self.factors = factors
        self.places: dict[Keys, Place] = {}

    def __call__(self, new: Any, old: Any, at: Keys = (), was: Keys = ()) -> Any:
        if eqx.is_array(new) and eqx.is_array(old):
            return self.array(new, old, at, was)
        if eqx.is_array(new) or eqx.is_array(old) or (new is None) != (old is None):
            raise _differ(at, f"it has {_shown(new)} where the model has {_shown(old)}")
        alike = isinstance(old, type(new)) or not isinstance(new, eqx.Module | list | tuple)
        if not alike:
            raise _differ(at, f"it has {_shown(new)} where the model has {_shown(old)}")
        if isinstance(new, Gate):
            return self.gate(new, old, at)
        if is_faded(old) and not is_faded(new):
            kept = {n: getattr(old, n) for n in ("weight_of_block", "place_of_block")}
            new = recast(type(old), new, **kept)  # pyright: ignore
        dims = self.new.get(jtu.keystr(at))
        if isinstance(new, list | tuple) and dims is not None:
            return self.blocks(new, old, at, was, dims[0][0])
        pairs, treedef = jtu.tree_flatten_with_path(new, is_leaf=lambda x: x is not new)
        if not pairs or not pairs[0][0]:
            return new
        others = jtu.tree_leaves_with_path(old, is_leaf=lambda x: x is not old)
        keys, known = [key for key, _ in pairs], [key for key, _ in others]
        if keys != known:
            lists = isinstance(new, list | tuple) and not hasattr(new, "_fields")
            why = f"it has {len(keys)} where the model has {len(known)}"
            raise _differ(at, why + (", and they lie on no axis" if lists else " children"))
        children = [
            self(x, y, (*at, *key), (*was, *key)) for (key, x), (_, y) in zip(pairs, others)
        ]
        return treedef.unflatten(children)

    def blocks(self, new: Any, old: Any, at: Keys, was: Keys, part: Factor) -> Any:
        axis = str(part.axis)
        whole = slice(0, len(new))
        there = np.arange(len(new))[self.there.get(axis, whole)].tolist()
        here = np.arange(len(old))[self.here.get(axis, whole)].tolist()
        blocks = list(new)
        for i, j in zip(there, here, strict=True):
            keys = jtu.SequenceKey(i), jtu.SequenceKey(j)
            block = self(new[i], old[j], (*at, keys[0]), (*was, keys[1]))
            if part.gated and axis in self.factors and self.factors[axis][i] != 1:
                block = faded(block, jnp.asarray(self.factors[axis][i], float), axis, i)
                block = replace(block, weight_of_block=constant(block.weight_of_block))
            blocks[i] = block
        return type(new)(blocks)

    def gate(self, new: Gate, old: Gate, at: Keys) -> Gate:
        """With the values that it was frozen with, and what the mask is multiplied by."""
        if new.axis != old.axis:
            raise _differ(
                at, f"its gate is of {new.axis!r} where the model's is of {old.axis!r}"
            )
        factor = self.factors.get(new.axis)
        if old.values is None and factor is None:
            return new
        kept = np.ones(new.size)
        there, here = (kind.get(new.axis, slice(None)) for kind in (self.there, self.here))
        kept[there] = 1.0 if old.values is None else np.asarray(old.values)[here]
        kept = kept if factor is None else kept * factor
        dtype = jnp.result_type(float) if old.values is None else old.values.dtype
        return replace(new, stored=constant(jnp.asarray(kept, dtype)))

    def array(self, new: Array, old: Array, at: Keys, was: Keys) -> Array:
        path, before = jtu.keystr(at), jtu.keystr(was)
        dims, others = self.new.get(path, ()), self.old.get(before, ())
        there = tuple(positions(dim, self.there) for dim in dims)
        here = tuple(positions(dim, self.here) for dim in others)
        lengths = [[len(x) for x in kept] for kept in (there, here)]
        if lengths[0] != lengths[1] or (not dims and new.shape != old.shape):
            why = f"it has shape {new.shape} where the model has {old.shape}"
            raise _differ(at, why + ", and the axes that it lies on do not account for that")
        scale = np.ones((1,) * len(dims))
        for i, dim in enumerate(dims):
            along = _scales(dim, self.factors)[there[i]]
            scale = scale * np.expand_dims(along, [k for k in range(len(dims)) if k != i])
        place = Place(was, old.shape, here, there, scale if np.any(scale != 1) else None)
        if new.dtype != old.dtype and not _both_float(new, old):
            raise _differ(at, f"it is of {new.dtype} where the model is of {old.dtype}")
        self.places[at] = place
        return place.put(new, old, scaled=True)


def _both_float(a: Array, b: Array) -> bool:
    return all(jnp.issubdtype(x.dtype, jnp.floating) for x in (a, b))


def _scales(dim: tuple[Factor, ...], factors: Factors) -> Float[np.ndarray, " _"]:
    """What the positions of a dimension are multiplied by, where masks are multiplied in."""
    found = np.ones(1)
    for part in dim:
        if part.parts:
            inside = np.concatenate([_scales(inner, factors) for inner in part.parts])
        else:
            ones = np.ones(part.capacity)
            inside = factors.get(part.axis or "", ones) if part.gated else ones
        found = (found[:, None] * inside).ravel()
    return found


def _differ(at: Keys, why: str) -> ValueError:
    return ValueError(
        f"`fresh` is not the model at other capacities: at {jtu.keystr(at)!r} {why}."
    )


def _shown(x: Any) -> str:
    return f"an array of shape {x.shape}" if eqx.is_array(x) else type(x).__name__


def cut(node: Any, layout: Layout, windows: Mapping[str, slice], path: str = "") -> Any:
    """A model of which these windows of its axes are left, to be learned on: unlike
    [`dnarch_eqx.freeze`][] nothing is multiplied in, and layers stay what they were.
    """
    if isinstance(node, Gate):
        window = windows.get(node.axis)
        return node if window is None else replace(node, stored=None, size=_length(window))
    if isinstance(node, eqx.nn.Shared):
        whole = cut(node(), layout, windows, path + ".pytree")
        away = node.where(node.pytree)
        return replace(node, pytree=eqx.tree_at(node.where, whole, away))
    dims = layout.get(path)
    if eqx.is_array(node):
        if not any(part.axis in windows for part in flat(*(dims or ()))):
            return node
        kept = np.ix_(*(positions(dim, windows) for dim in dims or ()))
        return jnp.asarray(np.asarray(node)[kept])
    pairs, treedef = jtu.tree_flatten_with_path(node, is_leaf=lambda x: x is not node)
    if not pairs or not pairs[0][0]:
        return node
    if isinstance(node, list | tuple) and dims is not None:
        kept = range(len(node))[windows.get(dims[0][0].axis or "", slice(None))]
        return type(node)([cut(node[i], layout, windows, f"{path}[{i}]") for i in kept])
    children = [cut(x, layout, windows, path + jtu.keystr(key)) for key, x in pairs]
    node = treedef.unflatten(children)
    if not isinstance(node, eqx.Module):
        return node
    ones: Any = {axis: jnp.ones(_length(window)) for axis, window in windows.items()}
    starts = {axis: window.start or 0 for axis, window in windows.items()}
    lies = lambda field: layout.get(f"{path}.{field}")
    fit = Fit(path, lies, ones, starts, frozenset(windows))
    numbers = {
        name: tuple(fit.size(*x) for x in on) if is_shape(old) else fit.size(*on[0])
        for name, old in static_numbers(node)
        if (on := lies(name)) is not None
    }
    node = replace(node, **numbers) if numbers else node
    function: Any = counterpart.registry.get(registered(type(node)), None)
    # What users register takes a layer's place in a network that runs, not in what is trained.
    ours = getattr(function, "__module__", "").partition(".")[0] == __package__
    return refit(node, fit) if ours else node


def _length(window: slice) -> int:
    return window.stop - (window.start or 0)
