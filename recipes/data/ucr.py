"""Series of the UCR archive of 2018 (Dau et al. 2019), one variable each."""

import re
from pathlib import Path

import numpy as np
from jaxtyping import Float

from . import _files
from ._source import Arrays, random_split, Splits


URL = "https://www.cs.ucr.edu/~eamonn/time_series_data_2018/"


def load(
    folder: Path, name: str, *, valid: float = 0.1, normalise: bool = False, seed: int = 0
) -> Splits:
    """A data set of the archive by its name: series `(1, length)` and labels from 0 on.

    The archive writes missing values as `NaN`, and shorter series with `NaN` at their ends.
    Here missing values are interpolated linearly (before the first value there is, by it), and
    shorter series go on with zeros. The archive has copies adjusted by its authors, too, in
    its folder `Missing_value_and_variable_length_datasets_adjusted`: name that as the folder to
    get these.

    - `folder`: of the archive, with a folder of every data set's name.
    - `valid`: the share of the training set to choose by; if 0, the test set is `valid`, too.
    - `normalise`: to mean 0 and deviation 1 of every series; most of the archive is already.
    - `seed`: of the split.

    Raises a `FileNotFoundError` if a file is missing, and a `ValueError` if it is not a table
    of numbers as wide as it should be, a series has no values, or the test set has a label
    that the training set has not.
    """
    if not re.fullmatch(r"\w+", name):
        raise ValueError(f"`name` must be that of a data set, got {name!r}.")
    if not 0 <= valid < 1:
        raise ValueError(f"`valid` must be at least 0 and below 1, got {valid}.")
    tables = [_read(folder / name / f"{name}_{part}.tsv") for part in ("TRAIN", "TEST")]
    widths = [table.shape[1] for table in tables]
    if widths[0] != widths[1]:
        raise ValueError(f"{name} has {widths[0]} columns to train and {widths[1]} to test.")
    classes = np.unique(tables[0][:, 0])
    if unknown := sorted(set(tables[1][:, 0]) - set(classes)):
        raise ValueError(
            f"{name}_TEST.tsv has the labels {unknown}; to train there are only "
            f"{classes.tolist()}."
        )
    train, test = (
        Arrays(
            _whole(table[:, 1:], normalise)[:, None].astype(np.float32),
            np.searchsorted(classes, table[:, 0]).astype(np.int32),
        )
        for table in tables
    )
    if not valid:
        return Splits(train, test, test)
    held = round(valid * len(train))
    train, held_out = random_split(train, (len(train) - held, held), seed)
    return Splits(train, held_out, test)


def _read(path: Path) -> Float[np.ndarray, "series columns"]:
    rows = []
    for number, line in _files.lines(path, URL):
        try:
            rows.append(np.array(line.split("\t"), np.float64))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}.") from error
        if len(rows[-1]) != len(rows[0]) or len(rows[0]) < 2:
            raise ValueError(
                f"{path}, line {number} has {len(rows[-1])} columns, line 1 {len(rows[0])}: a "
                "label and at least one value, everywhere as many, are needed."
            )
        values = rows[-1][1:]
        if not np.isfinite(rows[-1][0]):
            raise ValueError(f"{path}, line {number} has the label {rows[-1][0]}, no number.")
        if np.isinf(values).any():
            raise ValueError(f"{path}, line {number} has an infinite value.")
        if np.isnan(values).all():
            raise ValueError(f"{path}, line {number} has a series without any value.")
    if not rows:
        raise ValueError(f"{path} is empty.")
    return np.stack(rows)


def _whole(
    series: Float[np.ndarray, "series length"], normalise: bool
) -> Float[np.ndarray, "series length"]:
    """Series without missing values."""
    whole = np.zeros_like(series)
    for row, values in zip(whole, series):
        known = np.flatnonzero(~np.isnan(values))
        length = known[-1] + 1
        row[:length] = np.interp(np.arange(length), known, values[known])
        if normalise:
            row[:length] -= row[:length].mean()
            row[:length] /= row[:length].std() or 1.0
    return whole
