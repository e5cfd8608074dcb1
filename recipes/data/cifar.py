"""CIFAR-10 and CIFAR-100, and the Image task of the Long Range Arena."""

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from . import _files
from ._source import Images, random_split, Splits


URL = "https://www.cs.toronto.edu/~kriz/cifar.html"

# Of the colours, as CCNN has them (david-knigge/ccnn: datamodules/cifar10.py, cifar100.py), and
# of greys as LRA's loaders do (state-spaces/s4: src/dataloaders/basic.py).
MEAN = {10: (0.4914, 0.4822, 0.4465), 100: (0.5071, 0.4867, 0.4408)}
STD = {10: (0.247, 0.243, 0.261), 100: (0.2675, 0.2565, 0.2761)}
GREY = (122.6 / 255, 61.0 / 255)

# Folder, archive and files of each form; the last file is the test set.
_BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
_BINARY = {
    10: ("cifar-10-batches-bin", "cifar-10-binary.tar.gz", [f"{b}.bin" for b in _BATCHES]),
    100: ("cifar-100-binary", "cifar-100-binary.tar.gz", ["train.bin", "test.bin"]),
}
_PYTHON = {
    10: ("cifar-10-batches-py", "cifar-10-python.tar.gz", [*_BATCHES]),
    100: ("cifar-100-python", "cifar-100-python.tar.gz", ["train", "test"]),
}


