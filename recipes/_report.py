"""A run as a page of Markdown."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import jax.tree_util as jtu

import dnarch_eqx as dn
from recipes import _folder, _pictures, _pruning
from recipes._train import Run


def write(folder: Path, run: Run) -> str:
    """Writes `report.md` and its pictures, and gives the report without these."""
    metric = next(iter(run.test))
    path = jtu.tree_map(jnp.asarray, dict(run.trajectory.masks))
    steps = run.trajectory.steps
    pictures = _pictures.draw_run(folder, path, steps, run.rows, run.compilations, metric)
    text = _text(run)
    shown = "".join(f"\n![{name}]({name}.png)\n" for name in pictures)
    _folder.write_text(folder / "report.md", text + shown)
    return f"{text}\nWritten to {folder}."


def _text(run: Run) -> str:
    settings = run.settings
    built = run.built
    # As it is deployed.
    complexity = float(
        built.cost({a: m.count() for a, m in run.masks.items()}) / built.cost(built.target)
    )
    title = f"{settings.learn or 'base'}, CCNN"
    over_base = f"Complexity over that of the base network: {complexity:.3f}. "
    if settings.variant in _pruning.NAMES:
        title = f"{settings.variant}, CCNN"
    if settings.rival:
        title, over_base = settings.variant.upper(), ""
    results = [("metric", "valid", "test")]
    results += [(k, f"{run.valid[k]:.4g}", f"{run.test[k]:.4g}") for k in run.test]
    seconds = sum(row["seconds"] for row in run.rows if "seconds" in row)
    compiling = sum(c["seconds"] - c["overlapped"] for c in run.compilations)
    parts = [
        f"# {run.task.name}: {title} {settings.depth} x {settings.width}",
        f"Preset {settings.preset}, seed {settings.seed}. Data: {run.task.about}.",
        table(results),
        f"{over_base}Parameters of the deployed network: {dn.parameters(run.deployed):,}, of "
        f"the one that trained: {dn.parameters(built.model):,}. Their outputs differ by "
        f"{run.error:.1e} of the largest.",
        f"{settings.steps:,} steps in {seconds:.0f} s, {compiling:.0f} s of them spent waiting "
        f"for the compiler. Compilations: {len(run.compilations)}.",
        table(architecture(run)) if run.masks else "",
        "Networks are the last ones, not the best by validation.",
        "## Settings",
        table([("setting", "value"), *((k, str(v)) for k, v in _settings(run))]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _settings(run: Run) -> list[tuple[str, object]]:
    return [(k, v) for k, v in dataclasses.asdict(run.settings).items() if v != ""]


def architecture(run: Run) -> list[tuple[str, ...]]:
    """As Tables 6 to 8 of the paper: a row a block that is left, its kernel in positions at its
    own resolution. What is not learned is at its full size. A block is computed on its grid,
    which is that of the last plan and holds the resolution. The stream's width is not counted
    by the budget.
    """
    network, active, plan = run.task.network, dn.active(run.masks), run.plan
    width = run.settings.width
    blocks = int(active["depth"]) if "depth" in active else run.settings.depth
    letters = [""] if len(network.shape) == 1 else [".y", ".x"]

    def cell(of: Mapping[str, Any], block: int, names: list[str], full: list[int]) -> str:
        sizes = (int(of.get(f"blocks.{block}{n}", f)) for n, f in zip(names, full))
        return " ".join(map(str, sizes))

    space, channels = list(network.shape), [".in", ".mid", ".out"]
    # A global kernel has one position more on an even grid.
    taps = [n + 1 - n % 2 for n in space]
    resolutions = [f".resolution{letter}" for letter in letters]

    def own_taps(block: int) -> list[int]:
        sizes = []
        for letter, n, full in zip(letters, space, taps):
            extent = int(active.get(f"blocks.{block}.kernel{letter}", full)) - 1
            resolution = int(active.get(f"blocks.{block}.resolution{letter}", n))
            sizes.append(1 + 2 * int(extent * resolution / (2 * n)))
        return sizes

    rows = [
        (
            str(i + 1),
            " ".join(map(str, own_taps(i))),
            cell(active, i, resolutions, space),
            cell(plan, i, resolutions, space),
            cell(active, i, channels, [width] * 3),
        )
        for i in range(blocks)
    ]
    if "stream" in active:
        rows.append(("stream", "", "", "", str(int(active["stream"]))))
    return [("block", "kernel", "resolution", "grid", "width in, mid, out"), *rows]


def table(rows: list[tuple[str, ...]]) -> str:
    """In Markdown, the first row its head."""
    header, *body = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([header, f"|{' --- |' * len(rows[0])}", *body])
