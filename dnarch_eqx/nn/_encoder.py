from typing import Any

import equinox as eqx
import jax.nn as jnn
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Integer, Shaped

from ._layers import BatchNorm, PointwiseLinear


class Encoder(eqx.Module):
    """From the input's channels, or tokens, to the residual stream (Appx. E.1)."""

    embedding: eqx.nn.Embedding | None
    linear: PointwiseLinear
    norm: BatchNorm

    def __call__(
        self,
        x: Shaped[Array, "*channels_and_space"],
        *,
        where: Bool[Array, "*space"] | None = None,
        dtype: DTypeLike | None = None,
    ) -> Float[Array, "stream *space"]:
        if self.embedding is not None:
            x = jnp.moveaxis(_embedded(self.embedding.weight, x), -1, 0)
        x = x.astype(self.linear.weight.dtype if dtype is None else dtype)
        return jnn.gelu(self.norm(self.linear(x), where=where))


def known_tokens(x: Any) -> np.ndarray | None:
    """The values behind `jax.vmap`, unless they are traced."""
    while isinstance(x, Tracer):
        x = getattr(x, "val", None)
    return np.asarray(x) if eqx.is_array(x) else None


def _embedded(
    weight: Float[Array, "vocabulary embedding"], x: Integer[Array, "*space"]
) -> Float[Array, "*space embedding"]:
    """The rows of `weight`, NaN for a token that has none. (An error at run time would be a
    call of Python, and keep the program out of JAX's persistent cache.)
    """
    x = x.astype(jnp.int64 if x.dtype.itemsize == 8 else jnp.int32)
    rows = jnp.take(weight, x, axis=0, mode="clip")
    inside = (x >= 0) & (x < weight.shape[0])
    return jnp.where(inside[..., None], rows, jnp.nan)
