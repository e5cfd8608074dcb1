import functools as ft
from collections.abc import Callable
from typing import Any

import absl.flags
import grain
import jax
import numpy as np

from ._source import Source, take


# What is done to an example `(x, y)`, by a generator of its own.
Transform = Callable[[tuple[Any, Any], np.random.Generator], tuple[Any, Any]]


def batches(
    source: Source,
    batch_size: int,
    *,
    seed: int,
    epochs: int | None = None,
    shuffle: bool = True,
    drop_last: bool = True,
    process: tuple[int, int] | None = None,
    transform: Transform | None = None,
    start: int = 0,
    threads: int = 1,
    ahead: int = 4,
    workers: int = 0,
) -> grain.DatasetIterator:
    """Batches of a source, as NumPy arrays.

    They follow from the arguments alone, whatever the threads and workers. `get_state()` of the
    iterator is a dictionary to be kept with a checkpoint, and `set_state` goes on from there,
    with as many workers; `start` goes on with any, from as many batches as were taken.

    - `batch_size`: how many examples a batch has on one process.
    - `seed`: of the order and of `transform`, from 0 to 2^32 - 1.
    - `epochs`: how often everything is read; without end if `None`.
    - `shuffle`: whether to shuffle, anew every epoch.
    - `drop_last`: whether to leave out the smaller batch that an epoch may end with. It would
        be compiled for on its own.
    - `process`: the index of this process and how many there are, by default JAX's. Each reads
        its own part of every epoch, all as many examples; what does not divide is left out,
        something else every epoch if shuffled.
    - `transform`: a random change `(example, rng) -> example`, different every epoch.
    - `start`: how many batches to leave out.
    - `threads`, `ahead`: how many threads make batches, and how many batches are made before
        they are asked for. One is best for arrays in memory: more wait for one another. More
        are for files. Without threads, batches are made as they are asked for.
    - `workers`: how many processes to start for it besides, for sources that compute in
        Python. (Grain reads absl's flags then: they are marked as parsed if they were not.)

    Raises a `ValueError` where there is not one batch.
    """
    index, count = (jax.process_index(), jax.process_count()) if process is None else process
    if not 0 <= index < count:
        raise ValueError(
            f"`process` must be an index and a larger count, got {index} and {count}."
        )
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be positive, got {batch_size}.")
    if not 0 <= seed < 2**32:
        raise ValueError(f"`seed` must be from 0 to 2^32 - 1, got {seed}.")
    if epochs is not None and epochs < 1:
        raise ValueError(f"`epochs` must be positive or `None`, got {epochs}.")
    if min(start, threads, ahead, workers) < 0:
        raise ValueError(
            "`start`, `threads`, `ahead` and `workers` must not be negative, got "
            f"{start}, {threads}, {ahead} and {workers}."
        )
    part = len(source) // count
    if part < (batch_size if drop_last else 1):
        raise ValueError(
            f"{len(source)} examples over {count} processes are no batch of {batch_size}."
        )

    data = grain.MapDataset.range(len(source)).seed(seed)
    if shuffle:
        data = data.shuffle()
    if transform is not None:
        # Before the processes part, or their i-th examples would have the same generator.
        data = data.map(source.__getitem__).random_map(transform)
    data = data.slice(slice(index, part * count, count))
    # Before it repeats, or batches would reach from one epoch into the next.
    data = data.batch(batch_size, drop_remainder=drop_last)
    if transform is None:
        # A batch at a time, which costs far less where examples lie in memory.
        data = data.map(ft.partial(take, source))
    data = data.repeat(epochs).slice(slice(start, None))
    read = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(ahead, threads))
    data = data.to_iter_dataset(read)
    if workers:
        if not absl.flags.FLAGS.is_parsed():
            absl.flags.FLAGS.mark_as_parsed()  # Grain reads flags; there are none
        data = data.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    return iter(data)
