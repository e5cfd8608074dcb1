"""Pathfinder and Path-X, without end: are the two discs on one contour, or on two?

Two long contours of short bars ("paddles") grow through an image beside shorter ones that
distract. A disc is put to one end of one of the two, and another one to the far end of the
same contour, or of the other.

The procedure and its numbers are those of `snakes2.py` in drewlinsley/pathfinder (Linsley et
al. 2018, Kim et al. 2020), with the settings that google-research/long-range-arena gives in
`lra_benchmarks/data/pathfinder.py`: the same distribution of images from other random
numbers, but for this.

- Images are scaled to bytes as `scipy.misc.imsave` did, by their own minimum and maximum,
  and bars and discs are reduced as by `scipy.misc.imresize`, on bytes, with which the release
  was made. What stands in their place in the repository today gives discs of 1/255.
- Of the release's easier levels it is not known how many distractors they have. Here it is
  what the formula of the hard level gives.
- Attempts end. The published code would try for ever where no contour fits.

The quirks are kept: coordinates are rounded up, directions of growth are cut to whole pixels,
a bar blocks others from one step later on only, the last bar of the first contour does not
block distractors at all, and at 32 pixels first contours and distractors start in 30 of 360
directions only, so that an image has about one distractor. Stamps, places to start in, steps
and probabilities of growth were compared to those of the published code, number by number,
and so were the means of images.
"""

import dataclasses
import functools as ft
import itertools as it
import json
import math
import os
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image, ImageDraw
from scipy import ndimage

from ._generated import Generated, splits as _splits
from ._source import Splits


@dataclasses.dataclass(frozen=True)
class Spec:
    """What the images look like. Lengths are in pixels.

    - `size`: of the image, height and width.
    - `contour_length`: how many paddles the two long contours have each.
    - `distractor_length`, `distractors`: how many those that distract have, and how many of
        them are tried.
    - `continuity`: how straight contours are. None turns by more than 90 degrees over it.
    - `paddle_length`, `thickness`: of a paddle.
    - `margins`: half the gaps between paddles. One is drawn for every image.
    - `seed_distance`: from where the first long contour starts to where the second does, and
        half of how far the first stays away from the border there.
    - `marker_radius`: of the discs.
    - `target_contrast`, `distractor_contrast`: the intensities of paddles. Discs have 1.
    - `padding`: a frame that contours keep out of.
    - `supersampling`: how much finer everything is drawn than it is shown.
    """

    size: int = 32
    contour_length: int = 14
    distractor_length: int = 4
    distractors: int = 5
    continuity: float = 1.0
    paddle_length: int = 2
    thickness: float = 0.5
    margins: tuple[int, ...] = (1,)
    seed_distance: int = 7
    marker_radius: float = 1.5
    target_contrast: float = 1.5
    distractor_contrast: float = 2.0
    padding: int = 1
    supersampling: int = 2

    def __post_init__(self):
        for name, least in (
            *(("contour_length", 2), ("distractor_length", 1), ("distractors", 0)),
            *(("paddle_length", 1), ("seed_distance", 1), ("padding", 1), ("supersampling", 1)),
        ):
            if getattr(self, name) < least:
                raise ValueError(
                    f"`{name}` must be at least {least}, got {getattr(self, name)}."
                )
        if self.size <= 4 * self.seed_distance:
            raise ValueError(
                "`size` must be over four times `seed_distance`, got "
                f"{self.size} and {self.seed_distance}."
            )
        if not self.margins or min(self.margins) < 1:
            raise ValueError(f"`margins` must have numbers from 1 on, got {self.margins}.")
        if self.continuity <= 0 or self.marker_radius <= 0:
            raise ValueError(
                "`continuity` and `marker_radius` must be positive, got "
                f"{self.continuity} and {self.marker_radius}."
            )
        width = self.thickness * self.supersampling
        if width < 1 or width != round(width):
            raise ValueError(
                "`thickness` times `supersampling` must be a whole number, got "
                f"{self.thickness} and {self.supersampling}."
            )


