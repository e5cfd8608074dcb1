"""What the command lines have in common."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import tyro

import dnarch_eqx as dn
from recipes import _settings
from recipes._hyperparameters import LAPTOP, Laptop
from recipes._settings import Options as Options, Overrides as Overrides
from recipes._task import Task
from recipes._train import open_run, train


# Flags without the names of the dataclasses that they are in.
Flags = Annotated[Options, tyro.conf.OmitArgPrefixes]


def run(
    name: str,
    row: str,
    make: Callable[[str, Path | None, Laptop | None, int], Task],
    options: Options,
) -> None:
    """Makes a task, trains, and reports.

    - `name`: of the task, as `make` takes it.
    - `row`: its row in the tables.
    - `make`: `(name, data, laptop, seed)` to the task.

    Where there are no data, or damaged ones, or the settings or the folder are not possible,
    what is wrong is all that is printed.
    """
    dn.runtime.keep_memory()
    try:
        task = make(name, options.data, LAPTOP[row] if options.laptop else None, options.seed)
        side = max(task.network.shape)
        settings = _settings.resolve(row, options, len(task.splits.train), side)
        out = options.out
        if out is None:
            parts = [settings.variant, f"{settings.depth}x{settings.width}", settings.preset]
            parts += [] if settings.start == 1 else [f"from{settings.start:g}"]
            out = Path("out") / "-".join([task.name, *parts, f"seed{settings.seed}"])
        open_run(task, settings, out)
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(str(error)) from error
    done = train(task, settings, out, workers=options.workers)

    from recipes import _report  # matplotlib takes a second to import

    print(_report.write(out, done))


def required(name: str, data: Path | None, file: str, where: str) -> Path:
    """The folder given.

    Raises a `FileNotFoundError` that says what to put there if none is, or there is no such.
    """
    if data is None:
        raise FileNotFoundError(
            f"{name} cannot be generated: give `--data FOLDER`, with {file} in it. It is from "
            f"{where}."
        )
    if not data.is_dir():
        raise FileNotFoundError(f"`data` must be a folder, and there is none {data}.")
    return data
