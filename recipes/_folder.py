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
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Int

import dnarch_eqx as dn
from recipes._decided import Decided


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


def save(path: Path, header: Mapping[str, Any], *trees: Any) -> None:
    """A line of JSON, then the leaves of PyTrees."""
    with atomic(path) as file:
        file.write(json.dumps(header).encode() + b"\n")
        for tree in trees:
            eqx.tree_serialise_leaves(file, tree)


def load(path: Path, *likes: Callable[..., Any]) -> tuple[Any, ...]:
    """What [`save`][] wrote: the header, and the PyTrees.

    - `likes`: for each PyTree, from the header and the PyTrees before it to one of the same
        structure.

    Raises a `ValueError` if the file is damaged, or not of that structure.
    """
    with path.open("rb") as file:
        try:
            header = json.loads(file.readline())
        except ValueError as error:
            raise ValueError(f"{path} does not begin with a line of JSON: {error}") from error
        rest = io.BytesIO(file.read())
    found = [header]
    try:
        for like in likes:
            found.append(eqx.tree_deserialise_leaves(rest, like(*found)))
    except Exception as error:  # of a damaged file NumPy and Equinox raise nearly anything
        raise ValueError(f"{path} is damaged, or of another network: {error}") from error
    return tuple(found)


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

    - `trace`: the active counts of every step; `None` before the first.
    - `steps`: at which steps masks were written down.
    - `masks`: what they were there, time first, as [`dnarch_eqx.stack`][] gives them.
    """

    trace: dn.runtime.Trace | None
    steps: Int[np.ndarray, " times"]
    masks: dn.Masks

    @staticmethod
    def start(masks: dn.Masks) -> "Trajectory":
        """Before the first step."""
        first = jtu.tree_map(lambda x: np.asarray(x)[None], dict(masks))
        return Trajectory(None, np.zeros(1, int), first)

    def at(self, step: int, masks: dn.Masks, trace: dn.runtime.Trace) -> "Trajectory":
        """With the masks of one more step, and the trace until there."""
        append = lambda values, value: np.concatenate([values, np.asarray(value)[None]])
        longer = jtu.tree_map(append, dict(self.masks), dict(masks))
        return Trajectory(trace, np.append(self.steps, step), longer)

    def until(self, step: int, trace: dn.runtime.Trace) -> "Trajectory":
        """What there was of it at an earlier step, with the trace until there."""
        kept = self.steps <= step
        masks = jtu.tree_map(lambda values: values[kept], dict(self.masks))
        return Trajectory(trace, self.steps[kept], masks)

    def save(self, path: Path) -> None:
        """As an `.npz`: `steps`, `masks/AXIS.PARAMETER`, and the fields of the trace as
        `trace/...`.
        """
        assert self.trace is not None
        fields = dataclasses.asdict(self.trace) | {"axes": np.array(self.trace.axes, str)}
        arrays: dict[str, Any] = {f"trace/{name}": value for name, value in fields.items()}
        arrays |= {f"masks/{name}": values for name, values in _parameters(self.masks)}
        with atomic(path) as file:
            np.savez_compressed(file, steps=self.steps, **arrays)

    @staticmethod
    def load(path: Path, masks: dn.Masks) -> "Trajectory":
        """What [`Trajectory.save`][] wrote.

        - `masks`: those of the run, at any step.
        """
        with np.load(path, allow_pickle=False) as file:
            axes, steps, active, length = (
                file[f"trace/{name}"] for name in ("axes", "steps", "active", "length")
            )
            values = [file[f"masks/{name}"] for name, _ in _parameters(masks)]
            at = file["steps"]
        trace = dn.runtime.Trace(tuple(axes.tolist()), steps, active, int(length))
        return Trajectory(trace, at, jtu.tree_structure(dict(masks)).unflatten(values))


@dataclasses.dataclass(frozen=True, eq=False)
class Checkpoint:
    """Where a run is, and all that it goes on from.

    - `step`: how many steps are done.
    - `state`: what is trained.
    - `planner`: what plans follow from; `None` before the first step, and before the first
        after the architecture was decided on.
    - `trajectory`: how the architecture came about.
    - `decided`: what was decided, if it was.
    """

    step: int
    state: dn.State
    planner: dn.runtime.PlannerState | None
    trajectory: Trajectory
    decided: Decided | None = None

    @property
    def masks(self) -> dict[str, dn.AbstractMask]:
        """All that there are, and those that are decided."""
        return {**self.state.masks, **({} if self.decided is None else self.decided.masks)}

    @property
    def plan(self) -> dn.Plan:
        """The buckets of all of these. There was at least one step."""
        assert self.planner is not None and self.planner.plan is not None
        return dn.Plan(
            {**self.planner.plan, **({} if self.decided is None else self.decided.plan)}
        )

    def after(self, step: int, state: dn.State, planner: dn.Planner) -> "Checkpoint":
        """A later one of the same part of the run, with masks to be written down."""
        trace = planner.trace
        if self.decided is not None:
            trace = self.decided.joined(state.masks, trace)
        new = dataclasses.replace(self, step=step, state=state, planner=planner.state)
        return dataclasses.replace(new, trajectory=self.trajectory.at(step, new.masks, trace))

    def save(self, folder: Path) -> None:
        """Writes `trajectory.npz` and `checkpoint.eqx`."""
        assert self.planner is not None
        self.trajectory.save(folder / "trajectory.npz")
        header: dict[str, Any] = {"step": self.step, "planner": self.planner.to_json()}
        masks: dn.Masks = {}
        if self.decided is not None:
            masks = self.decided.masks
            header["decided"] = {"at": self.decided.trace.length, "plan": self.decided.plan}
            header["decided"]["axes"] = sorted(masks)
        save(folder / "checkpoint.eqx", header, masks, self.state)

    @staticmethod
    def load(
        folder: Path,
        start: dn.State,
        policy: dn.runtime.AbstractPolicy,
        later: Callable[[dn.Masks, Mapping[str, int]], dn.State],
    ) -> "Checkpoint":
        """What the folder has, or the start of the run.

        - `start`: the state there.
        - `later`: from masks that were decided on, and their plan, to a state of the structure
            that it has from then on.

        Raises a `ValueError` if it is damaged.
        """
        if not (path := folder / "checkpoint.eqx").is_file():
            return Checkpoint(0, start, None, Trajectory.start(start.masks))

        def masks_of(header: Any) -> dn.Masks:
            axes = header.get("decided", {"axes": []})["axes"]
            return {axis: start.masks[axis] for axis in axes}

        def state_of(header: Any, masks: dn.Masks) -> dn.State:
            return later(masks, header["decided"]["plan"]) if masks else start

        header, masks, state = load(path, masks_of, state_of)
        planner = dn.runtime.PlannerState.from_json(header["planner"], policy)
        trace = planner.recording.trace(tuple(sorted(state.masks)))
        whole, decided = (
            Trajectory.load(folder / "trajectory.npz", {**state.masks, **masks}),
            None,
        )
        if masks:
            assert whole.trace is not None
            before = whole.trace.until(header["decided"]["at"])
            decided = Decided(masks, header["decided"]["plan"], before)
            trace = decided.joined(state.masks, trace)
        # It may have been written for a checkpoint that was not.
        step = header["step"]
        return Checkpoint(step, state, planner, whole.until(step, trace), decided)


def _parameters(masks: dn.Masks) -> list[tuple[str, Any]]:
    """The parameters of masks by their names, `AXIS.PARAMETER`, in the order of the leaves."""
    return [
        (f"{path[0].key}{jtu.keystr(path[1:])}", x)
        for path, x in jtu.tree_leaves_with_path(dict(masks))
    ]