SIZES = {
    32: Spec(),
    64: Spec(
        size=64,
        distractors=5,
        continuity=1.8,
        paddle_length=5,
        thickness=1.0,
        seed_distance=12,
        marker_radius=2.5,
        target_contrast=0.8,
        distractor_contrast=0.8,
    ),
    128: Spec(
        size=128,
        distractors=8,
        continuity=1.8,
        paddle_length=5,
        thickness=1.5,
        margins=(2, 3),
        seed_distance=20,
        marker_radius=3.0,
        target_contrast=0.9,
        distractor_contrast=0.9,
    ),
    256: Spec(
        size=256,
        distractors=7,
        continuity=1.8,
        paddle_length=5,
        thickness=2.0,
        margins=(3,),
        seed_distance=27,
        marker_radius=5.0,
        target_contrast=1.0,
        distractor_contrast=1.0,
        padding=22,
    ),
}
"""The hard level of Long Range Arena, at its four sizes."""

LEVELS = {"easy": 6, "intermediate": 9, "hard": 14}
"""How many paddles the long contours have."""

PADDLES = {32: 20, 64: 22, 128: 35, 256: 30}
"""How many all distractors have together, at most."""


def spec(size: int = 32, level: Literal["easy", "intermediate", "hard"] = "hard") -> Spec:
    """The settings of Long Range Arena: 32 and hard for Pathfinder, 128 for Path-X.

    **Raises:** `ValueError` of sizes and levels that it does not have.
    """
    if size not in SIZES or level not in LEVELS:
        raise ValueError(
            f"`size` must be one of {list(SIZES)} and `level` one of {list(LEVELS)}, got "
            f"{size} and {level!r}."
        )
    length = LEVELS[level]
    return dataclasses.replace(
        SIZES[size],
        contour_length=length,
        distractor_length=length // 3,
        distractors=PADDLES[size] // (length // 3),
    )


Point = tuple[int, int]
"""A row and a column."""


@dataclasses.dataclass(frozen=True)
class Paddle:
    """A bar, from a pixel on, at an angle in radians from the columns towards the rows."""

    start: Point
    angle: float


Contour = tuple[Paddle, ...]
"""Its paddles in order. The first starts at one end of it, the last at the other."""


@dataclasses.dataclass(frozen=True)
class Drawing:
    """An image and what is on it.

    - `image`: from 0 to 255.
    - `label`: whether the discs are on one contour.
    - `markers`: where the discs are, rows and columns: at the first end of a long contour,
        and at the last end of one.
    - `targets`: the two long contours.
    - `distractors`: the short ones.
    - `margin`: the one of this image.
    """

    image: UInt8[np.ndarray, "size size"]
    label: bool
    markers: Int[np.ndarray, "2 2"]
    targets: tuple[Contour, Contour]
    distractors: tuple[Contour, ...]
    margin: int


def generate(rng: np.random.Generator, spec: Spec = SIZES[32]) -> Drawing:
    """Draws an image.

    **Raises:** `ValueError` if two long contours do not fit in 100,000 attempts. At the hard
    level about one in 45 fits at 32 pixels, one in 1,400 at 64 and one in 500 at 128.
    """
    margin = spec.margins[rng.integers(len(spec.margins))]
    tables = _tables(spec, margin)
    targets, taken = _targets(rng, tables)
    distractors = []
    for _ in range(spec.distractors):
        found, taken = _distractor(rng, tables, taken)
        distractors += found
    label, first = bool(rng.integers(2)), int(rng.integers(2))
    origin, end = targets[first].starts[0], targets[first if label else 1 - first].starts[-1]
    canvas = np.zeros((spec.size, spec.size), np.float32)
    contrasts = [spec.target_contrast] * 2 + [spec.distractor_contrast] * len(distractors)
    for contour, contrast in zip((*targets, *distractors), contrasts):
        for row, start in zip(contour.rows, contour.starts):
            part, line = _overlap(canvas, tables.lines[row], start)
            np.maximum(part, contrast * line, out=part)
    for marker in (origin, end):
        np.maximum(canvas, _disc(spec, marker), out=canvas)
    scale = 255 / (canvas.max() - canvas.min())
    image = ((canvas - canvas.min()) * scale + 0.5).astype(np.uint8)
    contours = [contour.given(tables) for contour in (*targets, *distractors)]
    return Drawing(
        image,
        label,
        np.stack([origin, end]),
        (contours[0], contours[1]),
        tuple(contours[2:]),
        margin,
    )


