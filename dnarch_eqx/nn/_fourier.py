# Transforms between grids. A signal of N samples lies on [0, N) of a period 2N, whose second
# half is zero: so products of spectra are linear convolutions, and a spectrum that is cropped
# to its M lowest frequencies is a period of 2M, whose first half is the same signal at M
# samples, whatever M is. Bin M, the Nyquist bin of the smaller grid, is its own mirror image
# and cannot hold a phase: it is dropped, so that cropping is exactly a projection.

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
    - `kernel`: odd extents, centred.
    - `low_pass`: on each axis of N samples, the factors of the M lowest of N frequencies, or
        `None` for no filter.

    **Returns:**

    The signal at M samples (or N), on the same extent.
    """
    space = x.shape[1:]
    kept = [None if m is None else m.shape[0] for m in low_pass]
    periods = [
        fast_length(n + k // 2) if m is None else 2 * n
        for n, k, m in zip(space, kernel.shape[1:], kept)
    ]
    spectrum = pass_band(circular(kernel, periods), periods, kept)
    for i, (values, n) in enumerate(zip(low_pass, space)):
        if values is not None:
            # Amplitudes are per sample, hence the ratio of the lengths.
            values = values * (values.shape[0] / n)
            if i < len(space) - 1:
                values = jnp.concatenate([values, values[:0:-1]])
            others = [axis for axis in range(spectrum.ndim) if axis != i + 1]
            spectrum = spectrum * jnp.expand_dims(values, others).astype(spectrum.dtype)
    product = pass_band(x, periods, kept) * spectrum
    reduced = [n if m is None else m for n, m in zip(space, kept)]
    shorter = [p if m is None else 2 * m for p, m in zip(periods, kept)]
    return to_space(product, shorter, reduced, kept)


def resampler(
    values: Float[Array, " kept"], n: int, margin: int
) -> Float[Array, "kept samples"]:
    """The low-pass filter of [`fourier_convolution`][] as a matrix: from the samples
    `-margin, ..., n + margin - 1` of a signal to its M low-passed ones (Appx. B.4, where the
    filter is the inverse transform of the mask).
    """
    m = values.shape[0]
    k = np.arange(m)
    at = 2 * np.pi * np.outer(np.arange(m) * n / m, k) / (2 * n)
    of = 2 * np.pi * np.outer(np.arange(-margin, n + margin), k) / (2 * n)
    weights = values * jnp.asarray(np.where(k == 0, 1.0, 2.0) / (2 * n), values.dtype)
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
