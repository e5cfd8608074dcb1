"""Darcy flow, without end: from how permeable a square is to the pressure in it.

The procedure is that of Li et al. 2021, `data_generation/darcy/{GRF,solve_gwf,demo}.m` of
their Fourier neural operator, of which NAS-Bench-360 has a copy: a Gaussian random field is
cut at zero into two materials, and `-div(a grad u) = 1` with `u = 0` on the border is solved
by second-order differences. The materials are 12 and 3, as in the published data; the
published script says 12 and 4.

The coefficients are given in the middles of cells and the equation is solved on their corners,
so both are carried over by cubic splines. As in the published data the coefficients thus
overshoot at jumps where the equation is solved, most of all in the corners on the border,
which are extrapolated, and solutions are not quite zero in the outermost rows.

This differs from the published code in one thing: the equations are solved by SciPy's conjugate
gradients, to a relative residual of 1e-10.
"""

import dataclasses
import functools as ft
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy.fft
import scipy.io
from jaxtyping import Float
from scipy.interpolate import make_interp_spline
from scipy.sparse.linalg import cg, LinearOperator

from ._generated import Generated, splits as _splits
from ._source import Splits


@dataclasses.dataclass(frozen=True)
class Spec:
    """What is solved. The defaults are those of the published data.

    - `size`: points on each side.
    - `alpha`, `tau`: the field has covariance `tau^(2 alpha - 2) (-Laplace + tau^2)^-alpha`,
        with Neumann conditions, and no constant part. The greater `alpha` the smoother, the
        greater `tau` the finer it is.
    - `low`, `high`: the coefficients where the field is negative, and where it is not.
    - `lognormal`: to take the exponential of the field in place of these two.
    """

    size: int = 421
    alpha: float = 2.0
    tau: float = 3.0
    low: float = 3.0
    high: float = 12.0
    lognormal: bool = False

    def __post_init__(self):
        if self.size < 5:
            raise ValueError(f"`size` must be at least 5, got {self.size}.")
        for name in ("alpha", "tau", "low", "high"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` must be positive, got {getattr(self, name)}.")


FNO = Spec()


def field(
    rng: np.random.Generator, size: int, *, alpha: float = 2.0, tau: float = 3.0
) -> Float[np.ndarray, "size size"]:
    """A Gaussian random field on the unit square, in the middles of cells.

    It is the sum over `k` of normal numbers times `tau^(alpha - 1) (pi^2 |k|^2 +
    tau^2)^(-alpha / 2)` times the cosines of `k` waves over the square that have mean square 1.
    """
    k = np.pi * np.arange(size)
    deviation = tau ** (alpha - 1) * (k[:, None] ** 2 + k**2 + tau**2) ** (-alpha / 2)
    waves = size * deviation * rng.normal(size=(size, size))
    waves[0, 0] = 0.0
    return np.asarray(scipy.fft.idctn(waves, type=2, norm="ortho"))


def coefficient(rng: np.random.Generator, spec: Spec = FNO) -> Float[np.ndarray, "size size"]:
    """A random coefficient, in the middles of cells."""
    normal = field(rng, spec.size, alpha=spec.alpha, tau=spec.tau)
    return np.exp(normal) if spec.lognormal else np.where(normal >= 0, spec.high, spec.low)


def solve(
    coefficient: Float[np.ndarray, "size size"],
    force: float | Float[np.ndarray, "size size"] = 1.0,
    *,
    rtol: float = 1e-10,
) -> Float[np.ndarray, "size size"]:
    """The solution of `-div(a grad u) = f` on the unit square, zero on its border.

    Everything is on the corners of cells, the border included. On the face between two of
    them the coefficient is the mean of both.

    - `force`: the right side, everywhere or on the corners.
    - `rtol`: at what norm of the residual, over that of the right side, to stop.

    It is solved by conjugate gradients, preconditioned by the equation of a coefficient of
    1, which sine transforms solve: the number of steps depends on the contrast, not on `size`.

    **Raises:** `ValueError` of coefficients that are not positive.
    """
    size = len(coefficient)
    if coefficient.shape != (size, size) or size < 3:
        raise ValueError(
            f"`coefficient` must be square and at least 3 points wide, got {coefficient.shape}."
        )
    if not coefficient.min() > 0:
        raise ValueError(f"`coefficient` must be positive, got {coefficient.min()}.")
    return _solve(coefficient, np.broadcast_to(np.asarray(force, float), (size, size)), rtol)


def _solve(
    coefficient: Float[np.ndarray, "size size"],
    force: Float[np.ndarray, "size size"],
    rtol: float,
) -> Float[np.ndarray, "size size"]:
    size = len(coefficient)
    steps = (size - 1) ** 2
    rows = steps * (coefficient[1:, 1:-1] + coefficient[:-1, 1:-1]) / 2
    columns = steps * (coefficient[1:-1, 1:] + coefficient[1:-1, :-1]) / 2
    waves = 2 - 2 * np.cos(np.pi * np.arange(1, size - 1) / (size - 1))
    eigenvalues = steps * (waves[:, None] + waves)
    transform = ft.partial(scipy.fft.dstn, type=1, norm="ortho")

    def apply(u: Float[np.ndarray, "inner inner"]) -> Float[np.ndarray, "inner inner"]:
        u = np.pad(u, 1)
        over_rows = rows * np.diff(u[:, 1:-1], axis=0)
        over_columns = columns * np.diff(u[1:-1], axis=1)
        return -np.diff(over_rows, axis=0) - np.diff(over_columns, axis=1)

    def precondition(r: Float[np.ndarray, "inner inner"]) -> Float[np.ndarray, "inner inner"]:
        return np.asarray(transform(transform(r) / eigenvalues))

    inner, right = (size - 2, size - 2), force[1:-1, 1:-1].ravel()

    def operator(f: Callable[[np.ndarray], np.ndarray]) -> LinearOperator:
        flat = lambda a: f(a.reshape(inner)).ravel()
        shape = (right.size, right.size)
        return LinearOperator(shape, flat, dtype=np.float64)  # pyright: ignore[reportCallIssue]

    u, failed = cg(
        operator(apply), right, rtol=rtol, atol=0.0, maxiter=10_000, M=operator(precondition)
    )
    if failed:
        raise RuntimeError(f"No solution to {rtol} of the right side in 10,000 steps.")
    return np.pad(u.reshape(inner), 1)


def generate(
    rng: np.random.Generator, spec: Spec = FNO
) -> tuple[Float[np.ndarray, "size size"], Float[np.ndarray, "size size"]]:
    """A random coefficient and the pressure, both in the middles of cells."""
    cells = coefficient(rng, spec)
    out, back = _corners(spec.size), _middles(spec.size)
    # Where materials meet at the border this can be negative in a corner or two: as published.
    corners = out @ cells @ out.T
    return cells, back @ _solve(corners, np.ones_like(corners), 1e-10) @ back.T


@ft.lru_cache(maxsize=8)
def _corners(size: int) -> Float[np.ndarray, "size size"]:
    """From the middles of `size` cells to as many points from border to border."""
    return _spline((np.arange(size) + 0.5) / size, np.linspace(0, 1, size))


@ft.lru_cache(maxsize=8)
def _middles(size: int) -> Float[np.ndarray, "size size"]:
    return _spline(np.linspace(0, 1, size), (np.arange(size) + 0.5) / size)


def _spline(
    given: Float[np.ndarray, " given"], wanted: Float[np.ndarray, " wanted"]
) -> Float[np.ndarray, "wanted given"]:
    """What interpolates by cubic splines, not-a-knot at the ends, as MATLAB's do."""
    return make_interp_spline(given, np.eye(len(given)), k=3)(wanted)


#
# Sources and files.
#


def _example(rng: np.random.Generator, spec: Spec, every: int) -> tuple[np.ndarray, np.ndarray]:
    x, y = (a[None, ::every, ::every].astype(np.float32) for a in generate(rng, spec))
    return x, y


def _maker(spec: Spec, every: int) -> ft.partial:
    if every < 1 or (spec.size - 1) % every:
        raise ValueError(f"`every` must divide {spec.size - 1}, got {every}.")
    return ft.partial(_example, spec=spec, every=every)


def source(
    seed: int, size: int, spec: Spec = FNO, *, every: int = 5, start: int = 0
) -> Generated:
    """Examples `(x, y)`: float32 coefficients and pressures, `(1, points, points)` each, as
    they are, on every fifth point or what is asked for.

    An example of 421 points takes about a second. What is needed more than once is better
    made by [`write`][].
    """
    return Generated(_maker(spec, every), seed, size, start)


def splits(
    seed: int,
    sizes: tuple[int, int, int] = (900, 100, 100),
    spec: Spec = FNO,
    *,
    every: int = 5,
) -> Splits:
    """As [`source`][], to train, validate and test on."""
    return _splits(_maker(spec, every), seed, sizes)


def store(folder: Path, size: int, seed: int = 0, spec: Spec = FNO, *, start: int = 0) -> None:
    """Makes examples that are not there yet: `<i>.npz` with arrays `coeff` and `sol`.

    Example `i`, from `start` on, is made of the generator seeded with `(seed, i)`. The work can
    be broken off at any time and taken up again by the same call.

    **Raises:** `ValueError` if the examples in the folder have another seed or other settings.
    """
    settings = {"seed": seed, **dataclasses.asdict(spec)}
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / "settings.json"
    if kept.exists() and (there := json.loads(kept.read_text())) != settings:
        raise ValueError(f"{folder} has examples of {there}, not of {settings}.")
    kept.write_text(json.dumps(settings) + "\n")
    for i in range(start, start + size):
        if (path := folder / f"{i}.npz").exists():
            continue
        coeff, sol = generate(np.random.default_rng((seed, i)), spec)
        part = folder / f"{i}.part"
        with part.open("wb") as file:
            np.savez_compressed(file, coeff=coeff, sol=sol)
        os.replace(part, path)  # so that no half of a file is ever taken for one


def write(
    folder: Path, sizes: tuple[int, int] = (1024, 1024), seed: int = 0, spec: Spec = FNO
) -> None:
    """Writes `piececonst_r421_N1024_smooth1.mat` and `..._smooth2.mat`, as the published data
    has them, or files of other such numbers: arrays `coeff` and `sol`, `(N, 421, 421)` each.

    The examples are first stored in the folder's `examples`, so that the work can be broken
    off and taken up again. At the published sizes it takes an hour and 6 GB of memory.

    **Raises:** `FileExistsError` if one of the files is there already: it may be the published
    one.
    """
    kind = "lognormal" if spec.lognormal else "piececonst"
    paths = [
        folder / f"{kind}_r{spec.size}_N{n}_smooth{k}.mat" for k, n in enumerate(sizes, start=1)
    ]
    for path in paths:
        if path.exists():
            raise FileExistsError(f"{path} is there already.")
    start = 0
    for path, size in zip(paths, sizes):
        examples = folder / "examples"
        store(examples, size, seed, spec, start=start)
        arrays = {name: np.zeros((size, spec.size, spec.size)) for name in ("coeff", "sol")}
        for i in range(size):
            with np.load(examples / f"{start + i}.npz", allow_pickle=False) as file:
                for name, array in arrays.items():
                    array[i] = file[name]
        part = path.with_suffix(".part")
        with part.open("wb") as file:
            scipy.io.savemat(file, arrays, do_compression=True)
        os.replace(part, path)
        start += size