def _overlap(
    image: Float[np.ndarray, "size size"],
    stamp: Float[np.ndarray, "side side"],
    at: Int[np.ndarray, " 2"],
) -> tuple[np.ndarray, np.ndarray]:
    """The part of an image that a stamp with its middle there covers, and of the stamp."""
    reach, (y, x) = len(stamp) // 2, at.tolist()
    part = image[max(y - reach, 0) : y + reach + 1, max(x - reach, 0) : x + reach + 1]
    top, left = max(reach - y, 0), max(reach - x, 0)
    return part, stamp[top : top + part.shape[0], left : left + part.shape[1]]


def _disc(spec: Spec, at: Int[np.ndarray, " 2"]) -> Float[np.ndarray, "size size"]:
    y, x = np.arange(spec.size * spec.supersampling) - spec.supersampling * at[:, None]
    radius = spec.marker_radius * spec.supersampling
    inside = y[:, None] ** 2 + x**2 <= radius**2
    return _reduced(np.uint8(255) * inside, spec.size).astype(np.float32) / np.float32(255)


#
# All paddles that there can be.
#


@dataclasses.dataclass(frozen=True, eq=False)
class _Tables:
    """First paddles go in whole degrees, others to the pixels of a circle: so there are few
    different ones, the rows here.

    A paddle takes its pixels and those in the margin around it, from 0 to 255. Fields of what
    is taken have a border on all sides, where nothing is, and are flat.

    - `angles`: in which direction a contour grows along the paddle.
    - `length`, `back`, `onward`: in rows and columns, from where the first paddle starts to
        its far end, from there back over it and a margin, and along a paddle and two margins.
        They are rounded up once they are added to a point, as in the published code. What is
        zero but for rounding is then lost in most points, but counts a pixel within eight of
        the upper and left borders, so contours keep away from these a little.
    - `drawn`: in which direction the paddle lies from its start: the same if it is the first,
        or else the opposite.
    - `lines`: the intensities of the paddle, its start in the middle, from 0 to 1.
    - `masks`: what it takes.
    - `limits`: less than this must be taken where it is put: 1.8 of 1 with its own.
    - `structs`: of first paddles the pixels that they take wholly, from their starts on. They
        are one pixel off, as in the published code.
    - `steps`: from the centre to the pixels of the circle.
    - `reached`, `near`: the same in a flat field, and to all within the margin of them.
    - `window`: from the middle of a stamp to all of it, in a flat field.
    - `straight`: how likely the pixels of the circle are, after each paddle.
    - `inside`: 1 in the image, 0 in the border of a field.
    - `places`: where the first contour can start, for one degree after the other.
    - `counts`: how many of them there are for each.
    """

    spec: Spec
    margin: int
    border: int
    angles: Float[np.ndarray, " rows"]
    length: Float[np.ndarray, "rows 2"]
    back: Float[np.ndarray, "rows 2"]
    onward: Float[np.ndarray, "rows 2"]
    drawn: Float[np.ndarray, " rows"]
    lines: Float[np.ndarray, "rows side side"]
    masks: UInt8[np.ndarray, "rows area"]
    limits: Int[np.ndarray, "rows area"]
    structs: tuple[Int[np.ndarray, "_ 2"], ...]
    steps: Int[np.ndarray, "pixels 2"]
    reached: Int[np.ndarray, " pixels"]
    near: Int[np.ndarray, "disc 1 pixels"]
    window: Int[np.ndarray, " area"]
    straight: Float[np.ndarray, "rows pixels"]
    inside: UInt8[np.ndarray, " field"]
    places: Int[np.ndarray, "places 2"]
    counts: Int[np.ndarray, " degrees"]

    @property
    def outer(self) -> int:
        return self.spec.size + 2 * self.border

    def empty(self) -> UInt8[np.ndarray, " field"]:
        """A field where only the frame is taken."""
        field = np.zeros((self.outer, self.outer), np.uint8)
        _block_border(_inner(field, self.border), self.spec.padding, 255)
        return field.ravel()

    def flat(self, points: Int[np.ndarray, "*batch 2"]) -> Int[np.ndarray, "*batch"]:
        """The places of points of the image in a field."""
        y, x = points[..., 0] + self.border, points[..., 1] + self.border
        return y * self.outer + x


