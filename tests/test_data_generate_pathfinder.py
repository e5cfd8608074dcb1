import functools as ft
import itertools as it

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from recipes.data import generate_pathfinder as pathfinder, pathfinder as loader
from recipes.data.generate_pathfinder import Spec


@ft.cache
def drawn(size: int, n: int) -> list[pathfinder.Drawing]:
    spec = pathfinder.spec(size)
    return [pathfinder.generate(np.random.default_rng((5, i)), spec) for i in range(n)]


def ends(contour: pathfinder.Contour, length: float) -> np.ndarray:
    """Both ends of every paddle, `(paddles, 2, 2)`, in rows and columns."""
    starts = np.array([paddle.start for paddle in contour], float)
    angles = np.array([paddle.angle for paddle in contour])
    return np.stack(
        [starts, starts + length * np.stack([np.sin(angles), np.cos(angles)], 1)], axis=1
    )


def distances(points: np.ndarray, segments: np.ndarray) -> np.ndarray:
    """From every point to the nearest segment."""
    a, b = segments[:, 0], segments[:, 1]
    along = np.einsum("psk,sk->ps", points[:, None] - a, b - a) / np.sum((b - a) ** 2, 1)
    nearest = a + np.clip(along, 0, 1)[..., None] * (b - a)
    return np.linalg.norm(points[:, None] - nearest, axis=2).min(axis=1)


