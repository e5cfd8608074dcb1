# The nodes of a tree by their paths, and numbers that modules keep.

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax.tree_util as jtu
import numpy as np
from jaxtyping import PyTree


def nodes(model: PyTree) -> Iterator[tuple[str, Any]]:
    """All nodes of a tree with their paths, parents first, and numbers in static fields."""
    stack: list[tuple[str, Any]] = [("", model)]
    while stack:
        path, node = stack.pop()
        yield path, node
        if isinstance(node, eqx.Module):
            yield from ((f"{path}.{name}", x) for name, x in static_numbers(node))
        children = jtu.tree_leaves_with_path(node, is_leaf=lambda x: x is not node)
        stack.extend(
            (path + jtu.keystr(key), child) for key, child in reversed(children) if key
        )


def is_number(x: Any) -> bool:
    """Whether it can be the size of an axis."""
    return isinstance(x, int | np.integer) and not isinstance(x, bool)


def is_shape(x: Any) -> bool:
    """Whether it is a tuple of such numbers."""
    return isinstance(x, tuple) and len(x) > 0 and all(map(is_number, x))


def static_numbers(module: eqx.Module) -> Iterator[tuple[str, Any]]:
    """Field and value, of numbers and shapes in a module's static fields."""
    for name in _static(type(module)):
        x = getattr(module, name, None)
        if is_number(x) or is_shape(x):
            yield name, x


@functools.cache
def _static(cls: type[eqx.Module]) -> tuple[str, ...]:
    return tuple(x.name for x in dataclasses.fields(cls) if x.metadata.get("static"))
