"""The paper's Tables 1 to 3 and 6 to 8 at the size of a laptop: base, K, KR and KRWD on the
recipes' laptop presets. KRWD is held to the complexity of the base; K and KR are not, as in the
paper.

    python -m benchmarks paper --data FOLDER --seeds 0 1 2 --minutes 60

The result of a run that is done is kept in `--results`, by default those that lie beside this
module: remove them, or name another folder, to run everything anew, as is needed once presets
change. Runs that are done are not run again, and one that was interrupted goes on: `--minutes`
starts no other after so many. `--tasks` and `--seeds` say what to run. Of all that is done it
prints, and writes to `tables.md` of the results:

- test metrics, the mean and the standard deviation over seeds, with the complexity over that of
  the base in parentheses: as deployed and, after "mean", over the whole training; by how much
  they differ from the base of the same seed (seeds draw the examples, too); how long the
  training steps took over what the base's took, with their compilations (but without
  evaluations of held-out examples); the same of the steps of the last quarter alone; and the
  operations of an evaluation that XLA counts, on the grids of the last plan;
- the same beside other networks, trained in the same loop, and of KRWD started from half and
  from double the sizes (operations of S4D have its impulse responses among them, those of CCNNs
  no kernels: they are rendered once);
- the architectures found with the first seed that is done.

Ratios are of the seeds that are done for both.

Rows: `paper/TASK/VARIANT/METRIC` and `paper/TASK/krwd/time`; `paper/tasks`, how many there are;
`paper/krwd/better` and `worse`, on how many of these KRWD is better, or worse, than the base
by more than the standard error of the difference; `paper/krwd/time`, the longest whole run
over the base's; `paper/krwd/deployed`, by how much the deployed complexity of a task is off at
most.

`FOLDER` has a folder for every data set that cannot be generated: `imdb`, `cifar`, `ucr`,
`mnist` and `membranes`, with the official files.
"""

import dataclasses
import itertools as it
import math
import statistics
from pathlib import Path
from typing import Any

import tyro

from benchmarks._common import finish, Row
from benchmarks._runs import KINDS, over_base, pairs, ratio, Results, Series, spread
from recipes import _folder, _report, _settings


TASKS = (
    "listops", "text", "sequential", "long", "FordA", "cifar10", "colour", "darcy", "cosmic",
    "membranes",
)  # fmt: skip
VARIANTS = ("base", "k", "kr", "krwd")
# KRWD from wrong sizes.
STARTS = {"half": 0.5, "double": 2.0}


@dataclasses.dataclass(frozen=True)
class Choice:
    """What to run."""

    data: Path | None = None
    """Where data sets lie that cannot be generated. Without, their tasks are left out."""
    out: Path = Path("out/paper")
    """Where the runs' folders are."""
    results: Path = Path(__file__).parent / "results"
    """Where a file a run is, of what it came to."""
    tasks: tuple[str, ...] = TASKS
    seeds: tuple[int, ...] = (0, 1, 2)
    minutes: float | None = None
    """After how many minutes no other run is started."""


def run(path: Path | None, arguments: list[str]) -> None:
    choice = tyro.cli(Choice, args=arguments, description=__doc__)
    if unknown := sorted(set(choice.tasks) - set(TASKS)):
        raise SystemExit(f"`tasks` must be among {list(TASKS)}, got {unknown}.")
    tasks = [t for t in choice.tasks if choice.data is not None or KINDS[t].folder is None]
    series = Series(lambda _, v: _options(v), choice.results, choice.out, choice.data)
    every = [(task, variant) for task in TASKS for variant in _variants(task)]
    for task, variant in every:
        series.check(task, variant)
    # Seeds outermost: whenever it stops, all have run about as often.
    jobs = ((s, t, v) for s, t in it.product(choice.seeds, tasks) for v in _variants(t))
    series.run(jobs, choice.minutes)
    results = series.every(every)
    if not results:
        print("No run is done yet.")
        return
    parts = (_metrics(results), _others(results), _architectures(results))
    text = "\n\n".join(part for part in parts if part)
    _folder.write_text(choice.results / "tables.md", text + "\n")
    print(text, end="\n\n")
    finish(_rows(results), path)


def _variants(task: str) -> tuple[str, ...]:
    return (*VARIANTS, *KINDS[task].others)


def _options(variant: str) -> _settings.Options:
    name: Any = "krwd" if variant in STARTS else variant
    return _settings.Options(variant=name, start=STARTS.get(variant, 1.0))


