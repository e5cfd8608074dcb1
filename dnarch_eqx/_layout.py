# What the declarations amount to, for one model.

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ._axes import Axes, AxisMap, Concatenated, Dim, Fused, Gate, Gated
from ._masks import check_masks, Masks
from ._nodes import is_number, is_shape, nodes
from ._shared import Tie, ties
from ._stateful import is_apart


@dataclasses.dataclass(frozen=True)
class Factor:
    """A dimension, or a factor of a fused one: its axis if any, its capacity.

    - `parts`: if it is concatenated: the factors of each part.
    """

    axis: str | None
    capacity: int
    gated: bool = False
    parts: "tuple[tuple[Factor, ...], ...]" = ()


_Nodes: TypeAlias = list[tuple[str, Any]]


def flat(*dims: tuple[Factor, ...]) -> Iterator[Factor]:
    """All factors of some dimensions, those of concatenated parts too."""
    for dim in dims:
        for part in dim:
            yield from flat(*part.parts) if part.parts else (part,)


# For every dimension of a node, its parts.
Dims: TypeAlias = tuple[tuple[Factor, ...], ...]
# Path -> what lies on the node there.
Layout: TypeAlias = dict[str, Dims]


def layout(model: PyTree, axes: AxisMap, masks: Masks | None = None) -> Layout:
    """Resolves the declarations against a model's arrays. What `eqx.nn.Shared` ties to an
    array lies on that one's axes.

    Raises `ValueError` if a path is not in the model, if axes do not fit the dimensions
    of the node there, or if arrays disagree about a capacity.
    """
    return _layout(list(nodes(model)), axes, {} if masks is None else masks)


def _layout(every: _Nodes, axes: AxisMap, masks: Masks) -> Layout:
    _check_axes(axes)
    check_masks(masks)
    found = {path: node for path, node in every if path in axes}
    tied = _tied(every)
    # Of values that are kept outside of the model nothing is known here.
    outside = tuple(f"{path}.init" for path, node in every if is_apart(node))
    for path in sorted(axes):
        if path not in found and path.startswith(outside):
            continue
        if path in tied:
            raise ValueError(
                f"`axes` declares {path!r}, which `eqx.nn.Shared` ties to "
                f"{tied[path].source!r}: declare that, and this follows."
            )
        if path not in found:
            raise ValueError(f"`axes` declares {path!r}, which is no path in `model`.")
    # Who said first how large an axis is, to be quoted when somebody disagrees.
    known: dict[str, tuple[int, str]] = {}

    def claim(axis: str, capacity: int, by: str) -> None:
        if capacity < 1:
            raise ValueError(f"Axis {axis!r} has no position, by {by}.")
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
    for path, node in every:
        if isinstance(node, Gate):
            claim(node.axis, node.size, f"the gate at {path!r}")
    for axis, mask in masks.items():
        if axis in known:
            claim(axis, mask.capacity, "its mask")

    def split(by: str, dim: Dim | int, size: int) -> tuple[Factor, ...]:
        if dim is None or isinstance(dim, int):
            return (Factor(None, size),)
        if isinstance(dim, str | Gated):
            claim(_axis(dim), size, by)
            return (Factor(_axis(dim), size, isinstance(dim, Gated)),)
        sizes = [_part_size(part, known, masks) for part in dim.parts]
        if sizes.count(None) > 1:
            raise ValueError(
                f"{by} is {dim}: the capacities of its parts cannot be told apart. Give masks "
                "(`parameter_cost` takes them too) for all but one of them, or integers for "
                "those that are not learned."
            )
        given = [s for s in sizes if s is not None]
        if isinstance(dim, Fused):
            rest, wrong = divmod(size, math.prod(given))
        else:
            rest = max(size - sum(given), 0)
            wrong = rest + sum(given) - size
        if wrong or (None not in sizes and rest != isinstance(dim, Fused)):
            raise ValueError(f"{by} has size {size}, which {dim} with parts of {sizes} is not.")
        parts = [split(by, part, rest if s is None else s) for part, s in zip(dim.parts, sizes)]
        if isinstance(dim, Concatenated):
            return (Factor(None, size, parts=tuple(parts)),)
        return tuple(factor for part in parts for factor in part)

    resolved = {
        path: tuple(
            split(f"dimension {i} of {path!r}", *pair)
            for i, pair in enumerate(zip(axes[path].dims, shape))
        )
        for path, shape in shapes.items()
    }
    for path, tie in tied.items():
        if tie.source in resolved:
            resolved[path] = tuple(resolved[tie.source][i] for i in tie.order)
    return resolved


def capacities(model: PyTree, axes: AxisMap, masks: Masks | None = None) -> dict[str, int]:
    """The capacity of every declared axis."""
    every = list(nodes(model))
    return _capacities(every, _layout(every, axes, {} if masks is None else masks))


def _capacities(every: _Nodes, resolved: Layout) -> dict[str, int]:
    parts = {
        part.axis: part.capacity
        for dims in resolved.values()
        for part in flat(*dims)
        if part.axis is not None
    }
    gates = {node.axis: node.size for _, node in every if isinstance(node, Gate)}
    return parts | gates


