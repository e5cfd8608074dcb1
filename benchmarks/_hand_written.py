# A CCNN as one would write it by hand: no plans, no library. What the materialized network is
# measured against. With `masked_init` it is DNArch as the paper trains it in JAX: the largest
# network, its activations, kernels and spectra multiplied by masks.

import functools as ft
import math

import jax
import jax.nn as jnn
import jax.numpy as jnp
import jax.random as jr
import numpy as np


def init(key, *, shape, channels, classes, depth, width, hidden=128):
    keys = iter(jr.split(key, 6 + 3 * depth))
    linear = lambda i, o: {
        "w": jr.normal(next(keys), (o, i)) * math.sqrt(2 / i),
        "b": jnp.zeros(o),
    }
    norm = lambda n: {"scale": jnp.ones(n), "shift": jnp.zeros(n)}
    block = lambda: {
        "norm": norm(width),
        "head": linear(hidden, width),
        "bias": jnp.zeros(width),
        "linear1": linear(width, width),
        "linear2": linear(width, width),
    }
    blocks = [block() for _ in range(depth)]
    for b in blocks:
        b["head"]["w"] /= math.sqrt(math.prod(shape))
    return {
        "frequencies": jr.normal(next(keys), (len(shape), hidden)),
        "generator": [
            linear(2 * hidden, hidden),
            linear(hidden, hidden),
            linear(hidden, hidden),
        ],
        "encoder": linear(channels, width),
        "encoder_norm": norm(width),
        "blocks": blocks,
        "norm": norm(width),
        "decoder": linear(width, classes),
    }


def masked_init(key, *, shape, channels, classes, depth, width, hidden=128):
    """Twice the depth and the width, and the offsets of masks that start at `depth` blocks of
    `width` channels, with global kernels at the full resolution. In one dimension.
    """
    sizes = dict(shape=shape, channels=channels, classes=classes, hidden=hidden)
    params = init(key, depth=2 * depth, width=2 * width, **sizes)
    half = lambda temperature: jnp.array(-math.log(9) / temperature)
    for b in params["blocks"]:
        b["offsets"] = {
            "in": half(25.0),
            "mid": half(25.0),
            "out": half(25.0),
            "resolution": jnp.array(1 + math.log(0.85 / 0.15) / 25.0),
            "sigma": jnp.array(0.5),
        }
    params["depth"] = half(8.0)
    return params


def sigmoid_mask(offset, size, temperature=25.0):
    k = np.arange(size)
    x = -1 + 2 * (k + 1e-3 * (k > 0)) / size  # where their sizes begin, but for rounding
    m = jnn.sigmoid(temperature * (offset - jnp.asarray(x)))
    return jnp.where(m >= 0.1, m, 0.0)


def gaussian_mask(sigma, size):
    m = jnp.exp(-0.5 * (jnp.linspace(-1, 1, size) / sigma) ** 2)
    return jnp.where(m >= 0.1, m, 0.0)


def per_channel(values, x):
    return values.reshape(-1, *(1,) * (x.ndim - 2))


def linear(p, x):
    return jnp.einsum("oi,bi...->bo...", p["w"], x) + per_channel(p["b"], x)


def batch_norm(p, x):
    over = (0, *range(2, x.ndim))
    mean = jnp.mean(x, over, keepdims=True)
    centred = x - mean
    variance = jnp.mean(centred**2, over, keepdims=True)
    scale = per_channel(p["scale"], x) * jax.lax.rsqrt(variance + 1e-5)
    return centred * scale + per_channel(p["shift"], x)


