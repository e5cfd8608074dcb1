import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Float, PyTree

from ._masks import axis_name
from ._misc import as_float, Constant, positive, replace, value


@dataclasses.dataclass(frozen=True)
class Gated:
    """See [`dnarch_eqx.gated`][]."""

    axis: str

    def __repr__(self) -> str:
        return f"gated({self.axis!r})"


@dataclasses.dataclass(frozen=True)
class Fused:
    """See [`dnarch_eqx.fused`][]."""

    parts: "tuple[str | Gated | Concatenated | int, ...]"

    def __repr__(self) -> str:
        return f"fused({', '.join(map(repr, self.parts))})"


@dataclasses.dataclass(frozen=True)
class Concatenated:
    """See [`dnarch_eqx.concatenated`][]."""

    parts: "tuple[str | Gated | Fused | int, ...]"

    def __repr__(self) -> str:
        return f"concatenated({', '.join(map(repr, self.parts))})"


def gated(axis: str) -> Gated:
    """In [`dnarch_eqx.Axes`][], in place of an axis' name: the dimension is the axis, and
    its mask is multiplied in here.

    Gate the consumer to mask an activation; gate a weight's rows *and* its bias to mask a
    pre-activation.
    """
    return Gated(axis_name("gated", axis))


def fused(*parts: str | Gated | Concatenated | int) -> Fused:
    """In [`dnarch_eqx.Axes`][], for a dimension that several are flattened into, slowest
    first: `fused("heads", "width")` for the rows of an attention's projections,
    `fused(3, "hidden")` for the three stacked gates of a GRU. An integer is a part that
    is not learned.
    """
    return Fused(_parts("fused", "concatenated(...)", Concatenated, parts))


def concatenated(*parts: str | Gated | Fused | int) -> Concatenated:
    """In [`dnarch_eqx.Axes`][], for a dimension in which several lie one after the other:
    `concatenated(gated("skip"), gated("up"))` for the columns that read a concatenation.
    An integer is a part that is not learned.
    """
    return Concatenated(_parts("concatenated", "fused(...)", Fused, parts))


def _parts(name: str, other: str, kind: type, parts: Sequence[Any]) -> tuple[Any, ...]:
    def is_part(part: Any) -> bool:
        if isinstance(part, int):
            return part >= 1 and not isinstance(part, bool)
        return isinstance(part, Gated | kind) or (isinstance(part, str) and bool(part.strip()))

    whole = tuple(int(part) if isinstance(part, np.integer) else part for part in parts)
    if not whole or not all(map(is_part, whole)):
        raise ValueError(
            f"The parts of `{name}` are names, `gated(name)`, `{other}` or positive integers; "
            f"got {parts}."
        )
    return whole


Dim: TypeAlias = None | str | Gated | Fused | Concatenated


@dataclasses.dataclass(frozen=True, init=False)
class Axes:
    """What lies on each dimension of an array: a `PartitionSpec` for learned axes.

    `Axes("hidden", None)` says that dimension 0 is the axis `hidden`, and that dimension 1
    is not learned. Besides names there are [`dnarch_eqx.gated`][], [`dnarch_eqx.fused`][] and
    [`dnarch_eqx.concatenated`][]. On a number that a module keeps (`num_heads`, or `shape`),
    `Axes("heads")` says that it is the size of that axis. On a list or tuple of modules,
    `Axes("depth")` says that its elements lie on `depth`, which drops whole modules;
    `Axes(gated("depth"))`, that each goes over into `x -> x` as its mask goes to 0.
    """

    dims: tuple[Dim, ...]

    def __init__(self, *dims: Dim):
        for dim in dims:
            if isinstance(dim, str):
                axis_name("Axes", dim)
            elif not (dim is None or isinstance(dim, Gated | Fused | Concatenated)):
                raise ValueError(
                    "A dimension of `Axes` is None, a name, `gated(name)`, `fused(...)` or "
                    f"`concatenated(...)`; got {dim!r}."
                )
        object.__setattr__(self, "dims", dims)

    def __repr__(self) -> str:
        return f"Axes({', '.join(map(repr, self.dims))})"


class Gate(eqx.Module):
    """An axis that belongs to no array: a depth, a kernel's coordinate grid, the
    frequencies kept. Its length is the static size; calling it gives the mask's values,
    once materialized, and ones until then.
    """

    stored: Float[Array, " size"] | Constant | None
    axis: str = eqx.field(static=True)
    size: int = eqx.field(static=True)

    def __init__(self, axis: str, size: int):
        """**Arguments:**

        - `axis`: the name of the axis.
        - `size`: its capacity.
        """
        self.stored = None
        self.axis = axis_name("axis", axis)
        self.size = positive("size", size)

    @property
    def values(self) -> Float[Array, " size"] | None:
        """The mask's values; `None` until materialized. Of a frozen network they are no
        parameters.
        """
        return None if self.stored is None else value(self.stored)

    def __call__(self) -> Float[Array, " size"]:
        return as_float(jnp.ones(self.size)) if self.stored is None else value(self.stored)


# Where in a model (`".layers[0].weight"`) -> what lies on it. A flat dictionary rather than
# a shadow tree of the model, because sequences of modules, which are nodes, lie on axes too.
AxisMap: TypeAlias = dict[str, Axes]


@dataclasses.dataclass(frozen=True)
class _Path:
    keys: tuple[Any, ...]


def declare(model: PyTree, where: Callable[[Any], Any], axes: Axes | Sequence[Axes]) -> AxisMap:
    """Puts arrays of a model, numbers that its modules keep, or sequences of modules, on axes.

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
    nodes = where(_numbered(treedef.unflatten([_Path(path) for path, _ in leaves])))
    if isinstance(axes, Axes):
        nodes, axes = (nodes,), (axes,)
    elif not isinstance(axes, Sequence) or not all(isinstance(spec, Axes) for spec in axes):
        raise ValueError(f"`axes` must be `dn.Axes(...)` or a sequence of them, got {axes!r}.")
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


class _Number(int):
    """A number in a static field, that knows where."""

    path: str


class _Shape(tuple):
    """The same of several."""

    path: str


def _numbered(node: Any, path: str = "") -> Any:
    """A tree with such numbers."""
    pairs, treedef = jtu.tree_flatten_with_path(node, is_leaf=lambda x: x is not node)
    if not pairs or not pairs[0][0]:
        return node
    node = treedef.unflatten([_numbered(x, path + jtu.keystr(key)) for key, x in pairs])
    if not isinstance(node, eqx.Module):
        return node
    marked = {}
    for field in dataclasses.fields(node):
        x: Any = getattr(node, field.name, None)
        kind: Any = _Number if isinstance(x, int) else _Shape if isinstance(x, tuple) else None
        if field.metadata.get("static") and kind is not None and not isinstance(x, bool):
            marked[field.name] = number = kind(x)
            number.path = f"{path}.{field.name}"
    return replace(node, **marked) if marked else node


def _path_of(node, paths: list[tuple[Any, ...]]) -> str:
    """The path of a node of the marked tree: the one above exactly its leaves."""
    if isinstance(node, _Number | _Shape):
        return node.path
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