_DEGREES = 360
"""As many rows are first paddles, from -180 degrees on."""


@ft.lru_cache(maxsize=32)
def _tables(spec: Spec, margin: int) -> _Tables:
    length, scale = spec.paddle_length, spec.supersampling
    border = length + math.ceil(spec.thickness) + 4 * margin + 2
    outer = spec.size + 2 * border
    offsets = lambda points: points[..., 0] * outer + points[..., 1]

    radius = length + margin
    circle = np.arange(0, 2 * np.pi, 1 / radius)  # a pixel apart
    circle = radius * np.stack([np.sin(circle), np.cos(circle)], axis=1)
    steps = np.unique(np.floor(circle).astype(int), axis=0)
    disc = np.argwhere(_disc_of(margin)) - margin

    first = np.arange(-180, 180) * np.pi / 180
    others = np.arctan2(steps[:, 0], steps[:, 1])
    angles = np.concatenate([first, others])
    along = lambda angles: np.stack([np.sin(angles), np.cos(angles)], axis=1)
    drawn = np.concatenate([first, np.where(others < 0, others + np.pi, others - np.pi)])
    turns = np.abs(angles[:, None] - others)
    turns = np.minimum(turns, 2 * np.pi - turns) * spec.continuity

    reach = length + math.ceil(spec.thickness) + margin
    side = 2 * reach + 1
    stamps = [_stamp(length, round(spec.thickness * scale), margin, scale, a) for a in drawn]
    lines = np.stack([_reduced(line, side) for line, _ in stamps])
    masks = np.stack([_reduced(wide, side) for _, wide in stamps])
    # They are cut to a square whose middle is one off.
    low, high = reach - (length + margin) - 1, reach + (length + margin)
    structs = []
    for mask in masks[:_DEGREES]:
        whole = np.argwhere(mask == 255)
        whole = whole[np.all((whole >= low) & (whole < high), axis=1)]
        structs.append(whole - reach + 1)
    tables = _Tables(
        spec,
        margin,
        border,
        angles,
        length * along(angles),
        (length + margin) * along(np.where(angles < 0, angles + np.pi, angles - np.pi)),
        (length + 2 * margin) * along(angles),
        drawn,
        lines.astype(np.float32) / np.float32(255),
        masks.reshape(len(masks), -1),
        459 - masks.reshape(len(masks), -1).astype(np.int16),
        tuple(structs),
        steps,
        offsets(steps),
        offsets(steps + disc[:, None, None]),
        offsets(np.argwhere(np.ones((side, side))) - reach),
        np.cos(np.minimum(turns, np.pi / 2)) ** 2,
        np.pad(np.ones((spec.size, spec.size), np.uint8), border).ravel(),
        np.zeros((0, 2), int),
        np.zeros(0, int),
    )
    blocked = _blocked(tables, tables.empty(), 2 * spec.seed_distance)
    places = [_places(tables, blocked, row) for row in range(_DEGREES)]
    return dataclasses.replace(
        tables, places=np.concatenate(places), counts=np.array([len(a) for a in places])
    )


