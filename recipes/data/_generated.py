import dataclasses
import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from ._source import Splits


@dataclasses.dataclass(frozen=True)
class Generated:
    """Examples made when they are asked for, the same ones every time and in any order.

    - `make`: gives an example `(x, y)`, of a random generator.
    - `seed`: example `i` is made of the generator seeded with `(seed, start + i)`, so it
        depends on nothing else.
    - `size`: how many there are.
    - `start`: where these lie in the stream of the seed. Sources of one seed whose ranges are
        disjoint share no example, but for chance.
    """

    make: Callable[[np.random.Generator], tuple[Any, Any]]
    seed: int
    size: int
    start: int = 0

    def __post_init__(self):
        for name in ("seed", "size", "start"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must be at least 0, got {getattr(self, name)}.")

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        i = operator.index(index)
        if not -self.size <= i < self.size:
            raise IndexError(f"Example {i} of {self.size}.")
        return self.make(np.random.default_rng((self.seed, self.start + i % self.size)))


def splits(
    make: Callable[[np.random.Generator], tuple[Any, Any]],
    seed: int,
    sizes: tuple[int, int, int],
) -> Splits:
    """Three successive ranges of one stream: to train, validate and test on."""
    train, valid, test = sizes
    return Splits(
        Generated(make, seed, train),
        Generated(make, seed, valid, start=train),
        Generated(make, seed, test, start=train + valid),
    )
