import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Float, PyTree

from ._masks import Masks
from ._misc import as_float


#
# How a dimension says what it is.
#


@dataclasses.dataclass(frozen=True)
class Gated:
    """See [`dnarch_eqx.gated`][]."""

    axis: str


@dataclasses.dataclass(frozen=True)
class Fused:
    """See [`dnarch_eqx.fused`][]."""

    parts: tuple[str | Gated | int, ...]


def gated(axis: str) -> Gated:
    """In [`dnarch_eqx.Axes`][], in place of an axis' name: the dimension is the axis, and
    its mask is multiplied in here.

    Gate the consumer to mask an activation; gate a weight's rows *and* its bias to mask a
    pre-activation.
    """
    if not isinstance(axis, str):
        raise ValueError(f"`axis` must be a name, got {axis!r}.")
    return Gated(axis)


def fused(*parts: str | Gated | int) -> Fused:
    """In [`dnarch_eqx.Axes`][], for a dimension that several are flattened into, slowest
    first: `fused("heads", "width")` for the rows of an attention's projections,
    `fused(3, "hidden")` for the three stacked gates of a GRU. An integer is a part that
    is not learned.
    """
    whole = [part for part in parts if isinstance(part, int)]
    named = [part for part in parts if isinstance(part, (str, Gated))]
    if len(whole) + len(named) < max(len(parts), 1) or any(part < 1 for part in whole):
        raise ValueError(
            f"The parts of `fused` are names, `gated(name)` or positive integers; got {parts}."
        )
    return Fused(parts)


Dim: TypeAlias = None | str | Gated | Fused


@dataclasses.dataclass(frozen=True, init=False)
class Axes:
    """What lies on each dimension of an array: a `PartitionSpec` for learned axes.

    `Axes("hidden", None)` says that dimension 0 is the axis `hidden`, and that dimension 1
    is not learned. Besides names there are [`dnarch_eqx.gated`][] and
    [`dnarch_eqx.fused`][]. On a list or tuple of modules, `Axes("depth")` says that its
    elements lie on `depth`, which drops whole modules.
    """

    dims: tuple[Dim, ...]

    def __init__(self, *dims: Dim):
        for dim in dims:
            if not (dim is None or isinstance(dim, (str, Gated, Fused))):
                raise ValueError(
                    "A dimension of `Axes` is None, a name, `gated(name)` or `fused(...)`; "
                    f"got {dim!r}."
                )
        object.__setattr__(self, "dims", dims)

    def __repr__(self) -> str:
        return f"Axes({', '.join(map(repr, self.dims))})"


class Gate(eqx.Module):
    """An axis that belongs to no array: a depth, a kernel's coordinate grid, the
    frequencies kept. Its length is the static size; calling it gives the mask's values,
    once materialized, and ones until then.
    """

    values: Float[Array, " size"] | None
    axis: str = eqx.field(static=True)
    size: int = eqx.field(static=True)

    def __init__(self, axis: str, size: int):
        """**Arguments:**

        - `axis`: the name of the axis.
        - `size`: its capacity.
        """
        if size < 1:
            raise ValueError(f"`size` of gate {axis!r} must be at least 1, got {size}.")
        self.values = None
        self.axis = axis
        self.size = size

    def __call__(self) -> Float[Array, " size"]:
        return as_float(jnp.ones(self.size)) if self.values is None else self.values


# Where in a model (`".layers[0].weight"`) -> what lies on it. A flat dictionary rather than
# a shadow tree of the model, because sequences of modules, which are nodes, lie on axes too.
AxisMap: TypeAlias = dict[str, Axes]


@dataclasses.dataclass(frozen=True)
class _Path:
    keys: tuple[Any, ...]


