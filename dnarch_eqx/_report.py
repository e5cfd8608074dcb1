import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.tree_util as jtu
from jaxtyping import PyTree

from ._axes import AxisMap, check, Gate, nodes
from ._masks import Masks
from ._plan import counts
from ._sizes import sizes


def describe(
    model: PyTree, axes: AxisMap, masks: Masks, plan: Mapping[str, int] | None = None
) -> str:
    """What lies on each axis, as a table: capacity, continuous size, active count, bucket,
    and the arrays, with `*` where the mask enters.
    """
    resolved = check(model, axes, masks)
    lies: dict[str, list[str]] = {}
    for path, dims in resolved.items():
        for i, dim in enumerate(dims):
            for part in dim:
                if part.axis is not None:
                    lies.setdefault(part.axis, []).append(
                        f"{path}:{i}{'*' if part.gated else ''}"
                    )
    for path, node in nodes(model):
        if isinstance(node, Gate):
            lies.setdefault(node.axis, []).append(f"{path}*")
    now, continuous = counts(masks), sizes(masks)
    rows = [("axis", "capacity", "size", "active", "bucket", "arrays")]
    for axis, mask in masks.items():
        bucket = mask.capacity if plan is None else plan.get(axis, mask.capacity)
        rows.append(
            (
                axis,
                str(mask.capacity),
                f"{float(continuous[axis]):.1f}",
                str(now[axis]),
                str(bucket),
                " ".join(lies[axis]),
            )
        )
    return table(rows)


def report(
    networks: Mapping[str, Callable],
    x: Any,
    *,
    repeats: int = 10,
) -> str:
    """Compares networks, as a table: parameters, operations of one forward pass by XLA's
    count, and measured milliseconds (the median; the networks take turns).

    **Arguments:**

    - `networks`: name to network, say `{"before": model, "after": deployed}`.
    - `x`: the input that all of them are called with.
    - `repeats`: how often each is timed.
    """
    if repeats < 1:
        raise ValueError(f"`repeats` must be at least 1, got {repeats}.")
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
                f"{parameters(net):,}",
                f"{operations(call):.3e}",
                f"{1e3 * statistics.median(seconds[name]):.2f}",
            )
        )
    return table(rows)


def parameters(net: PyTree) -> int:
    """How many numbers the arrays of a network hold."""
    return sum(math.prod(x.shape) for x in jtu.tree_leaves(net) if eqx.is_inexact_array(x))


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
