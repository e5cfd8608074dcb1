"""MNIST, as images, as sequences, and as permuted sequences. So are Fashion-MNIST and others
that come as the same four files.
"""

import gzip
import struct
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from . import _files
from ._source import Images, random_split, Splits


URL = "https://yann.lecun.org/exdb/mnist/ or https://ossci-datasets.s3.amazonaws.com/mnist/"
MEAN, STD = 0.1307, 0.3081
COUNTS = (60_000, 10_000)


def load(
    folder: Path,
    *,
    sequential: bool = False,
    permute: int | None = None,
    seed: int = 42,
    counts: tuple[int, int] | None = COUNTS,
) -> Splits:
    """The digits, `(1, 28, 28)` each, normalised.

    A tenth of the 60,000 is to choose by, by PyTorch's `random_split` as S4 has it.

    - `folder`: where `train-images-idx3-ubyte` and the other three lie, or the same with
        `.gz`.
    - `sequential`: rows end to end, `(1, 784)`.
    - `permute`: sequences in one and the same random order, of this seed:
        `np.random.RandomState(permute).permutation(784)`, whose stream is frozen. The
        literature often takes 92916.
    - `seed`: of the split.
    - `counts`: how many digits the files have, to train and to test, or `None` if they may have
        any number.

    Raises a `FileNotFoundError` if a file is missing, and a `ValueError` if one is damaged, cut
    off, has not as many digits, or has labels beyond 9.
    """
    parts = []
    for name, count in zip(("train", "t10k"), counts or (None, None)):
        pixels = _read(folder, f"{name}-images-idx3-ubyte")
        labels = _read(folder, f"{name}-labels-idx1-ubyte")
        if pixels.ndim != 3 or pixels.shape[1:] != (28, 28) or labels.shape != pixels.shape[:1]:
            raise ValueError(
                f"The files {name}-* in {folder} have images {pixels.shape} and labels "
                f"{labels.shape}, not (n, 28, 28) and (n,)."
            )
        if len(labels) and labels.max() > 9:
            raise ValueError(
                f"{name}-labels-idx1-ubyte in {folder} has a label {labels.max()}, not 0 to 9."
            )
        _files.counted(folder / f"{name}-images-idx3-ubyte", len(pixels), count, URL)
        pixels = pixels[:, None]
        if sequential or permute is not None:
            pixels = pixels.reshape(len(pixels), 1, 784)
        if permute is not None:
            pixels = pixels[:, :, np.random.RandomState(permute).permutation(784)]
        parts.append(Images(pixels, labels.astype(np.int32), np.array([MEAN]), np.array([STD])))
    train, test = parts
    train, valid = random_split(train, (len(train) - len(train) // 10, len(train) // 10), seed)
    return Splits(train, valid, test)


def _read(folder: Path, name: str) -> UInt8[np.ndarray, "..."]:
    """An array of bytes in the format idx: its rank and sizes, big-endian, and its values."""
    if (path := folder / f"{name}.gz").is_file():
        with _files.damaged(path), gzip.open(path) as file:
            content = file.read()
    else:
        content = _files.required(path := folder / name, URL).read_bytes()
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise ValueError(f"{path} is no idx file of bytes: it begins with {content[:4]!r}.")
    rank = content[3]
    if len(content) < (start := 4 + 4 * rank):
        raise ValueError(f"{path} is cut off in its header.")
    shape = struct.unpack(f">{rank}I", content[4:start])
    size = int(np.prod(shape, dtype=object))
    if len(content) - start != size:
        raise ValueError(
            f"{path} says {shape}, that is {size:,} bytes, and has {len(content) - start:,}; "
            f"get it anew from {URL}."
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
