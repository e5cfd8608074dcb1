"""Simulated frames with cosmic rays, without end: which pixels were hit?

A stand-in for the Hubble frames of Cosmic (NAS-Bench-360, after deepCR of Zhang & Bloom 2020),
not the same data: galaxies and stars on a sky, photon and read noise, and straight tracks of
charge. Where its numbers are from:

- Lengths and widths of tracks: quantiles of the 9,348 hits of a catalogue of a CCD on the
  ground (muon-detector-tools), which gives the spread along and across each hit, with the last
  2 %, of hits that overlap, cut off. That they go together a little is from there too, and
  that tracks of more than a few pixels have no direction of their own.
- Radii and axis ratios of galaxies: from half-light radii of 3.7 to 9.8 pixels and axis ratios
  of 0.37 to 0.65 of six galaxies that GalSim has of Hubble.
- The share of pixels hit: 1.5 to 3 % in 1,000 seconds (ACS Instrument Handbook).
- Charges, sky, brightnesses and how many objects there are: assumed, of the size that such
  frames have.

Tracks do not curve, fork or fade, the optics are a Gaussian, and no pixel saturates.
"""

import dataclasses
import functools as ft
import math

import numpy as np
from jaxtyping import Bool, Float
from scipy import special

from ._generated import Generated, splits as _splits
from ._source import Splits


