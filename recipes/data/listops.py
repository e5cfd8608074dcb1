"""ListOps of the Long Range Arena: the value of nested expressions of lists of digits."""

from pathlib import Path

import numpy as np
from jaxtyping import Int32

from . import _files, _text
from ._source import Splits


LRA = "the LRA release, https://storage.googleapis.com/long-range-arena/lra_release.gz"

COUNTS = (96_000, 2_000, 2_000)

# S4's specials, operators, digits, and the bracket that closes an operator: 18 tokens. S4
# orders them by their frequency in the training set; ids are arbitrary, these are the same
# for all data. The bracket is X there, by LRA's tokeniser.
VOCABULARY = (*_text.SPECIALS, "[MAX", "[MED", "[MIN", "[SM", *"0123456789", "X")

_IDS = {token: i for i, token in enumerate(VOCABULARY)}


def encode(
    text: str, length: int = 2048, pad: _text.Pad = "right"
) -> Int32[np.ndarray, " length"]:
    """The ids of an expression, such as `( ( [MAX 2 ) 9 ) ] )`, and of its end, padded with 0.

    Parentheses are left out: the brackets say all they say. Of what is longer, only the first
    `length - 1` tokens are kept (state-spaces/s4: src/dataloaders/lra.py).

    Raises a `ValueError` if there is a token that no expression has.
    """
    _text.check(length, pad)
    return _text.padded(_ids(text, length), length, pad)


def _ids(text: str, length: int) -> Int32[np.ndarray, " ids"]:
    tokens = text.replace("(", " ").replace(")", " ").replace("]", " X ").split()
    if unknown := set(tokens) - set(VOCABULARY[len(_text.SPECIALS) :]):
        raise ValueError(f"No expression of ListOps has {sorted(unknown)}.")
    return np.array([*(_IDS[t] for t in tokens[: length - 1]), _IDS[_text.END]], np.uint16)


def load(
    folder: Path,
    *,
    length: int = 2048,
    pad: _text.Pad = "right",
    counts: tuple[int, int, int] | None = COUNTS,
) -> Splits:
    """96,000 expressions to train on and 2,000 each to choose by and to test: `x` is
    `(length,)`, of int32, `y` a digit.

    - `folder`: where `basic_train.tsv`, `basic_val.tsv` and `basic_test.tsv` lie, a header
        `Source`, `Target` and a line an expression; LRA's `listops-1000`.
    - `length`: what expressions are padded, or cut, to, with their end.
    - `pad`: on which side: at the end, as in the paper and S4; CCNN pads on the left.
    - `counts`: how many expressions the files have, or `None` if they may have any number.

    Raises a `FileNotFoundError` if a file is missing, and a `ValueError` if one has another
    number of them, or, with the line, is not of this form.
    """
    _text.check(length, pad)
    splits = [
        _read(folder / f"basic_{part}.tsv", length, pad, count)
        for part, count in zip(_PARTS, counts or (None, None, None))
    ]
    return Splits(*splits, vocabulary=VOCABULARY)


_PARTS = ("train", "val", "test")


def _read(path: Path, length: int, pad: _text.Pad, count: int | None) -> _text.Sequences:
    rows = _files.lines(path, LRA)
    if (header := next(rows, (1, ""))[1]) != "Source\tTarget":
        raise ValueError(f"{path} must begin with 'Source\\tTarget', got {header!r}.")
    ids, labels = [], []
    for number, line in rows:
        source, _, target = line.partition("\t")
        if target not in set("0123456789"):
            raise ValueError(
                f"{path}, line {number} must end with a tab and a digit, got {line[-20:]!r}."
            )
        try:
            ids.append(_ids(source, length))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
        labels.append(int(target))
    if not labels:
        raise ValueError(f"{path} has no expressions.")
    _files.counted(path, len(labels), count, LRA)
    return _text.Sequences(_text.Texts.of(ids, length, pad), np.array(labels, np.int32))