def declare(model: PyTree, where: Callable[[Any], Any], axes: Axes | Sequence[Axes]) -> AxisMap:
    """Puts arrays of a model, or sequences of its modules, on axes.

    **Arguments:**

    - `model`: the model at its capacity: any PyTree.
    - `where`: from the model to one of its nodes, or a sequence of nodes.
    - `axes`: the [`dnarch_eqx.Axes`][] of that node, or a sequence of as many.

    **Returns:**

    A dictionary from path to axes. Join several with `|`. What is `None` in the model, say
    the bias of a layer without one, is left out.

    !!! Example

        ```python
        axes = dn.declare(
            mlp,
            lambda m: (m.layers[0].weight, m.layers[0].bias, m.layers[1].weight),
            (dn.Axes("hidden", None), dn.Axes("hidden"), dn.Axes(None, dn.gated("hidden"))),
        )
        ```
    """
    leaves, treedef = jtu.tree_flatten_with_path(model, is_leaf=lambda x: x is None)
    nodes = where(treedef.unflatten([_Path(path) for path, _ in leaves]))
    if isinstance(axes, Axes):
        nodes, axes = (nodes,), (axes,)
    elif not isinstance(nodes, Sequence) or len(nodes) != len(axes):
        found = len(nodes) if isinstance(nodes, Sequence) else "one node"
        raise ValueError(f"`where` gives {found} but `axes` has {len(axes)}: one each.")
    absent = {jtu.keystr(path) for path, leaf in leaves if leaf is None}
    declared: AxisMap = {}
    for node, spec in zip(nodes, axes):
        path = _path_of(node, [path for path, _ in leaves])
        if path in declared:
            raise ValueError(f"`where` gives {path!r} twice.")
        declared[path] = spec
    return {path: spec for path, spec in declared.items() if path not in absent}


def _path_of(node, paths: list[tuple[Any, ...]]) -> str:
    """The path of a node of the marked tree: the one above exactly its leaves."""
    inner = jtu.tree_leaves_with_path(node)
    if inner and all(isinstance(leaf, _Path) for _, leaf in inner):
        key, leaf = inner[0]
        above = leaf.keys[: len(leaf.keys) - len(key)]
        below = [path for path in paths if path[: len(above)] == above]
        if below == [leaf.keys for _, leaf in inner] == [(*above, *key) for key, _ in inner]:
            return jtu.keystr(above)
    raise ValueError(
        f"`where` gives {_shown(node)}, which is no node of `model`. Give as many `axes` as "
        "nodes, and whole sequences of modules."
    )


def _shown(node) -> str:
    paths = [leaf.keys for leaf in jtu.tree_leaves(node) if isinstance(leaf, _Path)]
    return f"({', '.join(map(jtu.keystr, paths))})" if paths else repr(node)


#
# What the declarations amount to, for one model.
#


@dataclasses.dataclass(frozen=True)
class Part:
    """A dimension, or a factor of a fused one: its axis if any, its capacity."""

    axis: str | None
    capacity: int
    gated: bool = False


# Path -> for every dimension of the node there, its parts.
Layout: TypeAlias = dict[str, tuple[tuple[Part, ...], ...]]


def nodes(model: PyTree) -> Iterator[tuple[str, Any]]:
    """All nodes of a tree with their paths, parents first."""
    stack: list[tuple[str, Any]] = [("", model)]
    while stack:
        path, node = stack.pop()
        yield path, node
        children = jtu.tree_leaves_with_path(node, is_leaf=lambda x: x is not node)
        stack.extend(
            (path + jtu.keystr(key), child) for key, child in reversed(children) if key
        )


