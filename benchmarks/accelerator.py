"""What the library costs on whatever device there is, in at most `--minutes`, by default 8:

    python -m benchmarks accelerator [--minutes 8] [--small] [--only NAME ...] [--json FILE]

It needs no data, no network and no packages but those of the library. What is worth most comes
first. What no longer fits into the time is left out, and named; what fails is named, too, and
the rest is measured all the same. After each measurement all of it is written to `--json`, by
default to `benchmarks/results/accelerator-CARD.json`. `--small` is for trying it out, at tiny
sizes; `--only` measures some.

- `peaks`: what the device reaches: the product of large matrices, the copy of a large array.
- `1d`, `2d`: the training step of the materialized CCNN_{4,140} (L = 1024, and 32 x 32; batch
    16; capacities of twice the base) over that of a network of the same sizes written by hand;
    operations and bytes a second, by XLA's count, over the peaks. `1d/batch64` and so on are
    the same with larger batches, on accelerators.
- `1d/full`: the step at full capacity over the one under the plan.
- `1d/masks`: what small operations, and those of them that are on masks, take of the time that
    the device is at work, from a profile; where that cannot be had, as `1d/constant`.
- `1d/constant`: how much shorter the step is whose masks are constants of the program. In the
    file `how` tells the two ways.
- `run`: 500 steps of a planner whose sizes shrink. `efficiency` is that of the benchmark `run`,
    but for what exact sizes save, which is by the planner's own timing. `but_first` is without
    the first compilation, behind which there is nothing yet to go on with.
- `torch`, `torch/compiled`: the step over the same one in PyTorch, where it is installed.
"""

import argparse
import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

import dnarch_eqx as dn
from benchmarks import _measurements, _training
from benchmarks._common import Row
from benchmarks._lab import Lab, Name, Setting, setting as setting_of
from benchmarks._measurements import Missing, Result


