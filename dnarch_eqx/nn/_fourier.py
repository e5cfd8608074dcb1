# Transforms between grids. A signal of N samples lies on [0, N) of a longer period P, zero on
# the rest: so products of spectra are linear convolutions. A spectrum that is cropped to the
# frequencies below M / 2N is that of the same signal on M samples of [0, N), with the period
# P M / N. A frequency at exactly half the sampling rate is its own mirror image and cannot
# hold a phase: it is dropped, so that cropping is exactly a projection.

import itertools as it
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

from .._plan import is_smooth


def fast_length(n: int) -> int:
    """The smallest length of at least `n` with the prime factors 2, 3 and 5 alone."""
    return next(filter(is_smooth, it.count(n)))


def pass_band(
    x: Float[Array, "channels *space"],
    periods: Sequence[int],
    kept: Sequence[int | None],
) -> Complex[Array, "channels *frequencies"]:
    """The spectrum, cropped on every axis before the next one is transformed.

    **Arguments:**

    - `x`: the signal; zeros are appended up to the period.
    - `periods`: the length of the transform on each axis.
    - `kept`: on each axis, how many of the lowest frequencies are kept; `None` for all.

    **Returns:**

    On the last axis the frequencies from 0 up, on the others those from 0 up followed by
    the negative ones, from the lowest.
    """
    last = len(periods) - 1
    spectrum = jnp.fft.rfft(x, periods[last], axis=-1)
    if kept[last] is not None:
        spectrum = spectrum[..., : kept[last]]
    for i in reversed(range(last)):
        axis = i + 1
        spectrum = jnp.fft.fft(spectrum, periods[i], axis=axis)
        m = kept[i]
        if m is not None:
            low = jnp.take(spectrum, np.arange(m), axis=axis)
            negative = jnp.take(spectrum, np.arange(periods[i] - m + 1, periods[i]), axis=axis)
            spectrum = jnp.concatenate([low, negative], axis=axis)
    return spectrum


def to_space(
    spectrum: Complex[Array, "channels *frequencies"],
    periods: Sequence[int],
    samples: Sequence[int],
    kept: Sequence[int | None],
) -> Float[Array, "channels *space"]:
    """The inverse of [`pass_band`][], on other periods: `samples` of each axis are kept."""
    last = len(periods) - 1
    for i in range(last):
        axis = i + 1
        m = kept[i]
        if m is not None:
            low = jnp.take(spectrum, np.arange(m), axis=axis)
            negative = jnp.take(spectrum, np.arange(m, 2 * m - 1), axis=axis)
            gap = list(spectrum.shape)
            gap[axis] = periods[i] - (2 * m - 1)
            zeros = jnp.zeros(gap, spectrum.dtype)
            spectrum = jnp.concatenate([low, zeros, negative], axis=axis)
        spectrum = jnp.fft.ifft(spectrum, axis=axis)
        spectrum = jnp.take(spectrum, np.arange(samples[i]), axis=axis)
    return jnp.fft.irfft(spectrum, periods[last], axis=-1)[..., : samples[last]]


