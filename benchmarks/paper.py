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
  the base in parentheses: at the end and, after "mean", over the whole training; by how much
  they differ from the base of the same seed (seeds draw the examples, too); how long the
  training steps took over what the base's took, with their compilations (but without
  evaluations of held-out examples); and the operations of an evaluation that XLA counts, on the
  grids of the last plan;
- the same beside other networks, trained in the same loop, and of KRWD started from half and
  from double the sizes (operations of S4D have its impulse responses among them, those of CCNNs
  no kernels: they are rendered once);
- the architectures found with the first seed that is done.

Ratios are of the seeds that are done for both.

`FOLDER` has a folder for every data set that cannot be generated: `imdb`, `cifar`, `ucr`,
`mnist` and `membranes`, with the official files.
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

import equinox as eqx
import jax
import numpy as np
import tyro

import dnarch_eqx as dn
from benchmarks._common import finish, Row
from recipes import (
    _folder,
    _report,
    _settings,
    cifar,
    lra,
    membranes,
    mnist,
    nasbench360,
    ucr,
)
from recipes._hyperparameters import LAPTOP
from recipes._train import Run, train


@dataclasses.dataclass(frozen=True)
class Kind:
    """A task: its recipe, its row in the tables, the folder of its data, and what is trained
    beside the variants.
    """

    make: Callable[..., Any]
    row: str
    folder: str | None = None
    others: tuple[str, ...] = ()


KINDS = {
    "listops": Kind(lra.task, "listops"),
    "text": Kind(lra.task, "text", "imdb"),
    "sequential": Kind(mnist.task, "sequential", "mnist", ("s4d", "half", "double")),
    "FordA": Kind(ucr.task, "ucr", "ucr"),
    "cifar10": Kind(cifar.task, "cifar10", "cifar", ("half", "double")),
    "darcy": Kind(nasbench360.task, "darcy", None, ("fno",)),
    "cosmic": Kind(nasbench360.task, "cosmic"),
    "membranes": Kind(membranes.task, "membranes", "membranes"),
}
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
    tasks: tuple[str, ...] = tuple(KINDS)
    seeds: tuple[int, ...] = (0, 1, 2)
    minutes: float | None = None
    """After how many minutes no other run is started."""


def run(path: Path | None, arguments: list[str]) -> None:
    choice = tyro.cli(Choice, args=arguments, description=__doc__)
    if unknown := sorted(set(choice.tasks) - set(KINDS)):
        raise SystemExit(f"`tasks` must be among {list(KINDS)}, got {unknown}.")
    tasks = [t for t in choice.tasks if choice.data is not None or KINDS[t].folder is None]
    for task in KINDS:
        for variant in _variants(task):
            _check(choice, task, variant)
    until = math.inf if choice.minutes is None else time.monotonic() + 60 * choice.minutes
    # Seeds outermost: whenever it stops, all have run about as often.
    for seed, task in it.product(choice.seeds, tasks):
        for variant in _variants(task):
            file = _where(choice, task, variant, seed)
            if time.monotonic() < until and not file.is_file():
                _one(choice, task, variant, seed, file)
    results = {
        (task, variant): found
        for task in KINDS
        for variant in _variants(task)
        if (found := _found(choice, task, variant))
    }
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


def _where(choice: Choice, task: str, variant: str, seed: int) -> Path:
    return choice.results / f"{task}-{variant}-seed{seed}.json"


def _one(choice: Choice, name: str, variant: str, seed: int, file: Path) -> None:
    kind, folder = KINDS[name], choice.out / file.stem
    data = None
    if kind.folder is not None:
        assert choice.data is not None
        data = choice.data / kind.folder
    task = kind.make(name, data, LAPTOP[kind.row], seed)
    options = dataclasses.replace(_options(variant), data=data, seed=seed)
    side = max(task.network.shape)
    settings = _settings.resolve(kind.row, options, len(task.splits.train), side)
    done = train(task, settings, folder)
    _report.write(folder, done)
    file.parent.mkdir(parents=True, exist_ok=True)
    _folder.write_text(file, json.dumps(_result(done), indent=1) + "\n")


def _options(variant: str) -> _settings.Options:
    name: Any = "krwd" if variant in STARTS else variant
    # As the paper holds its complexity.
    held = _settings.Overrides(hold="penalty")
    return _settings.Options(variant=name, start=STARTS.get(variant, 1.0), overrides=held)


def _check(choice: Choice, task: str, variant: str) -> None:
    """What is done was done with the present settings, or a table would mix runs of several."""
    found = _found(choice, task, variant)
    expected = _comparable(_settings.resolve(KINDS[task].row, _options(variant), 2**31, 1))
    for result in found:
        # This one also follows from the data, which are not looked at.
        expected["omega_0"] = found[0]["settings"]["omega_0"]
        old = result["settings"]
        if differ := [name for name in expected if expected[name] != old.get(name)]:
            changes = ", ".join(f"{n} {old.get(n)!r}, not {expected[n]!r}" for n in differ)
            raise SystemExit(
                f"{choice.results} has {task}, {variant}, of seed {result['seed']} with other "
                f"settings ({changes}): name another `--results`, or remove it."
            )


def _result(run: Run) -> dict[str, Any]:
    relative = [row["complexity"] for row in run.rows if "complexity" in row]
    return {
        "about": run.task.about,
        "seed": run.settings.seed,
        "steps": run.settings.steps,
        "test": dict(run.test),
        "relative": relative[-1],
        "mean relative": statistics.mean(relative),
        "seconds": sum(row["seconds"] for row in run.rows if "seconds" in row),
        "compiling": sum(c["seconds"] - c["overlapped"] for c in run.compilations),
        "compilations": len(run.compilations),
        "parameters": dn.parameters(run.deployed),
        "operations": _operations(run),
        "architecture": _report.architecture(run) if run.masks else [],
        "settings": _comparable(run.settings),
        "jax": jax.__version__,
    }


