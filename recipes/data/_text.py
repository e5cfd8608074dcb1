"""Texts as ids of tokens."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Int, Int32, UInt16


# In front of every vocabulary, in the order of S4's loaders (src/dataloaders/lra.py).
PAD, UNKNOWN, END = SPECIALS = ("<pad>", "<unk>", "<eos>")
Pad = Literal["left", "right"]


@dataclasses.dataclass(frozen=True, eq=False)
class Texts:
    """Texts of one padded length, each held as long as it is.

    - `ids`: of all texts, end to end.
    - `ends`: where each ends.
    - `length`: what they are padded to, with 0.
    - `pad`: on which side.
    """

    ids: UInt16[np.ndarray, " ids"]
    ends: Int[np.ndarray, " texts"]
    length: int
    pad: Pad = "right"

    @staticmethod
    def of(ids: Iterable[UInt16[np.ndarray, " _"]], length: int, pad: Pad = "right") -> "Texts":
        """Holds ids of at most `length` tokens each."""
        ids = list(ids)
        ends = np.cumsum([len(i) for i in ids], dtype=np.int64)
        return Texts(np.concatenate([np.zeros(0, np.uint16), *ids]), ends, length, pad)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> Int32[np.ndarray, " length"]:
        start = self.ends[index - 1] if index else 0
        return padded(self.ids[start : self.ends[index]], self.length, self.pad)


@dataclasses.dataclass(frozen=True, eq=False)
class Sequences:
    """Texts and their labels: `x` is `(length,)`, of int32."""

    texts: Texts
    y: Int32[np.ndarray, " texts"]

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> tuple[Int32[np.ndarray, " length"], Any]:
        return self.texts[index], self.y[index]


@dataclasses.dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of texts: `x` is two arrays `(length,)`, of int32.

    - `first`, `second`: which texts.
    """

    texts: Texts
    first: Int[np.ndarray, " pairs"]
    second: Int[np.ndarray, " pairs"]
    y: Int32[np.ndarray, " pairs"]

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(
        self, index: int
    ) -> tuple[tuple[Int32[np.ndarray, " length"], Int32[np.ndarray, " length"]], Any]:
        return (self.texts[self.first[index]], self.texts[self.second[index]]), self.y[index]


def check(length: int, pad: str) -> None:
    """Raises a `ValueError` if texts cannot be of this length or be padded so."""
    if length < 1:
        raise ValueError(f"`length` must be positive, got {length}.")
    if pad not in ("left", "right"):
        raise ValueError(f"`pad` must be 'left' or 'right', got {pad!r}.")


def padded(
    ids: Int[np.ndarray, " ids"], length: int, pad: Pad = "right"
) -> Int32[np.ndarray, " length"]:
    """With 0, at the end (Appx. D.1) or, as CCNN does, in front. CCNN averages over the padding
    as well, S4 does not; of the paper that is not known.
    """
    out = np.zeros(length, np.int32)
    start = length - len(ids) if pad == "left" else 0
    out[start : start + len(ids)] = ids
    return out


def characters(
    texts: Sequence[str], length: int, *, min_freq: int = 1, times: Sequence[int] | None = None
) -> tuple[str, ...]:
    """A vocabulary: the specials, and the characters of the texts, the most frequent first,
    equally frequent ones in their own order. It is torchtext's, as S4's loaders build it.

    - `length`: only the first `length - 1` characters of a text count.
    - `min_freq`: how often a character must occur.
    - `times`: how often each text occurs, once by default.
    """
    counts = Counter()
    for text, n in zip(texts, times or [1] * len(texts)):
        for character, occurs in Counter(text[: length - 1]).items():
            counts[character] += n * occurs
    frequent = [(-n, character) for character, n in counts.items() if n >= min_freq]
    return (*SPECIALS, *(character for _, character in sorted(frequent)))


def encode_characters(
    texts: Iterable[str], vocabulary: tuple[str, ...], length: int
) -> list[UInt16[np.ndarray, " _"]]:
    """Ids of the first `length - 1` characters of every text, and of the end."""
    table = np.full(0x110000, vocabulary.index(UNKNOWN), np.uint16)
    for i, character in enumerate(vocabulary):
        if character not in SPECIALS:
            table[ord(character)] = i
    end = vocabulary.index(END)
    points = (np.frombuffer(t[: length - 1].encode("utf-32-le"), np.uint32) for t in texts)
    return [np.append(table[p], np.uint16(end)) for p in points]
