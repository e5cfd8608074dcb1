"""DarcyFlow of NAS-Bench-360: the pressure of a flow through a material of two kinds."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
from jaxtyping import Array, Float

from . import _files
from ._source import Arrays, Splits


URL = "https://pde-xd.s3.amazonaws.com/"
FILES = ("piececonst_r421_N1024_smooth1.mat", "piececonst_r421_N1024_smooth2.mat")


@dataclasses.dataclass(frozen=True, eq=False)
class Normaliser:
    """Mean and deviation of fields, point by point."""

    mean: Float[np.ndarray, "rows columns"]
    std: Float[np.ndarray, "rows columns"]

    @staticmethod
    def of(fields: Float[np.ndarray, "n rows columns"], eps: float = 1e-5) -> "Normaliser":
        """By PyTorch's unbiased deviation, and `eps` more: of the pressure hardly anything is
        left near the border, where it is 0.
        """
        return Normaliser(fields.mean(0), fields.std(0, ddof=1) + eps)

    def encode(self, fields: Float[np.ndarray, "*n rows columns"]) -> Any:
        mean, std = self._like(fields)
        return (fields - mean) / std

    def decode(self, fields: Float[Array | np.ndarray, "*n rows columns"]) -> Any:
        """The inverse, of arrays of NumPy or JAX. Losses and errors are taken of what it gives,
        `||p - y|| / ||y||` of each example.
        """
        mean, std = self._like(fields)
        return fields * std + mean

    def _like(self, fields: Float[Array | np.ndarray, "*n rows columns"]) -> list[np.ndarray]:
        shape = (1,) * (fields.ndim - 2) + self.mean.shape
        return [a.astype(fields.dtype).reshape(shape) for a in (self.mean, self.std)]


def load(
    folder: Path, *, every: int = 5, sizes: tuple[int, int, int] = (900, 100, 100)
) -> tuple[Splits, Normaliser]:
    """Examples, and what decodes `y`.

    `x` is `(3, 85, 85)`: the normalised coefficient, and the coordinates of the columns and of
    the rows, from 0 to 1. `y` is the normalised pressure, `(1, 85, 85)`. Both are of float32,
    normalised by the examples to train on (NAS-Bench-360: backbone/model_grid_original.py,
    utils_grid.py; the coordinates are in the order of NumPy's `meshgrid`).

    - `folder`: where `piececonst_r421_N1024_smooth1.mat`, to train and to choose by, and
        `piececonst_r421_N1024_smooth2.mat`, to test, lie: `coeff` and `sol`, `(1024, 421, 421)`
        each.
    - `every`: which grid points to keep, of 421 on an axis.
    - `sizes`: how many to train on and to choose by, the first and the next ones, and to test.

    It takes 3 GB of memory while it reads. Files of MATLAB 7.3 are read if h5py is installed.

    Raises a `FileNotFoundError` if a file is missing, and a `ValueError` if it is no MATLAB
    file, or does not have two arrays of that form, finite, with as many examples.
    """
    if min(sizes) < 1 or sizes[0] < 2:
        raise ValueError(f"`sizes` must be at least 2, 1 and 1, got {sizes}.")
    learn, test = (_files.required(folder / name, URL) for name in FILES)
    x, y = _fields(learn, every, sizes[0] + sizes[1])
    x_test, y_test = _fields(test, every, sizes[2])
    if x.shape[1:] != x_test.shape[1:]:
        raise ValueError(f"The grids differ: {x.shape[1:]} and {x_test.shape[1:]}.")
    by_x, by_y = (Normaliser.of(fields[: sizes[0]]) for fields in (x, y))
    columns, rows = np.meshgrid(*[np.linspace(0, 1, n) for n in x.shape[:0:-1]])

    def examples(
        x: Float[np.ndarray, "n rows columns"], y: Float[np.ndarray, "n rows columns"]
    ):
        grid = [np.broadcast_to(axis, x.shape) for axis in (columns, rows)]
        x = np.stack([by_x.encode(x), *grid], axis=1)
        return Arrays(x.astype(np.float32), by_y.encode(y)[:, None].astype(np.float32))

    train = examples(x[: sizes[0]], y[: sizes[0]])
    valid = examples(x[sizes[0] :], y[sizes[0] :])
    return Splits(train, valid, examples(x_test, y_test)), by_y


def _fields(
    path: Path, every: int, count: int
) -> tuple[Float[np.ndarray, "n rows columns"], Float[np.ndarray, "n rows columns"]]:
    """The first coefficients and pressures of a file, on a coarser grid."""
    fields = []
    for name in ("coeff", "sol"):  # one at a time: each is of 1.5 GB
        field = _variable(path, name)
        if field.ndim != 3 or field.shape[1] != field.shape[2] or field.dtype.kind not in "fiu":
            raise ValueError(
                f"{name} of {path} is an array {field.shape} of {field.dtype}, not (n, s, s) "
                "of real numbers."
            )
        if every < 1 or (field.shape[1] - 1) % every:
            raise ValueError(
                f"`every` must divide {field.shape[1] - 1}, so that both ends of the grid of "
                f"{path} are kept, got {every}."
            )
        if len(field) < count:
            raise ValueError(f"{name} of {path} has {len(field)} examples, not {count}.")
        fields.append(field[:count, ::every, ::every].astype(np.float64))
        if not np.isfinite(fields[-1]).all():
            raise ValueError(f"{name} of {path} is not finite everywhere.")
    if fields[0].shape != fields[1].shape:
        raise ValueError(f"coeff and sol of {path} are {fields[0].shape}, {fields[1].shape}.")
    return fields[0], fields[1]


def _variable(path: Path, name: str) -> np.ndarray:
    try:
        # MATLAB saves numbers that are whole as bytes; `mat_dtype` makes them real again.
        return scipy.io.loadmat(path, variable_names=[name], mat_dtype=True)[name]
    except NotImplementedError:
        return _variable_73(path, name)
    except KeyError:
        raise ValueError(f"{path} has no {name}.") from None
    except MemoryError:
        raise
    except Exception as error:  # SciPy raises nearly anything of a damaged file
        raise ValueError(f"{path} is no MATLAB file, or a damaged one: {error}") from error


def _variable_73(path: Path, name: str) -> np.ndarray:
    try:
        import h5py
    except ImportError as error:
        raise ImportError(
            f"{path} is a file of MATLAB 7.3, which takes h5py to read."
        ) from error
    try:
        with h5py.File(path, "r") as file:
            found = file.get(name)
            if not isinstance(found, h5py.Dataset):
                raise ValueError(f"{path} has no {name}.")
            return np.asarray(found[()]).T  # MATLAB's first axis is the last there
    except OSError as error:
        raise ValueError(f"{path} is no MATLAB file, or a damaged one: {error}") from error
