"""What a recipe is about: data, the network that they ask for, a loss and metrics."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from recipes._network import apply, Network
from recipes.data import Arrays, Source, Splits, take


Criterion = Callable[[Array, Array], Float[Array, ""]]
Measure = Callable[[np.ndarray, np.ndarray], Mapping[str, float]]


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """- `name`: of the task.
    - `splits`: examples `(x, y)`.
    - `network`: what it has to take and to give.
    - `criterion`: the loss of a batch, from outputs and `y`.
    - `measure`: metrics of a whole split, from outputs and `y`. The first is the one to go by.
    - `prepare`: what is done to a batch of inputs first.
    - `transform`: a random change of training examples, see [`recipes.data.batches`][].
    - `about`: what the data are, in a sentence.
    """

    name: str
    splits: Splits
    network: Network
    criterion: Criterion
    measure: Measure
    prepare: Callable[[Any], Any] = lambda x: x
    transform: Callable[..., Any] | None = None
    about: str = ""

    def __call__(
        self, net: Any, x: PyTree[Array], key: PRNGKeyArray | None = None
    ) -> Float[Array, "batch *out"]:
        """The outputs of a network for a batch."""
        return apply(net, self.prepare(x), key)

    def loss(self, net: Any, batch: Any, key: PRNGKeyArray | None) -> Float[Array, ""]:
        """What the learner takes."""
        x, y = batch
        return self.criterion(self(net, x, key), y)


def held(source: Source, size: int | None = None, seed: int = 0) -> Arrays:
    """Examples in memory: `size` of them, drawn at random but in their order, or all."""
    if isinstance(source, Arrays) and size is None:
        return source
    index = np.arange(len(source))
    if size is not None and size < len(source):
        rng = np.random.default_rng((seed, len(source)))
        index = np.sort(rng.permutation(len(source))[:size])
    return Arrays(*take(source, index))


def smaller(splits: Splits, sizes: tuple[int, int, int], seed: int) -> Splits:
    """At most so many examples of each split, in memory."""
    parts = (splits.train, splits.valid, splits.test)
    train, valid, test = (held(part, size, seed) for part, size in zip(parts, sizes))
    return dataclasses.replace(splits, train=train, valid=valid, test=test)


def coarser(splits: Splits, factor: int, sequential: bool = False) -> Splits:
    """Images that are means over squares of `factor` pixels, with rows end to end if
    `sequential`. Of splits in memory.
    """

    def part(source: Source) -> Arrays:
        assert isinstance(source, Arrays)
        n, channels, rows, columns = source.x.shape
        shape = (n, channels, rows // factor, factor, columns // factor, factor)
        x = source.x.reshape(shape).mean((3, 5))
        return Arrays(x.reshape(n, channels, -1) if sequential else x, source.y)

    parts = (splits.train, splits.valid, splits.test)
    return dataclasses.replace(
        splits, **dict(zip(("train", "valid", "test"), map(part, parts)))
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Flat:
    """Images as sequences, row by row: `(channels, rows * columns)`."""

    source: Source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Float[np.ndarray, "channels length"], Any]:
        x, y = self.source[index]
        return x.reshape(len(x), -1), y


def flat(splits: Splits) -> Splits:
    """The same with images as sequences."""
    return dataclasses.replace(
        splits, train=Flat(splits.train), valid=Flat(splits.valid), test=Flat(splits.test)
    )


def example_shape(source: Source) -> tuple[int, ...]:
    """The shape of the first `x`."""
    return jtu.tree_leaves(source[0][0])[0].shape


#
# Classes.
#


def cross_entropy(
    outputs: Float[Array, "batch classes"], y: Int[Array, " batch"]
) -> Float[Array, ""]:
    return optax.softmax_cross_entropy_with_integer_labels(outputs, y).mean()


def accuracy(
    outputs: Float[np.ndarray, "n classes"], y: Int[np.ndarray, " n"]
) -> dict[str, float]:
    """The share that is right, and the loss in nats. NaN where an output is."""
    shifted = outputs - outputs.max(1, keepdims=True)
    scores = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    loss = -np.take_along_axis(scores, y[:, None].astype(int), 1).mean()
    right = float((outputs.argmax(1) == y).mean())
    return {"accuracy": float("nan") if np.isnan(outputs).any() else right, "loss": float(loss)}


#
# Fields.
#


@dataclasses.dataclass(frozen=True, eq=False)
class RelativeError:
    r"""$\lVert p - y \rVert / \lVert y \rVert$ of each example, both decoded, the mean over
    examples: loss and metric of DarcyFlow (NAS-Bench-360: backbone/utils_grid.py). The paper
    says mean squared error in one place and reports this in another.

    - `decode`: from what the network is trained on to the field itself.
    """

    decode: Callable[[Any], Any]

    def __call__(
        self, outputs: Float[Array, "batch 1 *space"], y: Float[Array, "batch 1 *space"]
    ) -> Float[Array, ""]:
        return jnp.mean(self._each(jnp, outputs, y))

    def measure(
        self, outputs: Float[np.ndarray, "n 1 *space"], y: Float[np.ndarray, "n 1 *space"]
    ) -> dict[str, float]:
        return {"relative l2": float(np.mean(self._each(np, outputs, y)))}

    def _each(self, xp: Any, outputs: Any, y: Any) -> Any:
        space = tuple(range(1, y.ndim))
        outputs, y = self.decode(outputs), self.decode(y)
        # With an epsilon below the square root: its slope at 0 is infinite.
        norm = lambda a: xp.sqrt(xp.sum(a * a, space) + 1e-12)
        return norm(outputs - y) / norm(y)


#
# Masks of pixels.
#


def pixels(
    outputs: Float[Array, "batch 1 *space"], y: Float[Array, "batch 2 *space"]
) -> Float[Array, ""]:
    """Binary cross-entropy of logits. `y` has the mask, and what is to be ignored: such
    pixels do not count.
    """
    counts = 1.0 - y[:, 1]
    each = optax.sigmoid_binary_cross_entropy(outputs[:, 0], y[:, 0])
    return jnp.sum(counts * each) / jnp.maximum(jnp.sum(counts), 1.0)


def rays(
    outputs: Float[np.ndarray, "n 1 *space"], y: Float[np.ndarray, "n 2 *space"]
) -> dict[str, float]:
    """What goes by the name of 1 - AUROC, over all pixels of all frames that are not ignored.

    - `1 - auroc`: that of the scores.
    - `fnr`: the share of ray pixels missed where a pixel counts as one above probability 0.5,
        which DASH reports.
    - `(fpr + fnr) / 2`: what NAS-Bench-360 calls 1 - AUROC: that of binary predictions. (It
        thresholds logits at 0.5. This is at probability 0.5.)

    NaN where there is no ray, or nothing but rays, or an output is NaN.
    """
    counted = y[:, 1] == 0
    scores, truth = outputs[:, 0][counted], y[:, 0][counted] > 0.5
    hit, clear = scores[truth], scores[~truth]
    if not len(hit) or not len(clear) or np.isnan(scores).any():
        return {name: float("nan") for name in ("1 - auroc", "fnr", "(fpr + fnr) / 2")}
    fnr, fpr = float(np.mean(hit <= 0)), float(np.mean(clear > 0))
    return {"1 - auroc": 1 - auroc(hit, clear), "fnr": fnr, "(fpr + fnr) / 2": (fpr + fnr) / 2}


def auroc(positive: Float[np.ndarray, " p"], negative: Float[np.ndarray, " n"]) -> float:
    """How often a positive scores above a negative; ties count half."""
    ordered = np.sort(negative)
    below = np.searchsorted(ordered, positive, "left")
    up_to = np.searchsorted(ordered, positive, "right")
    return float(np.mean(below + up_to) / (2 * len(negative)))
