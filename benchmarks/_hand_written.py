# A CCNN as one would write it by hand: no plans, no library. What the materialized network is
# measured against. With `masked_init` it is DNArch as the paper trains it in JAX: the largest
# network, its activations, kernels and spectra multiplied by masks.

import functools as ft
import math

import jax
import jax.nn as jnn
import jax.numpy as jnp
import jax.random as jr


def init(key, *, length, channels, classes, depth, width, stream, hidden=128):
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
        b["head"]["w"] /= math.sqrt(length + 1)
    return {
        "frequencies": jr.normal(next(keys), (hidden,)),
        "generator": [
            linear(2 * hidden, hidden),
            linear(hidden, hidden),
            linear(hidden, hidden),
        ],
        "encoder": linear(channels, stream),
        "encoder_norm": norm(stream),
        "blocks": blocks,
        "norm": norm(stream),
        "decoder": linear(stream, classes),
    }


def masked_init(key, *, length, channels, classes, depth, width, hidden=128):
    """Twice the depth and the width, and the offsets of masks that start at `depth` blocks of
    `width` channels, with global kernels at the full resolution.
    """
    sizes = dict(length=length, channels=channels, classes=classes, hidden=hidden)
    params = init(key, depth=2 * depth, width=2 * width, stream=2 * width, **sizes)
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
    m = jnn.sigmoid(temperature * (offset - jnp.linspace(-1, 1, size)))
    return jnp.where(m >= 0.1, m, 0.0)


def gaussian_mask(sigma, size):
    m = jnp.exp(-0.5 * (jnp.linspace(-1, 1, size) / sigma) ** 2)
    return jnp.where(m >= 0.1, m, 0.0)


def linear(p, x):
    return jnp.einsum("oi,...il->...ol", p["w"], x) + p["b"][:, None]


def batch_norm(p, x):
    mean = jnp.mean(x, (0, 2), keepdims=True)
    centred = x - mean
    variance = jnp.mean(centred**2, (0, 2), keepdims=True)
    scale = p["scale"][None, :, None] * jax.lax.rsqrt(variance + 1e-5)
    return centred * scale + p["shift"][None, :, None]


def features(params, length, omega_0):
    x = jnp.linspace(-1, 1, length + 1)
    turns = omega_0 * jax.lax.stop_gradient(params["frequencies"])[:, None] * x
    phase = 2 * math.pi * (turns - jnp.round(turns))
    h = jnp.concatenate([jnp.cos(phase), jnp.sin(phase)])
    for layer in params["generator"]:
        h = jnn.gelu(linear(layer, h))
    return h


def forward(params, x, omega_0):
    length = x.shape[-1]
    half, period = length // 2, fast(length + length // 2)
    h = jnn.gelu(batch_norm(params["encoder_norm"], linear(params["encoder"], x)))
    rendered = features(params, length, omega_0)
    depth = len(params["blocks"])
    blocks = sigmoid_mask(params["depth"], depth, 8.0) if "depth" in params else [None] * depth
    for p, present in zip(params["blocks"], blocks):
        width = p["bias"].shape[0]
        y = batch_norm(p["norm"], h[:, :width])
        kernel = linear(p["head"], rendered)
        mask = lambda name, y, p=p: y
        low_pass = 1.0
        if present is not None:
            mask = lambda name, y, p=p: (
                y * sigmoid_mask(p["offsets"][name], y.shape[1])[:, None]
            )
            kernel = kernel * gaussian_mask(p["offsets"]["sigma"], length + 1)
            low_pass = sigmoid_mask(p["offsets"]["resolution"], period // 2 + 1)
        gap = jnp.zeros((width, period - length - 1))
        kernel = jnp.concatenate([kernel[:, half:], gap, kernel[:, :half]], 1)
        spectrum = jnp.fft.rfft(y, period) * jnp.fft.rfft(kernel) * low_pass
        y = jnp.fft.irfft(spectrum, period)[..., :length] + p["bias"][:, None]
        y = jnn.gelu(mask("mid", linear(p["linear1"], mask("in", y))))
        y = jnn.gelu(mask("out", linear(p["linear2"], y)))
        y = y if present is None else y * present
        h = h + jnp.pad(y, [(0, 0), (0, h.shape[1] - width), (0, 0)])
    h = batch_norm(params["norm"], h)
    return jnp.mean(h, -1) @ params["decoder"]["w"].T + params["decoder"]["b"]


@ft.cache
def fast(n):
    """The next length with prime factors 2, 3 and 5 alone."""
    rest = n
    for p in (2, 3, 5):
        while rest % p == 0:
            rest //= p
    return n if rest == 1 else fast(n + 1)
