from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float, Int

import dnarch_eqx as dn


matplotlib.use("Agg")  # files only, no screen


def draw(
    folder: Path,
    before: dn.Masks,
    after: dn.Masks,
    complexity: Float[np.ndarray, " steps"],
) -> None:
    """Writes `sizes.png`, `complexity.png` and `masks.png`.

    **Arguments:**

    - `folder`: where.
    - `before`, `after`: the masks at the start and at the end.
    - `complexity`: that over its target, a step each.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in (
        ("sizes", _sizes(before, after)),
        ("complexity", _complexity(complexity)),
        ("masks", _masks(after)),
    ):
        figure.savefig(folder / f"{name}.png", dpi=130)
        plt.close(figure)


def draw_run(
    folder: Path,
    path: dn.Masks,
    steps: Int[np.ndarray, " times"],
    rows: Sequence[Mapping[str, Any]],
    compilations: Sequence[Mapping[str, Any]],
    metric: str,
) -> list[str]:
    """Writes the pictures of a recipe's run, and gives their names.

    **Arguments:**

    - `folder`: where.
    - `path`: the masks over training, time first; none if nothing is learned.
    - `steps`: when that was.
    - `rows`, `compilations`: what its files of these names have, see [`recipes._train.Run`][].
    - `metric`: which metric to draw.
    """
    figures = {"learning": _learning(rows, metric)}
    if compilations:
        figures["compilations"] = _compilations(compilations, int(steps[-1]))
    if path:
        first, last = (jax.tree_util.tree_map(lambda x: x[t], dict(path)) for t in (0, -1))
        at, complexity = _column(rows, "complexity")
        figures |= {
            "sizes": _sizes(first, last),
            "trajectory": _trajectory(path, steps),
            "masks": _masks(last),
            "complexity": _complexity(complexity, at),
        }
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=130)
        plt.close(figure)
    return list(figures)


# What the axes of a CCNN end with, in one dimension and in two.
_PARTS = {
    ".kernel": "kernel",
    ".kernel.y": "kernel, rows",
    ".kernel.x": "kernel, columns",
    ".resolution": "resolution",
    ".resolution.y": "resolution, rows",
    ".resolution.x": "resolution, columns",
    ".in": "input channels",
    ".mid": "middle channels",
    ".out": "output channels",
}


def _parts(masks: dn.Masks) -> dict[str, list[str]]:
    """The axes of every part that is learned, in the order of the blocks."""
    block = lambda axis: int(axis.split(".")[1])
    found = {
        title: sorted((axis for axis in masks if axis.endswith(ending)), key=block)
        for ending, title in _PARTS.items()
    }
    return {title: axes for title, axes in found.items() if axes}


def _grid(number: int):
    """A figure of so many plots in two rows."""
    columns = max(-(-number // 2), 1)
    figure, grid = plt.subplots(2, columns, figsize=(2.75 * max(columns, 2), 5.2))
    plots = np.ravel(grid)
    for plot in plots[number:]:
        plot.set_axis_off()
    return figure, plots[:number]


def _sizes(before: dn.Masks, after: dn.Masks):
    """Learned sizes a block, as a share of the capacity: at the start and at the end."""
    parts = _parts(after)
    blocks = np.arange(1, 1 + max(map(len, parts.values()), default=0))
    depth = int(after["depth"].active()) if "depth" in after else len(blocks)
    figure, plots = _grid(len(parts))
    for plot, (part, axes) in zip(plots, parts.items()):
        capacity = after[axes[0]].capacity
        first, last = ([float(m[axis].size()) for axis in axes] for m in (before, after))
        colours = ["tab:blue" if b <= depth else "lightgrey" for b in blocks]
        plot.bar(blocks, last, color=colours)
        plot.step(blocks, first, "k_", where="mid", markersize=14, label="at the start")
        plot.set_title(part)
        plot.set_ylim(0, 1.08 * capacity)
        plot.set_xticks(blocks)
        plot.set_xlabel("block")
    if len(plots):
        plots[-1].legend(loc="upper right")
    figure.suptitle(f"Learned sizes; {depth} blocks are left (grey: beyond the depth)")
    figure.tight_layout()
    return figure


def _trajectory(path: dn.Masks, steps: Int[np.ndarray, " times"]):
    """Sizes over training, a line a block."""
    continuous = {axis: np.asarray(s) for axis, s in jax.vmap(dn.sizes)(dict(path)).items()}
    parts = _parts(path)
    lines = {title: [continuous[axis] for axis in axes] for title, axes in parts.items()}
    lines |= {axis: [continuous[axis]] for axis in ("stream", "depth") if axis in path}
    figure, plots = _grid(len(lines))
    for plot, (title, sizes) in zip(plots, lines.items()):
        for i, values in enumerate(sizes):
            colour = plt.get_cmap("viridis")(i / max(len(sizes) - 1, 1))
            plot.plot(steps, values, color=colour, linewidth=1.2, label=f"block {i + 1}")
        plot.set_title(title)
        plot.set_ylim(0, 1.08 * max(values.max() for values in sizes))
        plot.set_xlabel("step")
    handles, labels = plots[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, ncols=6, loc="lower center", frameon=False)
    figure.tight_layout(rect=(0, 0.02 + 0.03 * -(-len(labels) // 6), 1, 1))
    return figure


def _column(
    rows: Sequence[Mapping[str, Any]], name: str
) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """The steps at which there is such a number, and the numbers."""
    pairs = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
    return np.array([s for s, _ in pairs], int), np.array([v for _, v in pairs], float)


def _learning(rows: Sequence[Mapping[str, Any]], metric: str):
    """The loss, and a metric on what is to choose by."""
    figure, plot = plt.subplots(figsize=(6.5, 3.4))
    plot.plot(*_column(rows, "loss"), color="tab:blue", label="training loss")
    plot.set_xlabel("step")
    plot.set_ylabel("training loss", color="tab:blue")
    other = plot.twinx()
    other.plot(*_column(rows, f"valid {metric}"), "o-", color="tab:orange")
    other.set_ylabel(f"{metric}, validation", color="tab:orange")
    figure.tight_layout()
    return figure


def _compilations(compilations: Sequence[Mapping[str, Any]], steps: int):
    """When steps were compiled, and how long it has taken until then."""
    at = np.array([0, *(c["step"] for c in compilations), steps])
    seconds = np.array([c["seconds"] for c in compilations])
    waited = seconds - np.array([c["overlapped"] for c in compilations])
    figure, plot = plt.subplots(figsize=(6.5, 3.0))
    for label, each, colour in (
        ("compiling", seconds, "tab:green"),
        ("of it training waited", waited, "tab:red"),
    ):
        total = np.cumsum(np.concatenate([[0.0], each, [0.0]]))
        plot.step(at, total, where="post", color=colour, label=label)
        plot.plot(at[1:-1], total[1:-1], ".", color=colour)
    plot.set_ylim(0, max(1.25 * seconds.sum(), 1.0))
    plot.set_xlabel("step")
    plot.set_ylabel("seconds until then")
    plot.set_title(f"Compilations: {len(compilations)}", fontsize=10)
    plot.legend(loc="upper left", fontsize=8)
    figure.tight_layout()
    return figure


def _complexity(
    complexity: Float[np.ndarray, " times"], steps: Int[np.ndarray, " times"] | None = None
):
    """As the paper's Figure 9."""
    figure, plot = plt.subplots(figsize=(6.5, 3.4))
    plot.axhline(1, color="k", linewidth=0.8, linestyle="--", label="target")
    steps = np.arange(len(complexity)) if steps is None else steps
    plot.plot(steps, complexity, color="tab:blue", label="current")
    plot.set_xlabel("step")
    plot.set_ylabel("complexity over target")
    plot.set_ylim(0, max(1.5, 1.1 * float(complexity.max(initial=1))))
    plot.legend()
    figure.tight_layout()
    return figure


def _masks(masks: dn.Masks):
    """The masks' values over their axes, a curve each."""
    kinds = {
        "kernels": [a for a in masks if ".kernel" in a],
        "resolutions": [a for a in masks if ".resolution" in a],
        "widths": [a for a in masks if a.endswith((".in", ".mid", ".out", "stream"))],
        "depth": [a for a in masks if a == "depth"],
    }
    kinds = {kind: axes for kind, axes in kinds.items() if axes}
    figure, plots = plt.subplots(1, len(kinds), figsize=(12, 3.2), sharey=True, squeeze=False)
    plots = plots[0]
    for plot, (kind, axes) in zip(plots, kinds.items()):
        for axis in axes:
            values = masks[axis]()
            plot.plot(range(1, len(values) + 1), values, ".-", alpha=0.6, markersize=3)
        plot.axhline(0.1, color="k", linewidth=0.8, linestyle=":")
        plot.set_title(kind)
        plot.set_xlabel("position")
    plots[0].set_ylabel("mask")
    figure.tight_layout()
    return figure
