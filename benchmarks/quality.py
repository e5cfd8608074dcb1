"""Ways to learn or to prune an architecture, at the same deployed complexity: that of the base.

    python -m benchmarks quality --data FOLDER --seeds 0 1 2 --minutes 60

DNArch (KRWD) beside magnitude pruning, L0 gates, FlexConv (kernels alone: K) and DiffStride
(resolutions alone), see `recipes._pruning`, and the base itself: on the recipes' laptop
presets, in a third of their steps. Runs and results are kept as by `python -m benchmarks
paper`. It prints, and writes to `tables.md` of the results, test metrics (the mean and the
standard deviation over seeds), by how much they differ from the base of the same seed, and
deployed complexity, operations of an evaluation that XLA counts, and time of the training
steps, all three over the base's.

- `quality/TASK/VARIANT/METRIC`: the mean over seeds.
- `quality/deployed`: the largest deviation of a mean deployed complexity from the base's.
"""

import dataclasses
import itertools as it
import statistics
from pathlib import Path
from typing import Any

import tyro

from benchmarks._common import finish, Row
from benchmarks._runs import KINDS, pairs, ratio, Results, Series, spread
from recipes import _folder, _report, _settings
from recipes._hyperparameters import LAPTOP


TASKS = ("permuted", "ElectricDevices", "FordA", "cifar10")
NAMES = {
    "base": "base",
    "krwd": "DNArch (KRWD)",
    "magnitude": "magnitude, in steps",
    "l0": "L0 gates",
    "k": "FlexConv (K)",
    "diffstride": "DiffStride (R)",
}


@dataclasses.dataclass(frozen=True)
class Choice:
    """What to run."""

    data: Path | None = None
    """Where data sets lie. Without, nothing is run, and what is done is shown."""
    out: Path = Path("out/quality")
    """Where the runs' folders are."""
    results: Path = Path(__file__).parent / "results" / "quality"
    """Where a file a run is, of what it came to."""
    tasks: tuple[str, ...] = TASKS
    ways: tuple[str, ...] = tuple(NAMES)
    seeds: tuple[int, ...] = (0, 1, 2)
    minutes: float | None = None
    """After how many minutes no other run is started."""


def run(path: Path | None, arguments: list[str]) -> None:
    choice = tyro.cli(Choice, args=arguments, description=__doc__)
    for name, given, allowed in (("tasks", choice.tasks, TASKS), ("ways", choice.ways, NAMES)):
        if unknown := sorted(set(given) - set(allowed)):
            raise SystemExit(f"`{name}` must be among {list(allowed)}, got {unknown}.")
    series = Series(_options, choice.results, choice.out, choice.data)
    every = list(it.product(TASKS, NAMES))
    for task, variant in every:
        series.check(task, variant)
    if choice.data is not None:
        series.run(it.product(choice.seeds, choice.tasks, choice.ways), choice.minutes)
    results = series.every(every)
    if not results:
        print("No run is done yet.")
        return
    text = _table(results)
    _folder.write_text(choice.results / "tables.md", text + "\n")
    print(text, end="\n\n")
    finish(_rows(results), path)


def _options(task: str, variant: str) -> _settings.Options:
    name: Any = variant
    steps = LAPTOP[KINDS[task].row].steps // 3
    return _settings.Options(variant=name, overrides=_settings.Overrides(steps=steps))


def _table(results: Results) -> str:
    head = ("task", "way", "metric", "value", "difference", "complexity", "operations", "time")
    rows: list[tuple[str, ...]] = [head]
    for (task, variant), found in results.items():
        metric = next(iter(found[0]["test"]))
        values = [result["test"][metric] for result in found]
        both = pairs(results, task, variant, lambda result: result["test"][metric])
        differences = [one - base for one, base in both]
        rows.append(
            (
                task,
                NAMES[variant],
                metric,
                f"{spread(values)}, n = {len(values)}",
                spread(differences, "+") if variant != "base" and both else "",
                f"{statistics.mean(result['deployed'] for result in found):.3f}",
                ratio(results, task, variant, "operations"),
                ratio(results, task, variant, "seconds"),
            )
        )
    return _report.table(rows)


def _rows(results: Results) -> list[Row]:
    rows, worst = [], 0.0
    for (task, variant), found in results.items():
        metric = next(iter(found[0]["test"]))
        mean = statistics.mean(result["test"][metric] for result in found)
        rows.append(Row(f"quality/{task}/{variant}/{metric}", mean, f"n={len(found)}"))
        off = abs(statistics.mean(result["deployed"] for result in found) - 1)
        worst = max(worst, off)
    return [*rows, Row("quality/deployed", worst, "", "<= 0.03")]