_FOLDER = Path(__file__).parent
_PACKAGES = ("jax", "jaxlib", "equinox", "optax", "numpy", "torch")
_PRECISION = ("jax_default_matmul_precision", "jax_enable_x64")
# Seconds of a compilation, until one was seen.
_GUESS = {"cpu": 10.0}
_OTHER_GUESS = 25.0


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What is measured, and what that takes: so many seconds, and compilations of `programs`,
    as far as they are not compiled yet, and of so many more.
    """

    name: str
    measure: Callable[[Lab], Result]
    seconds: float
    programs: tuple[Name, ...] = ()
    compilations: float = 0.0


def measurements(setting: Setting) -> list[Measurement]:
    """All of them, in the order of their worth."""
    one, two, turns = setting.one, setting.two, setting.seconds
    pair = lambda case: ((case, "step"), (case, "hand_written"))
    found = [
        Measurement("peaks", _measurements.peaks, 3 * turns, compilations=0.2),
        _step("1d", one, turns),
        Measurement("1d/masks", _measurements.masks("1d", one), turns, pair(one)),
        _step("2d", two, turns),
        Measurement(
            "1d/full",
            _measurements.full_capacity("1d", one),
            3 * turns,
            ((one, "step"), (one, "full_capacity")),
        ),
        Measurement("torch", _measurements.pytorch(one, compiled=False), 3 * turns),
        Measurement("run", _training.training, setting.run.seconds, compilations=2.5),
        Measurement(
            "1d/constant",
            _measurements.constant_masks("1d", one),
            2 * turns,
            ((one, "step"), (one, "constant_masks")),
        ),
    ]
    for batch in setting.batches:
        for name, case in (("1d", one), ("2d", two)):
            larger = dataclasses.replace(case, batch=batch)
            found.append(_step(f"{name}/batch{batch}", larger, 2 * turns))
    found += [
        Measurement("2d/masks", _measurements.masks("2d", two), turns, pair(two)),
        Measurement(
            "torch/compiled",
            _measurements.pytorch(one, compiled=True),
            3 * turns,
            ((one, "step"),),
            compilations=3,
        ),
    ]
    return found


def _step(name: str, case: Any, seconds: float) -> Measurement:
    programs = ((case, "step"), (case, "hand_written"))
    return Measurement(name, _measurements.step(name, case), 2 * seconds, programs)


def run(path: Path | None, arguments: list[str]) -> None:
    start = time.monotonic()
    parser = argparse.ArgumentParser(prog="python -m benchmarks accelerator")
    parser.add_argument("--minutes", type=float, default=8.0, help="after which none is begun")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to try it out")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only these")
    args = parser.parse_args(arguments)
    device = jax.devices()[0]
    setting = setting_of(device.platform, small=args.small)
    every = measurements(setting)
    if unknown := sorted(set(args.only or ()) - {m.name for m in every}):
        parser.error(f"`--only` must be among {[m.name for m in every]}, got {unknown}.")
    report = _Report(_path(path, device, args.small), _about(device, args))
    lab = Lab(setting)
    for measurement in every:
        if args.only is None or measurement.name in args.only:
            left = start + 60 * args.minutes - time.monotonic()
            _measure(measurement, lab, left, report)
    print(f"\n{report.table()}\n\nWritten to {report.path}.")


def _measure(measurement: Measurement, lab: Lab, left: float, report: "_Report") -> None:
    """Measures if so many seconds suffice, and reports."""
    name, began = measurement.name, time.monotonic()
    needed = _estimate(measurement, lab)
    if needed > left:
        seconds = f"about {needed:.0f} s of compiling and measuring, and {max(left, 0):.0f} s"
        report.leave_out(name, f"it takes {seconds} were left")
        return
    try:
        rows, details = measurement.measure(lab)
    except Missing as reason:
        report.leave_out(name, str(reason))
    except Exception as error:  # out of memory, say: the others may do
        report.fail(name, error)
    else:
        report.add(name, rows, details | {"took_seconds": time.monotonic() - began})


def _estimate(measurement: Measurement, lab: Lab) -> float:
    """Seconds that a measurement takes."""
    seen = list(lab.first_calls.values())
    guess = _GUESS.get(jax.default_backend(), _OTHER_GUESS)
    each = statistics.mean(seen) if seen else guess
    new = sum(program not in lab.first_calls for program in measurement.programs)
    return measurement.seconds + (new + measurement.compilations) * each


class _Report:
    """What is found, written to a file whenever something is added."""

    def __init__(self, path: Path, about: dict[str, Any]):
        self.path = path
        self._data = {"about": about, "measurements": {}, "errors": {}, "left_out": {}}
        self._rows: list[Row] = []
        self._write()

    def add(self, name: str, rows: list[Row], details: dict[str, Any]) -> None:
        self._rows += rows
        rows_of = [dataclasses.asdict(row) for row in rows]
        self._data["measurements"][name] = {"rows": rows_of, **details}
        print(f"{name}: {details['took_seconds']:.1f} s", flush=True)
        self._write()

    def fail(self, name: str, error: Exception) -> None:
        text = f"{type(error).__name__}: {error}"
        self._data["errors"][name] = text[:2000]
        print(f"{name} failed: {text[:500]}", flush=True)
        self._write()

    def leave_out(self, name: str, reason: str) -> None:
        self._data["left_out"][name] = reason
        print(f"{name} left out: {reason}", flush=True)
        self._write()

    def table(self) -> str:
        cells = [(r.name, f"{r.value:.4g}", r.unit, r.target or "") for r in self._rows]
        text = dn.table([("name", "value", "unit", "target"), *cells])
        for title, key in (("Failed", "errors"), ("Left out", "left_out")):
            if names := self._data[key]:
                text += f"\n{title}: {', '.join(names)}."
        return text

    def _write(self) -> None:
        """All at once, so that whoever stops this has the last whole one."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = self.path.with_suffix(".tmp")
        new.write_text(json.dumps(self._data, indent=1) + "\n")
        os.replace(new, self.path)


def _path(path: Path | None, device: Any, small: bool) -> Path:
    if path is not None:
        return path
    card = re.sub(r"[^a-z0-9]+", "-", device.device_kind.lower()).strip("-")
    return _FOLDER / "results" / f"accelerator-{card}{'-small' if small else ''}.json"


def _about(device: Any, args: argparse.Namespace) -> dict[str, Any]:
    """Where and how it was measured."""
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "devices": jax.device_count(),
        "cores": os.cpu_count(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES},
        "commit": _commit(),
        "precision": {
            **{name: getattr(jax.config, name, None) for name in _PRECISION},
            "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
            "torch": _measurements.TORCH_PRECISION,
        },
        "minutes": args.minutes,
        "small": args.small,
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Of this checkout, with a `+` behind it where files have changed since."""
    git = lambda *args: subprocess.run(
        ["git", "-C", str(_FOLDER), *args], capture_output=True, text=True, check=True
    ).stdout.strip()
    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None
