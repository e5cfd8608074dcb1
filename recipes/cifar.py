"""CIFAR-10 and CIFAR-100, as images.

python -m recipes.cifar cifar10 --variant krwd --base 6x380 --preset paper --data FOLDER
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from recipes import _main
from recipes._hyperparameters import Laptop
from recipes._network import Network
from recipes._task import accuracy, coarser, cross_entropy, example_shape, smaller, Task
from recipes.data import cifar


Name = Literal["cifar10", "cifar100"]


def task(
    name: str, data: Path | None, laptop: Laptop | None, seed: int, augment: bool = False
) -> Task:
    """- `augment`: whether to crop and flip at random, as CCNN does with CIFAR-10. The paper
    does not say. On a laptop's coarse images it is left out.

    Raises a `FileNotFoundError` if there are no data.
    """
    classes = int(name.removeprefix("cifar"))
    folder = _main.required(name, data, f"cifar-{classes}-binary.tar.gz", cifar.URL)
    splits, about = cifar.load(folder, classes), f"CIFAR-{classes}"
    if laptop is not None:
        splits = coarser(smaller(splits, laptop.sizes, seed), 32 // laptop.side)
        about += f", {laptop.side} x {laptop.side} pixels"
    channels, *shape = example_shape(splits.train)
    network = Network(tuple(shape), classes, channels)
    new = Task(name, splits, network, cross_entropy, accuracy, about=about)
    if not augment or laptop is not None:
        return new
    return dataclasses.replace(new, transform=cifar.augment, about=f"{about}, augmented")


def main(
    name: Annotated[Name, tyro.conf.Positional],
    options: _main.Flags = _main.Options(),
    augment: bool = False,
) -> None:
    make = lambda *args: task(*args, augment=augment)
    _main.run(name, name, make, options)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
