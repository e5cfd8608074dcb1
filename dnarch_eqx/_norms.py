# The norms of `eqx.nn`, whose statistics have to be those of the active positions.

import math
from typing import Any

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ._fit import Fit
from ._layout import Factor, flat
from ._misc import replace


class CountedNorm(eqx.Module):
    """A `LayerNorm` or `RMSNorm` over a learned axis, in a bucket that is larger than the
    axis: its statistics are those of the active positions alone. So it is exactly the
    layer of that name over exactly those positions, which is what is deployed.
    """

    weight: Float[Array, "*shape"] | None
    bias: Float[Array, "*shape"] | None
    active: Bool[Array, "*shape"]
    eps: float = eqx.field(static=True)
    centred: bool = eqx.field(static=True)

    def __call__(self, x: Float[Array, "*shape"], state: Any = None, *, key=None) -> Any:
        del key
        if x.shape != self.active.shape:
            raise ValueError(f"A norm over shape {self.active.shape} got shape {x.shape}.")
        # In single precision at least, as the stock layers.
        with jax.numpy_dtype_promotion("standard"):
            dtype = jnp.result_type(x.dtype, jnp.float32)
        active, h = self.active.astype(dtype), x.astype(dtype)
        count = jnp.sum(active)
        if self.centred:
            h = h - jnp.sum(h * active) / count
        out = h * lax.rsqrt(jnp.sum(h**2 * active) / count + self.eps)
        if self.weight is not None:
            out = out * self.weight.astype(dtype)
        if self.bias is not None:
            out = out + self.bias.astype(dtype)
        out = out.astype(x.dtype)
        return out if state is None else (out, state)


def norm(layer: eqx.nn.LayerNorm | eqx.nn.RMSNorm, fit: Fit) -> eqx.Module:
    fields = ("weight", "bias", "shape")
    field = next(f for f in fields if getattr(layer, f) is not None)
    affine = None if field == "shape" else getattr(layer, field)
    stacked = 0 if affine is None else affine.ndim - len(layer.shape)
    fit = fit.within(stacked)
    shape = layer.shape if affine is None else affine.shape[stacked:]
    for i in range(len(shape)):
        if layer.weight is not None and layer.bias is not None:
            fit.agree("weight", i, "bias", i)
    if fit.dims(field) is None:
        return layer
    learned = {part.axis for i in range(len(shape)) for part in fit.learned(field, i)}
    if learned <= fit.exact:
        return replace(layer, shape=shape)
    active = fit.active(field)
    if affine is not None:
        active = jnp.broadcast_to(active, affine.shape)
    centred = isinstance(layer, eqx.nn.LayerNorm)
    return CountedNorm(layer.weight, layer.bias, active, layer.eps, centred)


def group_norm(layer: eqx.nn.GroupNorm, fit: Fit) -> eqx.Module:
    field, channels = "channels", layer.channels
    if layer.weight is not None and layer.bias is not None:
        fit = fit.within(layer.weight.ndim - 1)
        fit.agree("weight", 0, "bias", 0)
        field, channels = "weight", layer.weight.shape[-1]
    dims = fit.dims(field)
    if dims is None or not fit.learned(field, 0):
        return layer
    parts = dims[0] if len(dims[0]) > 1 else (*dims[0], Factor(None, 1))
    whole, groups = math.prod(part.capacity for part in parts), parts[0].capacity
    inside = any(p.axis in fit.values for p in flat(parts[1:]))
    kept = fit.dims("groups")
    if (kept is None and groups != layer.groups) or parts[0].parts or inside:
        raise fit.refuse(
            f"its {whole} channels are in {layer.groups} groups, whose statistics a slice "
            f"would mix. Learn whole groups: `fused(axis, {whole // layer.groups})`."
        )
    return replace(layer, groups=fit.size(parts[0]), channels=channels)
