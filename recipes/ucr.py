"""A data set of the UCR archive, by its name.

python -m recipes.ucr FordA --data FOLDER
"""

import dataclasses
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from jaxtyping import Float

from recipes import _main
from recipes._hyperparameters import Laptop
from recipes._network import Network
from recipes._task import accuracy, cross_entropy, example_shape, smaller, Task
from recipes.data import Arrays, Source, Splits, ucr


def task(name: str, data: Path | None, laptop: Laptop | None, seed: int) -> Task:
    """Raises a `FileNotFoundError` if there are no data."""
    folder = _main.required(name, data, f"{name}/{name}_TRAIN.tsv", ucr.URL)
    splits, about = ucr.load(folder, name, seed=seed), f"{name} of the UCR archive"
    # Few examples: labels are looked at in memory.
    if laptop is None:
        sizes = (len(splits.train), len(splits.valid), len(splits.test))
    else:
        sizes = laptop.sizes
    splits = smaller(splits, sizes, seed)
    classes = 1 + max(_labels(part).max() for part in (splits.train, splits.valid, splits.test))
    if laptop is not None:
        splits = _shorter(splits, laptop.side)
    channels, length = example_shape(splits.train)
    if laptop is not None:
        about += f", of length {length}"
    network = Network((length,), int(classes), channels)
    return Task(name, splits, network, cross_entropy, accuracy, about=about)


def _labels(part: Source) -> np.ndarray:
    assert isinstance(part, Arrays)
    return part.y


def _shorter(splits: Splits, length: int) -> Splits:
    """Series as means over windows, of at most about `length`."""

    def means(x: Float[np.ndarray, "n 1 length"]) -> Float[np.ndarray, "n 1 windows"]:
        window = max(round(x.shape[-1] / length), 1)
        whole = x[..., : x.shape[-1] // window * window]
        return whole.reshape(len(x), 1, -1, window).mean(-1)

    def part(source: Source) -> Arrays:
        assert isinstance(source, Arrays)
        return Arrays(means(source.x), source.y)

    parts = map(part, (splits.train, splits.valid, splits.test))
    return dataclasses.replace(splits, **dict(zip(("train", "valid", "test"), parts)))


def main(
    name: Annotated[str, tyro.conf.Positional], options: _main.Flags = _main.Options()
) -> None:
    _main.run(name, "ucr", task, options)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