def layout(model: PyTree, axes: AxisMap, masks: Masks | None = None) -> Layout:
    """Resolves the declarations against a model's arrays.

    Raises `ValueError` if a path is not in the model, if axes do not fit the dimensions
    of the node there, or if arrays disagree about a capacity.
    """
    found = {path: node for path, node in nodes(model) if path in axes}
    if missing := sorted(set(axes) - set(found)):
        raise ValueError(f"`axes` declares {missing[0]!r}, which is no path in `model`.")
    # Who said first how large an axis is, to be quoted when somebody disagrees.
    known: dict[str, tuple[int, str]] = {}

    def claim(axis: str, capacity: int, by: str) -> None:
        size, first = known.setdefault(axis, (capacity, by))
        if size != capacity:
            raise ValueError(
                f"Axis {axis!r} has capacity {size} by {first}, but {capacity} by {by}."
            )

    shapes = {path: _shape(path, node, axes[path]) for path, node in found.items()}
    for path, shape in shapes.items():
        for i, (dim, size) in enumerate(zip(axes[path].dims, shape)):
            if isinstance(dim, (str, Gated)):
                claim(_axis(dim), size, f"dimension {i} of {path!r}")
    for path, node in nodes(model):
        if isinstance(node, Gate):
            claim(node.axis, node.size, f"the gate at {path!r}")
    for axis, mask in ({} if masks is None else masks).items():
        if axis in known:
            claim(axis, mask.capacity, "its mask")

    def split(path: str, i: int, dim: Dim, size: int) -> tuple[Part, ...]:
        if dim is None:
            return (Part(None, size),)
        if not isinstance(dim, Fused):
            return (Part(_axis(dim), size, isinstance(dim, Gated)),)
        by = f"dimension {i} of {path!r}"
        sizes = [_part_size(part, known, masks) for part in dim.parts]
        if sizes.count(None) > 1:
            raise ValueError(
                f"{by} is {dim}: the capacities of its parts cannot be told apart. Give masks "
                "for all but one of them, or integers for those that are not learned."
            )
        rest, remainder = divmod(size, math.prod(s for s in sizes if s is not None))
        if remainder or (None not in sizes and rest != 1):
            raise ValueError(f"{by} has size {size}, which {dim} with parts of {sizes} is not.")
        sizes = [rest if s is None else s for s in sizes]
        for part, s in zip(dim.parts, sizes):
            if not isinstance(part, int):
                claim(_axis(part), s, by)
        return tuple(
            Part(None, s)
            if isinstance(part, int)
            else Part(_axis(part), s, isinstance(part, Gated))
            for part, s in zip(dim.parts, sizes)
        )

    return {
        path: tuple(split(path, i, *pair) for i, pair in enumerate(zip(axes[path].dims, shape)))
        for path, shape in shapes.items()
    }


def capacities(model: PyTree, axes: AxisMap, masks: Masks | None = None) -> dict[str, int]:
    """The capacity of every declared axis."""
    parts = {
        part.axis: part.capacity
        for dims in layout(model, axes, masks).values()
        for dim in dims
        for part in dim
        if part.axis is not None
    }
    gates = {node.axis: node.size for _, node in nodes(model) if isinstance(node, Gate)}
    return parts | gates


def check(model: PyTree, axes: AxisMap, masks: Masks) -> Layout:
    """Checks that model, axes and masks fit together, and gives what lies on each dimension
    of every declared path.

    Raises `ValueError` for all that [`dnarch_eqx.declare`][] cannot see: a mask that no
    array lies on; a capacity on which arrays and masks disagree; a mask on integers.
    """
    resolved = layout(model, axes, masks)
    sizes = capacities(model, axes, masks)
    for axis in masks:
        if axis not in sizes:
            raise ValueError(
                f"`masks` has a mask for axis {axis!r}, but no array lies on it. The declared "
                f"axes are {sorted(sizes)}."
            )
    for path, node in nodes(model):
        has_mask = any(
            part.gated and part.axis in masks for dim in resolved.get(path, ()) for part in dim
        )
        if has_mask and not eqx.is_inexact_array(node):
            raise ValueError(f"{path!r} is gated, but is no array of floats: {node!r}.")
    return resolved


def _axis(part: str | Gated) -> str:
    return part.axis if isinstance(part, Gated) else part


def _part_size(part: str | Gated | int, known: Mapping, masks: Masks | None) -> int | None:
    if isinstance(part, int):
        return part
    axis = _axis(part)
    if axis in known:
        return known[axis][0]
    return masks[axis].capacity if masks is not None and axis in masks else None


def _shape(path: str, node, spec: Axes) -> tuple[int, ...]:
    if isinstance(node, (list, tuple)):
        if len(spec.dims) != 1 or not isinstance(spec.dims[0], str):
            raise ValueError(
                f"{path!r} is a sequence of {len(node)} modules: its axes must be one name, "
                f"not {spec}. The mask of a depth enters where the branches are added, by a "
                "`Gate`."
            )
        return (len(node),)
    if not eqx.is_array_like(node):
        raise ValueError(f"{path!r} is neither an array nor a sequence of modules: {node!r}.")
    shape = jnp.shape(node)
    if len(spec.dims) != len(shape):
        raise ValueError(
            f"{path!r} has {len(shape)} dimensions, {shape}, but its axes are {spec}."
        )
    return shape
