# `eqx.nn.State`: arrays that layers keep outside of the module. Put back into the indices that
# the module has for them they lie at paths, like all others.

from collections.abc import Iterator
from typing import Any, TypeVar

import equinox as eqx
import jax.tree_util as jtu
from jaxtyping import PyTree

from ._misc import replace


_Model = TypeVar("_Model")


def together(model: _Model, state: eqx.nn.State) -> _Model:
    """The model with its state inside, where `eqx.nn.State(model)` takes it from."""
    put = lambda x: replace(x, init=state.get(x)) if _is_index(x) else x
    return jtu.tree_map(put, model, is_leaf=_is_index)


def apart(model: _Model) -> tuple[_Model, eqx.nn.State]:
    """A model with its state inside, as the two: the inverse of `together`."""
    return eqx.nn.delete_init_state(model), eqx.nn.State(model)


def is_apart(index: Any) -> bool:
    """Whether a node is an index whose values are kept outside of the model."""
    return _is_index(index) and type(index.init).__name__ == "_Sentinel"


def state_of(tree: PyTree) -> eqx.nn.State | None:
    """The first one in a tree."""
    return next(filter(_is_state, jtu.tree_leaves(tree, is_leaf=_is_state)), None)


def with_state(tree: PyTree, state: eqx.nn.State) -> PyTree:
    """With this state in place of the one in a tree."""
    # A copy for each place: one that was used is invalid.
    copy = lambda: jtu.tree_map(lambda x: x, state)
    return jtu.tree_map(lambda x: copy() if _is_state(x) else x, tree, is_leaf=_is_state)


def paths(model: PyTree, tree: PyTree) -> Iterator[str | None]:
    """For every leaf of a tree: if it is of a state of the model, its path."""
    leaves = jtu.tree_leaves_with_path(model, is_leaf=_is_index)
    known = {x.marker: jtu.keystr(path) for path, x in leaves if _is_index(x)}
    for node in jtu.tree_leaves(tree, is_leaf=_is_state):
        if not _is_state(node):
            yield None
            continue
        values, markers = node.tree_flatten()
        for value, marker in zip(values, markers):
            for path, _ in jtu.tree_leaves_with_path(value):
                at = known.get(marker)
                yield None if at is None else f"{at}.init{jtu.keystr(path)}"


def _is_index(x: Any) -> bool:
    return isinstance(x, eqx.nn.StateIndex)


def _is_state(x: Any) -> bool:
    return isinstance(x, eqx.nn.State)
