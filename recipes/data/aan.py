"""Retrieval of the Long Range Arena: whether one paper of the ACL Anthology cites another."""

from pathlib import Path

import numpy as np

from . import _files, _text
from ._source import Splits
from .listops import LRA


COUNTS = (147_086, 18_090, 17_437)


def load(
    folder: Path,
    *,
    length: int = 4000,
    pad: _text.Pad = "right",
    counts: tuple[int, int, int] | None = COUNTS,
) -> Splits:
    """147,086 pairs of papers to train on, 18,090 to choose by and 17,437 to test: `x` is two
    arrays `(length,)`, of int32, `y` 1 if one cites the other.

    The vocabulary is the characters of the training set, of both papers.

    - `folder`: where `new_aan_pairs.train.tsv`, `.eval.tsv` and `.test.tsv` lie, lines of a
        label, two names and two texts, without a header; LRA's `tsv_data`. Quotes have no
        meaning in them, as LRA reads them (lra_benchmarks/matching/input_pipeline.py): a reader
        of tables that heeds quotes, such as S4's, runs lines together.
    - `length`: what texts are padded, or cut, to, with their end.
    - `pad`: on which side: at the end, as in S4; CCNN pads on the left.
    - `counts`: how many pairs the files have, or `None` if they may have any number.

    Papers are in many pairs, and held once. Raises a `FileNotFoundError` if a file is missing,
    and a `ValueError` if one has another number of pairs, or, with the line, is not of this
    form.
    """
    _text.check(length, pad)
    found: dict[str, int] = {}
    parts = [
        _read(folder / f"new_aan_pairs.{part}.tsv", length, found, count)
        for part, count in zip(("train", "eval", "test"), counts or (None, None, None))
    ]
    texts = list(found)
    _, first, second = parts[0]
    times = np.bincount(np.concatenate([first, second]), minlength=len(texts)).tolist()
    vocabulary = _text.characters(texts, length, times=times)
    ids = _text.encode_characters(texts, vocabulary, length)
    held = _text.Texts.of(ids, length, pad)
    train, valid, test = (
        _text.Pairs(held, np.array(first), np.array(second), np.array(labels, np.int32))
        for labels, first, second in parts
    )
    return Splits(train, valid, test, vocabulary)


def _read(
    path: Path, length: int, found: dict[str, int], count: int | None
) -> tuple[list[int], list[int], list[int]]:
    """Labels and which texts; adds new texts, as far as they are needed, to `found`."""
    labels, first, second = [], [], []
    for number, line in _files.lines(path, LRA):
        columns = line.split("\t")
        if len(columns) != 5:
            raise ValueError(f"{path}, line {number} has {len(columns)} columns, not 5.")
        if columns[0] not in ("0", "1", "0.0", "1.0"):
            raise ValueError(f"{path}, line {number} has the label {columns[0]!r}, not 0 or 1.")
        labels.append(int(float(columns[0])))
        for text, which in zip(columns[3:], (first, second)):
            which.append(found.setdefault(text[: length - 1], len(found)))
    if not labels:
        raise ValueError(f"{path} is empty.")
    _files.counted(path, len(labels), count, LRA)
    return labels, first, second