def _stamp(
    length: int, width: int, margin: int, scale: int, angle: float
) -> tuple[UInt8[np.ndarray, "fine fine"], UInt8[np.ndarray, "fine fine"]]:
    """A paddle that starts in the middle, and with its margin, as finely as they are drawn."""
    middle = (length + math.ceil(width / scale) + margin) * scale
    fine = Image.new("L", (2 * middle + 1, 2 * middle + 1), 0)
    y, x = (
        math.ceil(middle + length * scale * part) for part in (math.sin(angle), math.cos(angle))
    )
    ImageDraw.Draw(fine).line([(middle, middle), (x, y)], fill=255, width=width)
    line = np.asarray(fine)
    wide = ndimage.binary_dilation(line > 0, structure=_disc_of(margin * scale))
    return line, np.uint8(255) * wide


def _reduced(fine: UInt8[np.ndarray, "fine fine"], side: int) -> UInt8[np.ndarray, "side side"]:
    image = Image.fromarray(fine)
    return np.asarray(image.resize((side, side), Image.Resampling.LANCZOS))


def _disc_of(radius: int) -> Bool[np.ndarray, "side side"]:
    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    return x**2 + y**2 <= radius**2


def _inner(a: np.ndarray, border: int) -> np.ndarray:
    return a[border:-border, border:-border]


def _block_border(a: np.ndarray, width: int, value: int) -> None:
    a[:width] = a[-width:] = a[:, :width] = a[:, -width:] = value


#
# How contours grow. Attempts that start alike are made side by side, and the first that
# succeeds counts: as if they had been made one after another.
#


@dataclasses.dataclass(frozen=True, eq=False)
class _Contour:
    starts: Int[np.ndarray, "paddles 2"]
    rows: Int[np.ndarray, " paddles"]

    def given(self, tables: _Tables) -> Contour:
        starts, drawn = self.starts.tolist(), tables.drawn[self.rows].tolist()
        return tuple(Paddle((y, x), angle) for (y, x), angle in zip(starts, drawn))


_TRIES = 3
_FREE = 76
"""Paddles can start where no more than this is taken, of 255."""


def _targets(
    rng: np.random.Generator, tables: _Tables
) -> tuple[tuple[_Contour, _Contour], UInt8[np.ndarray, " field"]]:
    """The two long contours, and what they leave."""
    attempts = 0
    while attempts < 100_000:
        size = min(max(128, attempts), 512)
        attempts += size
        tails, rows, pivots, alive = _two_seeds(rng, tables, size)
        fields = np.tile(tables.empty(), (size, 1))
        length = tables.spec.contour_length
        starts, rows, alive = _grow(rng, tables, fields, tails, rows, pivots, alive, length)
        if len(alive):
            i = int(alive[0])
            first, second = (_Contour(starts[i, k], rows[i, k]) for k in range(2))
            # The last paddle of the first is forgotten.
            _take(tables, fields, alive[:1], second.starts[-1:], second.rows[-1:])
            return (first, second), fields[i]
    raise ValueError(f"Two contours hardly ever fit in {tables.spec}.")


def _distractor(
    rng: np.random.Generator, tables: _Tables, taken: UInt8[np.ndarray, " field"]
) -> tuple[list[_Contour], UInt8[np.ndarray, " field"]]:
    """A short contour, or none where it does not fit in five attempts, and what it leaves."""
    free = np.count_nonzero((taken <= _FREE) & (tables.inside > 0))
    if free < 0.01 * tables.spec.size**2:
        return [], taken
    blocked = _blocked(tables, taken, 1)
    seeds = [_seed(rng, tables, blocked) for _ in range(5)]
    seeds = [seed for seed in seeds if seed is not None]
    if not seeds:
        return [], taken
    tails, rows, pivots = (np.stack(part)[:, None] for part in zip(*seeds))
    fields = np.tile(taken, (len(seeds), 1))
    length = tables.spec.distractor_length
    everyone = np.arange(len(seeds))
    starts, rows, alive = _grow(rng, tables, fields, tails, rows, pivots, everyone, length)
    if not len(alive):
        return [], taken
    contour = _Contour(starts[alive[0], 0], rows[alive[0], 0])
    _take(tables, fields, alive[:1], contour.starts[-1:], contour.rows[-1:])
    return [contour], fields[alive[0]]


