"""Networks to compare with, trained in the same loop: FNO for fields, S4D for sequences."""

from typing import Any

import equinox as eqx
import jax
import jax.nn as jnn
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from dnarch_eqx import nn
from recipes._network import Built, Network


def build(
    name: str, network: Network, base: nn.Base, *, dropout: float, key: PRNGKeyArray
) -> Built:
    """A network of which nothing is learned but its weights.

    Raises a `ValueError` where it does not fit what the task asks for.
    """
    if name == "fno":
        if len(network.shape) != 2 or network.pool or network.in_channels is None:
            raise ValueError("`variant` fno is for fields in two dimensions.")
        model = FNO(network, base, key=key)
    else:
        if len(network.shape) != 1 or not network.pool or network.towers:
            raise ValueError("`variant` s4d is for classes of single sequences.")
        model = S4D(network, base, dropout, key=key)
    # There is nothing for a budget to weigh.
    return Built(model, {}, {}, lambda sizes: jnp.ones(()), {})


#
# Fourier neural operators.
#


_MODES, _PADDING, _PROJECTION = 12, 9, 128


class SpectralConv(eqx.Module):
    """A linear map of channels at each of the lowest frequencies; the others are dropped.

    - `weight`: real and imaginary part; of the rows of frequencies from 0 up, and of those up
        to -1.
    """

    weight: Float[Array, "parts signs in out rows columns"]

    def __init__(self, width: int, shape: tuple[int, ...], *, key: PRNGKeyArray):
        rows, columns = (min(_MODES, n // 2) for n in shape)
        self.weight = jr.uniform(key, (2, 2, width, width, rows, columns)) / width**2

    def __call__(self, x: Float[Array, "width y x"]) -> Float[Array, "width y x"]:
        up, down = jax.lax.complex(*self.weight)
        *_, rows, columns = up.shape
        spectrum = jnp.fft.rfft2(x)
        mapped = lambda part, weight: jnp.einsum("iyx,ioyx->oyx", part, weight)
        new = jnp.zeros_like(spectrum)
        new = new.at[:, :rows, :columns].set(mapped(spectrum[:, :rows, :columns], up))
        new = new.at[:, -rows:, :columns].set(mapped(spectrum[:, -rows:, :columns], down))
        # Not irfft2: what that makes of a column that is not Hermitian differs by the backend.
        return jnp.fft.irfft(jnp.fft.ifft(new, axis=1), x.shape[2])


class FNO(eqx.Module):
    """A Fourier neural operator (Li et al., 2021): layers of a spectral convolution beside a
    pointwise map, on a grid that is padded, since fields are not periodic.
    """

    lift: eqx.nn.Conv2d
    spectral: list[SpectralConv]
    pointwise: list[eqx.nn.Conv2d]
    project: list[eqx.nn.Conv2d]

    def __init__(self, network: Network, base: nn.Base, *, key: PRNGKeyArray):
        assert network.in_channels is not None
        lkey, skey, wkey, pkey, qkey = jr.split(key, 5)
        conv = lambda i, o, key: eqx.nn.Conv2d(i, o, 1, key=key)
        self.lift = conv(network.in_channels, base.width, lkey)
        padded = tuple(n + _PADDING for n in network.shape)
        self.spectral = [
            SpectralConv(base.width, padded, key=k) for k in jr.split(skey, base.depth)
        ]
        self.pointwise = [conv(base.width, base.width, k) for k in jr.split(wkey, base.depth)]
        self.project = [
            conv(base.width, _PROJECTION, pkey),
            conv(_PROJECTION, network.out_channels, qkey),
        ]

    def __call__(
        self, x: Float[Array, "in y x"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "out y x"]:
        _, rows, columns = x.shape
        h = jnp.pad(self.lift(x), ((0, 0), (0, _PADDING), (0, _PADDING)))
        for i, (spectral, pointwise) in enumerate(zip(self.spectral, self.pointwise)):
            h = spectral(h) + pointwise(h)
            h = jnn.gelu(h) if i < len(self.spectral) - 1 else h
        first, last = self.project
        return last(jnn.gelu(first(h[:, :rows, :columns])))


#
# Diagonal state spaces.
#


_STATES = 32  # conjugate pairs: a state of 64


class StateSpace(eqx.Module):
    """A convolution of each channel by the impulse response of a diagonal state space, once
    along the sequence and once against it (Gu et al., 2022: S4D-Lin, zero-order hold).

    The parameters are vectors, so that they do not decay.
    """

    log_step: Float[Array, " width"]
    log_decay: Float[Array, " width_states"]
    frequency: Float[Array, " width_states"]
    readout: Float[Array, " directions_width_states_parts"]
    skip: Float[Array, " width"]

    def __init__(self, width: int, *, key: PRNGKeyArray):
        tkey, rkey = jr.split(key)
        low, high = np.log(0.001), np.log(0.1)
        self.log_step = jr.uniform(tkey, (width,), minval=low, maxval=high)
        self.log_decay = jnp.full(width * _STATES, np.log(0.5))
        self.frequency = jnp.asarray(np.tile(np.pi * np.arange(_STATES), width), jnp.float32)
        # Complex numbers of variance 1.
        self.readout = jr.normal(rkey, (2 * width * _STATES * 2,)) * np.sqrt(0.5)
        self.skip = jnp.ones(width)

    def kernels(self, length: int) -> Float[Array, "2 width length"]:
        """Along the sequence, and against it."""
        width = len(self.skip)
        shape = (width, _STATES)
        step = jnp.exp(self.log_step)[:, None]
        decay, turn = -jnp.exp(self.log_decay.reshape(shape)), self.frequency.reshape(shape)
        a, z = jax.lax.complex(decay, turn), jax.lax.complex(step * decay, step * turn)
        c = jax.lax.complex(*jnp.moveaxis(self.readout.reshape(2, *shape, 2), -1, 0))
        c = c * ((jnp.exp(z) - 1) / a)[None]
        powers = jnp.exp(z[..., None] * jnp.arange(length).astype(z.dtype)[None, None])
        return 2 * jnp.einsum("dhn,hnl->dhl", c, powers).real

    def __call__(self, x: Float[Array, "width length"]) -> Float[Array, "width length"]:
        length = x.shape[-1]
        along, against = self.kernels(length)
        spectrum = lambda k: jnp.fft.rfft(k, 2 * length)
        # Around the end: of the position after at the last place, and so on.
        around = jnp.pad(against[:, ::-1], ((0, 0), (length, 0)))
        both = spectrum(along) + spectrum(around)
        y = jnp.fft.irfft(spectrum(x) * both, 2 * length)[:, :length]
        return y + self.skip[:, None] * x


class S4D(eqx.Module):
    """Layers of state spaces with gated linear maps, residual, with a norm after each; the
    mean over positions is classified.
    """

    encoder: eqx.nn.Embedding | eqx.nn.Linear
    spaces: list[StateSpace]
    mixes: list[eqx.nn.Linear]
    norms: list[eqx.nn.LayerNorm]
    decoder: eqx.nn.Linear
    dropout: eqx.nn.Dropout

    def __init__(self, network: Network, base: nn.Base, dropout: float, *, key: PRNGKeyArray):
        ekey, skey, mkey, dkey = jr.split(key, 4)
        width = base.width
        if network.vocabulary is not None:
            self.encoder = eqx.nn.Embedding(network.vocabulary, width, key=ekey)
        else:
            assert network.in_channels is not None
            self.encoder = eqx.nn.Linear(network.in_channels, width, key=ekey)
        self.spaces = [StateSpace(width, key=k) for k in jr.split(skey, base.depth)]
        self.mixes = [
            eqx.nn.Linear(width, 2 * width, key=k) for k in jr.split(mkey, base.depth)
        ]
        self.norms = [eqx.nn.LayerNorm(width) for _ in range(base.depth)]
        self.decoder = eqx.nn.Linear(width, network.out_channels, key=dkey)
        self.dropout = eqx.nn.Dropout(dropout)

    def __call__(
        self,
        x: Float[Array, "in length"] | Int[Array, " length"],
        *,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, " out"]:
        h = jax.vmap(self.encoder)(x if isinstance(self.encoder, eqx.nn.Embedding) else x.T)
        keys: Any = [None] * len(self.spaces)
        if key is not None:
            keys = jr.split(key, len(self.spaces))
        for space, mix, norm, k in zip(self.spaces, self.mixes, self.norms, keys):
            new = self.dropout(jnn.gelu(space(h.T).T), key=k, inference=k is None)
            h = jax.vmap(norm)(h + jnn.glu(jax.vmap(mix)(new)))
        return self.decoder(h.mean(0))
