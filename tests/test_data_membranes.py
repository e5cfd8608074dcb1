"""Electron micrographs of ISBI 2012."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from recipes import _hyperparameters, membranes as recipe
from recipes.data import batches, membranes


SHARED = Path(__file__).parents[2] / "shared" / "data"


def write(folder: Path, volume: np.ndarray, labels: np.ndarray) -> None:
    for name, stack in (("volume", volume), ("labels", labels)):
        pages = [Image.fromarray(page) for page in stack]
        pages[0].save(folder / f"train-{name}.tif", save_all=True, append_images=pages[1:])


def drawn(pages: int = 30, side: int = 512) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    volume = rng.integers(256, size=(pages, side, side)).astype(np.uint8)
    return volume, np.where(rng.random((pages, side, side)) < 0.4, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    folder = tmp_path_factory.mktemp("isbi")
    volume, labels = drawn()
    write(folder, volume, labels)
    return folder, volume, labels


@pytest.mark.parametrize("tile, every", [(128, 1), (64, 2), (512, 4)])
def test_tiles(stack, tile, every):
    folder, volume, labels = stack
    splits = membranes.load(folder, tile=tile, every=every)
    row = 512 // tile
    parts = (splits.train, splits.valid, splits.test)
    assert [len(part) for part in parts] == [n * row**2 for n in (24, 3, 3)]

    # The third tile of the second row, if there is one, of the second slice to choose by.
    i, j = min(1, row - 1), min(2, row - 1)
    x, y = splits.valid[row**2 + i * row + j]
    at = (25, slice(i * tile, (i + 1) * tile), slice(j * tile, (j + 1) * tile))
    side = tile // every
    means = np.zeros((2, side, side))
    for a in range(side):
        for b in range(side):
            square = (slice(a * every, (a + 1) * every), slice(b * every, (b + 1) * every))
            means[:, a, b] = volume[at][square].mean(), (labels[at][square] == 0).mean()
    train = volume[:24].astype(float)
    assert x.dtype == y.dtype == np.float32 and x.shape == (1, side, side)
    np.testing.assert_allclose(x[0], (means[0] - train.mean()) / train.std(), atol=1e-5)
    np.testing.assert_array_equal(y[0], means[1] >= 0.5)
    assert not y[1].any()


def test_turns_are_of_image_and_mask_alike():
    x = np.arange(16.0).reshape(1, 4, 4)
    example = x, np.stack([x[0], -x[0]])
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(100):
        new, (mask, ignored) = membranes.turn(example, rng)
        np.testing.assert_array_equal(new[0], mask)
        np.testing.assert_array_equal(mask, -ignored)
        seen.add(new.tobytes())
    # All eight symmetries of a square, and nothing else.
    turned = [np.rot90(y, k) for y in (x[0], x[0].T) for k in range(4)]
    assert seen == {np.ascontiguousarray(y).tobytes() for y in turned}


def test_batches(stack):
    splits = membranes.load(stack[0], tile=64, every=2)
    data = batches(splits.train, 8, seed=0, transform=membranes.turn)
    x, y = next(data)
    assert x.shape == (8, 1, 32, 32) and y.shape == (8, 2, 32, 32)


def test_recipe(stack):
    laptop = _hyperparameters.LAPTOP["membranes"]
    task = recipe.task("membranes", stack[0], laptop, 0)
    assert task.network.shape == (32, 32) and not task.network.pool
    assert (len(task.splits.train), len(task.splits.test)) == (1536, 192)


def test_damaged(tmp_path, stack):
    folder, volume, labels = stack
    with pytest.raises(
        FileNotFoundError, match=r"train-volume\.tif. It is from https://imagej"
    ):
        membranes.load(tmp_path)
    content = (folder / "train-volume.tif").read_bytes()
    (tmp_path / "train-labels.tif").write_bytes((folder / "train-labels.tif").read_bytes())
    for wrong in (b"nothing", content[:200_000]):
        (tmp_path / "train-volume.tif").write_bytes(wrong)
        with pytest.raises(ValueError, match=r"train-volume\.tif is no TIFF, or a damaged one"):
            membranes.load(tmp_path)
    write(tmp_path, volume[:29], labels)
    with pytest.raises(ValueError, match="has 29 pages.*not 30 of 512 x 512"):
        membranes.load(tmp_path)
    write(tmp_path, volume[:, :500], labels)
    with pytest.raises(ValueError, match="30 pages.*500.*not 30 of 512 x 512"):
        membranes.load(tmp_path)
    write(tmp_path, volume, volume)
    with pytest.raises(ValueError, match=r"values \[0, 1, 2, 3, 4\], not 0 on membranes"):
        membranes.load(tmp_path)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"tile": 100}, "`tile` must divide 512"),
        ({"tile": 64, "every": 3}, "`every` divide `tile`; got 64 and 3"),
        ({"slices": (30, 0, 0)}, "`slices` must be positive"),
        ({"slices": (25, 3, 3)}, "at most 30"),
    ],
)
def test_arguments(stack, arguments, message):
    with pytest.raises(ValueError, match=message):
        membranes.load(stack[0], **arguments)


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the real micrographs")
def test_real_ones(tmp_path):
    with np.load(SHARED / "em_membrane_isbi2012.npz") as file:
        write(tmp_path, file["image"], 255 * file["label"])
    splits = membranes.load(tmp_path, tile=64, every=2)
    x, y = (np.stack(arrays) for arrays in zip(*(splits.test[i] for i in range(192))))
    # Membranes are dark, and a fifth of the pixels.
    assert x[:, 0][y[:, 0] == 1].mean() < -0.5 < 0 < x[:, 0][y[:, 0] == 0].mean()
    assert 0.15 < y[:, 0].mean() < 0.3