def circular(
    kernel: Float[Array, "channels *window"], periods: Sequence[int]
) -> Float[Array, "channels *space"]:
    """A kernel with its centre at position 0 of a period, and the taps before the centre at
    the end of it.
    """
    for i, period in enumerate(periods):
        axis = i + 1
        size = kernel.shape[axis]
        gap = list(kernel.shape)
        gap[axis] = period - size
        before, after = jnp.split(kernel, [size // 2], axis=axis)
        kernel = jnp.concatenate([after, jnp.zeros(gap, kernel.dtype), before], axis=axis)
    return kernel


def period(n: int, m: int) -> int:
    """The period on which `n` samples are low-passed to `m`: long enough for every kernel
    (of at most `n + 1` taps), the same for all even `m` of an even `n`, so that the filter
    is the same function whatever the bucket.
    """
    return 3 * n // 2 if n % 2 == m % 2 == 0 else 2 * n


def filter_factors(values: Float[Array, " kept"], n: int) -> Float[Array, " frequencies"]:
    """The factors of the frequencies `0, 1, ...` of the period, below those of the smaller
    grid's Nyquist frequency, from those of the M lowest of N, which are spaced as on a period
    of 2N: by linear interpolation.
    """
    m = values.shape[0]
    p = period(n, m)
    # (p m / n + 1) // 2 frequencies lie below half the sampling rate of the smaller grid.
    position = np.arange((p * m // n + 1) // 2) * (2 * n / p)
    low = np.floor(position).astype(int)
    fraction = jnp.asarray(position - low, values.dtype)
    values = jnp.append(values, jnp.zeros(1, values.dtype))
    at = lambda i: values.at[i].get(indices_are_sorted=True, unique_indices=True)
    return at(low) * (1 - fraction) + at(low + 1) * fraction


def fourier_convolution(
    x: Float[Array, "channels *space"],
    kernel: Float[Array, "channels *window"],
    low_pass: Sequence[Float[Array, " _"] | None],
) -> Float[Array, "channels *reduced"]:
    """Depthwise linear convolution and low-pass filter in one, computed at the output's
    resolution (Eq. 7, Appx. B.1, B.2): what lies above the cutoff is never multiplied nor
    transformed back.

    **Arguments:**

    - `x`: the signal, zero outside its samples.
    - `kernel`: odd extents, centred, at most one more than the samples.
    - `low_pass`: on each axis of N samples, the factors of the M lowest of N frequencies, or
        `None` for no filter.

    **Returns:**

    The signal at M samples (or N), on the same extent.
    """
    space = x.shape[1:]
    reduced = [n if v is None else v.shape[0] for n, v in zip(space, low_pass)]
    periods = [
        fast_length(n + k // 2) if v is None else period(n, m)
        for n, m, k, v in zip(space, reduced, kernel.shape[1:], low_pass)
    ]
    factors = [None if v is None else filter_factors(v, n) for n, v in zip(space, low_pass)]
    # At the full resolution nothing is cropped: copies would cost more than zeros.
    kept = [
        None if f is None or m == n else f.shape[0] for f, m, n in zip(factors, reduced, space)
    ]
    spectrum = pass_band(circular(kernel, periods), periods, kept)
    for i, (f, m, n, p) in enumerate(zip(factors, reduced, space, periods)):
        if f is not None:
            # Amplitudes are per sample, hence the ratio of the lengths.
            f = f * (m / n)
            mirrored = f[:0:-1]
            if m == n:
                f = jnp.append(f, jnp.zeros(p // 2 + 1 - f.shape[0], f.dtype))
            if i < len(space) - 1:
                f = jnp.concatenate([f, mirrored])
            others = [axis for axis in range(spectrum.ndim) if axis != i + 1]
            spectrum = spectrum * jnp.expand_dims(f, others).astype(spectrum.dtype)
    product = pass_band(x, periods, kept) * spectrum
    shorter = [p * m // n for p, m, n in zip(periods, reduced, space)]
    return to_space(product, shorter, reduced, kept)


def resampler(values: Float[Array, " kept"], n: int, margin: int) -> Float[Array, "kept _"]:
    """The low-pass filter of [`fourier_convolution`][] as a matrix: from the samples
    `-margin, ..., n + margin - 1` of a signal to its M low-passed ones (Appx. B.4, where the
    filter is the inverse transform of the mask).
    """
    m = values.shape[0]
    p = period(n, m)
    factors = filter_factors(values, n)
    k = np.arange(factors.shape[0])
    at = 2 * np.pi * np.outer(np.arange(m) * n / m, k) / p
    of = 2 * np.pi * np.outer(np.arange(-margin, n + margin), k) / p
    weights = factors * jnp.asarray(np.where(k == 0, 1.0, 2.0) / p, values.dtype)
    constant = lambda a: jnp.asarray(a, values.dtype)
    even = (constant(np.cos(at)) * weights[None]) @ constant(np.cos(of).T)
    odd = (constant(np.sin(at)) * weights[None]) @ constant(np.sin(of).T)
    return even + odd


def resize(
    x: Float[Array, "channels *space"], space: Sequence[int]
) -> Float[Array, "channels *other"]:
    """The signal at another, higher resolution: the trigonometric polynomial through its
    samples, whose period is the signal's extent. The identity where nothing changes.

    (The paper does not say how features are brought back. A period of the extent makes a
    smaller jump at the ends than zeros beside it would, and needs half the transform.)
    """
    for i, n in enumerate(space):
        axis = i + 1
        m = x.shape[axis]
        if m == n:
            continue
        spectrum = jnp.fft.rfft(x, axis=axis)
        # Without an even grid's Nyquist bin: see above.
        spectrum = jnp.take(spectrum, np.arange((m + 1) // 2), axis=axis)
        x = jnp.fft.irfft(spectrum * (n / m), n, axis=axis)
    return x
