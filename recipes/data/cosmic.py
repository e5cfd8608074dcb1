"""Cosmic of NAS-Bench-360: which pixels of a Hubble frame were hit by cosmic rays."""

import dataclasses
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Array, Float

from . import _files
from ._source import random_split, Splits


URL = "https://pde-xd.s3.amazonaws.com/cosmic/"
COUNTS = (4_830, 420)

# Proposals and visits whose fields are of the type GAL, the only ones taken (NAS-Bench-360:
# backbone/data_utils/cosmic_dataset.py). The others are of the types EX and GC.
GALAXIES = frozenset(
    "9490_a2 9490_a3 10182_pb 10182_pd 10190_13 10190_28 10260_5 10260_7 10342_3 10407_3 "
    "10584_13 10760_2 10760_4 12058_1 12058_6 12058_12 12058_16 12513_2 12513_3 13057_1 "
    "13364_95 13691_11 13737_2 13737_3 13804_6 14343_1 14704_1".split()
)

SIZE = 128
_CROP = slice(64, 64 + SIZE)


@dataclasses.dataclass(frozen=True, eq=False)
class Frames:
    """Frames that are read when they are asked for: see `load`."""

    paths: tuple[Path, ...]
    sky: bool = False

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Any, Float[np.ndarray, "2 128 128"]]:
        path = self.paths[index]
        frame = _array(path)
        if frame.ndim != 3 or len(frame) not in (2, 3) or min(frame.shape[1:]) < _CROP.stop:
            raise ValueError(
                f"{path} has an array {frame.shape}, not two or three of at least "
                f"{_CROP.stop} rows and columns."
            )
        frame = frame[:, _CROP, _CROP].astype(np.float32)
        x, y = frame[:1], np.zeros((2, SIZE, SIZE), np.float32)
        y[: len(frame) - 1] = frame[1:]
        if not np.isfinite(x).all():
            raise ValueError(f"{path} has a frame that is not finite everywhere.")
        if len(wrong := y[(y != 0) & (y != 1)]):
            raise ValueError(f"{path} has {wrong[0]} in a mask, not 0 or 1.")
        return ((x, np.float32(_sky(path))) if self.sky else x), y


@dataclasses.dataclass(frozen=True, eq=False)
class Brightened:
    """Frames with a random sky that is fixed for each."""

    source: Any
    seed: int

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return brighten(self.source[index], np.random.default_rng((self.seed, index)))


def load(
    folder: Path,
    *,
    sky: bool = False,
    seed: int = 42,
    counts: tuple[int, int] | None = COUNTS,
) -> Splits:
    """Frames of galaxies in F435W: 4,347 to train on, 483 to choose by, 420 to test.

    `x` is `(1, 128, 128)`, in electrons, `y` is `(2, 128, 128)`: 1 where a ray hit, and 1 where
    a pixel is to be ignored (0 everywhere if the file does not say), of float32. Weight the
    loss of every pixel by `1 - y[1]`. Counts have heavy tails and no scale: see `standardise`.

    - `folder`: where `npy_train` and `npy_test` lie, to which `deepCR.ACS-WFC.train.tar` and
        `deepCR.ACS-WFC.test.tar` unpack: `FILTER/PROPOSAL/VISIT/*.npy`. The fixed crop of rows
        and columns 64 to 191 is taken of every frame.
    - `sky`: more or less of the sky, at random, as NAS-Bench-360 and deepCR do. An example to
        train on is then `((x, sky), y)`, for [`recipes.data.cosmic.brighten`][] as the
        transform of the batches. The others are brightened at random, too, as they do it, but
        each always the same.
    - `seed`: of the split and of the skies. The published validation set is the last tenth in
        the order in which a disk listed files, which nobody can repeat. This is a random tenth,
        by PyTorch's `random_split` of the names in their order.
    - `counts`: how many frames the folders have, to train and to test, or `None` if they may
        have any number.

    Raises a `FileNotFoundError` if there are no frames, and a `ValueError` if there are not as
    many, or, when it is read, if a frame is damaged or not of its form.
    """
    learn, test = (
        Frames(_paths(folder / f"npy_{part}", count), sky)
        for part, count in zip(("train", "test"), counts or (None, None))
    )
    tenth = len(learn) - int(0.9 * len(learn))
    train, valid = random_split(learn, (len(learn) - tenth, tenth), seed)
    if not sky:
        return Splits(train, valid, test)
    return Splits(train, Brightened(valid, seed), Brightened(test, seed + 1))


def brighten(
    example: tuple[Any, Any], rng: np.random.Generator
) -> tuple[Float[np.ndarray, "1 128 128"], Any]:
    """Adds the sky, times a number between -0.9 and 3: `((x, sky), y)` to `(x, y)`. The
    exposures of the frames are few, and those of others are not."""
    (x, sky), y = example
    return x + sky * np.float32(rng.uniform(-0.9, 3)), y


def standardise(x: Float[Array | np.ndarray, "batch 1 *space"]) -> Any:
    """A batch less its mean, over its deviation, as deepCR has it (deepCR/training.py). It is
    not done by the frame, which would undo a different sky.
    """
    return (x - x.mean()) / x.std()


def _paths(folder: Path, count: int | None) -> tuple[Path, ...]:
    paths = [
        path
        for path in folder.glob("f435w/*/*/*.npy")
        if path.name != "sky.npy" and "_".join(path.parts[-3:-1]) in GALAXIES
    ]
    if not paths:
        raise FileNotFoundError(
            f"There are no frames of galaxies, {folder}/f435w/PROPOSAL/VISIT/*.npy. Unpack "
            f"deepCR.ACS-WFC.{folder.name.removeprefix('npy_')}.tar from {URL}."
        )
    _files.counted(folder, len(paths), count, URL)
    return tuple(sorted(paths, key=lambda path: path.parts[-4:]))


def _sky(path: Path) -> float:
    """The level of the frame, by the number that its name begins with; 0 if there is none."""
    if not (levels := path.with_name("sky.npy")).is_file():
        return 0.0
    sky, number = _array(levels), path.name.split("_")[0]
    if not number.isdecimal() or sky.ndim != 1 or not 1 <= int(number) <= len(sky):
        raise ValueError(f"{levels}, an array {sky.shape}, has no level for {path.name}.")
    level = sky[int(number) - 1]
    if sky.dtype.kind not in "fiu" or not np.isfinite(level):
        raise ValueError(f"{levels} has the level {level} for {path.name}, no finite number.")
    return float(level)


def _array(path: Path) -> np.ndarray:
    try:
        with path.open("rb") as file:  # NumPy leaves it open where an archive is damaged
            array = np.load(file, allow_pickle=False)
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is no array, or a damaged one: {error}") from error
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{path} is an archive of arrays, not one.")
    return array
