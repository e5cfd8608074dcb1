# Runs of recipes whose results are kept, a file each.

import dataclasses
import itertools as it
import json
import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np

import dnarch_eqx as dn
from recipes import _folder, _report, _settings, cifar, lra, membranes, mnist, nasbench360, ucr
from recipes._hyperparameters import LAPTOP, Laptop
from recipes._train import Run, train


Results = dict[tuple[str, str], list[dict[str, Any]]]


@dataclasses.dataclass(frozen=True)
class Kind:
    """A task: its recipe, its row in the tables, the folder of its data, what is trained beside
    the variants, and its preset if that is another than the row's.
    """

    make: Callable[..., Any]
    row: str
    folder: str | None = None
    others: tuple[str, ...] = ()
    preset: Laptop | None = None

    @property
    def laptop(self) -> Laptop:
        return LAPTOP[self.row] if self.preset is None else self.preset


KINDS = {
    "listops": Kind(lra.task, "listops"),
    "text": Kind(lra.task, "text", "imdb"),
    "sequential": Kind(mnist.task, "sequential", "mnist", ("s4d", "half", "double")),
    # Without a folder: scikit-learn's digits.
    "permuted": Kind(mnist.task, "permuted"),
    "FordA": Kind(ucr.task, "ucr", "ucr"),
    "ElectricDevices": Kind(ucr.task, "ucr", "ucr"),
    "cifar10": Kind(cifar.task, "cifar10", "cifar", ("half", "double")),
    # A longer sequence, and images of twice as many pixels.
    "long": Kind(
        mnist.task, "sequential", "mnist", preset=Laptop((16000, 1000, 10000), 28, 2000)
    ),
    "colour": Kind(
        cifar.task, "cifar10", "cifar", preset=Laptop((16000, 1000, 10000), 32, 1500)
    ),
    "darcy": Kind(nasbench360.task, "darcy", None, ("fno",)),
    "cosmic": Kind(nasbench360.task, "cosmic"),
    "membranes": Kind(membranes.task, "membranes", "membranes"),
}


@dataclasses.dataclass(frozen=True)
class Series:
    """Runs of the same kind.

    - `options`: of a variant of a task.
    - `results`: the folder where a file a run is; `out`: where the runs' own folders are.
    - `data`: where data sets lie that cannot be generated.
    """

    options: Callable[[str, str], _settings.Options]
    results: Path
    out: Path
    data: Path | None

    def settings(self, task: str, variant: str, examples: int = 2**31, side: int = 1) -> Any:
        kind, options = KINDS[task], self.options(task, variant)
        return _settings.resolve(kind.row, options, examples, side, kind.laptop)

    def run(self, jobs: Iterable[tuple[int, str, str]], minutes: float | None) -> None:
        """Runs what is not done, of seeds, tasks and variants; starts none after so long."""
        until = math.inf if minutes is None else time.monotonic() + 60 * minutes
        for seed, task, variant in jobs:
            file = self.results / f"{task}-{variant}-seed{seed}.json"
            if time.monotonic() < until and not file.is_file():
                self._one(task, variant, seed, file)

    def _one(self, name: str, variant: str, seed: int, file: Path) -> None:
        kind, folder = KINDS[name], self.out / file.stem
        data = None
        if kind.folder is not None:
            assert self.data is not None
            data = self.data / kind.folder
        of = name if kind.preset is None else kind.row
        task = kind.make(of, data, kind.laptop, seed)
        options = dataclasses.replace(self.options(name, variant), data=data, seed=seed)
        side = max(task.network.shape)
        settings = _settings.resolve(
            kind.row, options, len(task.splits.train), side, kind.laptop
        )
        done = train(task, settings, folder)
        _report.write(folder, done)
        file.parent.mkdir(parents=True, exist_ok=True)
        _folder.write_text(file, json.dumps(result(done), indent=1) + "\n")

    def check(self, task: str, variant: str) -> None:
        """What is done was done with the present settings, or a table would mix runs of
        several.
        """
        found = self.found(task, variant)
        expected = comparable(self.settings(task, variant))
        for result in found:
            # This one also follows from the data, which are not looked at.
            expected["omega_0"] = found[0]["settings"]["omega_0"]
            old = result["settings"]
            if differ := [name for name in expected if expected[name] != old.get(name)]:
                changes = ", ".join(f"{n} {old.get(n)!r}, not {expected[n]!r}" for n in differ)
                raise SystemExit(
                    f"{self.results} has {task}, {variant}, of seed {result['seed']} with "
                    f"other settings ({changes}): name another `--results`, or remove it."
                )

    def found(self, task: str, variant: str) -> list[dict[str, Any]]:
        """The results of a variant, by seed."""
        files = self.results.glob(f"{task}-{variant}-seed*.json")
        return sorted((json.loads(file.read_text()) for file in files), key=lambda r: r["seed"])

    def every(self, pairs: Iterable[tuple[str, str]]) -> Results:
        """Those of which there are some."""
        return {pair: found for pair in pairs if (found := self.found(*pair))}