def load(
    folder: Path,
    classes: int = 10,
    *,
    grey: bool = False,
    sequential: bool = False,
    seed: int = 42,
    counts: tuple[int, int] = (50_000, 10_000),
) -> Splits:
    """The images of CIFAR-10 or CIFAR-100, `(3, 32, 32)` each, normalised by channel.

    45,000 are to train on and 5,000 to choose by, by PyTorch's `random_split` as S4 and CCNN
    have it. LRA's Image, of length 1,024, is `grey=True, sequential=True`.

    - `folder`: where an archive lies, or the folder that it unpacks to, or that folder. The
        binary version is taken if it is there, or else the Python version.
    - `classes`: 10, 100, or 20 for the coarse labels of CIFAR-100.
    - `grey`: one channel, the luma of ITU-R 601, as Pillow rounds it.
    - `sequential`: rows end to end, `(channels, 1024)`.
    - `seed`: of the split.
    - `counts`: how many images the official files have, to train and to test.

    Raises a `FileNotFoundError` if none of these is there, and a `ValueError` if what is there
    is damaged, cut off, or has labels that there are not.
    """
    if classes not in (10, 20, 100):
        raise ValueError(f"`classes` must be 10, 20 or 100, got {classes}.")
    kind = 10 if classes == 10 else 100
    parts = _read(folder, kind, classes, counts)
    mean, std = MEAN[kind], STD[kind]
    if grey:
        parts = [(luma(pixels), y) for pixels, y in parts]
        mean, std = GREY[:1], GREY[1:]
    if sequential:
        parts = [(pixels.reshape(*pixels.shape[:2], -1), y) for pixels, y in parts]
    train, test = (Images(pixels, y, np.array(mean), np.array(std)) for pixels, y in parts)
    train, valid = random_split(train, (len(train) - len(train) // 10, len(train) // 10), seed)
    return Splits(train, valid, test)


def augment(
    example: tuple[Float[np.ndarray, "channels 32 32"], Any], rng: np.random.Generator
) -> tuple[Float[np.ndarray, "channels 32 32"], Any]:
    """A random crop out of the image with four more pixels on every side, mirrored ones, and
    half of the images flipped: a transform for [`recipes.data.batches`][], as CCNN augments
    CIFAR-10 (datamodules/cifar10.py). To normalise before or after it is the same.
    """
    x, y = example
    i, j = (_MIRRORED[start : start + 32] for start in rng.integers(9, size=2))
    return x[:, i][:, :, j[::-1] if rng.random() < 0.5 else j], y


# Which of 32 pixels are where, with four more on both sides.
_MIRRORED = np.pad(np.arange(32), 4, mode="symmetric")


def luma(pixels: UInt8[np.ndarray, "n 3 *space"]) -> UInt8[np.ndarray, "n 1 *space"]:
    """The grey of colours: Pillow's `convert("L")`, bit for bit."""
    weighted = np.full(pixels[:, :1].shape, 2**15, np.uint32)
    for channel, weight in enumerate((19595, 38470, 7471)):  # .299, .587, .114 times 2^16
        weighted += pixels[:, channel : channel + 1] * np.uint32(weight)
    return (weighted >> 16).astype(np.uint8)


Part = tuple[UInt8[np.ndarray, "n 3 32 32"], Int[np.ndarray, " n"]]


def _read(folder: Path, kind: int, classes: int, counts: tuple[int, int]) -> list[Part]:
    """Pixels and labels to train and to test."""
    for form, parse in ((_BINARY[kind], _binary), (_PYTHON[kind], _python)):
        contents = _contents(folder, *form)
        if contents is None:
            continue
        *names, test = form[2]
        each = counts[0] // len(names)
        parts = [parse(name, contents[name], kind, classes, each) for name in names]
        pixels, labels = (np.concatenate(arrays) for arrays in zip(*parts))
        return [(pixels, labels), parse(test, contents[test], kind, classes, counts[1])]
    raise FileNotFoundError(
        f"{folder} has neither {_BINARY[kind][1]} nor {_PYTHON[kind][1]}, nor what they unpack "
        f"to. They are from {URL}."
    )


def _contents(
    folder: Path, unpacked: str, archive: str, names: list[str]
) -> Mapping[str, bytes] | None:
    """The files' contents by their names, or `None` if there are no such files."""
    for place in (folder, folder / unpacked):
        if (place / names[0]).is_file():
            return {name: _files.required(place / name, URL).read_bytes() for name in names}
    if not (folder / archive).is_file():
        return None
    wanted = {f"{unpacked}/{name}": name for name in names}
    read = _files.members(folder / archive, wanted.__contains__)
    contents = {wanted[path]: content for path, content in read}
    if absent := sorted(set(names) - set(contents)):
        raise ValueError(f"{folder / archive} has no {absent}; get it anew from {URL}.")
    return contents


def _binary(name: str, content: bytes, kind: int, classes: int, count: int) -> Part:
    """Records of a label, or a coarse and a fine one, and 3,072 bytes of colours."""
    labels = 1 if kind == 10 else 2
    if len(content) != count * (labels + 3072):
        raise ValueError(
            f"{name} has {len(content):,} bytes, and {count:,} images are "
            f"{count * (labels + 3072):,}; get it anew from {URL}."
        )
    records = np.frombuffer(content, np.uint8).reshape(count, labels + 3072)
    return _checked(
        name, records[:, labels:], records[:, 0 if classes == 20 else labels - 1], classes
    )


def _python(name: str, content: bytes, kind: int, classes: int, count: int) -> Part:
    """A pickled dictionary."""
    batch = _unpickle(name, content)
    label = {10: b"labels", 20: b"coarse_labels", 100: b"fine_labels"}[classes]
    pixels, labels = batch.get(b"data"), batch.get(label)
    if not isinstance(pixels, np.ndarray) or not isinstance(labels, list):
        raise ValueError(f"{name} does not have an array b'data' and a list {label!r}.")
    if pixels.shape != (count, 3072) or len(labels) != count:
        raise ValueError(
            f"{name} has an array {pixels.shape} and {len(labels):,} labels, not "
            f"{(count, 3072)} and {count:,}; get it anew from {URL}."
        )
    if wrong := [y for y in labels if type(y) is not int or not 0 <= y < 256]:
        raise ValueError(f"{name} has a label {wrong[0]!r}, not 0 to {classes - 1}.")
    return _checked(name, pixels, np.array(labels, np.uint8), classes)


def _checked(
    name: str,
    pixels: UInt8[np.ndarray, "n 3072"],
    labels: UInt8[np.ndarray, " n"],
    classes: int,
) -> Part:
    if len(labels) and labels.max() >= classes:
        raise ValueError(f"{name} has a label {labels.max()}, not 0 to {classes - 1}.")
    return pixels.reshape(-1, 3, 32, 32), labels.astype(np.int32)


def _unpickle(name: str, content: bytes) -> dict[Any, Any]:
    """What is pickled, of numbers, strings, lists, dictionaries and arrays of bytes.

    Pickles can call what they like. The only names that these can say are NumPy's of an array,
    and not even they mean NumPy's functions, but stand-ins that keep what they are given.
    """

    class Dtype:
        def __init__(self, *args):
            self.args = args

        def __setstate__(self, state):
            del state  # one byte has no order

    class Stub:
        def __setstate__(self, state):
            self.state = state

    names = {
        ("numpy", "dtype"): Dtype,
        ("numpy", "ndarray"): type("ndarray", (), {}),
        ("numpy.core.multiarray", "_reconstruct"): lambda *args: Stub(),
        ("numpy._core.multiarray", "_reconstruct"): lambda *args: Stub(),
    }

    class Unpickler(pickle.Unpickler):
        def find_class(self, module, name):
            if (module, name) not in names:
                raise pickle.UnpicklingError(f"{module}.{name} is not allowed")
            return names[module, name]

    def array(stub: Stub) -> UInt8[np.ndarray, "..."]:
        _, shape, dtype, fortran, data = stub.state
        if not isinstance(dtype, Dtype) or dtype.args[0] not in ("u1", b"u1") or fortran:
            raise pickle.UnpicklingError("an array is not of bytes in C order")
        return np.frombuffer(data, np.uint8).reshape(shape)

    try:
        batch = Unpickler(io.BytesIO(content), encoding="bytes").load()
        if not isinstance(batch, dict):
            raise pickle.UnpicklingError("it is no dictionary")
        return {k: array(v) if isinstance(v, Stub) else v for k, v in batch.items()}
    except Exception as error:  # a damaged file raises nearly anything
        raise ValueError(f"{name} is not a batch of CIFAR: {error}.") from error
