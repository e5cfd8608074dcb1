# Fourier transforms, an axis after the other. Where few frequencies are kept, the transform
# is a product with a matrix ("dft"), whose rows are the samples that are not zero and whose
# columns are the frequencies that are kept; otherwise a fast one ("fft"), which pads and
# crops.

import itertools as it
from collections.abc import Sequence

import jax.lax as lax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float, Inexact, Real

from ..ladders import is_smooth


def fast_length(n: int) -> int:
    """The smallest length of at least `n` with the prime factors 2, 3 and 5 alone."""
    return next(filter(is_smooth, it.count(n)))


def pass_band(
    x: Float[Array, "channels *space"],
    periods: Sequence[int],
    kept: Sequence[int | None],
    transforms: Sequence[str],
    *,
    centred: bool = False,
) -> Complex[Array, "channels *frequencies"]:
    """The spectrum, cropped on every axis before the next one is transformed.

    **Arguments:**

    - `x`: the signal, zero on the rest of the period.
    - `periods`: the length of the transform on each axis.
    - `kept`: on each axis, how many of the lowest frequencies are kept; `None` for all.
    - `transforms`: on each axis, `"fft"` or `"dft"`.
    - `centred`: whether position 0 is the signal's centre (for kernels), or its first sample.

    **Returns:**

    On the last axis the frequencies from 0 up, on the others those from 0 up followed by
    the negative ones, from the lowest.
    """
    last = len(periods) - 1
    for i in reversed(range(len(periods))):
        axis, p, m = i + 1, periods[i], kept[i]
        if transforms[i] == "dft":
            positions = np.arange(x.shape[axis]) - (x.shape[axis] // 2 if centred else 0)
            cos, sin = waves(positions, _frequencies(p, m, i == last), p)
            if i == last:
                parts = along(x, np.concatenate([cos, -sin], 1), axis)
                x = lax.complex(*jnp.split(parts, 2, axis))
            else:
                x = along(x, cos - 1j * sin, axis)
            continue
        if centred:
            x = _circular(x, p, axis)
        if i == last:
            x = jnp.fft.rfft(x, p, axis=axis)[..., :m]
            continue
        x = jnp.fft.fft(x, p, axis=axis)
        if m is not None:
            low = jnp.take(x, np.arange(m), axis=axis)
            negative = jnp.take(x, np.arange(p - m + 1, p), axis=axis)
            x = jnp.concatenate([low, negative], axis=axis)
    return x


def to_space(
    spectrum: Complex[Array, "channels *frequencies"],
    periods: Sequence[int],
    samples: Sequence[int],
    kept: Sequence[int | None],
    transforms: Sequence[str],
) -> Float[Array, "channels *space"]:
    """The inverse of [`pass_band`][], on other periods: `samples` of each axis are kept."""
    last = len(periods) - 1
    x = spectrum
    for i, (p, n, m) in enumerate(zip(periods, samples, kept)):
        axis = i + 1
        if transforms[i] == "dft":
            frequencies = _frequencies(p, m, i == last)
            cos, sin = waves(frequencies, np.arange(n), p)
            if i == last:
                # The negative frequencies are the mirror image of those that have one.
                alone = (frequencies == 0) | (2 * frequencies == p)
                twice = np.where(alone, 1, 2)[:, None] / p
                parts = jnp.concatenate([jnp.real(x), jnp.imag(x)], axis)
                x = along(parts, np.concatenate([twice * cos, -twice * sin]), axis)
            else:
                x = along(x, (cos + 1j * sin) / p, axis)
            continue
        if i == last:
            x = jnp.fft.irfft(x, p, axis=axis)[..., :n]
            continue
        if m is not None:
            low = jnp.take(x, np.arange(m), axis=axis)
            negative = jnp.take(x, np.arange(m, 2 * m - 1), axis=axis)
            gap = list(x.shape)
            gap[axis] = p - (2 * m - 1)
            x = jnp.concatenate([low, jnp.zeros(gap, x.dtype), negative], axis=axis)
        x = jnp.take(jnp.fft.ifft(x, axis=axis), np.arange(n), axis=axis)
    return x


def along(
    x: Inexact[Array, "*shape"], matrix: Inexact[Array | np.ndarray, "size other"], axis: int
) -> Inexact[Array, "*other_shape"]:
    """The product with a matrix on one axis, which becomes that of the matrix' columns. In
    full precision on every backend.
    """
    matrix = jnp.asarray(matrix, x.dtype)
    y = jnp.tensordot(x, matrix, [[axis], [0]], precision=lax.Precision.HIGHEST)
    return jnp.moveaxis(y, -1, axis)


def waves(
    rows: Real[np.ndarray, " rows"], columns: Real[np.ndarray, " columns"], period: int
) -> tuple[Float[np.ndarray, "rows columns"], Float[np.ndarray, "rows columns"]]:
    """Cosine and sine of the products of positions and frequencies on a period. In float64,
    and without the whole turns, of which nothing would be left but rounding.
    """
    angles = 2 * np.pi * (np.outer(rows, columns) % period) / period
    return np.cos(angles), np.sin(angles)


def _frequencies(period: int, kept: int | None, last: bool) -> np.ndarray:
    if last:
        return np.arange(period // 2 + 1 if kept is None else kept)
    if kept is None:
        return np.arange(period)
    return np.concatenate([np.arange(kept), np.arange(1 - kept, 0)])


def _circular(x: Inexact[Array, "*shape"], period: int, axis: int) -> Inexact[Array, "*period"]:
    """The centre at position 0 of the period, and what is before it at the period's end."""
    size = x.shape[axis]
    gap = list(x.shape)
    gap[axis] = period - size
    before, after = jnp.split(x, [size // 2], axis=axis)
    return jnp.concatenate([after, jnp.zeros(gap, x.dtype), before], axis=axis)
