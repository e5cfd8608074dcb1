"""Membranes of neurons in electron micrographs, of the ISBI 2012 challenge: a mask of pixels.
Not a task of the paper, but real data for the likes of Cosmic.

    python -m recipes.membranes --data FOLDER
"""

from pathlib import Path

import tyro

from recipes import _main
from recipes._hyperparameters import Laptop
from recipes._network import Network
from recipes._task import example_shape, pixels, rays, smaller, Task
from recipes.data import membranes


def task(name: str, data: Path | None, laptop: Laptop | None, seed: int) -> Task:
    """Raises a `FileNotFoundError` if there are no data."""
    folder = _main.required(name, data, "train-volume.tif", membranes.URL)
    about = "the training stack of ISBI 2012, by slices"
    if laptop is None:
        splits = membranes.load(folder)
    else:
        # Half the resolution, at which a membrane is still some pixels wide.
        splits = membranes.load(folder, tile=2 * laptop.side, every=2)
        splits = smaller(splits, laptop.sizes, seed)
        about += f", {laptop.side} x {laptop.side} pixels of 8 nm"
    channels, *shape = example_shape(splits.train)
    return Task(
        name,
        splits,
        Network(tuple(shape), 1, channels, pool=False),
        pixels,
        rays,
        transform=membranes.turn,
        about=about,
    )


def main(options: _main.Flags = _main.Options()) -> None:
    _main.run("membranes", "membranes", task, options)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