def result(run: Run) -> dict[str, Any]:
    """What a run has come to, as JSON."""
    rows = [row for row in run.rows if "complexity" in row]
    relative = [row["complexity"] for row in rows]
    return {
        "about": run.task.about,
        "seed": run.settings.seed,
        "steps": run.settings.steps,
        "test": dict(run.test),
        "relative": relative[-1],
        "mean relative": statistics.mean(relative),
        "deployed": rows[-1]["deployed"],
        "seconds": sum(row["seconds"] for row in run.rows if "seconds" in row),
        "milliseconds": _milliseconds(rows),
        "compiling": sum(c["seconds"] - c["overlapped"] for c in run.compilations),
        "compilations": len(run.compilations),
        "parameters": dn.parameters(run.deployed),
        "operations": operations(run),
        "architecture": _report.architecture(run) if run.masks else [],
        "settings": comparable(run.settings),
        "jax": jax.__version__,
    }


def _milliseconds(rows: Sequence[Mapping[str, Any]]) -> float:
    """Of a step, over the last quarter of a run."""
    last = rows[3 * len(rows) // 4 - 1 :]
    steps = zip(last, last[1:])
    return 1e3 * statistics.median(b["seconds"] / (b["step"] - a["step"]) for a, b in steps)


def comparable(settings: _settings.Settings) -> dict[str, Any]:
    """What must be the same for all seeds, as JSON has it: all but what plans alone go by."""
    differ = ["seed", "data", "headroom", "compile_steps"]
    if settings.hold == "penalty":  # as all were before there was another way
        differ += ["hold", "settle"]
    fields = dataclasses.asdict(settings).items()
    return json.loads(json.dumps({k: v for k, v in fields if k not in differ}))


def operations(run: Run) -> float:
    """Of an evaluation, an example."""
    size = run.settings.batch_size
    batch = jax.tree.map(
        lambda *x: np.stack(x), *[run.task.splits.test[i][0] for i in range(size)]
    )
    net, rest = eqx.partition(run.deployed, eqx.is_array)
    call = lambda net, x: run.task(eqx.combine(net, rest), x)
    return dn.operations(jax.jit(call).lower(net, batch).compile()) / size


#
# Over seeds.
#


def spread(values: Sequence[float], sign: str = "") -> str:
    """The mean, and the standard deviation."""
    cell = f"{statistics.mean(values):{sign}.4f}"
    return cell if len(values) < 2 else f"{cell} ± {statistics.stdev(values):.4f}"


def pairs(
    results: Results, task: str, variant: str, of: Callable[[dict[str, Any]], float]
) -> list[tuple[float, float]]:
    """A variant's numbers and the base's, of the seeds that are done for both."""
    one, base = (
        {result["seed"]: of(result) for result in results.get((task, v), [])}
        for v in (variant, "base")
    )
    return [(one[seed], base[seed]) for seed in sorted(one.keys() & base.keys())]


def over_base(results: Results, task: str, variant: str, name: str) -> float | None:
    """A mean over that of the base; `None` where not all have it."""
    found = pairs(results, task, variant, lambda result: result.get(name, math.nan))
    if not found or any(map(math.isnan, it.chain(*found))):
        return None
    return sum(one for one, _ in found) / sum(base for _, base in found)


def ratio(results: Results, task: str, variant: str, name: str) -> str:
    found = over_base(results, task, variant, name)
    return "" if found is None else f"{found:.2f}"
