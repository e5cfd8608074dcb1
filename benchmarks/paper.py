"""The paper's Tables 1 to 3 and 6 to 8 at the size of a laptop: base, K, KR and KRWD at one
target complexity, on the recipes' laptop presets.

    python -m benchmarks paper --data FOLDER --seeds 0 1 2 --minutes 60

Runs that are done are not run again, and one that was interrupted goes on: `--minutes` starts
no other after so many. It prints, and writes to `--out`, a table of test metrics with the mean
and the standard deviation over seeds, the complexity over that of the base in parentheses,
how long training took over what the base took, compilations included; and the architectures
found with the first seed. `FOLDER` has a folder for every data set that cannot be generated:
`imdb`, `cifar`, `ucr` and `mnist`, with the official files.
"""

import dataclasses
import itertools as it
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tyro

import dnarch_eqx as dn
from benchmarks._common import finish, Row
from recipes import _folder, _report, _settings, cifar, lra, mnist, nasbench360, ucr
from recipes._hyperparameters import LAPTOP
from recipes._train import Run, train


@dataclasses.dataclass(frozen=True)
class Kind:
    """A task: its recipe, its row in the tables, and the folder of its data."""

    make: Callable[..., Any]
    row: str
    folder: str | None = None


KINDS = {
    "listops": Kind(lra.task, "listops"),
    "text": Kind(lra.task, "text", "imdb"),
    "sequential": Kind(mnist.task, "sequential", "mnist"),
    "FordA": Kind(ucr.task, "ucr", "ucr"),
    "cifar10": Kind(cifar.task, "cifar10", "cifar"),
    "darcy": Kind(nasbench360.task, "darcy"),
    "cosmic": Kind(nasbench360.task, "cosmic"),
}
VARIANTS = ("base", "k", "kr", "krwd")


@dataclasses.dataclass(frozen=True)
class Choice:
    """What to run."""

    data: Path | None = None
    """Where data sets lie that cannot be generated. Without, their tasks are left out."""
    out: Path = Path("out/paper")
    tasks: tuple[str, ...] = tuple(KINDS)
    seeds: tuple[int, ...] = (0, 1, 2)
    minutes: float | None = None
    """After how many minutes no other run is started."""


def run(path: Path | None, arguments: list[str]) -> None:
    choice = tyro.cli(Choice, args=arguments, description=__doc__)
    if unknown := sorted(set(choice.tasks) - set(KINDS)):
        raise SystemExit(f"`tasks` must be among {list(KINDS)}, got {unknown}.")
    tasks = [t for t in choice.tasks if choice.data is not None or KINDS[t].folder is None]
    until = math.inf if choice.minutes is None else time.monotonic() + 60 * choice.minutes
    dn.keep_memory()
    # Seeds outermost: whenever it stops, all have run about as often.
    for seed, task, variant in it.product(choice.seeds, tasks, VARIANTS):
        folder = _where(choice, task, variant, seed)
        if time.monotonic() < until and not (folder / "result.json").is_file():
            _one(choice, task, variant, seed, folder)
    results = {
        (task, variant): found
        for task in tasks
        for variant in VARIANTS
        if (found := _found(choice, task, variant))
    }
    if not results:
        print("No run is done yet.")
        return
    text = f"{_metrics(tasks, results)}\n\n{_architectures(tasks, results)}"
    _folder.write_text(choice.out / "tables.md", text + "\n")
    print(text, end="\n\n")
    finish(_rows(tasks, results), path)


def _where(choice: Choice, task: str, variant: str, seed: int) -> Path:
    return choice.out / f"{task}-{variant}-seed{seed}"


def _one(choice: Choice, name: str, variant: str, seed: int, folder: Path) -> None:
    kind = KINDS[name]
    data = None
    if kind.folder is not None:
        assert choice.data is not None
        data = choice.data / kind.folder
    task = kind.make(name, data, LAPTOP[kind.row], seed)
    options = _settings.Options(variant=variant, data=data, seed=seed)  # pyright: ignore[reportArgumentType]
    side = max(task.network.shape)
    settings = _settings.resolve(kind.row, options, len(task.splits.train), side)
    done = train(task, settings, folder)
    _report.write(folder, done)
    _folder.write_text(folder / "result.json", json.dumps(_result(done), indent=1) + "\n")


def _result(run: Run) -> dict[str, Any]:
    relative = [row["relative"] for row in run.rows if row.get("relative") is not None]
    return {
        "about": run.task.about,
        "steps": run.settings.steps,
        "test": dict(run.test),
        "relative": relative[-1],
        "mean relative": statistics.mean(relative),
        "seconds": sum(row["seconds"] for row in run.rows if "seconds" in row),
        "compiling": sum(c["seconds"] - c["hidden"] for c in run.compilations),
        "compilations": len(run.compilations),
        "parameters": dn.parameters(run.deployed),
        "architecture": _report.architecture(run) if run.masks else [],
    }


def _found(choice: Choice, task: str, variant: str) -> list[dict[str, Any]]:
    files = (_where(choice, task, variant, s) / "result.json" for s in choice.seeds)
    return [json.loads(file.read_text()) for file in files if file.is_file()]


def _metrics(tasks: list[str], results: dict[tuple[str, str], list[dict[str, Any]]]) -> str:
    rows: list[tuple[str, ...]] = [("task", "metric", *VARIANTS)]
    for task in tasks:
        done = [results[task, v] for v in VARIANTS if (task, v) in results]
        if done:
            metric = next(iter(done[0][0]["test"]))
            cells = (_cell(results.get((task, v)), metric) for v in VARIANTS)
            rows.append((task, metric, *cells))
            times = (_times(results, task, v) for v in VARIANTS)
            rows.append(("", "time over base's", *times))
    return _report.table(rows)


def _cell(found: list[dict[str, Any]] | None, metric: str) -> str:
    if not found:
        return ""
    values = [result["test"][metric] for result in found]
    relative = statistics.mean(result["relative"] for result in found)
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{spread} ({relative:.2f}x)"


def _times(results: dict, task: str, variant: str) -> str:
    ratio = _over_base(results, task, variant)
    return "" if ratio is None else f"{ratio:.2f}"


def _over_base(results: dict, task: str, variant: str) -> float | None:
    """The mean of the seconds over the mean of the base's."""
    if (task, variant) not in results or (task, "base") not in results:
        return None
    seconds = lambda v: statistics.mean(result["seconds"] for result in results[task, v])
    return seconds(variant) / seconds("base")


def _architectures(tasks: list[str], results: dict) -> str:
    parts = []
    for task in tasks:
        if found := results.get((task, "krwd")):
            architecture = [tuple(row) for row in found[0]["architecture"]]
            parts.append(f"{task}, KRWD, {found[0]['about']}\n\n{_report.table(architecture)}")
    return "\n\n".join(parts)


def _rows(tasks: list[str], results: dict) -> list[Row]:
    rows = []
    for task in tasks:
        for variant in VARIANTS:
            if found := results.get((task, variant)):
                metric = next(iter(found[0]["test"]))
                mean = statistics.mean(result["test"][metric] for result in found)
                rows.append(Row(f"paper/{task}/{variant}/{metric}", mean, f"n={len(found)}"))
        ratio = _over_base(results, task, "krwd")
        if ratio is not None:
            rows.append(Row(f"paper/{task}/krwd/time", ratio, "x", "<= 1.3"))
    return rows