def _comparable(settings: _settings.Settings) -> dict[str, Any]:
    """What must be the same for all seeds, as JSON has it: all but what plans alone go by."""
    differ = ["seed", "data", "headroom", "compile_steps"]
    if settings.hold == "penalty":  # as all were before there was another way
        differ += ["hold", "settle"]
    fields = dataclasses.asdict(settings).items()
    return json.loads(json.dumps({k: v for k, v in fields if k not in differ}))


def _operations(run: Run) -> float:
    """Of an evaluation, an example."""
    size = run.settings.batch_size
    batch = jax.tree.map(
        lambda *x: np.stack(x), *[run.task.splits.test[i][0] for i in range(size)]
    )
    net, rest = eqx.partition(run.deployed, eqx.is_array)
    call = lambda net, x: run.task(eqx.combine(net, rest), x)
    return dn.operations(jax.jit(call).lower(net, batch).compile()) / size


def _found(choice: Choice, task: str, variant: str) -> list[dict[str, Any]]:
    files = choice.results.glob(f"{task}-{variant}-seed*.json")
    return sorted((json.loads(file.read_text()) for file in files), key=lambda r: r["seed"])


def _metrics(results: dict[tuple[str, str], list[dict[str, Any]]]) -> str:
    rows: list[tuple[str, ...]] = [("task", "metric", *VARIANTS)]
    for task in KINDS:
        done = [results[task, v] for v in VARIANTS if (task, v) in results]
        if done:
            metric = next(iter(done[0][0]["test"]))
            cells = (_cell(results.get((task, v)), metric) for v in VARIANTS)
            rows.append((task, metric, *cells))
            differences = (_difference(results, task, v, metric) for v in VARIANTS)
            rows.append(("", "difference to base's", *differences))
            times = (_ratio(results, task, v, "seconds") for v in VARIANTS)
            rows.append(("", "time over base's", *times))
            operations = (_ratio(results, task, v, "operations") for v in VARIANTS)
            rows.append(("", "operations over base's", *operations))
    return _report.table(rows)


def _others(results: dict[tuple[str, str], list[dict[str, Any]]]) -> str:
    """Networks beside each other: what they reach, and what they cost to deploy."""
    rows: list[tuple[str, ...]] = [
        ("task", "network", "metric", "value", "operations over base's", "parameters")
    ]
    for task in KINDS:
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
                    _ratio(results, task, variant, "operations"),
                    f"{parameters:,.0f}",
                )
            )
    return _report.table(rows) if len(rows) > 1 else ""


def _cell(found: list[dict[str, Any]] | None, metric: str, *, relative: bool = True) -> str:
    if not found:
        return ""
    mean = lambda name: statistics.mean(result[name] for result in found)
    values = [result["test"][metric] for result in found]
    cell = f"{_spread(values)}, n = {len(values)}"
    if relative:
        cell += f" ({mean('relative'):.2f}x, mean {mean('mean relative'):.2f}x)"
    return cell


def _spread(values: list[float], sign: str = "") -> str:
    cell = f"{statistics.mean(values):{sign}.4f}"
    return cell if len(values) < 2 else f"{cell} ± {statistics.stdev(values):.4f}"


def _difference(results: dict, task: str, variant: str, metric: str) -> str:
    """To the base's, seed by seed."""
    pairs = _pairs(results, task, variant, lambda result: result["test"][metric])
    if variant == "base" or not pairs:
        return ""
    return _spread([one - base for one, base in pairs], "+")


def _ratio(results: dict, task: str, variant: str, name: str) -> str:
    ratio = _over_base(results, task, variant, name)
    return "" if ratio is None else f"{ratio:.2f}"


def _over_base(results: dict, task: str, variant: str, name: str) -> float | None:
    """A mean over that of the base."""
    pairs = _pairs(results, task, variant, lambda result: result[name])
    if not pairs:
        return None
    return sum(one for one, _ in pairs) / sum(base for _, base in pairs)


def _pairs(
    results: dict, task: str, variant: str, of: Callable[[dict[str, Any]], float]
) -> list[tuple[float, float]]:
    """A variant's numbers and the base's, of the seeds that are done for both."""
    one, base = (
        {result["seed"]: of(result) for result in results.get((task, v), [])}
        for v in (variant, "base")
    )
    return [(one[seed], base[seed]) for seed in sorted(one.keys() & base.keys())]


def _architectures(results: dict) -> str:
    parts = []
    for task in KINDS:
        if found := results.get((task, "krwd")):
            architecture = [tuple(row) for row in found[0]["architecture"]]
            parts.append(f"{task}, KRWD, {found[0]['about']}\n\n{_report.table(architecture)}")
    return "\n\n".join(parts)


def _rows(results: dict) -> list[Row]:
    rows = []
    for task in KINDS:
        for variant in _variants(task):
            if found := results.get((task, variant)):
                metric = next(iter(found[0]["test"]))
                mean = statistics.mean(result["test"][metric] for result in found)
                rows.append(Row(f"paper/{task}/{variant}/{metric}", mean, f"n={len(found)}"))
        ratio = _over_base(results, task, "krwd", "seconds")
        if ratio is not None:
            rows.append(Row(f"paper/{task}/krwd/time", ratio, "x", "<= 1.3"))
    return rows