@dataclasses.dataclass(frozen=True)
class Spec:
    """What frames look like. Lengths are in pixels, brightnesses in electrons.

    - `size`: of the frame, height and width.
    - `rays`, `stars`, `galaxies`: how many there are in the mean.
    - `sky`: the median of the sky a pixel, which differs by a factor of about two.
    - `read_noise`: the deviation.
    - `seeing`: the deviation of the image of a star.
    - `charge`: what a ray most often leaves in a pixel that it crosses.
    - `threshold`: pixels count as hit where rays add more than this many deviations of the
        noise.
    """

    size: int = 128
    rays: float = 11.0
    stars: float = 12.0
    galaxies: float = 8.0
    sky: float = 30.0
    read_noise: float = 5.0
    seeing: float = 0.9
    charge: float = 1000.0
    threshold: float = 3.0

    def __post_init__(self):
        if self.size < 1:
            raise ValueError(f"`size` must be at least 1, got {self.size}.")
        for name in ("rays", "stars", "galaxies"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must be at least 0, got {getattr(self, name)}.")
        for name in ("sky", "read_noise", "seeing", "charge", "threshold"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` must be positive, got {getattr(self, name)}.")


HUBBLE = Spec()

SHARES = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.6, 0.7, 0.75, 0.8, 0.9, 0.95, 0.98)
LENGTHS = (0.0, 0.26, 0.4, 0.5, 0.78, 2.04, 3.97, 8.06, 10.85, 14.65, 26.68, 38.5, 59.58)
"""The lengths of tracks below which these shares of the catalogue are. A spread of `a` along
and `b` across a hit is that of a uniform track of length `sqrt(12 (a^2 - b^2))`.
"""
WIDTHS = (0.06, 0.24, 0.32, 0.39, 0.5, 0.62, 0.68, 0.75, 0.79, 0.84, 1.17, 1.78, 2.97)
"""The same of the spread across."""
TOGETHER = 0.37
"""The rank correlation of the two."""


@dataclasses.dataclass(frozen=True)
class Ray:
    """A straight track, blurred by a Gaussian.

    - `y`, `x`: its middle, in pixels from the middle of the first one.
    - `angle`: from the columns towards the rows, in radians.
    - `length`, `width`: from end to end, and the deviation of the Gaussian.
    - `charge`: all of it, in electrons.
    """

    y: float
    x: float
    angle: float
    length: float
    width: float
    charge: float


@dataclasses.dataclass(frozen=True)
class Frame:
    """A frame and what it is made of, in electrons.

    - `image`: what is seen.
    - `mask`: which pixels rays hit.
    - `scene`: the mean of what would be seen without rays.
    - `charge`: what rays add.
    """

    image: Float[np.ndarray, "size size"]
    mask: Bool[np.ndarray, "size size"]
    scene: Float[np.ndarray, "size size"]
    charge: Float[np.ndarray, "size size"]
    rays: tuple[Ray, ...]


def generate(rng: np.random.Generator, spec: Spec = HUBBLE) -> Frame:
    """A random frame."""
    scene = _scene(rng, spec)
    rays = tuple(draw(rng, spec) for _ in range(rng.poisson(spec.rays)))
    charge = np.zeros((spec.size, spec.size))
    for ray in rays:
        deposit(ray, charge)
    noise = np.sqrt(scene + spec.read_noise**2)
    mask = charge > spec.threshold * noise
    # Charge of a ray comes at once: its number of electrons has no photon noise.
    image = rng.poisson(scene) + charge + rng.normal(0.0, spec.read_noise, scene.shape)
    return Frame(image, mask, scene, charge, rays)


def draw(rng: np.random.Generator, spec: Spec = HUBBLE) -> Ray:
    """A random ray. Its middle may lie outside, so that edges are hit like the rest."""
    # Two normal numbers of the correlation that gives the ranks theirs, then their ranks.
    normal = rng.normal(size=2)
    r = 2 * math.sin(math.pi / 6 * TOGETHER)
    normal[1] = r * normal[0] + math.sqrt(1 - r**2) * normal[1]
    ranks = SHARES[-1] * special.ndtr(normal)
    length, spread = (float(np.interp(u, SHARES, a)) for u, a in zip(ranks, (LENGTHS, WIDTHS)))
    # Of the catalogue's spread a part is from pixels, which comes in anew by drawing on them.
    width = math.sqrt(max(spread**2 - 1 / 12, 0.2**2))
    while True:
        middle = rng.uniform(-0.5 - LENGTHS[-1] / 2, spec.size - 0.5 + LENGTHS[-1] / 2, size=2)
        angle = rng.uniform(-math.pi / 2, math.pi / 2)
        reach = length / 2 * np.abs([math.sin(angle), math.cos(angle)])
        if np.all((middle + reach >= -0.5) & (middle - reach <= spec.size - 0.5)):
            break
    # As of Landau: most rays leave about the same a pixel, few much more. Through a layer as
    # thick as a pixel is wide they go one pixel at least.
    z = rng.normal()
    a_pixel = spec.charge * (1 + 0.2 * -math.log(z**2))
    charge = max(a_pixel, 0.3 * spec.charge) * math.hypot(length, 1.0)
    return Ray(float(middle[0]), float(middle[1]), angle, length, width, charge)


def deposit(ray: Ray, image: Float[np.ndarray, "height width"]) -> None:
    """Adds a ray to an image: its charge over the pixels, each the mean of 3 x 3 points."""
    sin, cos = math.sin(ray.angle), math.cos(ray.angle)
    about = (abs(sin), abs(cos))
    ranges = []
    for middle, part, size in zip((ray.y, ray.x), about, image.shape):
        reach = ray.length / 2 * part + 5 * ray.width + 1
        first, end = math.floor(middle - reach), math.ceil(middle + reach) + 1
        ranges.append((min(max(first, 0), size), min(max(end, 0), size)))
    (top, bottom), (left, right) = ranges
    y, x = (
        (np.arange(3 * a, 3 * b) - 1) / 3 - middle
        for (a, b), middle in zip(ranges, (ray.y, ray.x))
    )
    along = cos * x + sin * y[:, None]
    across = cos * y[:, None] - sin * x
    normal = np.exp(-0.5 * (across / ray.width) ** 2) / (math.sqrt(2 * math.pi) * ray.width)
    half = max(ray.length, 1e-3 * ray.width) / 2
    ends = special.ndtr((along + half) / ray.width) - special.ndtr((along - half) / ray.width)
    fine = ray.charge * normal * ends / (2 * half)
    image[top:bottom, left:right] += fine.reshape(bottom - top, 3, right - left, 3).mean((1, 3))


def _scene(rng: np.random.Generator, spec: Spec) -> Float[np.ndarray, "size size"]:
    """The mean of what is seen without rays."""
    scene = np.full((spec.size, spec.size), spec.sky * rng.lognormal(0.0, 0.5))
    for _ in range(rng.poisson(spec.stars)):
        # Many faint ones, few bright ones.
        y, x, flux = *_place(rng, spec), 300.0 * rng.pareto(1.0) + 300.0
        scene += min(flux, 1e6) * np.outer(_bell(spec, y), _bell(spec, x))
    for _ in range(rng.poisson(spec.galaxies)):
        y, x = _place(rng, spec)
        radius = min(5.0 * rng.lognormal(0.0, 0.5), spec.size / 4)
        surface = 30.0 * rng.lognormal(0.0, 1.0)
        scene += surface * _sersic(
            spec, y, x, radius, rng.uniform(0.35, 0.9), rng.uniform(0, math.pi), rng
        )
    return scene


def _place(rng: np.random.Generator, spec: Spec) -> tuple[float, float]:
    y, x = rng.uniform(-0.5, spec.size - 0.5, size=2).tolist()
    return y, x


def _bell(spec: Spec, at: float) -> Float[np.ndarray, " size"]:
    """A normal distribution over the pixels of an axis."""
    edges = special.ndtr((np.arange(spec.size + 1) - 0.5 - at) / spec.seeing)
    return np.diff(edges)


def _sersic(
    spec: Spec,
    y: float,
    x: float,
    radius: float,
    ratio: float,
    angle: float,
    rng: np.random.Generator,
) -> Float[np.ndarray, "size size"]:
    """The profile of a galaxy: 1 at its half-light radius. From a disc to a bulge, it falls as
    `exp(-r)` to `exp(-r^(1/4))`. Its peak is smoothed as if by the optics.
    """
    n = rng.uniform(1.0, 4.0)
    rows, columns = np.arange(spec.size)[:, None] - y, np.arange(spec.size) - x
    along = math.cos(angle) * columns + math.sin(angle) * rows
    across = (math.cos(angle) * rows - math.sin(angle) * columns) / ratio
    r = np.sqrt(along**2 + across**2 + spec.seeing**2) / radius
    return np.exp(-(2 * n - 1 / 3) * (r ** (1 / n) - 1))


#
# Sources.
#


def _example(rng: np.random.Generator, spec: Spec) -> tuple[np.ndarray, np.ndarray]:
    frame = generate(rng, spec)
    masks = np.stack([frame.mask, np.zeros_like(frame.mask)])
    return frame.image[None].astype(np.float32), masks.astype(np.float32)


def source(seed: int, size: int, spec: Spec = HUBBLE, *, start: int = 0) -> Generated:
    """Examples `(x, y)` in the form of the loader's: float32 frames `(1, size, size)` in
    electrons, and float32 masks `(2, size, size)`: 1 where a ray hit, and 1 where a pixel is
    to be ignored, which is nowhere.
    """
    return Generated(ft.partial(_example, spec=spec), seed, size, start)


def splits(
    seed: int,
    sizes: tuple[int, int, int] = (4347, 483, 420),
    spec: Spec = HUBBLE,
) -> Splits:
    """As [`source`][], to train, validate and test on."""
    return _splits(ft.partial(_example, spec=spec), seed, sizes)
