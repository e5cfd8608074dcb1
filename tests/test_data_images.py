"""Images: CIFAR, MNIST, Pathfinder."""

import gzip
import io
import itertools as it
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from recipes.data import _source, batches, cifar, mnist, pathfinder


SHARED = Path(__file__).parents[2] / "shared" / "data"
COUNTS = (50, 12)  # to train and to test, instead of 50,000 and 10,000


def tarred(path: Path, contents: dict[str, bytes], *more: tarfile.TarInfo) -> None:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for info in more:
            tar.addfile(info)


def write(folder: Path, contents: dict[str, bytes]) -> None:
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def examples(split) -> list[tuple[np.ndarray, Any]]:
    return [split[i] for i in range(len(split))]


#
# CIFAR.
#


def drawn(n: int, classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels, as the files have them, labels and coarse labels."""
    rng = np.random.default_rng((n, classes))
    pixels = rng.integers(256, size=(n, 3072)).astype(np.uint8)
    return pixels, rng.integers(classes, size=n), rng.integers(20, size=n)


def batches_of(kind: int) -> dict[str, tuple[np.ndarray, ...]]:
    parts = [drawn(n, kind) for n in COUNTS]
    if kind == 100:
        return {"train": parts[0], "test": parts[1]}
    five = [tuple(a[i : i + 10] for a in parts[0]) for i in range(0, 50, 10)]
    return {**{f"data_batch_{i + 1}": part for i, part in enumerate(five)}, "test": parts[1]}


def binary(kind: int) -> dict[str, bytes]:
    folder = "cifar-10-batches-bin" if kind == 10 else "cifar-100-binary"
    files = {}
    for name, (pixels, fine, coarse) in batches_of(kind).items():
        if kind == 10 and name == "test":
            name = "test_batch"
        rows = zip(pixels, fine, coarse)
        head = (lambda y, c: [y]) if kind == 10 else (lambda y, c: [c, y])
        files[f"{folder}/{name}.bin"] = b"".join(
            bytes(head(y, c)) + p.tobytes() for p, y, c in rows
        )
    return files


_Pickler: Any = vars(pickle)["_Pickler"]  # the one in Python, whose parts can be replaced


class Python2(_Pickler):
    """Writes what Python 2 wrote: strings of bytes, and the names of NumPy's modules then."""

    dispatch = dict(_Pickler.dispatch)

    def string(self, value):
        short = len(value) < 256
        size = bytes([len(value)]) if short else len(value).to_bytes(4, "little")
        self.write((b"U" if short else b"T") + size + value)
        self.memoize(value)

    dispatch[bytes] = string

    def save_global(self, value, name=None):
        modules = {np.dtype: "numpy", np.ndarray: "numpy"}
        module = modules.get(value, "numpy.core.multiarray")
        self.write(f"c{module}\n{value.__name__}\n".encode())
        self.memoize(value)

    dispatch[type] = save_global

    def save_str(self, value):
        self.string(value.encode("latin-1"))

    dispatch[str] = save_str


def pickled(value) -> bytes:
    file = io.BytesIO()
    Python2(file, protocol=2).dump(value)
    return file.getvalue()


def python(kind: int, dump=pickled) -> dict[str, bytes]:
    folder = "cifar-10-batches-py" if kind == 10 else "cifar-100-python"
    files = {}
    for name, (pixels, fine, coarse) in batches_of(kind).items():
        if kind == 10 and name == "test":
            name = "test_batch"
        labels = {"labels": fine.tolist()}
        if kind == 100:
            labels = {"fine_labels": fine.tolist(), "coarse_labels": coarse.tolist()}
        batch = {
            "batch_label": name,
            "data": pixels,
            "filenames": ["a.png"] * len(fine),
            **labels,
        }
        encoded = {k.encode(): v for k, v in batch.items()}
        files[f"{folder}/{name}"] = dump(encoded)
    return files


def test_what_is_pickled_is_what_python_2_wrote():
    content = pickled({b"data": np.zeros((2, 3), np.uint8)})
    assert b"cnumpy.core.multiarray\n_reconstruct\n" in content and b"U\x04data" in content
    assert list(pickle.loads(content, encoding="bytes")) == [b"data"]


FORMS = {
    "binary": binary,
    "python": python,
    # As it would be written today.
    "python 3": lambda kind: python(kind, lambda value: pickle.dumps(value, protocol=4)),
}


@pytest.mark.filterwarnings("ignore:numpy.core")  # by the test's own `pickle.loads`
@pytest.mark.parametrize("kind", (10, 100))
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("place", ("archive", "beside", "inside"))
def test_cifar(tmp_path, kind, form, place):
    files = FORMS[form](kind)
    inside = next(iter(files)).split("/")[0]
    if place == "archive":
        archive = inside.replace("-batches-bin", "-binary").replace("-batches-py", "-python")
        tarred(tmp_path / f"{archive}.tar.gz", files | {f"{inside}/readme.html": b"no"})
    else:
        write(tmp_path, files)
    folder = tmp_path / inside if place == "inside" else tmp_path
    splits = cifar.load(folder, kind, counts=COUNTS)
    assert [len(s) for s in (splits.train, splits.valid, splits.test)] == [45, 5, 12]

    # By the formulas, in the order of PyTorch's split.
    mean, std = (np.array(a[kind])[:, None, None] for a in (cifar.MEAN, cifar.STD))
    pixels, labels, _ = drawn(50, kind)
    order = _source.permutation(50, 42)
    for i, (x, y) in enumerate(examples(splits.train) + examples(splits.valid)):
        wanted = (pixels[order[i]].reshape(3, 32, 32) / 255 - mean) / std
        np.testing.assert_allclose(x, wanted, atol=2e-6)
        assert x.dtype == np.float32 and y == labels[order[i]] and y.dtype == np.int32
    pixels, labels, _ = drawn(12, kind)
    for i, (x, y) in enumerate(examples(splits.test)):
        # Red, green and blue planes, by rows.
        np.testing.assert_allclose(
            x[1, 2, 5],
            (pixels[i, 1024 + 2 * 32 + 5] / 255 - mean[1, 0, 0]) / std[1, 0, 0],
            1e-5,
        )
        assert y == labels[i]


def test_binary_comes_first(tmp_path):
    write(tmp_path, binary(10))
    write(tmp_path, dict.fromkeys(python(10), b"damaged"))
    assert len(cifar.load(tmp_path, counts=COUNTS).test) == 12


@pytest.mark.parametrize("form", ("binary", "python"))
def test_coarse_labels(tmp_path, form):
    write(tmp_path, FORMS[form](100))
    splits = cifar.load(tmp_path, 20, counts=COUNTS)
    assert [y for _, y in examples(splits.test)] == drawn(12, 100)[2].tolist()


def test_grey_sequences(tmp_path):
    write(tmp_path, binary(10))
    splits = cifar.load(tmp_path, grey=True, sequential=True, counts=COUNTS)
    pixels = drawn(12, 10)[0].reshape(12, 3, 32, 32).transpose(0, 2, 3, 1)
    for (x, _), image in zip(examples(splits.test), pixels):
        wanted = np.asarray(Image.fromarray(image).convert("L")).reshape(1, 1024)
        np.testing.assert_allclose(x, (wanted - 122.6) / 61.0, atol=2e-6)
        assert x.shape == (1, 1024)


def test_luma_is_pillows():
    # All corners and many in between: 0.5 is rounded as Pillow rounds it.
    grid = np.arange(0, 256, 5, dtype=np.uint8)
    colours = np.stack(np.meshgrid(grid, grid, grid), axis=-1).reshape(1, -1, 3)
    wanted = np.asarray(Image.fromarray(colours).convert("L"))
    found = cifar.luma(colours.transpose(0, 2, 1)[..., None])
    assert np.array_equal(found.ravel(), wanted.ravel())


def test_augment():
    x = np.random.default_rng(0).normal(size=(3, 32, 32)).astype(np.float32)
    possible = {}
    for rows, columns, flip in it.product(range(9), range(9), (1, -1)):
        i, j = (np.arange(32) + k - 4 for k in (rows, columns))
        i, j = (np.where(k < 0, -1 - k, np.where(k > 31, 63 - k, k)) for k in (i, j))
        possible[x[:, i][:, :, j][:, :, ::flip].tobytes()] = (rows, columns, flip)
    assert len(possible) == 162
    rng = np.random.default_rng(1)
    seen = []
    for _ in range(500):
        out, y = cifar.augment((x, 7), rng)
        assert out.shape == x.shape and y == 7
        seen.append(possible[out.tobytes()])
    assert len(set(seen)) > 140
    for values in zip(*seen):
        _, counts = np.unique(values, return_counts=True)
        assert counts.min() > 0.7 * 500 / len(counts)


def test_augmented_batches(tmp_path):
    write(tmp_path, binary(10))
    train = cifar.load(tmp_path, counts=COUNTS).train
    for x, y in batches(train, 9, seed=0, epochs=1, transform=cifar.augment):
        assert x.shape == (9, 3, 32, 32) and y.shape == (9,)


def test_cifar_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="cifar-100-binary.tar.gz nor cifar-100-python"):
        cifar.load(tmp_path, 100)
    files = binary(10)
    del files["cifar-10-batches-bin/data_batch_3.bin"]
    write(tmp_path, files)
    with pytest.raises(FileNotFoundError, match="data_batch_3.bin.*toronto"):
        cifar.load(tmp_path)
    tarred(tmp_path / "cifar-100-binary.tar.gz", {"cifar-100-binary/train.bin": b""})
    with pytest.raises(ValueError, match=r"has no \['test.bin'\]"):
        cifar.load(tmp_path, 100)


