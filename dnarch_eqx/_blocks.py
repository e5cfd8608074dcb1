# Blocks of a list that can be left out: what a mask of a depth does to one.

import functools
import re
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.tree_util as jtu
from jaxtyping import Array, Float

from ._misc import Constant, recast, value


_Block = TypeVar("_Block", bound=eqx.Module)
_SCOPE = re.compile(r"dnarch_eqx\.block<(.*?):(\d+)>")


def faded(block: _Block, weight: Float[Array, ""], axis: str, index: int) -> _Block:
    """A block of the same class whose output goes over into its first argument as a weight
    goes from 1 to 0: `x + weight * (block(x) - x)`. An [`equinox.nn.State`][] that it returns
    beside is as the block gives it.

    Calling it raises `ValueError` if the output is not of the shape of the first argument.
    """
    before = getattr(block, "weight_of_block", None)
    if before is not None:  # of a network that was frozen
        return recast(type(block), block, weight_of_block=value(before) * weight)
    at = f"dnarch_eqx.block<{axis}:{index}>"
    cls: Any = _faded(type(block))
    return recast(cls, block, weight_of_block=weight, place_of_block=at)


def placed(block: _Block, axis: str, index: int) -> _Block:
    """A block that computes the same, of which a traced program tells where."""
    at = f"dnarch_eqx.block<{axis}:{index}>"
    return recast(_placed(type(block)), block, place_of_block=at)


def is_faded(x: Any) -> bool:
    return getattr(x, "weight_of_block", None) is not None and isinstance(x, eqx.Module)


def blocks_in(stack: str) -> tuple[tuple[str, int], ...]:
    """The blocks that something is computed in: axis and index, by a stack of names."""
    return tuple((axis, int(index)) for axis, index in _SCOPE.findall(stack))


@functools.cache
def _placed(cls: type) -> type:
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        with jax.named_scope(self.place_of_block):
            return cls.__call__(self, *args, **kwargs)

    fields = {
        "__annotations__": {"place_of_block": str},
        "place_of_block": eqx.field(static=True, default=""),
        "__call__": call,
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
    }
    return type(cls)(cls.__name__, (cls,), fields)


@functools.cache
def _faded(cls: type) -> type:
    def call(self: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        with jax.named_scope(self.place_of_block):
            return _mixed(cls.__call__(self, x, *args, **kwargs), x, self)

    fields = {
        "__annotations__": {
            "weight_of_block": Float[Array, ""] | Constant,
            "place_of_block": str,
        },
        "weight_of_block": None,
        "place_of_block": eqx.field(static=True, default=""),
        "__call__": call,
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
    }
    return type(cls)(cls.__name__, (cls,), fields)


def _mixed(out: Any, x: Any, block: Any) -> Any:
    pair = isinstance(out, tuple) and len(out) == 2 and isinstance(out[1], eqx.nn.State)
    new = out[0] if pair else out
    shapes = lambda tree: jtu.tree_map(jax.numpy.shape, eqx.filter(tree, eqx.is_array))
    if shapes(new) != shapes(x):
        ((axis, index),) = blocks_in(block.place_of_block)
        raise ValueError(
            f"Block {index} of {axis!r} cannot be left out: its output is not of the shape of "
            f"its first argument. Wanted {shapes(x)}, got {shapes(new)}."
        )
    weight = value(block.weight_of_block)
    mix = lambda a, b: b + weight.astype(b.dtype) * (a - b) if eqx.is_inexact_array(a) else a
    new = jtu.tree_map(mix, new, x)
    return (new, out[1]) if pair else new
