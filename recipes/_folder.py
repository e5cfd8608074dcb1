"""The folder of a run: what is written there, whole or not at all."""

import contextlib
import dataclasses
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, Num

import dnarch_eqx as dn


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[BinaryIO]:
    """A file to be written beside `path`, and renamed to it once it is complete: whatever
    happens, there is the old one or the new one.
    """
    beside = path.with_name(f".{path.name}.new")
    try:
        with beside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with atomic(path) as file:
        file.write(text.encode())


def save(path: Path, header: Mapping[str, Any], tree: Any) -> None:
    """A line of JSON, then the leaves of a PyTree."""
    with atomic(path) as file:
        file.write(json.dumps(header).encode() + b"\n")
        eqx.tree_serialise_leaves(file, tree)


def load(path: Path, like: Callable[[dict[str, Any]], Any]) -> tuple[dict[str, Any], Any]:
    """What [`save`][] wrote.

    - `like`: from the header to a PyTree of the same structure.

    Raises a `ValueError` if the file is damaged, or not of that structure.
    """
    with path.open("rb") as file:
        try:
            header = json.loads(file.readline())
        except ValueError as error:
            raise ValueError(f"{path} does not begin with a line of JSON: {error}") from error
        rest = io.BytesIO(file.read())
    try:
        return header, eqx.tree_deserialise_leaves(rest, like(header))
    except Exception as error:  # of a damaged file NumPy and Equinox raise nearly anything
        raise ValueError(f"{path} is damaged, or of another network: {error}") from error


def open_run(folder: Path, config: Mapping[str, Any]) -> None:
    """Makes the folder and its `config.json`, or finds the same run there.

    Raises a `ValueError` if it has a run of other settings.
    """
    path = folder / "config.json"
    config = json.loads(json.dumps(config))
    if path.is_file():
        old = json.loads(path.read_text())
        differ = [
            name for name in sorted(old.keys() | config) if old.get(name) != config.get(name)
        ]
        if differ:
            changes = ", ".join(f"{n}: {old.get(n)!r}, not {config.get(n)!r}" for n in differ)
            raise ValueError(
                f"{folder} has a run of other settings ({changes}). Choose another `--out`, or "
                "remove it."
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(config, indent=1) + "\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines; one cut off at the end is left out."""
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def append(path: Path, row: Mapping[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


@dataclasses.dataclass(frozen=True, eq=False)
class Trajectory:
    """The architecture over a run.

    - `trace`: the active counts of every step, or `None` before the first.
    - `steps`: at which steps masks were written down.
    - `masks`: their parameters there, `AXIS.PARAMETER` by name, time first.
    """

    trace: dn.Trace | None
    steps: Int[np.ndarray, " times"]
    masks: Mapping[str, Num[np.ndarray, " times"]]

    @staticmethod
    def empty(masks: dn.Masks) -> "Trajectory":
        none = {
            name: np.zeros((0, *value.shape), value.dtype) for name, value in parameters(masks)
        }
        return Trajectory(None, np.zeros(0, int), none)

    def at(self, step: int, masks: dn.Masks) -> "Trajectory":
        """With the masks of one more step."""
        added = {name: np.append(self.masks[name], value) for name, value in parameters(masks)}
        return Trajectory(self.trace, np.append(self.steps, step), added)

    def after(self, trace: dn.Trace) -> "Trajectory":
        """With the counts of more steps."""
        return dataclasses.replace(self, trace=joined(self.trace, trace))

    def until(self, step: int) -> "Trajectory":
        """What there was of it at an earlier step."""
        kept = self.steps <= step
        return Trajectory(
            None if self.trace is None else cut(self.trace, step),
            self.steps[kept],
            {name: values[kept] for name, values in self.masks.items()},
        )

    def stacked(self, masks: dn.Masks) -> dn.Masks:
        """The masks over time, as [`dnarch_eqx.stack`][] gives them; `masks`: any of them."""
        return with_parameters(masks, self.masks)

    def save(self, path: Path) -> None:
        """As an `.npz`: `trace/...`, `steps`, `masks/...`."""
        arrays: dict[str, Any] = {f"masks/{name}": a for name, a in self.masks.items()}
        if (trace := self.trace) is not None:
            arrays |= {
                "trace/axes": np.array(trace.axes, str),
                "trace/steps": trace.steps,
                "trace/active": trace.active,
                "trace/length": np.array(trace.length),
            }
        with atomic(path) as file:
            np.savez_compressed(file, steps=self.steps, **arrays)

    @staticmethod
    def load(path: Path) -> "Trajectory":
        """What [`Trajectory.save`][] wrote."""
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        trace = None
        if "trace/axes" in arrays:
            trace = dn.Trace(
                tuple(arrays["trace/axes"].tolist()),
                arrays["trace/steps"],
                arrays["trace/active"],
                int(arrays["trace/length"]),
            )
        masks = {
            name.removeprefix("masks/"): a
            for name, a in arrays.items()
            if name.startswith("masks/")
        }
        return Trajectory(trace, arrays["steps"], masks)


def joined(first: dn.Trace | None, second: dn.Trace) -> dn.Trace:
    """Two traces one after the other."""
    if first is None:
        return second
    # The counts do not change where the second begins with those that the first ends with.
    start = int(np.array_equal(first.active[-1], second.active[0]))
    return dn.Trace(
        first.axes,
        np.concatenate([first.steps, first.length + second.steps[start:]]),
        np.concatenate([first.active, second.active[start:]]),
        first.length + second.length,
    )


def cut(trace: dn.Trace, length: int) -> dn.Trace | None:
    """The first steps of a trace; `None` if these are none."""
    if length <= 0:
        return None
    kept = trace.steps < length
    return dn.Trace(
        trace.axes, trace.steps[kept], trace.active[kept], min(length, trace.length)
    )


def parameters(masks: dn.Masks) -> list[tuple[str, np.ndarray]]:
    """The parameters of masks by their names, `AXIS.PARAMETER`."""
    return [
        (f"{axis}.{name}", np.asarray(getattr(mask, name)))
        for axis, mask in sorted(masks.items())
        for name in _names(mask)
    ]


def with_parameters(masks: dn.Masks, values: Mapping[str, Any]) -> dn.Masks:
    """The same masks with other parameters, by their names."""
    return {
        axis: eqx.tree_at(
            lambda m: [getattr(m, name) for name in _names(m)],
            mask,
            [jnp.asarray(values[f"{axis}.{name}"], jnp.float32) for name in _names(mask)],
        )
        for axis, mask in masks.items()
    }


def _names(mask: dn.AbstractMask) -> list[str]:
    fields = dataclasses.fields(mask)
    return [field.name for field in fields if not field.metadata.get("static")]
