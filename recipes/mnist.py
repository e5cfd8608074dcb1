"""MNIST: as images, as sequences, and as sequences in a random order.

    python -m recipes.mnist sequential --data FOLDER

Without data, a laptop's run is of scikit-learn's 1,797 digits of 8 x 8 pixels.
"""

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
from sklearn.datasets import load_digits

from recipes import _main
from recipes._hyperparameters import Laptop
from recipes._network import Network
from recipes._task import accuracy, coarser, cross_entropy, example_shape, flat, smaller, Task
from recipes.data import Arrays, mnist, Splits


Name = Literal["mnist", "sequential", "permuted"]

# The order of the literature.
PERMUTATION = 92916


def task(name: str, data: Path | None, laptop: Laptop | None, seed: int) -> Task:
    """Raises a `FileNotFoundError` if there are no data for a run in full."""
    permute = PERMUTATION if name == "permuted" else None
    if data is None and laptop is not None:
        splits, about = _digits(seed), "scikit-learn's digits"
        splits = smaller(splits if name == "mnist" else flat(splits), laptop.sizes, seed)
    else:
        folder = _main.required(name, data, "train-images-idx3-ubyte.gz", mnist.URL)
        # On coarser images the order is drawn below.
        whole = laptop is None
        splits = mnist.load(
            folder,
            sequential=whole and name != "mnist",
            permute=permute if whole else None,
            counts=mnist.COUNTS if whole else None,
        )
        about = "MNIST"
        if laptop is not None:
            splits = smaller(splits, laptop.sizes, seed)
            splits = coarser(splits, 28 // laptop.side, sequential=name != "mnist")
            about += f", {laptop.side} x {laptop.side} pixels"
    if laptop is not None and permute is not None:
        splits = _permuted(splits, permute)
    channels, *shape = example_shape(splits.train)
    network = Network(tuple(shape), 10, channels)
    return Task(name, splits, network, cross_entropy, accuracy, about=about)


def _digits(seed: int) -> Splits:
    """1,197, 150 and 450 digits, `(1, 8, 8)`."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(labels))
    x, y = images.reshape(-1, 1, 8, 8).astype(np.float32)[order], labels[order]
    x = (x - x[:1197].mean()) / x[:1197].std()
    ends = ((0, 1197), (1197, 1347), (1347, 1797))
    train, valid, test = (Arrays(x[i:j], y[i:j].astype(np.int32)) for i, j in ends)
    return Splits(train, valid, test)


def _permuted(splits: Splits, seed: int) -> Splits:
    parts = []
    for part in (splits.train, splits.valid, splits.test):
        assert isinstance(part, Arrays)
        order = np.random.RandomState(seed).permutation(part.x.shape[-1])
        parts.append(Arrays(part.x[..., order], part.y))
    train, valid, test = parts
    return Splits(train, valid, test)


def main(
    name: Annotated[Name, tyro.conf.Positional] = "mnist",
    options: _main.Flags = _main.Options(),
) -> None:
    _main.run(name, name, task, options)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
