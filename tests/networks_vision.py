"""Networks for images and fields, as people write them in Equinox."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from equinox.nn import (
    BatchNorm,
    Conv1d,
    Conv2d,
    ConvTranspose2d,
    GroupNorm,
    LayerNorm,
    Linear,
    SpectralNorm,
    WeightNorm,
)
from jaxtyping import Array


class BatchNormed(eqx.Module):
    """With running statistics."""

    first: Conv2d
    norm1: BatchNorm
    second: Conv2d
    norm2: BatchNorm
    head: Linear

    def __init__(self, mode, key):
        a, b, c = jr.split(key, 3)
        self.first = Conv2d(1, 8, 3, padding=1, key=a)
        self.norm1 = BatchNorm(8, "batch", mode=mode)
        self.second = Conv2d(8, 6, 3, padding=1, key=b)
        self.norm2 = BatchNorm(6, "batch", mode=mode)
        self.head = Linear(6, 2, key=c)

    def __call__(self, x, state):
        x, state = self.norm1(self.first(x), state)
        x, state = self.norm2(self.second(jax.nn.relu(x)), state)
        return self.head(jax.nn.relu(x).mean((1, 2))), state


class Discriminator(eqx.Module):
    first: SpectralNorm
    second: Linear

    def __init__(self, key):
        a, b, c = jr.split(key, 3)
        self.first = SpectralNorm(Linear(4, 10, key=a), "weight", key=b)
        self.second = Linear(10, 2, key=c)

    def __call__(self, x, state):
        x, state = self.first(x, state)
        return self.second(jax.nn.leaky_relu(x)), state


def batched(model, state, x):
    run = jax.vmap(model, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
    return run(x, state)


class WeightNormed(eqx.Module):
    first: WeightNorm
    second: WeightNorm

    def __init__(self, key):
        a, b = jr.split(key)
        self.first = WeightNorm(Linear(4, 10, key=a))
        self.second = WeightNorm(Linear(10, 2, key=b))

    def __call__(self, x):
        return self.second(jnp.tanh(self.first(x)))


class BasicBlock(eqx.Module):
    """Projects its input where numbers of channels that it keeps differ."""

    conv1: Conv2d
    norm: GroupNorm
    conv2: Conv2d
    project: Conv2d | None
    dim_in: int = eqx.field(static=True)
    dim_out: int = eqx.field(static=True)

    def __init__(self, dim_in, dim_out, key):
        a, b, c = jr.split(key, 3)
        self.conv1 = Conv2d(dim_in, dim_out, 3, padding=1, key=a)
        self.norm = GroupNorm(4, dim_out)
        self.conv2 = Conv2d(dim_out, dim_out, 3, padding=1, key=b)
        self.project = None if dim_in == dim_out else Conv2d(dim_in, dim_out, 1, key=c)
        self.dim_in, self.dim_out = dim_in, dim_out

    def __call__(self, x):
        h = self.conv2(jax.nn.relu(self.norm(self.conv1(x))))
        if self.dim_in != self.dim_out:
            x = self.project(x)  # pyright: ignore
        assert h.shape[0] == self.dim_out
        return jax.nn.relu(x + h)


class ResNet(eqx.Module):
    stem: Conv2d
    layers: list[BasicBlock]
    head: Linear

    def __init__(self, key):
        a, b, c, d, e = jr.split(key, 5)
        self.stem = Conv2d(3, 8, 3, padding=1, key=a)
        self.layers = [BasicBlock(8, 8, b), BasicBlock(8, 8, c), BasicBlock(8, 12, d)]
        self.head = Linear(12, 2, key=e)

    def __call__(self, x):
        x = self.stem(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean((1, 2)))


class AutoEncoder(eqx.Module):
    down: Conv2d
    inner: Conv2d
    up: ConvTranspose2d

    def __init__(self, key):
        a, b, c = jr.split(key, 3)
        self.down = Conv2d(1, 8, 2, stride=2, key=a)
        self.inner = Conv2d(8, 10, 3, padding=1, key=b)
        self.up = ConvTranspose2d(10, 1, 2, stride=2, key=c)

    def __call__(self, x):
        return self.up(jax.nn.silu(self.inner(jax.nn.silu(self.down(x)))))


class VAE(eqx.Module):
    encoder: Linear
    latent: Linear
    decoder: Linear
    output: Linear

    def __init__(self, key):
        a, b, c, d = jr.split(key, 4)
        self.encoder, self.latent = Linear(6, 14, key=a), Linear(14, 8, key=b)
        self.decoder, self.output = Linear(4, 12, key=c), Linear(12, 6, key=d)

    def __call__(self, x, noise):
        mean, log_std = jnp.split(self.latent(jax.nn.relu(self.encoder(x))), 2)
        z = mean + jnp.exp(log_std) * noise
        return self.output(jax.nn.relu(self.decoder(z)))


class SqueezeExcite(eqx.Module):
    conv: Conv2d
    squeeze: Linear
    excite: Linear
    head: Linear

    def __init__(self, key):
        a, b, c, d = jr.split(key, 4)
        self.conv = Conv2d(1, 8, 3, padding=1, key=a)
        self.squeeze, self.excite = Linear(8, 3, key=b), Linear(3, 8, key=c)
        self.head = Linear(8, 2, key=d)

    def __call__(self, x):
        x = jax.nn.relu(self.conv(x))
        weight = jax.nn.sigmoid(self.excite(jax.nn.relu(self.squeeze(x.mean((1, 2))))))
        return self.head((x * weight[:, None, None]).max((1, 2)))


class DenseNet(eqx.Module):
    layers: list[Conv2d]
    head: Linear

    def __init__(self, key):
        *keys, last = jr.split(key, 4)
        growth = (2, 5, 8)
        self.layers = [Conv2d(n, 3, 3, padding=1, key=k) for n, k in zip(growth, keys)]
        self.head = Linear(11, 2, key=last)

    def __call__(self, x):
        for layer in self.layers:
            x = jnp.concatenate([x, jax.nn.relu(layer(x))])
        return self.head(x.mean((1, 2)))


class WaveNet(eqx.Module):
    filters: Conv1d
    gates: Conv1d
    residual: Conv1d
    skip: Conv1d

    def __init__(self, key):
        a, b, c, d = jr.split(key, 4)
        self.filters = Conv1d(4, 10, 2, dilation=2, padding=((2, 0),), key=a)
        self.gates = Conv1d(4, 10, 2, dilation=2, padding=((2, 0),), key=b)
        self.residual, self.skip = Conv1d(10, 4, 1, key=c), Conv1d(10, 3, 1, key=d)

    def __call__(self, x):
        h = jnp.tanh(self.filters(x)) * jax.nn.sigmoid(self.gates(x))
        return x + self.residual(h), self.skip(h)


class ConvNeXt(eqx.Module):
    depthwise: Conv2d
    norm: LayerNorm
    up: Linear
    down: Linear
    scale: Array

    def __init__(self, key, dim=6):
        a, b, c = jr.split(key, 3)
        self.depthwise = Conv2d(dim, dim, 3, padding=1, groups=dim, key=a)
        self.norm = LayerNorm(dim)
        self.up, self.down = Linear(dim, 4 * dim, key=b), Linear(4 * dim, dim, key=c)
        self.scale = jnp.full(dim, 0.1)

    def __call__(self, x):
        h = jnp.moveaxis(self.depthwise(x), 0, -1)
        each = lambda f, h: jax.vmap(jax.vmap(f))(h)
        h = each(self.down, jax.nn.gelu(each(self.up, each(self.norm, h))))
        return x + jnp.moveaxis(self.scale * h, -1, 0)


class FNO(eqx.Module):
    """A spectral convolution between two pointwise ones."""

    lift: Conv1d
    weights: Array
    local: Conv1d
    project: Conv1d

    def __init__(self, key, width=8, modes=4):
        a, b, c, d = jr.split(key, 4)
        self.lift, self.project = Conv1d(1, width, 1, key=a), Conv1d(width, 1, 1, key=b)
        self.local = Conv1d(width, width, 1, key=c)
        re, im = jr.split(d)
        shape = (width, width, modes)
        self.weights = (jr.normal(re, shape) + 1j * jr.normal(im, shape)) / width

    def __call__(self, x):
        x = self.lift(x)
        modes = self.weights.shape[-1]
        spectrum = jnp.fft.rfft(x)
        kept = jnp.einsum("iom,im->om", self.weights, spectrum[:, :modes])
        out = jnp.zeros((self.weights.shape[1], spectrum.shape[-1]), kept.dtype)
        y = jnp.fft.irfft(out.at[:, :modes].set(kept), n=x.shape[-1])
        return self.project(jax.nn.gelu(y + self.local(x)))


class FiLM(eqx.Module):
    """Scales and shifts channels by what another network says."""

    conv: Conv2d
    condition: Linear
    head: Linear

    def __init__(self, key):
        a, b, c = jr.split(key, 3)
        self.conv = Conv2d(1, 8, 3, padding=1, key=a)
        self.condition, self.head = Linear(3, 16, key=b), Linear(8, 2, key=c)

    def __call__(self, x, y):
        scale, shift = jnp.split(self.condition(y), 2)
        h = (1 + scale[:, None, None]) * self.conv(x) + shift[:, None, None]
        return self.head(jax.nn.relu(h).mean((1, 2)))
