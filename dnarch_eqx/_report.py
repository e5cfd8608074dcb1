import functools
import math
import re
import statistics
import time
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.tree_util as jtu
from jaxtyping import PyTree

from ._axes import AxisMap, Gate
from ._layout import flat
from ._masks import Masks
from ._materialize import checked
from ._misc import positive
from ._nodes import nodes
from ._plan import counts, Plan
from ._sizes import sizes


def describe(
    model: PyTree, axes: AxisMap, masks: Masks, plan: Mapping[str, int] | None = None
) -> str:
    """What lies on each axis, as a table: capacity, continuous size, active count, bucket,
    and the arrays by dimension, with `*` where the mask enters: the first few, those alike but
    for their place in a list as one.
    """
    resolved = checked(model, axes, masks)
    plan = Plan({} if plan is None else plan)
    # Axis -> pattern of a path -> how many paths have it.
    lies: dict[str, dict[str, int]] = {axis: {} for axis in masks}

    def lie(axis: str | None, path: str) -> None:
        if axis in lies:
            found, pattern = lies[axis], re.sub(r"\[\d+\]", "[*]", path)
            found[pattern] = found.get(pattern, 0) + 1

    for path, dims in resolved.items():
        for i, dim in enumerate(dims):
            for part in flat(dim):
                lie(part.axis, f"{path}:{i}{'*' if part.gated else ''}")
    for path, node in nodes(model):
        if isinstance(node, Gate):
            lie(node.axis, f"{path}*")
    now, continuous = counts(masks), sizes(masks)
    rows = [("axis", "capacity", "size", "active", "bucket")]
    for axis, mask in masks.items():
        numbers = (mask.capacity, now[axis], plan.get(axis, mask.capacity))
        capacity, active, bucket = map(str, numbers)
        rows.append(
            (_shortened(axis, 40), capacity, f"{float(continuous[axis]):.1f}", active, bucket)
        )
    room = 120 - sum(2 + max(map(len, column)) for column in zip(*rows))
    last = ["arrays", *(_listed(lies[axis], room) for axis in masks)]
    return table([(*row, arrays) for row, arrays in zip(rows, last)])


def _shortened(name: str, most: int) -> str:
    shown = name if name.isprintable() else repr(name)
    half = (most - 1) // 2
    return shown if len(shown) <= most else f"{shown[:half]}…{shown[-half:]}"


def _listed(found: Mapping[str, int], room: int) -> str:
    """As many as there is room for, and how many more there are."""
    shown = [path if n == 1 else f"{path} x{n}" for path, n in found.items()]
    more = ""
    for kept in range(len(shown), 0, -1):
        left = sum(list(found.values())[kept:])
        more = f", and {left} more" if left else ""
        if len(", ".join(shown[:kept])) + len(more) <= room:
            return ", ".join(shown[:kept]) + more
    return _shortened(shown[0], room - len(more)) + more if shown else ""


def report(
    networks: Mapping[str, Callable],
    x: Any,
    *,
    repeats: int = 10,
) -> str:
    """Compares networks, as a table: parameters, operations of one forward pass by XLA's
    count, and measured milliseconds (the median; the networks take turns).

    **Arguments:**

    - `networks`: name to network, say `{"before": model, "after": deployed}`; or to a
        function that calls one, for a key, a batch or a state.
    - `x`: the input that all of them are called with.
    - `repeats`: how often each is timed.
    """
    repeats = positive("repeats", repeats)
    compiled = {}
    for name, net in networks.items():
        arrays, static = eqx.partition(net, eqx.is_array)
        call = jax.jit(lambda arrays, x, static=static: eqx.combine(arrays, static)(x))
        compiled[name] = (call.lower(arrays, x).compile(), arrays)
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    for i in range(repeats + 1):
        for name, (call, arrays) in compiled.items():
            start = time.perf_counter()
            jax.block_until_ready(call(arrays, x))
            if i > 0:  # the first is a warm-up
                seconds[name].append(time.perf_counter() - start)
    rows = [("network", "parameters", "operations", "milliseconds")]
    for name, net in networks.items():
        call, _ = compiled[name]
        rows.append(
            (
                name,
                "unknown" if (n := _parameters(net)) is None else f"{n:,}",
                f"{operations(call):.3e}",
                f"{1e3 * statistics.median(seconds[name]):.2f}",
            )
        )
    return table(rows)


def parameters(net: PyTree) -> int:
    """How many numbers the arrays of floats of a network hold. Of a function they are those of
    the modules that it closes over.

    Raises `ValueError` for a function that closes over none.
    """
    found = _parameters(net)
    if found is None:
        raise ValueError(f"{net!r} is a function that closes over no module: nothing to count.")
    return found


def _parameters(net: PyTree) -> int | None:
    modules: Any = net
    if not any(map(eqx.is_array, jtu.tree_leaves(net))) and callable(net):
        modules = list(_closed_over(net, set()))
        if not modules:
            return None
    arrays = {id(x): x for x in jtu.tree_leaves(modules) if eqx.is_inexact_array(x)}
    return sum(math.prod(x.shape) for x in arrays.values())


def _closed_over(x: Any, seen: set[int]) -> Iterator[eqx.Module]:
    """The modules that a function reads: from its arguments bound before, what is around it,
    and the functions that it calls.
    """
    if id(x) in seen or isinstance(x, (type, types.ModuleType)):
        return
    seen.add(id(x))
    inside: Any = ()
    if isinstance(x, eqx.Module):
        yield x  # and what wraps a function, as `eqx.filter_jit` does
        inside = () if any(map(eqx.is_array, jtu.tree_leaves(x))) else list(vars(x).values())
    elif isinstance(x, functools.partial):
        inside = (x.func, x.args, x.keywords)
    elif isinstance(x, types.MethodType):
        inside = (x.__self__, x.__func__)
    elif isinstance(x, types.FunctionType):
        inside = [_content(cell) for cell in x.__closure__ or ()]
        # What libraries have around their functions is their own.
        if not x.__module__.startswith(("jax", "equinox", "numpy", "optax")):
            inside += [x.__globals__.get(name) for name in x.__code__.co_names]
    elif callable(x):
        inside = (getattr(x, "__wrapped__", None), *getattr(x, "__dict__", {}).values())
    is_whole = lambda x: isinstance(x, eqx.Module)
    for y in jtu.tree_leaves(inside, is_leaf=is_whole):
        if not eqx.is_array(y):
            yield from _closed_over(y, seen)


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # nothing yet
        return None


def operations(compiled: jax.stages.Compiled) -> float:
    """The operations that XLA counts in a compiled function. It counts the body of a scan
    once.
    """
    analysis = compiled.cost_analysis()
    return float("nan") if analysis is None else float(analysis.get("flops", float("nan")))


def table(rows: list[tuple[str, ...]]) -> str:
    """Rows as text, the first as the header. Numbers are right-aligned, words left."""
    columns = list(zip(*rows))
    widths = [max(map(len, column)) for column in columns]
    words = [not all(cell[:1].isdigit() for cell in column[1:]) for column in columns]
    lines = [
        "  ".join(
            cell.ljust(width) if word else cell.rjust(width)
            for cell, width, word in zip(row, widths, words)
        ).rstrip()
        for row in rows
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)
