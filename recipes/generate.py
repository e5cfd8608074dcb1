"""Writes a data set that its published procedure makes, in full and in the official format.

python -m recipes.generate listops FOLDER

The recipes generate the same when no `--data` is given, but anew in every run; of the folder
that was written they read it. What is broken off goes on with the same command, but for
ListOps, which takes about a minute. Pathfinder takes about half an hour on one core, Path-X two
hours or more, Darcy one.
"""

from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import tyro

from recipes.data import generate_darcy, generate_listops, generate_pathfinder, pathfinder


Name: TypeAlias = Literal["listops", "pathfinder", "pathx", "darcy"]


def main(
    name: Annotated[Name, tyro.conf.Positional],
    folder: Annotated[Path, tyro.conf.Positional],
    seed: int = 0,
) -> None:
    try:
        if name == "listops":
            generate_listops.write(folder, seed=seed)
        elif name == "darcy":
            generate_darcy.write(folder, seed=seed)
        else:
            size = 32 if name == "pathfinder" else 128
            level = folder / f"pathfinder{size}" / pathfinder.LEVELS[2]
            spec = generate_pathfinder.SIZES[size]
            generate_pathfinder.write(level, pathfinder.COUNT, seed, spec)
    except (FileExistsError, ValueError) as error:
        raise SystemExit(str(error)) from error
    print(f"Written to {folder}: give it to a recipe as `--data`.")


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
