"""Pathfinder and Path-X of the Long Range Arena: whether a dashed path joins two discs."""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int32
from PIL import Image, UnidentifiedImageError

from . import _files
from ._source import random_split, Splits
from .listops import LRA


COUNT = 200_000
LEVELS = ("curv_baseline", "curv_contour_length_9", "curv_contour_length_14")


@dataclasses.dataclass(frozen=True, eq=False)
class Drawings:
    """Images that are read when they are asked for: `x` is `(1, size, size)`, or as one row,
    of float32, from -1 to 1.
    """

    folder: Path
    names: tuple[str, ...]
    y: Int32[np.ndarray, " images"]
    size: int
    sequential: bool

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Float[np.ndarray, "1 *space"], Any]:
        path = _files.required(self.folder / self.names[index], LRA)
        try:
            with Image.open(path) as image:
                if image.size != (self.size, self.size):
                    raise ValueError(f"{path} has {image.size} pixels, not {self.size} square.")
                pixels = np.asarray(image.convert("L"))
        except (UnidentifiedImageError, OSError, SyntaxError) as error:  # Pillow's three
            raise ValueError(f"{path} is no image, or a damaged one: {error}") from error
        x = pixels.astype(np.float32)[None] / 127.5 - 1
        return (x.reshape(1, -1) if self.sequential else x), self.y[index]


def load(
    folder: Path,
    *,
    level: str = LEVELS[2],
    size: int | None = None,
    sequential: bool = False,
    seed: int = 42,
    count: int | None = COUNT,
) -> Splits:
    """The images of one size and level; `y` is 1 if the discs are on one path.

    160,000 are to train on, 20,000 each to choose by and to test, by PyTorch's `random_split`
    of all in the order of the batches, as S4 has it.

    - `folder`: LRA's `pathfinder32`, for Pathfinder, or `pathfinder128`, for Path-X, or 64 or
        256. It has a folder of every level's name.
    - `level`: `"curv_contour_length_14"`, the hardest, is what everybody reports.
    - `size`: how many pixels an image must have on a side, or `None` if any.
    - `sequential`: rows end to end, `(1, size * size)`.
    - `seed`: of the split.
    - `count`: how many images there are, or `None` if there may be any number.

    Only the lists of images are read here, `metadata/*.npy`: texts in the release, in spite of
    their name, and arrays of strings by drewlinsley/pathfinder (snakes2.py). The one image that
    is known to be empty in the release, of the easiest level, is left out.

    Raises a `FileNotFoundError` if there are no lists, and a `ValueError` if a list is not of
    its form, or there are fewer or smaller images. Images raise the same when they are read.
    """
    if level not in LEVELS:
        raise ValueError(f"`level` must be one of {LEVELS}, got {level!r}.")
    lists = [p for p in (folder / level / "metadata").glob("*.npy") if p.stem.isdecimal()]
    if not lists:
        raise FileNotFoundError(
            f"There are no lists of images {folder / level / 'metadata'}/*.npy. They are from "
            f"{LRA}."
        )
    names, labels, empty = [], [], 0
    for path in sorted(lists, key=lambda path: int(path.stem)):
        for number, line in _rows(path):
            row = line.split()
            if len(row) < 4 or not re.fullmatch(r"imgs/\d+/sample_\d+\.png", "/".join(row[:2])):
                raise ValueError(
                    f"{path}, line {number} must have a folder imgs/N, a file sample_N.png, a "
                    f"number and a label, got {line[:80]!r}."
                )
            if row[3] not in ("0", "1"):
                raise ValueError(f"{path}, line {number} has the label {row[3]!r}, not 0 or 1.")
            name = f"{level}/{row[0]}/{row[1]}"
            if name == "curv_baseline/imgs/0/sample_172.png" and _empty(folder / name):
                empty += 1
                continue
            names.append(name)
            labels.append(int(row[3]))
    if not names:
        raise ValueError(f"The lists of images in {folder / level / 'metadata'} are empty.")
    _files.counted(folder / level, len(names) + empty, count, LRA)
    found = _size(folder / names[0])
    if size is not None and found != size:
        raise ValueError(f"{folder} has images of {found} pixels on a side, not {size}.")
    source = Drawings(folder, tuple(names), np.array(labels, np.int32), found, sequential)
    tenth = len(names) // 10
    lengths = (len(names) - 2 * tenth, tenth, tenth)
    train, valid, test = random_split(source, lengths, seed)
    return Splits(train, valid, test)


def _rows(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a list, numbered from 1."""
    with _files.required(path, LRA).open("rb") as file:
        saved = file.read(6) == b"\x93NUMPY"
    if not saved:
        yield from _files.lines(path, LRA)
        return
    try:
        rows = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path} is damaged, or has more than strings: {error}") from error
    if rows.ndim != 2 or rows.dtype.kind not in "US":
        raise ValueError(
            f"{path} must have rows of strings, got {rows.dtype} of shape {rows.shape}."
        )
    yield from enumerate((" ".join(row) for row in rows.astype(str).tolist()), 1)


def _empty(path: Path) -> bool:
    return path.is_file() and path.stat().st_size == 0


def _size(path: Path) -> int:
    try:
        with Image.open(_files.required(path, LRA)) as image:
            return image.height
    except UnidentifiedImageError as error:
        raise ValueError(f"{path} is no image: {error}") from error