def crossing(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether any segment of the one crosses any of the other: each has the other's ends on
    both sides of it.
    """
    side = lambda a, b, c: np.sign(
        (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
    )
    return any(
        side(a, b, c) * side(a, b, d) < 0 and side(c, d, a) * side(c, d, b) < 0
        for (a, b), (c, d) in it.product(one, other)
    )


#
# Images.
#


@pytest.mark.parametrize("size, n", ((32, 100), (128, 8)))
def test_labels_from_images(size, n):
    """One of the long contours has a disc where it starts, and one where it ends: those that
    are bright all over there, in the image.
    """
    radius, clear = pathfinder.spec(size).marker_radius, 0
    y, x = np.indices((size, size))
    for drawing in drawn(size, n):
        starts, stops = ([c[i].start for c in drawing.targets] for i in (0, -1))
        brightness = np.array(
            [
                [drawing.image[np.hypot(y - a, x - b) < radius - 0.3].min() for a, b in tips]
                for tips in (starts, stops)
            ]
        )
        first, last = brightness.argmax(axis=1)
        assert brightness.max(axis=1).min() > 110
        if np.all(brightness.min(axis=1) < 0.8 * brightness.max(axis=1)):
            # Not both ends are in one disc.
            clear += 1
            assert drawing.label == (first == last)
            assert drawing.markers.tolist() == [list(starts[first]), list(stops[last])]
    assert clear > 0.8 * n


def test_discs_are_seen():
    """At 128 pixels nothing else is as bright over so many pixels, and there are two."""
    for drawing in drawn(128, 8):
        bright = ndimage.minimum_filter(drawing.image, 4)
        spots, count = ndimage.label(bright > 240)  # pyright: ignore
        centres = np.array(ndimage.center_of_mass(spots, spots, range(1, count + 1)))
        gaps = np.linalg.norm(drawing.markers[:, None] - centres, axis=2)
        assert np.all(gaps.min(axis=0) < 3) and np.all(gaps.min(axis=1) < 3)


@pytest.mark.parametrize("size, n", ((32, 20), (128, 4)))
def test_images_show_paddles_and_discs(size, n):
    spec = pathfinder.spec(size)
    points = np.argwhere(np.ones((size, size))).astype(float)
    for drawing in drawn(size, n):
        contours = (*drawing.targets, *drawing.distractors)
        segments = np.concatenate([ends(c, spec.paddle_length) for c in contours])
        away = distances(points, segments).reshape(size, size)
        y, x = points.T.reshape(2, size, size)
        discs = [np.hypot(y - a, x - b) for a, b in drawing.markers]
        # Pixels, rounding and the reduction each take one at most, in one direction or other.
        empty = away > spec.thickness / 2 + 2.3
        for disc in discs:
            empty &= disc > spec.marker_radius + 1.5
        assert np.all(drawing.image[empty] < 12) and np.mean(empty) > 0.1
        for disc in discs:
            assert np.all(drawing.image[disc < spec.marker_radius - 0.75] > 110)
        # There is no paddle that is not seen, and no gap that is.
        for contour in contours:
            for a, b in ends(contour, spec.paddle_length):
                middle = np.round((a + b) / 2).astype(int)
                top, left = np.clip(middle - 1, 0, size - 3)
                around = drawing.image[top : top + 3, left : left + 3]
                assert around.max() > 80


@pytest.mark.parametrize("size, n", ((32, 40), (128, 8)))
def test_contours(size, n):
    spec = pathfinder.spec(size)
    central = 0
    for drawing in drawn(size, n):
        step = spec.paddle_length + 2 * drawing.margin
        assert drawing.margin in spec.margins
        assert [len(contour) for contour in drawing.targets] == [14, 14]
        assert len(drawing.distractors) <= spec.distractors
        assert {len(contour) for contour in drawing.distractors} <= {4}
        for contour in (*drawing.targets, *drawing.distractors):
            starts = np.array([paddle.start for paddle in contour])
            assert starts.min() >= 0 and starts.max() < size
            # The first paddle lies forwards from where it starts, the others back.
            angles = np.array([contour[0].angle] + [p.angle + np.pi for p in contour[1:]])
            turns = np.abs((np.diff(angles) + np.pi) % (2 * np.pi) - np.pi)
            assert np.all(turns < np.pi / 2 / spec.continuity + 1e-9)
            moved = np.linalg.norm(np.diff(starts[1:], axis=0), axis=1)
            assert np.all(moved < step + drawing.margin + 3)
        one, other = (np.array(contour[0].start) for contour in drawing.targets)
        assert np.linalg.norm(one - other) == pytest.approx(spec.seed_distance, abs=1)
        far = 2 * spec.seed_distance
        central += one.min() >= far - 1 and one.max() <= size - far
    # Where a paddle points out of the image the published code takes the outside for free.
    assert central > 0.9 * n


def test_contours_do_not_cross():
    """But for the last paddle of the first, which nothing keeps out of."""
    spec = pathfinder.spec(128)
    for drawing in drawn(128, 8):
        one, other = drawing.targets
        contours = [one[:-1], other, *drawing.distractors]
        segments = [ends(contour, spec.paddle_length) for contour in contours]
        assert not any(it.starmap(crossing, it.combinations(segments, 2)))


def test_against_what_the_published_generator_gives():
    """731 images were drawn with `snakes2.py` itself (NumPy's float64), with
    `scipy.misc.imresize` and `imsave` put back: means of what is seen.
    """
    drawings = drawn(32, 240)
    images = np.stack([drawing.image for drawing in drawings]).astype(float)
    statistics = {
        "grey": (images.mean((1, 2)), 20.2),
        "lit": (np.sum(images > 10, axis=(1, 2)), 162),
        "end": (np.array([drawing.markers[1, 0] for drawing in drawings]), 16.5),
        "distractors": (np.array([len(drawing.distractors) for drawing in drawings]), 1.18),
    }
    for name, (got, mean) in statistics.items():
        error = 3.5 * got.std() * (1 / 731 + 1 / len(got)) ** 0.5
        assert got.mean() == pytest.approx(mean, abs=error), name
    labels = [drawing.label for drawing in drawings]
    assert np.mean(labels) == pytest.approx(0.5, abs=0.12)
    assert all(image.min() == 0 and image.max() == 255 for image in images)


@pytest.mark.parametrize("size, margin, wanted", [(32, 1, 30), (64, 1, 95), (128, 2, 354)])
def test_directions_to_start_in(size, margin, wanted):
    """Of 360, counted in the published code."""
    tables = pathfinder._tables(pathfinder.spec(size), margin)
    found = np.flatnonzero(tables.counts)
    assert len(found) == wanted
    if size == 32:
        assert found.tolist() == list(range(30, 60)), "-150 to -121 degrees"


#
# Settings.
#


def test_published_settings():
    """google-research/long-range-arena: lra_benchmarks/data/pathfinder.py."""
    hard = pathfinder.spec(32)
    assert hard == Spec() and hard.distractor_length == 14 // 3
    assert [pathfinder.spec(size).distractors for size in (32, 64, 128, 256)] == [
        *(20 // 4, 22 // 4, 35 // 4, 30 // 4)
    ]
    levels = [pathfinder.spec(128, level) for level in ("easy", "intermediate", "hard")]
    assert [spec.contour_length for spec in levels] == [6, 9, 14]
    assert [spec.distractor_length for spec in levels] == [2, 3, 4]
    assert [spec.distractors for spec in levels] == [17, 11, 8]


@pytest.mark.parametrize("size", (64, 256))
def test_other_sizes(size):
    drawing = pathfinder.generate(np.random.default_rng(0), pathfinder.spec(size, "easy"))
    assert drawing.image.shape == (size, size) and drawing.image.dtype == np.uint8
    assert [len(contour) for contour in drawing.targets] == [6, 6]


@pytest.mark.parametrize(
    "arguments, message",
    (
        ({"size": 28}, "`size` must be over four times `seed_distance`, got 28 and 7"),
        ({"contour_length": 1}, "`contour_length` must be at least 2, got 1"),
        ({"padding": 0}, "`padding` must be at least 1, got 0"),
        ({"margins": ()}, r"`margins` must have numbers from 1 on, got \(\)"),
        ({"margins": (0,)}, "`margins` must have numbers from 1 on"),
        ({"thickness": 0.3}, "`thickness` times `supersampling` must be a whole number"),
        ({"continuity": 0.0}, "`continuity` and `marker_radius` must be positive"),
    ),
)
def test_spec_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        Spec(**arguments)


@pytest.mark.parametrize("size, level", ((48, "hard"), (32, "harder")))
def test_no_such_data(size, level):
    with pytest.raises(ValueError, match=r"`size` must be one of \[32, 64, 128, 256\] and"):
        pathfinder.spec(size, level)


def test_contours_that_do_not_fit():
    # Their paddles take more pixels than there are.
    with pytest.raises(ValueError, match="Two contours hardly ever fit in .*length=100"):
        pathfinder.generate(np.random.default_rng(0), Spec(contour_length=100))


#
# Sources and files.
#


def test_source():
    source = pathfinder.source(9, 5)
    for i in (4, 0):
        x, y = source[i]
        drawing = pathfinder.generate(np.random.default_rng((9, i)))
        assert x.shape == (1, 32, 32) and x.dtype == np.float32 and y.dtype == np.int32
        assert np.allclose((x[0] + 1) * 127.5, drawing.image, atol=1e-4)
        assert x.min() == -1 and x.max() == 1 and y == drawing.label
    splits = pathfinder.splits(9, (2, 1, 2))
    assert np.array_equal(splits.test[1][0], source[4][0])


def test_write(tmp_path):
    folder = tmp_path / "pathfinder32" / "curv_contour_length_14"
    pathfinder.write(folder, 5, seed=9, batch=3)
    assert sorted(str(p.relative_to(folder)) for p in folder.rglob("*.png")) == [
        *(f"imgs/0/sample_{i}.png" for i in range(3)),
        *(f"imgs/1/sample_{i}.png" for i in range(2)),
    ]
    source = pathfinder.source(9, 5)
    for n in range(5):
        number, i = divmod(n, 3)
        line = (folder / "metadata" / f"{number}.npy").read_text().splitlines()[i].split()
        x, y = source[n]
        assert line == [
            *(f"imgs/{number}", f"sample_{i}.png", f"{i}", f"{y}"),
            *("1.0", "14", "4", "2", "0.5", "1", "1"),
        ]
        with Image.open(folder / line[0] / line[1]) as image:
            assert image.mode == "L"
            assert np.allclose(np.asarray(image) / 127.5 - 1, x[0], atol=1e-6)
    with pytest.raises(FileExistsError, match="imgs is there already"):
        pathfinder.write(folder, 1)
    with pytest.raises(
        ValueError, match="`size` and `batch` must be at least 1, got 0 and 1000"
    ):
        pathfinder.write(tmp_path, 0)


def test_writing_is_taken_up_again(tmp_path, monkeypatch):
    whole, folder = tmp_path / "whole", tmp_path / "folder"
    pathfinder.write(whole, 8, seed=9, batch=3)
    make, left = pathfinder.generate, iter(range(5))

    def five(rng, spec):
        next(left)
        return make(rng, spec)

    monkeypatch.setattr(pathfinder, "generate", five)
    with pytest.raises(StopIteration):
        pathfinder.write(folder, 8, seed=9, batch=3)
    # Of the second batch there is no list.
    assert [p.name for p in (folder / "metadata").iterdir()] == ["0.npy"]
    made = []
    monkeypatch.setattr(pathfinder, "generate", lambda *a: made.append(0) or make(*a))
    with pytest.raises(ValueError, match=r"has images of \[8, 9, .* not of \[8, 10, "):
        pathfinder.write(folder, 8, seed=10, batch=3)
    pathfinder.write(folder, 8, seed=9, batch=3)
    assert len(made) == 5
    files = {p.relative_to(whole): p.read_bytes() for p in whole.rglob("*") if p.is_file()}
    again = {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert files == again and len(files) == 8 + 3


def test_the_loader_reads_what_is_written(tmp_path):
    pathfinder.write(tmp_path / "curv_contour_length_14", 12, seed=9, batch=5)
    splits = loader.load(tmp_path, count=12)
    three = (splits.train, splits.valid, splits.test)
    read = [split[i] for split in three for i in range(len(split))]
    made = pathfinder.source(9, 12)
    key = lambda example: (example[0].round(3).tolist(), int(example[1]))
    assert sorted(map(key, read)) == sorted(key(made[i]) for i in range(12))