def resolve(model: PyTree, axes: AxisMap, masks: Masks) -> Layout:
    """Checks that model, axes and masks fit together, and gives what lies on each dimension
    of every declared path.

    Raises `ValueError` for all that [`dnarch_eqx.declare`][] cannot see: a mask that no
    array lies on, or that is multiplied in nowhere; a capacity on which arrays and masks
    disagree; a mask on integers.
    """
    check_masks(masks)
    every = list(nodes(model))
    resolved = _layout(every, axes, masks)
    sizes = _capacities(every, resolved)
    for axis in masks:
        if axis not in sizes:
            raise ValueError(
                f"`masks` has a mask for axis {axis!r}, but no array lies on it. The declared "
                f"axes are {sorted(sizes)}."
            )
    entered = {node.axis for _, node in every if isinstance(node, Gate)}
    for path, node in every:
        here = {part.axis for part in flat(*resolved.get(path, ())) if part.gated}
        if not here:
            continue
        entered |= here
        dtype = float if isinstance(node, list | tuple) else getattr(node, "dtype", int)
        if here & set(masks) and not jnp.issubdtype(dtype, jnp.inexact):
            if path in axes:
                shown = getattr(node, "dtype", type(node).__name__)
                raise ValueError(f"{path!r} is gated, but is no array of floats: {shown}.")
    if idle := sorted(set(masks) - entered):
        raise ValueError(
            f"Axis {idle[0]!r} has a mask, but it enters nowhere: put `gated({idle[0]!r})` "
            "in place of the name where the axis is consumed, or use a `Gate`."
        )
    return resolved


def _check_axes(axes: Any) -> None:
    if not isinstance(axes, Mapping):
        raise ValueError(
            "`axes` must be a dictionary from path to `Axes`, as `dn.declare` gives; got "
            f"{type(axes).__name__}."
        )
    for path, spec in axes.items():
        if not (isinstance(path, str) and isinstance(spec, Axes)):
            raise ValueError(
                f"`axes` has {spec!r} for {path!r}: give `dn.Axes(...)` for a path."
            )


def _tied(every: _Nodes) -> dict[str, Tie]:
    """Path -> the array that it is tied to, with its whole path."""
    return {
        path + tie.target: tie._replace(source=tie.source and path + tie.source)
        for path, node in every
        if isinstance(node, eqx.nn.Shared)
        for tie in ties(node)
    }


def _axis(part: str | Gated) -> str:
    return part.axis if isinstance(part, Gated) else part


def _part_size(part: Any, known: Mapping, masks: Masks) -> int | None:
    if isinstance(part, int):
        return part
    if isinstance(part, Fused | Concatenated):
        sizes = [_part_size(inner, known, masks) for inner in part.parts]
        if None in sizes:
            return None
        return math.prod(sizes) if isinstance(part, Fused) else sum(sizes)  # pyright: ignore
    axis = _axis(part)
    if axis in known:
        return known[axis][0]
    return masks[axis].capacity if axis in masks else None


def _is_block(x: Any) -> bool:
    return isinstance(x, eqx.Module) and callable(x)


def _shape(path: str, node, spec: Axes) -> tuple[int, ...]:
    if is_number(node) or is_shape(node):
        sizes = node if isinstance(node, tuple) else (node,)
        if len(spec.dims) != len(sizes) or any(isinstance(dim, Gated) for dim in spec.dims):
            raise ValueError(
                f"{path!r} is {node}: {len(sizes)} sizes, in which no mask enters; its axes "
                f"are {spec}."
            )
        return sizes
    if isinstance(node, (list, tuple)):
        if len(spec.dims) != 1 or not isinstance(spec.dims[0], str | Gated):
            raise ValueError(
                f"{path!r} is a sequence of {len(node)} modules: its axes must be one name, or "
                f"`gated(name)`, which leaves blocks out from outside; not {spec}."
            )
        if isinstance(spec.dims[0], Gated) and not all(map(_is_block, node)):
            raise ValueError(
                f"{path!r} is declared as {spec}: only modules that can be called, of shapes "
                "that do not change, can be left out from outside. Others need a `Gate`."
            )
        if hasattr(node, "_fields"):
            raise ValueError(
                f"{path!r} is a {type(node).__name__}, a tuple whose fields have names and "
                f"cannot be dropped: hold what lies on {spec.dims[0]!r} in a list or tuple."
            )
        return (len(node),)
    if not (eqx.is_array_like(node) or isinstance(node, jax.ShapeDtypeStruct)):
        raise ValueError(f"{path!r} is neither an array nor a sequence of modules: {node!r}.")
    shape = node.shape if hasattr(node, "shape") else jnp.shape(node)
    if len(spec.dims) != len(shape):
        raise ValueError(
            f"{path!r} has {len(shape)} dimensions, {shape}, but its axes are {spec}."
        )
    return shape
