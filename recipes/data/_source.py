import dataclasses
from typing import Any, Protocol

import jax.tree_util as jtu
import numpy as np


class Source(Protocol):
    """Examples by their index: what Grain calls a random-access data source."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: Any, /) -> tuple[Any, Any]: ...


@dataclasses.dataclass(frozen=True)
class Arrays:
    """Examples held in memory.

    - `x`: a pytree of arrays with the examples in front.
    - `y`: an array with the examples in front.
    """

    x: Any
    y: np.ndarray

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, i: Any, /) -> tuple[Any, Any]:
        return jtu.tree_map(lambda a: a[i], self.x), self.y[i]


@dataclasses.dataclass(frozen=True)
class Splits:
    """A data set to train, validate and test on."""

    train: Source
    valid: Source
    test: Source