def _two_seeds(rng: np.random.Generator, tables: _Tables, size: int):
    """The first paddles of two contours, in each of `size` attempts: where they start, their
    rows and pivots, and in which attempts they could be set.
    """
    distance = tables.spec.seed_distance
    tails, pivots = np.zeros((2, size, 2, 2), int)
    rows = np.zeros((size, 2), int)
    counts, before = tables.counts, np.cumsum(tables.counts) - tables.counts
    done = np.zeros((size, 2), bool)
    left = np.arange(size)
    for _ in range(_TRIES):
        row = rng.integers(_DEGREES, size=len(left))
        among = (rng.random(len(left)) * counts[row]).astype(int)
        fits = counts[row] > 0  # otherwise the attempt ends
        left, row, among = left[fits], row[fits], among[fits]
        tail = tables.places[before[row] + among]
        rows[left, 0], tails[left, 0] = row, tail
        pivots[left, 0], done[left, 0] = _starting(tables, tail, row)
        left = left[~done[left, 0]]
    left = np.flatnonzero(done[:, 0])
    for _ in range(_TRIES):
        row = rng.integers(_DEGREES, size=len(left))
        towards = rng.integers(_DEGREES, size=len(left)) * np.pi / 180
        away = distance * np.stack([np.sin(towards), np.cos(towards)], axis=1)
        tail = np.round(tails[left, 0] + away).astype(int)
        rows[left, 1], tails[left, 1] = row, tail
        pivots[left, 1], done[left, 1] = _starting(tables, tail, row)
        left = left[~done[left, 1]]
    return tails, rows, pivots, np.flatnonzero(done.all(axis=1))


def _seed(rng: np.random.Generator, tables: _Tables, blocked: Bool[np.ndarray, "outer outer"]):
    """The first paddle of a contour where nothing is taken: its start, row and pivot."""
    for _ in range(_TRIES):
        row = int(rng.integers(_DEGREES))
        places = _places(tables, blocked, row)
        if not len(places):
            return None
        tail = places[rng.integers(len(places))]
        pivot, fits = _starting(tables, tail[None], np.array([row]))
        if fits[0]:
            return tail, np.array(row), pivot[0]
    return None


def _blocked(
    tables: _Tables, taken: UInt8[np.ndarray, " field"], away: int
) -> Bool[np.ndarray, "outer outer"]:
    """What first paddles must not touch: what is taken, and a frame."""
    blocked = taken.reshape(tables.outer, tables.outer) > _FREE
    _block_border(_inner(blocked, tables.border), away, 1)
    return blocked


def _places(
    tables: _Tables, blocked: Bool[np.ndarray, "outer outer"], row: int
) -> Int[np.ndarray, "_ 2"]:
    """Where a first paddle can start, but for the second contour's. As in the published code
    nowhere, if its pixels leave a quadrant out, axes included: its dilation of what is taken
    then has a corner far below zero, where no pixel of the paddle lies inside the image, and
    its search goes by the smallest value.
    """
    size, border = tables.spec.size, tables.border
    if not _in_all_quadrants(tables.structs[row]):
        return np.zeros((0, 2), int)
    touched = np.zeros((size, size), bool)
    for dy, dx in tables.structs[row].tolist():
        y, x = border + dy, border + dx
        touched |= blocked[y : y + size, x : x + size]
    return np.stack(np.divmod(np.flatnonzero(~touched), size), axis=1)


