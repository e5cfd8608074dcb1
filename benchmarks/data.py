"""Whether loading hides behind the steps of the recipes' laptop presets, and how fast it is.

    python -m benchmarks data --data FOLDER

- `data/TASK/step`: a training step of the base network with the next batch, over one with a
  batch that is there; both many steps in a row, in turn.
- `data/TASK/examples`: examples a second that the pipeline gives if nothing else runs.
- `data/TASK/published/examples`: the same of the task at its published size, from the files, or
  generated on the way.
- `data/TASK/files/examples`: where those were generated and the official files are read an
  example at a time, the same from a few such files.

`FOLDER` is as for `python -m benchmarks paper`. Tasks whose data are not there are left out.
"""

import dataclasses
import itertools as it
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

import dnarch_eqx as dn
from benchmarks._common import finish, medians, Row
from benchmarks._runs import Kind, KINDS
from recipes import _settings, cifar, lra, mnist
from recipes._hyperparameters import LAPTOP
from recipes._task import Task
from recipes._train import build
from recipes.data import (
    batches,
    cosmic,
    generate_cosmic,
    generate_pathfinder,
    pathfinder,
    Source,
)


# Batches are made ahead, also while none is taken: few beside so many steps.
_STEPS, _REPEATS, _BATCHES, _SECONDS = 100, 5, 50, 10.0

SOURCES = KINDS | {
    "retrieval": Kind(lra.task, "retrieval", "imdb"),
    "image": Kind(lra.task, "image", "cifar"),
    "pathfinder": Kind(lra.task, "pathfinder"),
    "pathx": Kind(lra.task, "pathx"),
    "cifar100": Kind(cifar.task, "cifar100", "cifar"),
    "mnist": Kind(mnist.task, "mnist", "mnist"),
    "permuted": Kind(mnist.task, "permuted", "mnist"),
}


@dataclasses.dataclass(frozen=True)
class Choice:
    """What to run."""

    data: Path | None = None
    """Where data sets lie that cannot be generated."""
    tasks: tuple[str, ...] = tuple(SOURCES)


def run(path: Path | None, arguments: list[str]) -> None:
    choice = tyro.cli(Choice, args=arguments, description=__doc__)
    if unknown := sorted(set(choice.tasks) - set(SOURCES)):
        raise SystemExit(f"`tasks` must be among {list(SOURCES)}, got {unknown}.")
    rows = []
    for name in choice.tasks:
        kind, data = SOURCES[name], None
        if kind.folder is not None and choice.data is not None:
            data = choice.data / kind.folder
        try:
            task = kind.make(name, data, LAPTOP[kind.row], 0)
        except FileNotFoundError as error:
            print(f"{name} is left out: {error}")
            continue
        rows += _behind_steps(name, kind.row, task)
        # MNIST is scikit-learn's on a laptop without data.
        if data is not None or kind.folder is None:
            full = kind.make(name, data, None, 0)
            rows.append(Row(f"data/{name}/published/examples", _examples(full, 50), "1/s"))
        if name in _FILES:
            with tempfile.TemporaryDirectory() as folder:
                splits = dataclasses.replace(task.splits, train=_FILES[name](Path(folder)))
                files = dataclasses.replace(task, splits=splits, transform=None)
                rows.append(Row(f"data/{name}/files/examples", _examples(files, 50), "1/s"))
    finish(rows, path)


def _drawings(folder: Path, size: int) -> Source:
    spec = generate_pathfinder.SIZES[size]
    generate_pathfinder.write(folder / pathfinder.LEVELS[2], 200, 0, spec)
    return pathfinder.load(folder, sequential=True, count=None).train


def _frames(folder: Path) -> Source:
    source = generate_cosmic.splits(0, (100, 1, 1), generate_cosmic.Spec(size=256)).train
    for part, examples in (("train", range(99)), ("test", range(99, 100))):
        visit = folder / f"npy_{part}" / "f435w" / "10760" / "2"
        visit.mkdir(parents=True)
        for i in examples:
            x, y = source[i]
            np.save(visit / f"{i}.npy", np.concatenate([x, y]))
    return cosmic.load(folder, counts=None).train


_FILES: dict[str, Callable[[Path], Source]] = {
    "pathfinder": lambda folder: _drawings(folder, 32),
    "pathx": lambda folder: _drawings(folder, 128),
    "cosmic": _frames,
}


def _behind_steps(name: str, row: str, task: Task) -> list[Row]:
    options = _settings.Options(variant="base")
    settings = _settings.resolve(row, options, len(task.splits.train), max(task.network.shape))
    built = build(task.network, settings)
    learner = dn.Learner(task.loss, dn.adamw(0.001, steps=10_000), built.axes, strict=False)
    state, plan = learner.init(built.model, built.masks), dn.Plan({})
    data = _loader(task, settings.batch_size)
    there = next(data)

    def steps(source: Any):
        def some() -> Any:
            new = state
            for batch in it.islice(source, _STEPS):
                new, _ = learner.step(new, batch, plan, key=jax.random.key(0))
            return new

        return some

    seconds = medians({"loaded": steps(data), "there": steps(it.repeat(there))}, _REPEATS)
    return [
        Row(f"data/{name}/step", seconds["loaded"] / seconds["there"], "x", "<= 1.05"),
        Row(f"data/{name}/milliseconds", 1e3 * seconds["there"] / _STEPS, "ms"),
        Row(f"data/{name}/examples", _examples(task, settings.batch_size), "1/s"),
    ]


def _examples(task: Task, batch_size: int) -> float:
    data, rates = _loader(task, batch_size), []
    _take(data, 8)  # more than are made ahead
    for _ in range(_REPEATS):
        start = time.perf_counter()
        n = _take(data, _BATCHES)
        rates.append(n * batch_size / (time.perf_counter() - start))
    return statistics.median(rates)


def _take(data: Any, batches: int) -> int:
    """Takes so many, or as many as there are in some seconds, at least one. How many."""
    start, n = time.perf_counter(), 0
    while n < batches and time.perf_counter() - start < _SECONDS:
        next(data)
        n += 1
    return n


def _loader(task: Task, batch_size: int) -> Any:
    return batches(task.splits.train, batch_size, seed=0, transform=task.transform)
