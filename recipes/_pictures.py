from pathlib import Path

import jax
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float

import dnarch_eqx as dn


matplotlib.use("Agg")  # files only, no screen


def draw(
    folder: Path,
    path: dn.Masks,
    relative: Float[np.ndarray, " steps"],
    masks: dn.Masks,
) -> None:
    """Writes `sizes.png`, `complexity.png` and `masks.png`.

    **Arguments:**

    - `folder`: where.
    - `path`: the masks over training, time first.
    - `relative`: the complexity over its target, a step each.
    - `masks`: the masks at the end.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in (
        ("sizes", _sizes(path, masks)),
        ("complexity", _complexity(relative)),
        ("masks", _masks(masks)),
    ):
        figure.savefig(folder / f"{name}.png", dpi=130)
        plt.close(figure)


def _sizes(path: dn.Masks, masks: dn.Masks):
    """Learned sizes a block, as a share of the capacity: at the start and at the end."""
    continuous = {axis: np.asarray(s) for axis, s in jax.vmap(dn.sizes)(path).items()}
    depth = int(dn.active(masks)["depth"])
    parts = {
        title: sorted(axis for axis in masks if axis.endswith(ending))
        for ending, title in (
            (".kernel.y", "kernel, rows"),
            (".kernel.x", "kernel, columns"),
            (".resolution.y", "resolution, rows"),
            (".resolution.x", "resolution, columns"),
            (".in", "input channels"),
            (".mid", "middle channels"),
            (".out", "output channels"),
        )
    }
    figure, grid = plt.subplots(2, -(-len(parts) // 2), figsize=(11, 5.2), sharex=True)
    for plot, (part, axes) in zip(np.ravel(grid), parts.items()):
        blocks = np.arange(1, len(axes) + 1)
        capacity = masks[axes[0]].capacity
        first, last = ([continuous[axis][t] for axis in axes] for t in (0, -1))
        colours = ["tab:blue" if b <= depth else "lightgrey" for b in blocks]
        plot.bar(blocks, last, color=colours)
        plot.step(blocks, first, "k_", where="mid", markersize=14, label="at the start")
        plot.set_title(part)
        plot.set_ylim(0, 1.08 * capacity)
        plot.set_xticks(blocks)
    for plot in np.ravel(grid)[len(parts) :]:
        plot.set_axis_off()
    for plot in grid[-1]:
        plot.set_xlabel("block")
    np.ravel(grid)[4].legend(loc="upper right")
    figure.suptitle(f"Learned sizes; {depth} blocks are left (grey: beyond the depth)")
    figure.tight_layout()
    return figure


def _complexity(relative: Float[np.ndarray, " steps"]):
    """As the paper's Figure 9."""
    figure, plot = plt.subplots(figsize=(6.5, 3.4))
    plot.axhline(1, color="k", linewidth=0.8, linestyle="--", label="target")
    plot.plot(relative, color="tab:blue", label="current")
    plot.set_xlabel("step")
    plot.set_ylabel("complexity over target")
    plot.set_ylim(0, max(1.5, 1.1 * float(relative.max())))
    plot.legend()
    figure.tight_layout()
    return figure


def _masks(masks: dn.Masks):
    """The masks' values over their axes, a curve each."""
    kinds = {
        "kernels": [a for a in masks if ".kernel" in a],
        "resolutions": [a for a in masks if ".resolution" in a],
        "widths": [a for a in masks if a.endswith((".in", ".mid", ".out", "stream"))],
        "depth": ["depth"],
    }
    figure, plots = plt.subplots(1, len(kinds), figsize=(12, 3.2), sharey=True)
    for plot, (kind, axes) in zip(plots, kinds.items()):
        for axis in axes:
            plot.plot(masks[axis].coordinates(), masks[axis](), ".-", alpha=0.6, markersize=3)
        plot.axhline(0.1, color="k", linewidth=0.8, linestyle=":")
        plot.set_title(kind)
        plot.set_xlabel("position on [-1, 1]")
    plots[0].set_ylabel("mask")
    figure.tight_layout()
    return figure
