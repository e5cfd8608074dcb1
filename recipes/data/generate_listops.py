"""ListOps of Long Range Arena, without end.

The procedure is that of `lra_benchmarks/data/listops.py` of google-research/long-range-arena
(Tay et al. 2021, after Nangia & Bowman 2018): the same distribution of expressions, in the
same format, from other random numbers. Whole levels of a tree are drawn at once, and a tree
is given up as soon as it has grown too long, neither of which changes the distribution.
"""

import csv
import dataclasses
import functools as ft
import os
import statistics
from pathlib import Path
from typing import Any

import numpy as np

from ._generated import Generated, splits as _splits
from ._source import Splits


Node = int | tuple[Any, ...]
"""A digit, or the name of an operator and then its arguments, each of them a node."""

OPERATORS = {
    "MIN": min,
    "MAX": max,
    # Of an even number of arguments the mean of the middle two, rounded down.
    "MED": lambda values: int(statistics.median(values)),
    "SM": lambda values: sum(values) % 10,
}


@dataclasses.dataclass(frozen=True)
class Grammar:
    """Which expressions there are. The defaults are those of Long Range Arena.

    - `min_length`, `max_length`: an expression has more tokens than the one and fewer than
        the other. An operator counts two, for its brackets, a digit one, and parentheses are
        not counted.
    - `max_depth`: how many levels a tree may have. On the last one there are digits only.
    - `max_arguments`: an operator has from 2 to this many arguments, all equally likely.
    - `operator`: the probability that a node is an operator, and not a digit.
    """

    min_length: int = 500
    max_length: int = 2000
    max_depth: int = 10
    max_arguments: int = 10
    operator: float = 0.25

    def __post_init__(self):
        if not 0 <= self.min_length < self.max_length:
            raise ValueError(
                "`min_length` must be at least 0 and below `max_length`, got "
                f"{self.min_length} and {self.max_length}."
            )
        if self.max_depth < 1 or self.max_arguments < 2:
            raise ValueError(
                "`max_depth` must be at least 1 and `max_arguments` 2, got "
                f"{self.max_depth} and {self.max_arguments}."
            )
        if not 0 < self.operator < 1:
            raise ValueError(f"`operator` must be between 0 and 1, got {self.operator}.")


LRA = Grammar()
SHORT = Grammar(min_length=50, max_length=250, max_depth=6)
"""For a quick try: about a tenth as long."""


def tree(rng: np.random.Generator, grammar: Grammar = LRA) -> Node:
    """An expression of the lengths that the grammar allows: others are drawn and dropped.

    **Raises:** `ValueError` if there is none in 100,000 drawn. Of Long Range Arena's about
    one in twelve is kept.
    """
    draws = (_levels(rng, grammar) for _ in range(100_000))
    levels = next((levels for levels in draws if levels is not None), None)
    if levels is None:
        raise ValueError(f"Hardly any expression has the lengths of {grammar}.")
    below: list[Node] = []
    for arguments in reversed(levels):
        digits = iter(rng.integers(10, size=int(np.sum(arguments == 0))).tolist())
        names = iter(rng.integers(len(OPERATORS), size=len(arguments)).tolist())
        above, children = [], iter(below)
        for n in arguments.tolist():
            if n:
                name = tuple(OPERATORS)[next(names)]
                above.append((name, *(next(children) for _ in range(n))))
            else:
                above.append(next(digits))
        below = above
    return below[0]


def _levels(rng: np.random.Generator, grammar: Grammar) -> list[np.ndarray] | None:
    """How many arguments every node has, 0 at a digit, level by level from the root."""
    levels, nodes, length = [], 1, 0
    while nodes and length + nodes < grammar.max_length:
        if len(levels) < grammar.max_depth - 1:
            operators = rng.random(nodes) < grammar.operator
        else:
            operators = np.zeros(nodes, bool)
        counts = rng.integers(2, grammar.max_arguments + 1, size=nodes)
        levels.append(np.where(operators, counts, 0))
        length += nodes + int(operators.sum())
        nodes = int(levels[-1].sum())
    fits = not nodes and grammar.min_length < length < grammar.max_length
    return levels if fits else None


def value(node: Node) -> int:
    """What an expression comes to: a digit."""
    if isinstance(node, int):
        return node
    name, *arguments = node
    return OPERATORS[name]([value(argument) for argument in arguments])


def surface(node: Node) -> str:
    """An expression as the release writes it: arguments are applied one by one, and a pair of
    parentheses is put around each application, as `( ( ( [MAX 2 ) 9 ) ] )`.
    """
    words: list[str] = []
    _append(node, words)
    return " ".join(words)


def _append(node: Node, words: list[str]) -> None:
    if isinstance(node, int):
        words.append(str(node))
        return
    name, *arguments = node
    words += ["("] * (len(arguments) + 1) + [f"[{name}"]
    for argument in arguments:
        _append(argument, words)
        words.append(")")
    words += ["]", ")"]


def generate(rng: np.random.Generator, grammar: Grammar = LRA) -> tuple[str, int]:
    """An expression as text and its value."""
    expression = tree(rng, grammar)
    return surface(expression), value(expression)


def _example(
    rng: np.random.Generator, grammar: Grammar, length: int
) -> tuple[np.ndarray, np.int32]:
    from .listops import encode

    text, label = generate(rng, grammar)
    return encode(text, length), np.int32(label)


def source(
    seed: int, size: int, grammar: Grammar = LRA, *, length: int = 2048, start: int = 0
) -> Generated:
    """Examples `(x, y)`: int32 tokens `(length,)` as the loader encodes them, padded with 0,
    and an int32 digit.
    """
    make = ft.partial(_example, grammar=grammar, length=length)
    return Generated(make, seed, size, start)


def splits(
    seed: int,
    sizes: tuple[int, int, int] = (96_000, 2_000, 2_000),
    grammar: Grammar = LRA,
    *,
    length: int = 2048,
) -> Splits:
    """As [`source`][], to train, validate and test on."""
    return _splits(ft.partial(_example, grammar=grammar, length=length), seed, sizes)


def write(
    folder: Path,
    sizes: tuple[int, int, int] = (96_000, 2_000, 2_000),
    seed: int = 0,
    grammar: Grammar = LRA,
) -> None:
    """Writes `basic_train.tsv`, `basic_val.tsv` and `basic_test.tsv`, as the release has them.

    Every expression occurs once over all three, as there. They are written in the order in
    which they are drawn, where the release has them in the order of a set.

    **Raises:** `FileExistsError` if any of the files is there already: it may be the release.
    `ValueError` if the grammar has hardly so many expressions: 10,000 draws in a row were
    there before. What was written stays, with the ending `.part` where it is not whole.
    """
    paths = [folder / f"basic_{split}.tsv" for split in ("train", "val", "test")]
    for path in paths:
        if path.exists():
            raise FileExistsError(f"{path} is there already.")
    folder.mkdir(parents=True, exist_ok=True)
    rng, seen = np.random.default_rng(seed), set()
    for path, size in zip(paths, sizes):
        part = path.with_suffix(".part")  # so that no half of a file is ever taken for one
        with part.open("w", newline="") as file:
            writer = csv.writer(file, delimiter="\t")
            writer.writerow(("Source", "Target"))
            for _ in range(size):
                draws = (generate(rng, grammar) for _ in range(10_000))
                example = next((e for e in draws if e[0] not in seen), None)
                if example is None:
                    raise ValueError(
                        f"`sizes` must be less than {sizes} in all: {grammar} has hardly more "
                        f"than {len(seen)} expressions."
                    )
                seen.add(example[0])
                writer.writerow(example)
        os.replace(part, path)
