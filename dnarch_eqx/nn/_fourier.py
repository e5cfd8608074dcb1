# Transforms between grids. A signal of N samples lies on [0, N) of a longer period P, zero on
# the rest: so products of spectra are linear convolutions. A spectrum that is cropped to the
# frequencies below M / 2N is that of the same signal on M samples of [0, N), with the period
# P M / N. A frequency at exactly half the sampling rate is its own mirror image and cannot
# hold a phase: it is dropped, so that cropping is exactly a projection.

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ._choices import choose_transform
from ._transforms import along, fast_length, pass_band, to_space, waves


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
    transform: str = "auto",
) -> Float[Array, "channels *reduced"]:
    """Depthwise linear convolution and low-pass filter in one, computed at the output's
    resolution (Eq. 7, Appx. B.1, B.2): what lies above the cutoff is never multiplied nor
    transformed back.

    **Arguments:**

    - `x`: the signal, zero outside its samples.
    - `kernel`: odd extents, centred, at most one more than the samples.
    - `low_pass`: on each axis of N samples, the factors of the M lowest of N frequencies, or
        `None` for no filter.
    - `transform`: `"fft"`; `"dft"`, products with matrices; or on each axis the cheaper one,
        `"auto"`.

    **Returns:**

    The signal at M samples (or N), on the same extent.
    """
    space, window = x.shape[1:], kernel.shape[1:]
    sizes = [None if values is None else values.shape[0] for values in low_pass]
    reduced = [n if m is None else m for n, m in zip(space, sizes)]
    periods = _periods(space, window, sizes)
    shorter = [p * m // n for p, m, n in zip(periods, reduced, space)]
    transforms = convolution_transforms(transform, space, window, sizes)
    factors = [None if v is None else filter_factors(v, n) for n, v in zip(space, low_pass)]
    # At the full resolution no FFT is cropped: copies would cost more than zeros.
    kept = [
        None if f is None or (m == n and how == "fft") else f.shape[0]
        for f, m, n, how in zip(factors, reduced, space, transforms)
    ]
    spectrum = pass_band(kernel, periods, kept, transforms, centred=True)
    for i, (f, m, n, p) in enumerate(zip(factors, reduced, space, periods)):
        if f is not None:
            # Amplitudes are per sample, hence the ratio of the lengths.
            f = f * (m / n)
            mirrored = f[:0:-1]
            if kept[i] is None:
                f = jnp.append(f, jnp.zeros(p // 2 + 1 - f.shape[0], f.dtype))
            if i < len(space) - 1:
                f = jnp.concatenate([f, mirrored])
            others = [axis for axis in range(spectrum.ndim) if axis != i + 1]
            spectrum = spectrum * jnp.expand_dims(f, others).astype(spectrum.dtype)
    product = pass_band(x, periods, kept, transforms) * spectrum
    return to_space(product, shorter, reduced, kept, transforms)


def convolution_transforms(
    transform: str, space: Sequence[int], window: Sequence[int], sizes: Sequence[int | None]
) -> tuple[str, ...]:
    """On each axis of a [`fourier_convolution`][], `"fft"` or `"dft"`. `sizes` are those of
    the filters.
    """
    chosen = []
    for n, m, p in zip(space, sizes, _periods(space, window, sizes)):
        m = n if m is None else m
        # A cosine and a sine for each frequency, from n samples and to m.
        entries = 2 * ((p * m // n + 1) // 2) * (n + m)
        chosen.append(choose_transform(transform, entries, (p, p * m // n)))
    return tuple(chosen)


def _periods(
    space: Sequence[int], window: Sequence[int], sizes: Sequence[int | None]
) -> list[int]:
    return [
        fast_length(n + k // 2) if m is None else period(n, m)
        for n, k, m in zip(space, window, sizes)
    ]


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
    scaled = lambda waves: jnp.asarray(waves, values.dtype) * weights[None]
    even = along(scaled(np.cos(at)), np.cos(of).T, 1)
    odd = along(scaled(np.sin(at)), np.sin(of).T, 1)
    return even + odd


def resize(
    x: Float[Array, "channels *space"], space: Sequence[int], transform: str = "auto"
) -> Float[Array, "channels *other"]:
    """The signal at another, higher resolution: the trigonometric polynomial through its
    samples, whose period is the signal's extent. The identity where nothing changes.

    (The paper does not say how features are brought back. A period of the extent makes a
    smaller jump at the ends than zeros beside it would, and needs half the transform.)

    `transform` is as for [`dnarch_eqx.nn.fourier_convolution`][].
    """
    transforms = resize_transforms(transform, x.shape[1:], space)
    for i, (n, how) in enumerate(zip(space, transforms)):
        axis = i + 1
        m = x.shape[axis]
        below = np.arange((m + 1) // 2)  # without an even grid's Nyquist bin: see above
        if how == "dft":
            cos, sin = waves(np.arange(m), below, m)
            cos_back, sin_back = waves(below, np.arange(n), n)
            both_signs = np.where(below == 0, 1, 2) / m
            x = along(x, (both_signs * cos) @ cos_back + (both_signs * sin) @ sin_back, axis)
        elif how == "fft":
            spectrum = jnp.take(jnp.fft.rfft(x, axis=axis), below, axis=axis)
            x = jnp.fft.irfft(spectrum * (n / m), n, axis=axis)
    return x


def resize_transforms(
    transform: str, space: Sequence[int], other: Sequence[int]
) -> tuple[str, ...]:
    """On each axis of a [`resize`][], `"fft"`, `"dft"`, or `"none"` where nothing changes."""
    return tuple(
        "none" if m == n else choose_transform(transform, m * n, (m, n))
        for m, n in zip(space, other)
    )
