"""Reviews of films: the Text task of the Long Range Arena, and a stand-in for its Retrieval."""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Int

from . import _files, _text
from ._source import random_split, Splits


URL = "https://ai.stanford.edu/~amaas/data/sentiment/"

_REVIEW = re.compile(r"aclImdb/(train|test)/(neg|pos)/(\d+)_(\d+)\.txt")
_LIST = re.compile(r"aclImdb/(train|test)/urls_(neg|pos)\.txt")


@dataclasses.dataclass(frozen=True, eq=False)
class Reviews:
    """25,000 reviews in the order of their labels and numbers.

    - `texts`: as they are, marks of new lines and all.
    - `y`: 0 for a bad one, 1 for a good one.
    - `film`: the number of the film at IMDB.
    """

    texts: list[str]
    y: Int[np.ndarray, " reviews"]
    film: Int[np.ndarray, " reviews"]


def load(
    folder: Path,
    *,
    length: int = 4096,
    min_freq: int = 15,
    pad: _text.Pad = "right",
    valid: float = 0.0,
    encoding: str = "utf-8",
    seed: int = 42,
) -> Splits:
    """25,000 reviews to train on and 25,000 to test: `x` is `(length,)`, of int32, `y` 1 for a
    good one.

    - `folder`: where `aclImdb_v1.tar.gz` lies, or what it unpacks to, `aclImdb`, or that.
    - `length`: what reviews are padded, or cut, to, with their end.
    - `min_freq`: how often a character must occur in the training set to be in the vocabulary.
    - `pad`: on which side: at the end, as in S4; CCNN pads on the left.
    - `valid`: the share of the training set to choose by. If 0, as in S4, CCNN and DNArch, the
        test set is `valid`, too: results are then chosen by the test set.
    - `encoding`: `"utf-8"` for characters, as S4 and CCNN have it; `"latin-1"` for bytes, as
        LRA's own loader has it.
    - `seed`: of the split.

    Raises a `FileNotFoundError` if there is neither of these, and a `ValueError` if what is
    there is damaged or incomplete.
    """
    _text.check(length, pad)
    if not 0 <= valid < 1:
        raise ValueError(f"`valid` must be at least 0 and below 1, got {valid}.")
    train, test = read(folder, encoding)
    vocabulary = _text.characters(train.texts, length, min_freq=min_freq)
    learn, report = (
        _text.Sequences(
            _text.Texts.of(
                _text.encode_characters(part.texts, vocabulary, length), length, pad
            ),
            part.y.astype(np.int32),
        )
        for part in (train, test)
    )
    if not valid:
        return Splits(learn, report, report, vocabulary)
    held = round(valid * len(learn))
    learn, choose = random_split(learn, (len(learn) - held, held), seed)
    return Splits(learn, choose, report, vocabulary)