def features(params, shape, window, omega_0):
    """The generator's, at the centred window of a grid with a position at 0."""
    turns = 0.0
    for axis, (n, k, w) in enumerate(zip(shape, window, params["frequencies"])):
        grid = n + 1 - n % 2
        x = jnp.linspace(-1, 1, grid)[(grid - k) // 2 :][:k]
        x = jnp.expand_dims(x, [i for i in range(len(shape)) if i != axis])
        turns = turns + omega_0 * jax.lax.stop_gradient(w).reshape(-1, *(1,) * len(shape)) * x
    phase = 2 * math.pi * (turns - jnp.round(turns))
    h = jnp.concatenate([jnp.cos(phase), jnp.sin(phase)])[None]
    for layer in params["generator"]:
        h = jnn.gelu(linear(layer, h))
    return h


def centre(x, window):
    starts = [(n - k) // 2 for n, k in zip(x.shape[2:], window)]
    return x[(..., *(slice(i, i + k) for i, k in zip(starts, window)))]


def convolve(y, kernel, resolution, periods, low_pass=None):
    """Depthwise, on periods that hold what is smeared beyond the ends, to fewer samples."""
    shape, window = y.shape[2:], kernel.shape[2:]
    axes = tuple(range(2, y.ndim))
    kernel = jnp.pad(kernel, [(0, 0), (0, 0), *((0, p - k) for p, k in zip(periods, window))])
    kernel = jnp.roll(kernel, [-(k // 2) for k in window], axes)
    spectrum = jnp.fft.rfftn(y, periods, axes) * jnp.fft.rfftn(kernel, axes=axes)
    if low_pass is not None:
        spectrum = spectrum * low_pass
    shorter = [p * m // n for n, m, p in zip(shape, resolution, periods)]
    for axis, (p, s) in enumerate(zip(periods, shorter), 2):
        if s != p:
            low = jax.lax.slice_in_dim(spectrum, 0, s // 2, axis=axis)
            if axis < y.ndim - 1:
                high = jax.lax.slice_in_dim(spectrum, p - (s - s // 2), p, axis=axis)
                low = jnp.concatenate([low, high], axis)
            spectrum = low * (s / p)
    y = jnp.fft.irfftn(spectrum, shorter, axes)
    return y[(..., *(slice(0, m) for m in resolution))]


def upsample(y, shape):
    """The trigonometric polynomial through the samples, at more of them."""
    if y.shape[2:] == shape:
        return y
    axes = tuple(range(2, y.ndim))
    spectrum = jnp.fft.rfftn(y, axes=axes)
    for axis, n in zip(axes[:-1], shape):
        m = spectrum.shape[axis]
        low, high = jnp.split(spectrum, [m // 2], axis)
        gap = [n - m if i == axis else size for i, size in enumerate(spectrum.shape)]
        spectrum = jnp.concatenate([low, jnp.zeros(gap, spectrum.dtype), high], axis)
    return jnp.fft.irfftn(spectrum, shape, axes) * (math.prod(shape) / math.prod(y.shape[2:]))


def forward(params, x, omega_0, kernels, resolutions, roomy=False):
    """The extents of every block's kernel, and its samples, are constants of the program. If
    `roomy`, all convolutions have the period of a global kernel, and else that of their own.
    """
    shape = x.shape[2:]
    window = tuple(map(max, zip(*kernels)))
    h = jnn.gelu(batch_norm(params["encoder_norm"], linear(params["encoder"], x)))
    rendered = features(params, shape, window, omega_0)
    depth = len(params["blocks"])
    blocks = sigmoid_mask(params["depth"], depth, 8.0) if "depth" in params else [None] * depth
    for p, present, k, r in zip(params["blocks"], blocks, kernels, resolutions):
        y = batch_norm(p["norm"], h)
        kernel = linear(p["head"], centre(rendered, k))
        mask = lambda name, y, p=p: y
        low_pass = None
        periods = [
            period(n, m, n + 1 - n % 2 if roomy else size) for n, m, size in zip(shape, r, k)
        ]
        if present is not None:
            mask = lambda name, y, p=p: (
                y * sigmoid_mask(p["offsets"][name], y.shape[1])[:, None]
            )
            kernel = kernel * gaussian_mask(p["offsets"]["sigma"], k[0])
            low_pass = sigmoid_mask(p["offsets"]["resolution"], periods[0] // 2 + 1)
        y = convolve(y, kernel, r, periods, low_pass)
        y = y + per_channel(p["bias"], y)
        y = jnn.gelu(mask("mid", linear(p["linear1"], mask("in", y))))
        y = jnn.gelu(mask("out", linear(p["linear2"], y)))
        y = y if present is None else y * present
        h = h + upsample(y, shape)
    h = batch_norm(params["norm"], h)
    pooled = jnp.mean(h, tuple(range(2, h.ndim)))
    return pooled @ params["decoder"]["w"].T + params["decoder"]["b"]


@ft.cache
def period(n, m, k):
    """The next length with prime factors up to 7 alone that holds `n` samples and half a
    kernel, and is a whole number at the resolution of `m` samples.
    """
    p = n + k // 2
    while not (p * m % n == 0 and smooth(p)):
        p += 1
    return p


def smooth(n):
    for p in (2, 3, 5, 7):
        while n % p == 0:
            n //= p
    return n == 1
