import dataclasses
from pathlib import Path

import numpy as np
from jaxtyping import Int


@dataclasses.dataclass(frozen=True, eq=False)
class Trace:
    """The active counts of every axis over a run.

    - `axes`: the names, in their order.
    - `steps`: the steps at which any count changed, from 0 on.
    - `active`: the counts from each of these steps on.
    - `length`: how many steps the run had.
    """

    axes: tuple[str, ...]
    steps: Int[np.ndarray, " changes"]
    active: Int[np.ndarray, "changes axes"]
    length: int

    @staticmethod
    def of(axes: tuple[str, ...], active: Int[np.ndarray, "steps axes"]) -> "Trace":
        """From the counts of every step."""
        if tuple(sorted(axes)) != tuple(axes):
            raise ValueError(f"`axes` must be in the order of their names, got {axes}.")
        if active.ndim != 2 or active.shape[1] != len(axes) or not len(active):
            raise ValueError(
                f"`active` must have a row a step and {len(axes)} columns, got shape "
                f"{active.shape}."
            )
        changed = np.any(active[1:] != active[:-1], axis=1)
        steps = np.concatenate([[0], 1 + np.flatnonzero(changed)])
        return Trace(tuple(axes), steps, active[steps].astype(int), len(active))

    def every_step(self) -> Int[np.ndarray, "steps axes"]:
        """The counts of every step."""
        return np.repeat(self.active, self.lengths(), axis=0)

    def lengths(self) -> Int[np.ndarray, " changes"]:
        """How many steps the counts stay as they are."""
        return np.diff(np.append(self.steps, self.length))

    def until(self, length: int) -> "Trace":
        """That of the first steps alone."""
        if not 1 <= length <= self.length:
            raise ValueError(f"`length` must be 1 to {self.length}, got {length}.")
        before = self.steps < length
        return Trace(self.axes, self.steps[before], self.active[before], length)

    def save(self, path: Path) -> None:
        """Writes it to a file, of the format `.npz`."""
        names = np.array(self.axes)
        with path.open("wb") as file:
            np.savez_compressed(
                file, axes=names, steps=self.steps, active=self.active, length=self.length
            )

    @staticmethod
    def load(path: Path) -> "Trace":
        """What [`dnarch_eqx.runtime.Trace.save`][] wrote."""
        with np.load(path, allow_pickle=False) as file:
            return Trace(
                tuple(file["axes"].tolist()),
                file["steps"],
                file["active"],
                int(file["length"]),
            )


# Of a recording: how many changes it holds at most, and how many of these are not yet together
# in arrays.
_MOST, _TAIL = 8192, 64


@dataclasses.dataclass(frozen=True, eq=False)
class Recording:
    """A trace that goes on. Immutable, and bounded: when there are too many changes, as of axes
    that go back and forth, the largest counts of two, four, ... steps are taken together.

    - `length`: how many steps there were.
    - `stride`: so many steps are taken together.
    """

    length: int = 0
    stride: int = 1
    # Changes: the older ones in arrays of a column for the step and one an axis.
    blocks: tuple[Int[np.ndarray, "_ _"], ...] = ()
    tail: tuple[Int[np.ndarray, " _"], ...] = ()

    def record(self, active: Int[np.ndarray, " axes"]) -> "Recording":
        """With the counts of one more step."""
        step, tail = self.length, self.tail
        if tail and (tail[-1][1:] == active).all():
            return Recording(step + 1, self.stride, self.blocks, tail)
        row = np.concatenate([[step], active])
        if tail and step // self.stride == tail[-1][0] // self.stride:
            row = np.maximum(row, tail[-1])
            row[0], tail = tail[-1][0], tail[:-1]
        new = Recording(step + 1, self.stride, self.blocks, (*tail, row))
        return new if len(new.tail) < _TAIL else new._packed()

    def trace(self, axes: tuple[str, ...]) -> Trace:
        """What was recorded. Raises `ValueError` if that is nothing."""
        if not self.length:
            raise ValueError("No step was looked at yet: `state = planner.finish(state)`.")
        rows = self._rows()
        return Trace(axes, rows[:, 0], rows[:, 1:], self.length)

    def _rows(self) -> Int[np.ndarray, "changes columns"]:
        return np.concatenate([*self.blocks, *([np.stack(self.tail)] if self.tail else [])])

    def _packed(self) -> "Recording":
        # The last change stays, to be compared with.
        blocks, stride = (*self.blocks, np.stack(self.tail[:-1])), self.stride
        if sum(map(len, blocks)) > _MOST:
            rows, stride = np.concatenate(blocks), 2 * stride
            windows, starts = np.unique(rows[:, 0] // stride, return_index=True)
            merged = np.maximum.reduceat(rows, starts, axis=0)
            merged[:, 0] = rows[starts, 0]
            # From the end of its window on a count is what it was last.
            last = rows[np.append(starts[1:], len(rows)) - 1].copy()
            last[:, 0] = (windows + 1) * stride
            until = np.append(rows[starts[1:], 0], self.tail[-1][0])
            held = (last[:, 0] < until) & (last[:, 1:] != merged[:, 1:]).any(1)
            rows = np.concatenate([merged, last[held]])
            rows = rows[np.argsort(rows[:, 0], kind="stable")]
            changed = (rows[1:, 1:] != rows[:-1, 1:]).any(1)
            blocks = (rows[np.concatenate([[True], changed])],)
        return Recording(self.length, stride, blocks, self.tail[-1:])