def test_cifar_of_other_classes(tmp_path):
    with pytest.raises(ValueError, match="`classes` must be 10, 20 or 100, got 50"):
        cifar.load(tmp_path, 50)


def test_cifar_cut_off(tmp_path):
    files = binary(10)
    name = "cifar-10-batches-bin/data_batch_2.bin"
    for content in (files[name][:-1], files[name][:-3073], files[name] + b"\0"):
        write(tmp_path, files | {name: content})
        with pytest.raises(
            ValueError, match="data_batch_2.bin has .* bytes, and 10 images are"
        ):
            cifar.load(tmp_path, counts=COUNTS)
    # What is whole here is not whole for the official files.
    write(tmp_path, files)
    with pytest.raises(ValueError, match="10,000 images are 30,730,000"):
        cifar.load(tmp_path)


@pytest.mark.parametrize("form", ("binary", "python"))
def test_an_archive_cut_off(tmp_path, form):
    name = tmp_path / f"cifar-10-{form}.tar.gz"
    tarred(name, FORMS[form](10))
    content = name.read_bytes()
    for cut in (10, len(content) // 2, len(content) - 9):
        name.write_bytes(content[:cut])
        with pytest.raises(ValueError, match="is damaged or cut off|has no"):
            cifar.load(tmp_path, counts=COUNTS)
    middle = bytearray(content)
    middle[len(content) // 2] ^= 1
    name.write_bytes(middle)
    with pytest.raises(ValueError, match="is damaged or cut off"):
        cifar.load(tmp_path, counts=COUNTS)


@pytest.mark.parametrize("kind, label", ((10, 10), (100, 100)))
def test_unknown_labels(tmp_path, kind, label):
    for form in (binary, python):
        files = form(kind)
        name = next(name for name in files if "test" in name)
        if form is binary:
            content = bytearray(files[name])
            content[kind // 100] = label
            files[name] = bytes(content)
        else:
            pixels, fine, coarse = drawn(12, kind)
            fine[0] = label
            key = b"labels" if kind == 10 else b"fine_labels"
            files[name] = pickled({b"data": pixels, key: fine.tolist()})
        folder = tmp_path / form.__name__
        write(folder, files)
        with pytest.raises(
            ValueError, match=f"test.* has a label {label}, not 0 to {kind - 1}"
        ):
            cifar.load(folder, kind, counts=COUNTS)


@pytest.mark.parametrize("name", ("../evil", "/tmp/evil", "cifar-10-batches-bin/../../evil"))
def test_archives_that_lead_out(tmp_path, name):
    tarred(tmp_path / "cifar-10-binary.tar.gz", {name: b"x"} | binary(10))
    with pytest.raises(ValueError, match="leads out.*evil"):
        cifar.load(tmp_path, counts=COUNTS)
    assert not (tmp_path.parent / "evil").exists()


@pytest.mark.parametrize("kind", (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE))
def test_archives_of_links(tmp_path, kind):
    info = tarfile.TarInfo("cifar-10-batches-bin/data_batch_1.bin")
    info.type, info.linkname = kind, "/etc/passwd"
    tarred(tmp_path / "cifar-10-binary.tar.gz", {}, info)
    with pytest.raises(ValueError, match="is no file"):
        cifar.load(tmp_path, counts=COUNTS)


class Trap:
    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "trap, message",
    (
        (Trap(print, "It was called."), "builtins.print is not allowed"),
        (Trap(eval, "1"), "eval is not allowed"),
        (Trap(getattr, "a", "encode"), "getattr is not allowed"),
        (np.array([1, "a"], object), "bytes in C order"),
        (np.zeros((12, 3072), np.int32), "bytes in C order"),
        (np.asfortranarray(np.zeros((12, 3072), np.uint8)), "bytes in C order"),
        (np.float64(3.0), "scalar is not allowed"),
        (np.zeros(3).view(np.recarray), "is not allowed"),
        (Path("a"), "is not allowed"),
    ),
    ids=lambda value: type(value).__name__,
)
def test_no_pickle_can_call(tmp_path, capsys, trap, message):
    files = python(10)
    for key in (b"data", b"labels", b"other"):
        content = {b"data": np.zeros((12, 3072), np.uint8), b"labels": [0] * 12, key: trap}
        files["cifar-10-batches-py/test_batch"] = pickle.dumps(content, protocol=4)
        write(tmp_path, files)
        with pytest.raises(ValueError, match=f"test_batch .*{message}"):
            cifar.load(tmp_path, counts=COUNTS)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "content",
    (
        b"",
        b"\x80\x02N.",
        b"\x80\x02]q\x00.",
        b"\x80\x02}q\x00U\x04dataq\x01K\x01s.",
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n.",  # not called
        b"\x80\x02cnumpy\ndtype\n(U\x02u1tRK\x01b.",
        b"\x80\x02}U\x04datacnumpy.core.multiarray\n_reconstruct\n)Rs.",  # without a state
        b"\x80\x02}U\x04datacnumpy.core.multiarray\n_reconstruct\n)R(K\x01K\x02tbs.",
        b"\x80\x02U\xff.",
        b"\x80\x05\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",
        b"garbage",
        b"cposix\nsystem\n(S'true'\ntR.",
        b"\x80\x02Pid\n.",
        b"\x80\x02\x82\x01.",
    ),
)
def test_damaged_pickles(tmp_path, content):
    write(tmp_path, python(10) | {"cifar-10-batches-py/test_batch": content})
    with pytest.raises(ValueError, match="test_batch "):
        cifar.load(tmp_path, counts=COUNTS)


def test_pickles_of_other_sizes(tmp_path):
    for pixels, labels in ((11, 12), (12, 11), (13, 13)):
        batch = {b"data": np.zeros((pixels, 3072), np.uint8), b"labels": [0] * labels}
        write(tmp_path, python(10) | {"cifar-10-batches-py/test_batch": pickled(batch)})
        with pytest.raises(ValueError, match=f"an array .{pixels}, 3072. and {labels} labels"):
            cifar.load(tmp_path, counts=COUNTS)


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs sample data")
def test_real_cifar(tmp_path):
    """10,000 images of the official test set, of 1,000 a class, in the binary format."""
    with np.load(SHARED / "cifar10_c.npz") as file:
        labels = file["label"]
    content = np.zeros((len(labels), 3073), np.uint8)
    content[:, 0] = labels
    files = {f"data_batch_{i}.bin": content[:1].tobytes() for i in range(1, 6)}
    write(tmp_path, files | {"test_batch.bin": content[-10_000:].tobytes()})
    test = cifar.load(tmp_path, counts=(5, 10_000)).test
    y = np.array([test[i][1] for i in range(10_000)])
    assert np.bincount(y).tolist() == [1000] * 10
    assert y[:10].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]  # as published: a cat, two ships


