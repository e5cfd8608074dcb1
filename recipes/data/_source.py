import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import jax.tree_util as jtu
import numpy as np
from jaxtyping import Float, Int, PyTree, Shaped, UInt8


class Source(Protocol):
    """What Grain reads from: so many examples, each a tuple `(x, y)` of arrays."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Any, Any]: ...


@dataclasses.dataclass(frozen=True, eq=False)
class Splits:
    """What to train on, what to choose by, and what to report.

    - `vocabulary`: of texts, the tokens by their ids; the first is the padding.
    """

    train: Source
    valid: Source
    test: Source
    vocabulary: tuple[str, ...] | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Arrays:
    """Examples held in memory. An array of indices gives all of them at once.

    - `x`: arrays with the examples in front, `(n, *shape)`.
    - `y`: the same of labels.
    """

    x: PyTree[Shaped[np.ndarray, "n ..."]]
    y: Shaped[np.ndarray, "n ..."]

    def __post_init__(self):
        lengths = {len(a) for a in (*jtu.tree_leaves(self.x), self.y)}
        if len(lengths) != 1:
            raise ValueError(f"`x` and `y` hold {sorted(lengths)} examples, not the same.")

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: Any) -> tuple[Any, Any]:
        return jtu.tree_map(lambda a: a[index], self.x), self.y[index]


@dataclasses.dataclass(frozen=True, eq=False)
class Images:
    """Images held as bytes, a quarter of what they take as numbers: `x` is
    `(pixels / 255 - mean) / std`, a float32 array `(channels, *space)`. An array of indices
    gives all of them at once, with the examples in front.
    """

    pixels: UInt8[np.ndarray, "n channels *space"]
    y: Int[np.ndarray, " n"]
    mean: Float[np.ndarray, " channels"]
    std: Float[np.ndarray, " channels"]

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: Any) -> tuple[Float[np.ndarray, "..."], Any]:
        pixels = self.pixels[index]
        broad = (-1, *[1] * (self.pixels.ndim - 2))
        scale = (1 / (255 * self.std)).astype(np.float32).reshape(broad)
        shift = (self.mean / self.std).astype(np.float32).reshape(broad)
        return pixels * scale - shift, self.y[index]


@dataclasses.dataclass(frozen=True, eq=False)
class Subset:
    """Some examples of a source, in an order of its own."""

    source: Source
    index: Int[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self.source[int(self.index[index])]


def take(source: Source, index: Int[np.ndarray, " n"]) -> tuple[Any, Any]:
    """Those examples as a batch: all at once where they lie in memory, else one by one."""
    if isinstance(source, Subset):
        return take(source.source, source.index[index])
    if isinstance(source, (Arrays, Images)):
        return source[index]
    x, y = zip(*(source[int(i)] for i in index))
    return jtu.tree_map(lambda *xs: np.stack(xs), *x), np.stack(y)


def random_split(source: Source, lengths: Sequence[int], seed: int) -> tuple[Subset, ...]:
    """Parts of these lengths, which hold every example once: the very parts that PyTorch's
    `random_split(source, lengths, torch.Generator().manual_seed(seed))` gives, by which the
    published splits of S4 and CCNN are made.
    """
    if sum(lengths) != len(source) or min(lengths) < 0:
        raise ValueError(f"`lengths` must add up to {len(source)}, got {list(lengths)}.")
    parts = np.split(permutation(len(source), seed), np.cumsum(lengths)[:-1])
    return tuple(Subset(source, part) for part in parts)


def permutation(n: int, seed: int) -> Int[np.ndarray, " n"]:
    """PyTorch's `torch.randperm(n, generator=torch.Generator().manual_seed(seed))`: a shuffle
    of Fisher and Yates from the front, by 32 bits of MT19937 a step (ATen's `randperm_cpu`).
    """
    if not 0 <= n < 2**27 or not 0 <= seed < 2**32:
        raise ValueError(f"`n` must be below 2^27 and `seed` below 2^32, got {n} and {seed}.")
    draws = np.random.RandomState(seed).randint(2**32, size=max(n - 1, 0), dtype=np.uint32)
    order = list(range(n))
    for i, step in enumerate((draws % np.arange(n, 1, -1)).tolist()):
        order[i], order[i + step] = order[i + step], order[i]
    return np.array(order, np.int64)
