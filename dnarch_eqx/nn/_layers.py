import math
from collections.abc import Hashable

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from .._misc import as_float


class PointwiseLinear(eqx.Module):
    """The same linear map at every position, in the dtype of its input."""

    weight: Float[Array, "out in"]
    bias: Float[Array, " out"]

    def __init__(
        self, in_channels: int, out_channels: int, *, gain: float = 2.0, key: PRNGKeyArray
    ):
        """**Arguments:**

        - `in_channels`, `out_channels`: the widths.
        - `gain`: weights start normal with variance `gain / in_channels`, biases at 0.
        - `key`: for the weights.
        """
        scale = math.sqrt(gain / in_channels)
        self.weight = scale * jr.normal(key, (out_channels, in_channels))
        self.bias = as_float(jnp.zeros(out_channels))

    def __call__(self, x: Float[Array, "in *space"]) -> Float[Array, "out *space"]:
        flat = x.reshape(x.shape[0], -1)
        y = _batched_alike(self.weight, x).astype(x.dtype) @ flat
        # Biases are added, and their gradients summed, in their own precision.
        y = y.reshape(-1, *x.shape[1:]).astype(self.bias.dtype) + beside(self.bias, x)
        return y.astype(x.dtype)


class BatchNorm(eqx.Module):
    """Normalises every channel by the statistics of the batch, also at evaluation (Appx.
    E.1): while the architecture changes, running averages describe no network there is.
    Hence evaluate in mixed batches of the training's size.

    The batch is the axis `axis_name` of the surrounding [`jax.vmap`][] (of all devices, if
    the batch is sharded). The statistics are in the precision of the parameters, the result
    in that of the input.
    """

    weight: Float[Array, " channels"]
    bias: Float[Array, " channels"]
    axis_name: Hashable = eqx.field(static=True)
    eps: float = eqx.field(static=True)

    def __init__(self, channels: int, *, axis_name: Hashable = "batch", eps: float = 1e-5):
        self.weight = as_float(jnp.ones(channels))
        self.bias = as_float(jnp.zeros(channels))
        self.axis_name = axis_name
        self.eps = eps

    def __call__(
        self,
        x: Float[Array, "channels *space"],
        *,
        where: Bool[Array, "*space"] | None = None,
    ) -> Float[Array, "channels *space"]:
        """**Arguments:**

        - `x`: one example of the batch.
        - `where`: the positions that count. By default all.
        """
        space = tuple(range(1, x.ndim))
        dtype, x = x.dtype, x.astype(self.weight.dtype)
        if where is None:
            mean = self._across(jnp.mean(x, space))
            centred = x - beside(mean, x)
            variance = self._across(jnp.mean(centred**2, space))
        else:
            real = where.astype(x.dtype)[None]
            count = self._across(jnp.sum(real))
            count = jnp.maximum(count, jnp.finfo(x.dtype).eps)  # a batch of padding alone
            mean = self._across(jnp.sum(x * real, space)) / count
            centred = x - beside(mean, x)
            variance = self._across(jnp.sum(centred**2 * real, space)) / count
        scale = self.weight * lax.rsqrt(variance + self.eps)
        return (centred * beside(scale, x) + beside(self.bias, x)).astype(dtype)

    def _across(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        if self.axis_name is None:
            return x
        try:
            return lax.pmean(x, self.axis_name)
        except NameError as e:
            raise ValueError(
                f"`BatchNorm` needs the batch: call the network under `jax.vmap(net, "
                f"axis_name={self.axis_name!r})`."
            ) from e


def _batched_alike(
    weight: Float[Array, "out in"], x: Float[Array, "in *space"]
) -> Float[Array, "out in"]:
    """The same weight, but on a CPU one that `jax.vmap` batches wherever it batches `x`.

    One product over a batch in the middle of an array makes XLA copy the array to another
    layout and back; as many products as examples do not, and take two thirds of the time.
    """
    if jax.default_backend() != "cpu":
        return weight
    never = jnp.logical_and(x.reshape(-1)[0] > 0, False)  # folded away by XLA
    return weight + never.astype(weight.dtype)


def beside(values: Float[Array, " channels"], x: Float[Array, "_ *space"]) -> Array:
    """One value a channel, broadcastable against `x`."""
    return values.reshape(-1, *(1,) * (x.ndim - 1))