#
# MNIST.
#


def idx(array: np.ndarray) -> bytes:
    sizes = b"".join(n.to_bytes(4, "big") for n in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


def digits(n: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(n)
    return rng.integers(256, size=(n, 28, 28)), rng.integers(10, size=n)


def mnist_files() -> dict[str, bytes]:
    files = {}
    for name, n in (("train", 40), ("t10k", 9)):
        x, y = digits(n)
        files |= {f"{name}-images-idx3-ubyte": idx(x), f"{name}-labels-idx1-ubyte": idx(y)}
    return files


@pytest.mark.parametrize("zipped", (False, True))
def test_mnist(tmp_path, zipped):
    files = mnist_files()
    if zipped:
        files = {f"{name}.gz": gzip.compress(content) for name, content in files.items()}
    write(tmp_path, files)
    splits = mnist.load(tmp_path, counts=(40, 9))
    assert [len(s) for s in (splits.train, splits.valid, splits.test)] == [36, 4, 9]
    with pytest.raises(
        ValueError, match="idx3-ubyte has 40 examples, not the 60,000 that were"
    ):
        mnist.load(tmp_path)
    x, y = digits(40)
    order = _source.permutation(40, 42)
    for i, (image, label) in enumerate(examples(splits.train) + examples(splits.valid)):
        wanted = (x[order[i]][None] / 255 - 0.1307) / 0.3081
        np.testing.assert_allclose(image, wanted, atol=2e-6)
        assert label == y[order[i]] and label.dtype == np.int32
    x, y = digits(9)
    assert [label for _, label in examples(splits.test)] == y.tolist()

    rows = mnist.load(tmp_path, sequential=True, counts=None).test[3][0]
    np.testing.assert_allclose(rows, (x[3].reshape(1, 784) / 255 - 0.1307) / 0.3081, atol=2e-6)
    permuted = [
        mnist.load(tmp_path, permute=seed, counts=None).test[3][0] for seed in (1, 1, 2)
    ]
    assert np.array_equal(permuted[0], permuted[1])
    assert not np.array_equal(permuted[0], permuted[2])
    assert np.array_equal(permuted[0], rows[:, np.random.RandomState(1).permutation(784)])


@pytest.mark.parametrize(
    "name, change, message",
    (
        ("train-images-idx3-ubyte", lambda c: c[:-1], r"says \(40, 28, 28\), that is 31,360"),
        ("train-images-idx3-ubyte", lambda c: c[:10], "cut off in its header"),
        ("train-images-idx3-ubyte", lambda c: c[:2], "no idx file of bytes"),
        ("train-images-idx3-ubyte", lambda c: b"\0\0\x0d" + c[3:], "no idx file of bytes"),
        ("train-images-idx3-ubyte", lambda c: idx(np.zeros((40, 28, 27))), r"\(40, 28, 27\)"),
        ("train-images-idx3-ubyte", lambda c: b"\0\0\x08\x03" + b"\xff" * 12, "that is 7"),
        ("t10k-labels-idx1-ubyte", lambda c: idx(np.zeros(8)), r"labels \(8,\)"),
        ("t10k-labels-idx1-ubyte", lambda c: idx(np.full(9, 10)), "has a label 10, not 0 to 9"),
    ),
)
def test_damaged_mnist(tmp_path, name, change, message):
    files = mnist_files()
    write(tmp_path, files | {name: change(files[name])})
    with pytest.raises(ValueError, match=message):
        mnist.load(tmp_path, counts=None)


def test_mnist_missing(tmp_path):
    files = mnist_files()
    del files["t10k-images-idx3-ubyte"]
    write(tmp_path, files)
    with pytest.raises(FileNotFoundError, match="t10k-images-idx3-ubyte.*yann.lecun.org"):
        mnist.load(tmp_path, counts=None)
    write(tmp_path, {"t10k-images-idx3-ubyte.gz": gzip.compress(b"12345")[:-5]})
    with pytest.raises(ValueError, match="damaged or cut off"):
        mnist.load(tmp_path, counts=None)


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs sample data")
def test_real_mnist(tmp_path):
    with np.load(SHARED / "mnist.npz") as file:
        x, y = file["x_test"], file["y_test"]
    files = {"images-idx3-ubyte": idx(x.reshape(-1, 28, 28)), "labels-idx1-ubyte": idx(y)}
    write(tmp_path, {f"{p}-{name}": c for p in ("train", "t10k") for name, c in files.items()})
    splits = mnist.load(tmp_path, counts=None)
    assert [y for _, y in (splits.test[i] for i in range(5))] == [7, 2, 1, 0, 4]
    pixels = np.stack([splits.test[i][0] for i in range(10_000)])
    # The published mean and deviation are of the training set.
    assert abs(pixels.mean()) < 0.02 and abs(pixels.std() - 1) < 0.02


#
# Pathfinder.
#


def path_files(level: str, batch: int, n: int, size: int = 32) -> dict[str, bytes]:
    """A list of images and the images, the first pixels of which say which they are."""
    files, rows = {}, []
    for i in range(n):
        pixels = np.full((size, size), 255, np.uint8)
        pixels[0, :3] = batch, i, 7
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "png")
        files[f"{level}/imgs/{batch}/sample_{i}.png"] = file.getvalue()
        label = (batch + i) % 2
        rows.append(f"imgs/{batch} sample_{i}.png {i} {label} 1.0 14 4 2 0.5 1 1")
    files[f"{level}/metadata/{batch}.npy"] = "\n".join(rows).encode() + b"\n"
    return files


HARD = "curv_contour_length_14"


def test_pathfinder(tmp_path):
    for batch in (10, 9, 2):
        write(tmp_path, path_files(HARD, batch, 7))
    splits = pathfinder.load(tmp_path, size=32, count=21)
    assert [len(s) for s in (splits.train, splits.valid, splits.test)] == [17, 2, 2]
    ordered = [(batch, i) for batch in (2, 9, 10) for i in range(7)]
    order = _source.permutation(21, 42)
    read = [*examples(splits.train), *examples(splits.valid), *examples(splits.test)]
    for k, (x, y) in zip(order, read):
        batch, i = ordered[k]
        assert x.shape == (1, 32, 32) and x.dtype == np.float32 and y.dtype == np.int32
        np.testing.assert_allclose((x[0, 0, :4] / 2 + 0.5) * 255, [batch, i, 7, 255], atol=1e-4)
        assert x.max() == 1 and y == (batch + i) % 2
    rows = pathfinder.load(tmp_path, sequential=True, count=None).train[3][0]
    assert rows.shape == (1, 1024)
    assert np.array_equal(rows.reshape(1, 32, 32), splits.train[3][0])


def test_pathfinder_sizes_and_batches(tmp_path):
    write(tmp_path, path_files(HARD, 0, 10, size=64))
    train = pathfinder.load(tmp_path, sequential=True, count=None).train
    for x, y in batches(train, 4, seed=0, epochs=1):
        assert x.shape == (4, 1, 4096) and y.shape == (4,)


def test_pathfinder_incomplete_or_of_another_size(tmp_path):
    for batch in (0, 1):
        write(tmp_path, path_files(HARD, batch, 10))
    with pytest.raises(ValueError, match="14 has 20 examples, not the 200,000"):
        pathfinder.load(tmp_path)
    with pytest.raises(ValueError, match="images of 32 pixels on a side, not 128"):
        pathfinder.load(tmp_path, size=128, count=20)


def test_the_empty_image(tmp_path):
    files = path_files("curv_baseline", 0, 180)
    name = "curv_baseline/imgs/0/sample_172.png"
    write(tmp_path, files)
    whole = pathfinder.load(tmp_path, level="curv_baseline", count=180)
    write(tmp_path, {name: b""})
    splits = pathfinder.load(tmp_path, level="curv_baseline", count=180)
    sizes = [sum(len(s) for s in (x.train, x.valid, x.test)) for x in (whole, splits)]
    assert sizes == [180, 179]
    # No other image is forgiven.
    write(tmp_path, {name: files[name], name.replace("172", "171"): b""})
    splits = pathfinder.load(tmp_path, level="curv_baseline", count=180)
    with pytest.raises(ValueError, match="sample_171.png is no image"):
        for split in (splits.train, splits.valid, splits.test):
            examples(split)


def test_damaged_images(tmp_path):
    files = path_files(HARD, 0, 10)
    write(tmp_path, files)
    splits = pathfinder.load(tmp_path, count=None)
    path = tmp_path / HARD / "imgs/0"
    for cut in (0, 30, 60, -30):
        for image in path.iterdir():
            image.write_bytes(files[f"{HARD}/imgs/0/{image.name}"][:cut])
        with pytest.raises(ValueError, match="is no image, or a damaged one"):
            splits.train[0]
    write(tmp_path, path_files(HARD, 0, 10, size=16))
    with pytest.raises(ValueError, match=r"has \(16, 16\) pixels, not 32 square"):
        splits.train[0]
    for image in path.iterdir():
        image.unlink()
    with pytest.raises(FileNotFoundError, match="lra_release.gz"):
        splits.train[0]


@pytest.mark.parametrize(
    "row, message",
    (
        ("imgs/0 sample_0.png 0", "must have a folder imgs/N"),
        ("../x sample_0.png 0 1", "must have a folder imgs/N"),
        ("imgs/0 ../../x.png 0 1", "must have a folder imgs/N"),
        ("imgs/0 sample_0.png 0 2", "line 2 has the label '2'"),
    ),
)
def test_damaged_lists(tmp_path, row, message):
    write(tmp_path, path_files(HARD, 0, 3))
    good = "imgs/0 sample_0.png 0 1 1.0 14 4 2 0.5 1 1\n"
    write(tmp_path, {f"{HARD}/metadata/0.npy": (good + row).encode()})
    with pytest.raises(ValueError, match=message):
        pathfinder.load(tmp_path, count=None)


def test_lists_that_numpy_wrote(tmp_path):
    """As drewlinsley/pathfinder saves them: rows of strings, and nothing else."""
    write(tmp_path, path_files(HARD, 0, 12))
    path = tmp_path / HARD / "metadata" / "0.npy"
    wanted = pathfinder.load(tmp_path, count=None)
    rows = [line.split() for line in path.read_text().splitlines()]
    np.save(path, np.array(rows))
    again = pathfinder.load(tmp_path, count=None)
    for one, two in ((wanted.train, again.train), (wanted.test, again.test)):
        assert [one[i][1] for i in range(len(one))] == [two[i][1] for i in range(len(two))]
    for bad, message in (
        (np.array(rows, object), "is damaged, or has more than strings"),
        (np.zeros((3, 4)), r"must have rows of strings, got float64 of shape \(3, 4\)"),
    ):
        np.save(path, bad, allow_pickle=True)
        with pytest.raises(ValueError, match=message):
            pathfinder.load(tmp_path, count=None)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match="is damaged"):
        pathfinder.load(tmp_path, count=None)


def test_pathfinder_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="no lists of images.*lra_release.gz"):
        pathfinder.load(tmp_path, count=None)
    with pytest.raises(ValueError, match="`level` must be one of"):
        pathfinder.load(tmp_path, level="hard")
    write(tmp_path, {f"{HARD}/metadata/0.npy": b""})
    with pytest.raises(ValueError, match="are empty"):
        pathfinder.load(tmp_path, count=None)
