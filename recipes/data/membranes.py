"""Membranes of neurons in electron micrographs: the ISBI 2012 challenge, of which only the
training stack has public labels.
"""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped, UInt8
from PIL import Image, ImageSequence, UnidentifiedImageError

from . import _files
from ._source import Arrays, Splits


URL = "https://imagej.net/events/isbi-2012-segmentation-challenge"

_SLICES, _SIDE = 30, 512


def load(
    folder: Path, *, tile: int = 128, every: int = 1, slices: tuple[int, int, int] = (24, 3, 3)
) -> Splits:
    """Tiles of the training stack: 30 slices of 512 x 512 pixels, 50 nm apart, 4 nm a pixel.

    `x` is `(1, side, side)`, over the deviation of the slices to train on, less their mean; `y`
    is `(2, side, side)`: 1 on a membrane, and 1 where a pixel is to be ignored, which is
    nowhere; both of float32. `side` is `tile // every`.

    - `folder`: where `train-volume.tif` and `train-labels.tif` lie.
    - `tile`: how many pixels a tile has on a side; a divisor of 512.
    - `every`: means over squares of so many pixels, a divisor of `tile`. They are membrane
        where half of their pixels are.
    - `slices`: how many of the stack to train on, to choose by and to test, in this order:
        neighbours are much alike. No published split, since the challenge's test labels are
        secret.

    Raises a `FileNotFoundError` if a file is missing, and a `ValueError` if one is damaged or
    not of its form.
    """
    if tile < 1 or _SIDE % tile or every < 1 or tile % every:
        raise ValueError(
            f"`tile` must divide {_SIDE}, and `every` divide `tile`; got {tile} and {every}."
        )
    if min(slices) < 1 or sum(slices) > _SLICES:
        raise ValueError(f"`slices` must be positive and at most {_SLICES}, got {slices}.")
    images = _stack(folder / "train-volume.tif")
    labels = _stack(folder / "train-labels.tif")
    if len(found := np.unique(labels)) != 2 or found[0] != 0:
        raise ValueError(
            f"{folder / 'train-labels.tif'} has the values {found[:5].tolist()}, not 0 on "
            "membranes and one other."
        )
    side = tile // every
    squares = (_SLICES, *(2 * (_SIDE // tile, side, every)))

    def means(stack: Float[np.ndarray, "slices 512 512"]) -> Float[np.ndarray, "n 1 side side"]:
        coarse = stack.reshape(squares).mean((3, 6))
        return coarse.transpose(0, 1, 3, 2, 4).reshape(-1, 1, side, side)

    training = images[: slices[0]].astype(np.float64)
    x = means((images - training.mean()) / training.std()).astype(np.float32)
    membrane = (means((labels == 0).astype(np.float64)) >= 0.5).astype(np.float32)
    y = np.concatenate([membrane, np.zeros_like(membrane)], axis=1)
    ends = np.cumsum(slices) * (_SIDE // tile) ** 2
    train, valid, test = (Arrays(x[i:j], y[i:j]) for i, j in zip((0, *ends), ends))
    return Splits(train, valid, test)


def turn(example: tuple[Any, Any], rng: np.random.Generator) -> tuple[Any, Any]:
    """A tile by a random quarter turn and mirrored or not, its mask with it: a transform for
    [`recipes.data.batches`][].
    """
    quarters, mirrored = int(rng.integers(4)), bool(rng.integers(2))

    def turned(field: Shaped[np.ndarray, "channels side side"]) -> np.ndarray:
        field = np.rot90(field, quarters, (1, 2))
        return np.ascontiguousarray(field[..., ::-1] if mirrored else field)

    return turned(example[0]), turned(example[1])


def _stack(path: Path) -> UInt8[np.ndarray, "slices 512 512"]:
    """All pages of a TIFF of bytes."""
    try:
        with Image.open(_files.required(path, URL)) as file:
            pages = [np.array(page) for page in ImageSequence.Iterator(file)]
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"{path} is no TIFF, or a damaged one: {error}") from error
    shapes = {(page.shape, page.dtype.name) for page in pages}
    if len(pages) != _SLICES or shapes != {((_SIDE, _SIDE), "uint8")}:
        raise ValueError(
            f"{path} has {len(pages)} pages, {sorted(shapes)}, not {_SLICES} of {_SIDE} x "
            f"{_SIDE} bytes."
        )
    return np.stack(pages)
