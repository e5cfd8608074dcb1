# Values that are known from one operation to the next: arrays of the module, and numbers.

from collections.abc import Callable
from typing import Any

import numpy as np

from ._program import Op, Value
from ._terms import resolved


def follow(op: Op) -> None:
    """Arrays of the module are followed through what only moves them, numbers through all that
    is computed of them alone.
    """
    value, params = op.ins[0] if op.ins else None, op.params
    if value is None or not op.outs:
        return
    if all(x.constant is not None for x in op.ins):
        op.outs[0].constant = _computed(op)
    if value.array is None:
        return
    path, at = value.array
    moved: Any = None
    if op.name in ("convert_element_type", "copy", "copy_p", "stop_gradient", "slice", "mul"):
        scalar = op.name != "mul" or not op.ins[1].dims
        moved = at if scalar else None
    elif op.name == "transpose":
        moved = tuple(at[i] for i in params["permutation"])
    elif op.name == "squeeze":
        moved = tuple(x for i, x in enumerate(at) if i not in params["dimensions"])
    elif op.name == "broadcast_in_dim":
        source = dict(zip(params["broadcast_dimensions"], at))
        moved = tuple(source.get(i, ()) for i in range(len(params["shape"])))
    elif op.name == "reshape":
        # By the atoms that dimensions have: those of a module's array lie where they lay.
        moved = _reshaped(value, op.outs[0], at)
    if moved is not None:
        op.outs[0].array = path, moved


_COMPUTED: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "and": np.logical_and,
    "broadcast_in_dim": lambda x: x,
    "convert_element_type": lambda x: x,
    "copy": lambda x: x,
    "eq": np.equal,
    "exp": np.exp,
    "ge": np.greater_equal,
    "gt": np.greater,
    "le": np.less_equal,
    "log": np.log,
    "lt": np.less,
    "max": np.maximum,
    "min": np.minimum,
    "mul": np.multiply,
    "ne": np.not_equal,
    "neg": np.negative,
    "not": np.logical_not,
    "or": np.logical_or,
    "reshape": lambda x: x,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "select_n": lambda which, *cases: cases[int(which)],
    "sqrt": np.sqrt,
    "stop_gradient": lambda x: x,
    "sub": np.subtract,
}


def _computed(op: Op) -> Any:
    numbers = [value.constant for value in op.ins]
    if op.name == "integer_pow":
        return numbers[0] ** op.params["y"]
    if op.name == "div":
        whole = all(isinstance(x, int | np.integer) for x in numbers)
        return numbers[0] // numbers[1] if whole and numbers[1] else np.divide(*numbers)
    return _COMPUTED[op.name](*numbers) if op.name in _COMPUTED else None


def _reshaped(
    before: Value, after: Value, at: tuple[tuple[int, ...], ...]
) -> tuple[tuple[int, ...], ...]:
    lies = {part: x for term, x in zip(before.dims, at) for part in resolved(term)}
    return tuple(
        tuple(sorted({i for part in resolved(term) for i in lies.get(part, ())}))
        for term in after.dims
    )