def _in_all_quadrants(struct: Int[np.ndarray, "_ 2"]) -> bool:
    signs = np.array(list(it.product((1, -1), repeat=2)))
    return bool(np.all(np.any(np.all(signs[:, None] * struct >= 0, axis=2), axis=1)))


def _starting(
    tables: _Tables, tails: Int[np.ndarray, "n 2"], rows: Int[np.ndarray, " n"]
) -> tuple[Int[np.ndarray, "n 2"], Bool[np.ndarray, " n"]]:
    """The pivots of first paddles, and whether these are inside."""
    heads = np.ceil(tails + tables.length[rows]).astype(int)
    pivots = np.ceil(heads + tables.back[rows]).astype(int)
    both = np.concatenate([heads, pivots], axis=1)
    return pivots, np.all((both >= 0) & (both < tables.spec.size), axis=1)


def _grow(
    rng: np.random.Generator,
    tables: _Tables,
    fields: UInt8[np.ndarray, "attempts field"],
    tails: Int[np.ndarray, "attempts contours 2"],
    first: Int[np.ndarray, "attempts contours"],
    pivots: Int[np.ndarray, "attempts contours 2"],
    alive: Int[np.ndarray, " alive"],
    length: int,
) -> tuple[np.ndarray, np.ndarray, Int[np.ndarray, " left"]]:
    """All paddles of contours that grow in turn: their starts, their rows, and in which
    attempts they reach the length. What they take is put into the fields, a step late.
    """
    attempts, contours = first.shape
    starts = np.zeros((attempts, contours, length, 2), int)
    rows = np.zeros((attempts, contours, length), int)
    starts[:, :, 0], rows[:, :, 0] = tails, first
    for j, k in it.product(range(1, length), range(contours)):
        last = rows[alive, k, j - 1]
        pivots[alive, k] = np.ceil(pivots[alive, k] + tables.onward[last])
        heads, new, found = _ends(rng, tables, fields, alive, pivots[alive, k], last)
        alive, heads, new = alive[found], heads[found], new[found]
        _take(tables, fields, alive, starts[alive, k, j - 1], rows[alive, k, j - 1])
        starts[alive, k, j], rows[alive, k, j] = heads, new
        if not len(alive):
            break
    return starts, rows, alive


def _ends(
    rng: np.random.Generator,
    tables: _Tables,
    fields: UInt8[np.ndarray, "attempts field"],
    alive: Int[np.ndarray, " alive"],
    pivots: Int[np.ndarray, "alive 2"],
    last: Int[np.ndarray, " alive"],
) -> tuple[np.ndarray, np.ndarray, Bool[np.ndarray, " alive"]]:
    """Where contours go on: the far ends of new paddles, their rows, and if there are any.

    They are drawn from the pixels of the circle: straight on is likely, and what is taken is
    not. Up to three are tried, until one crosses nothing.
    """
    every, at = fields.ravel(), tables.flat(pivots)[:, None]
    offset = alive[:, None] * fields.shape[1]
    taken = every[at + offset + tables.near].max(axis=0)
    inside = tables.inside[at + tables.reached]
    sums = np.cumsum(tables.straight[last] * (255 - taken) * inside, axis=1)
    left = np.flatnonzero(sums[:, -1] >= 255e-4)
    chosen, found = np.zeros(len(alive), int), np.zeros(len(alive), bool)
    for _ in range(_TRIES):
        under = rng.random((len(left), 1)) * sums[left, -1:]
        choice = np.minimum(np.sum(sums[left] <= under, axis=1), len(tables.steps) - 1)
        chosen[left] = choice
        middles = at[left] + offset[left] + tables.reached[choice, None]
        # Nothing is ever taken in the border.
        free = every[middles + tables.window] < tables.limits[_DEGREES + choice]
        found[left] = free.all(axis=1)
        left = left[~found[left]]
        if not len(left):
            break
    return pivots + tables.steps[chosen], _DEGREES + chosen, found