def _metrics(results: Results) -> str:
    rows: list[tuple[str, ...]] = [("task", "metric", *VARIANTS)]
    for task in TASKS:
        done = [results[task, v] for v in VARIANTS if (task, v) in results]
        if done:
            metric = next(iter(done[0][0]["test"]))
            cells = (_cell(results.get((task, v)), metric) for v in VARIANTS)
            rows.append((task, metric, *cells))
            differences = (_difference(results, task, v, metric) for v in VARIANTS)
            rows.append(("", "difference to base's", *differences))
            times = (ratio(results, task, v, "seconds") for v in VARIANTS)
            rows.append(("", "time over base's", *times))
            steps = (ratio(results, task, v, "milliseconds") for v in VARIANTS)
            rows.append(("", "last steps' time over base's", *steps))
            operations = (ratio(results, task, v, "operations") for v in VARIANTS)
            rows.append(("", "operations over base's", *operations))
    return _report.table(rows)


def _others(results: Results) -> str:
    """Networks beside each other: what they reach, and what they cost to deploy."""
    rows: list[tuple[str, ...]] = [
        ("task", "network", "metric", "value", "operations over base's", "parameters")
    ]
    for task in TASKS:
        others = [v for v in KINDS[task].others if (task, v) in results]
        shown = [v for v in ("base", "krwd") if (task, v) in results] + others
        if not others:
            continue
        for variant in shown:
            found = results[task, variant]
            metric = next(iter(found[0]["test"]))
            name = f"KRWD from {variant}" if variant in STARTS else variant.upper()
            parameters = statistics.mean(result["parameters"] for result in found)
            rows.append(
                (
                    task,
                    "base" if variant == "base" else name,
                    metric,
                    _cell(found, metric, relative=variant in ("base", "krwd", *STARTS)),
                    ratio(results, task, variant, "operations"),
                    f"{parameters:,.0f}",
                )
            )
    return _report.table(rows) if len(rows) > 1 else ""


def _cell(found: list[dict[str, Any]] | None, metric: str, *, relative: bool = True) -> str:
    if not found:
        return ""
    mean = lambda name: statistics.mean(result[name] for result in found)
    deployed = statistics.mean(_deployed(result) for result in found)
    values = [result["test"][metric] for result in found]
    cell = f"{spread(values)}, n = {len(values)}"
    if relative:
        cell += f" ({deployed:.2f}x, mean {mean('mean relative'):.2f}x)"
    return cell


def _deployed(result: dict[str, Any]) -> float:
    """Older results of variants that are not held to a complexity do not have it apart."""
    return result.get("deployed", result["relative"])


def _difference(results: Results, task: str, variant: str, metric: str) -> str:
    """To the base's, seed by seed."""
    found = pairs(results, task, variant, lambda result: result["test"][metric])
    if variant == "base" or not found:
        return ""
    return spread([one - base for one, base in found], "+")


def _architectures(results: Results) -> str:
    parts = []
    for task in TASKS:
        if found := results.get((task, "krwd")):
            architecture = [tuple(row) for row in found[0]["architecture"]]
            parts.append(f"{task}, KRWD, {found[0]['about']}\n\n{_report.table(architecture)}")
    return "\n\n".join(parts)


def _rows(results: Results) -> list[Row]:
    rows = []
    for task in TASKS:
        for variant in _variants(task):
            if found := results.get((task, variant)):
                metric = next(iter(found[0]["test"]))
                mean = statistics.mean(result["test"][metric] for result in found)
                rows.append(Row(f"paper/{task}/{variant}/{metric}", mean, f"n={len(found)}"))
    return rows + _claims(results)


def _claims(results: Results) -> list[Row]:
    """What is claimed of KRWD: better than the base by more than the standard error of the
    difference, at its complexity, in its time.
    """
    tasks, better, worse, times, deployed = 0, 0, 0, [], []
    rows = []
    for task in TASKS:
        time = over_base(results, task, "krwd", "seconds")
        if time is None:
            continue
        tasks += 1
        times.append(time)
        rows.append(Row(f"paper/{task}/krwd/time", time, "x", "<= 1.3"))
        deployed.append(statistics.mean(map(_deployed, results[task, "krwd"])))
        gain, error = _gain(results, task, "krwd")
        better += gain > error
        worse += -gain > error
    if not tasks:
        return rows
    off = max(abs(x - 1) for x in deployed)
    return [
        *rows,
        Row("paper/tasks", tasks, "", ">= 10"),
        Row("paper/krwd/better", better, "tasks", ">= 8"),
        Row("paper/krwd/worse", worse, "tasks", "== 0"),
        Row("paper/krwd/time", max(times), "x", "<= 1.3"),
        Row("paper/krwd/deployed", off, "", "<= 0.03"),
    ]


def _gain(results: Results, task: str, variant: str) -> tuple[float, float]:
    """By how much a variant is better than the base, and the standard error of that: not known
    of one seed.
    """
    metric = next(iter(results[task, variant][0]["test"]))
    sign = 1 if metric == "accuracy" else -1  # the others are errors
    both = pairs(results, task, variant, lambda result: result["test"][metric])
    gains = [sign * (one - base) for one, base in both]
    error = statistics.stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else math.inf
    return statistics.mean(gains), error