def load_pairs(
    folder: Path,
    *,
    pairs: tuple[int, int, int] = (147_086, 18_090, 17_437),
    length: int = 4000,
    min_freq: int = 15,
    pad: _text.Pad = "right",
    seed: int = 0,
) -> Splits:
    """A stand-in for Retrieval, not a published task: whether two reviews are of the same film.

    Every other pair is of one film. Any two of its reviews are as likely as any two of another
    film's; a pair of two films is the first review of one such pair and the second of another,
    so that how often a film occurs tells nothing. The films of the three parts differ. Names
    and titles give much away.

    - `pairs`: how many pairs to train, to choose by and to test, by default as many as
        Retrieval has. To choose by are pairs of a tenth of the films of the training set.
    - `seed`: of films and pairs.
    - The others are as those of `load`.
    """
    _text.check(length, pad)
    if min(pairs) < 2:
        raise ValueError(f"`pairs` must be at least 2 each, got {pairs}.")
    train, test = read(folder, "utf-8")
    rng = np.random.default_rng(seed)
    films = rng.permutation(np.unique(train.film))
    few = films[: max(2, len(films) // 10)]
    vocabulary = _text.characters(train.texts, length, min_freq=min_freq)
    splits = []
    for number, part, chosen in (
        (pairs[0], train, ~np.isin(train.film, few)),
        (pairs[1], train, np.isin(train.film, few)),
        (pairs[2], test, ~np.isin(test.film, films)),
    ):
        kept = np.flatnonzero(chosen)
        ids = _text.encode_characters([part.texts[i] for i in kept], vocabulary, length)
        drawn = _pairs(part.film[kept], number, rng)
        splits.append(_text.Pairs(_text.Texts.of(ids, length, pad), *drawn))
    return Splits(*splits, vocabulary=vocabulary)


def _pairs(
    film: Int[np.ndarray, " reviews"], number: int, rng: np.random.Generator
) -> tuple[Int[np.ndarray, " pairs"], Int[np.ndarray, " pairs"], Int[np.ndarray, " pairs"]]:
    """The first and the second review of pairs, and whether they are of one film."""
    order = np.argsort(film, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(film[order])) + 1)
    within = [np.stack(np.triu_indices(len(g), 1)) for g in groups]
    first, second = np.concatenate([g[w] for g, w in zip(groups, within)], axis=1)
    if len(np.unique(film[first])) < 2:
        raise ValueError("There are not two films of two reviews to make pairs of.")
    y = np.arange(number) % 2
    # Without repetitions, as far as there are as many.
    draw = lambda n: np.resize(rng.permutation(len(first)), n)
    a, b = np.empty((2, number), int)
    a[y == 1] = b[y == 1] = draw(np.sum(y == 1))
    a[y == 0], b[y == 0] = draw(np.sum(y == 0)), draw(np.sum(y == 0))
    while len(same := np.flatnonzero((y == 0) & (film[first[a]] == film[second[b]]))):
        b[same] = rng.integers(len(first), size=len(same))
    swap = rng.random(number) < 0.5
    one, other = first[a], second[b]
    return np.where(swap, other, one), np.where(swap, one, other), y.astype(np.int32)


def read(folder: Path, encoding: str = "utf-8") -> tuple[Reviews, Reviews]:
    """The reviews to train and to test, from the official files; see `load`."""
    reviews: dict[tuple[str, str], dict[int, str]] = {}
    films: dict[tuple[str, str], list[int]] = {}
    for name, content in _contents(folder):
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError as error:
            raise ValueError(f"{name} of {folder} is not {encoding}: {error}") from error
        if match := _REVIEW.fullmatch(name):
            part, label, number, rating = match.groups()
            if not (1 <= int(rating) <= 4 if label == "neg" else 7 <= int(rating) <= 10):
                raise ValueError(
                    f"{name} of {folder} has a rating that is not {label}: that is 1 to 4 for "
                    "neg, and 7 to 10 for pos."
                )
            if int(number) in reviews.setdefault((part, label), {}):
                raise ValueError(f"{folder} has two reviews {number} of {part}/{label}.")
            reviews[part, label][int(number)] = text
        elif match := _LIST.fullmatch(name):
            numbers = re.findall(r"/title/tt(\d+)/", text)
            films[match[1], match[2]] = [int(n) for n in numbers]
    parts = []
    for part in ("train", "test"):
        texts, film, y = [], [], []
        for label in ("neg", "pos"):
            found, of = reviews.get((part, label), {}), films.get((part, label), [])
            if not found or set(found) != set(range(len(of))):
                raise ValueError(
                    f"{folder} has {len(found):,} reviews of {part}/{label}, and a list "
                    f"urls_{label}.txt of {len(of):,}; get it anew from {URL}."
                )
            texts += [found[i] for i in range(len(of))]
            film += of
            y += [int(label == "pos")] * len(of)
        parts.append(Reviews(texts, np.array(y), np.array(film)))
    return parts[0], parts[1]


def there(folder: Path) -> bool:
    """Whether a folder has the archive, or what it unpacks to."""
    return bool(_unpacked(folder)) or (folder / _ARCHIVE).is_file()


_ARCHIVE = "aclImdb_v1.tar.gz"


def _unpacked(folder: Path) -> list[Path]:
    places = (folder, folder / "aclImdb")
    return [place for place in places if (place / "train" / "pos").is_dir()]


def _contents(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Names, from `aclImdb` on, and contents of the files that are needed."""
    wanted = lambda name: bool(_REVIEW.fullmatch(name) or _LIST.fullmatch(name))
    for place in _unpacked(folder):
        for path in sorted([*place.glob("*/*.txt"), *place.glob("*/*/*.txt")]):
            if wanted(name := "aclImdb/" + path.relative_to(place).as_posix()):
                yield name, path.read_bytes()
        return
    yield from _files.members(_files.required(folder / _ARCHIVE, URL), wanted)