def _take(
    tables: _Tables,
    fields: UInt8[np.ndarray, "attempts field"],
    alive: Int[np.ndarray, " alive"],
    starts: Int[np.ndarray, "alive 2"],
    rows: Int[np.ndarray, " alive"],
) -> None:
    """Puts paddles into the fields."""
    every, where = fields.ravel(), tables.flat(starts)[:, None] + tables.window
    masks = tables.masks[rows] * tables.inside[where]
    where += alive[:, None] * fields.shape[1]
    every[where] = np.maximum(every[where], masks)


#
# Sources and files.
#


def _example(rng: np.random.Generator, spec: Spec) -> tuple[np.ndarray, np.int32]:
    drawing = generate(rng, spec)
    x = (drawing.image[None].astype(np.float32) / 255 - 0.5) / 0.5
    return x, np.int32(drawing.label)


def source(seed: int, size: int, spec: Spec = SIZES[32], *, start: int = 0) -> Generated:
    """Examples `(x, y)`: float32 images `(1, size, size)` from -1 to 1, and an int32 label, 1
    where the discs are on one contour.
    """
    return Generated(ft.partial(_example, spec=spec), seed, size, start)


def splits(
    seed: int,
    sizes: tuple[int, int, int] = (160_000, 20_000, 20_000),
    spec: Spec = SIZES[32],
) -> Splits:
    """As [`source`][], to train, validate and test on."""
    return _splits(ft.partial(_example, spec=spec), seed, sizes)


def write(
    folder: Path, size: int, seed: int = 0, spec: Spec = SIZES[32], *, batch: int = 1000
) -> None:
    """Writes images as the release of Long Range Arena has them, into the folder of a level.

    - `imgs/<number>/sample_<i>.png`: `batch` of them a folder, of 8-bit grey. `i` counts from
        0 in every folder.
    - `metadata/<number>.npy`: lines of text, despite the name: folder, file, `i`, label,
        continuity, contour length, distractor length, paddle length, thickness, margin,
        number of contrasts.

    Image `n` of all is that of the source of the same seed. The work can be broken off at any
    time and taken up again by the same call; until it is done there is a `writing.json`.

    **Raises:** `FileExistsError` if there are images already: they may be the release.
    `ValueError` if they are of another call that was broken off.
    """
    if size < 1 or batch < 1:
        raise ValueError(f"`size` and `batch` must be at least 1, got {size} and {batch}.")
    call = json.loads(json.dumps([size, seed, dataclasses.asdict(spec), batch]))
    writing = folder / "writing.json"
    if not writing.exists():
        for name in ("imgs", "metadata"):
            if (folder / name).exists():
                raise FileExistsError(f"{folder / name} is there already.")
        folder.mkdir(parents=True, exist_ok=True)
        writing.write_text(json.dumps(call) + "\n")
    elif (there := json.loads(writing.read_text())) != call:
        raise ValueError(f"{folder} has images of {there}, not of {call}.")
    (folder / "metadata").mkdir(exist_ok=True)
    for number, start in enumerate(range(0, size, batch)):
        path, images = folder / "metadata" / f"{number}.npy", folder / "imgs" / str(number)
        if path.exists():
            continue
        images.mkdir(parents=True, exist_ok=True)
        lines = []
        for i in range(min(batch, size - start)):
            drawing = generate(np.random.default_rng((seed, start + i)), spec)
            Image.fromarray(drawing.image).save(images / f"sample_{i}.png")
            lines.append(
                f"imgs/{number} sample_{i}.png {i} {int(drawing.label)} {spec.continuity} "
                f"{spec.contour_length} {spec.distractor_length} {spec.paddle_length} "
                f"{spec.thickness} {drawing.margin} 1\n"
            )
        part = path.with_suffix(".part")  # so that no half of a list is ever taken for one
        part.write_text("".join(lines))
        os.replace(part, path)
    writing.unlink()
