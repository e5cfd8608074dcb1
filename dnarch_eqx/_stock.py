# What `materialize` has to know of the layers of `eqx.nn`, which keep sizes in static fields
# and, some of them, compute with those. Every layer is brought in line with its sliced
# arrays, or refused.

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Float

from ._axes import Part
from ._masks import product


class CountedNorm(eqx.Module):
    """A `LayerNorm` or `RMSNorm` over a learned axis, in a bucket that is larger than the
    axis: its statistics are those of the active positions alone. So it is exactly the
    layer of that name over exactly those positions, which is what is deployed.
    """

    weight: Float[Array, "*shape"] | None
    bias: Float[Array, "*shape"] | None
    active: Float[Array, "*shape"]
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


@dataclasses.dataclass(frozen=True)
class Fit:
    """What a layer is fitted to: the dimensions of its own arrays, by field name; the mask
    values of every learned axis at its bucket; the axes whose bucket is their exact size.
    """

    path: str
    dims: Callable[[str], tuple[tuple[Part, ...], ...] | None]
    values: Mapping[str, Float[Array, " _"]]
    starts: Mapping[str, int]
    exact: frozenset[str]

    def within(self, stacked: int) -> "Fit":
        """Without the leading dimensions of layers that are stacked, to be scanned."""

        def dims(field: str) -> tuple[tuple[Part, ...], ...] | None:
            whole = self.dims(field)
            return None if whole is None else whole[stacked:]

        return dataclasses.replace(self, dims=dims)

    def learned(self, field: str, dim: int) -> tuple[Part, ...]:
        """The learned parts of a dimension."""
        dims = self.dims(field)
        parts = () if dims is None else dims[dim]
        return tuple(part for part in parts if part.axis in self.values)

    def size(self, part: Part) -> int:
        mask = self.mask(part)
        return part.capacity if mask is None else mask.shape[0]

    def mask(self, part: Part) -> Float[Array, " _"] | None:
        return None if part.axis is None else self.values.get(part.axis)

    def active(self, dims: tuple[tuple[Part, ...], ...]) -> Float[Array, "..."]:
        """1 at the active positions, 0 at the others."""
        masks = [(part, self.mask(part)) for dim in dims for part in dim]
        kept = [
            jnp.ones(part.capacity) if mask is None else jnp.where(mask > 0, 1.0, 0.0)
            for part, mask in masks
        ]
        shape = [math.prod(self.size(part) for part in dim) for dim in dims]
        return lax.stop_gradient(product(*kept)).reshape(shape)

    def refuse(self, why: str) -> ValueError:
        return ValueError(f"{self.path!r}: {why}")


def replace(module: eqx.Module, **fields) -> eqx.Module:
    """The same module with other values in (also static) fields. Not
    `dataclasses.replace`, which would call an `__init__` of another signature.
    """
    new = object.__new__(type(module))
    for name in module.__dataclass_fields__:
        if name in fields or hasattr(module, name):
            object.__setattr__(new, name, fields.get(name, getattr(module, name, None)))
    return new


def _linear(layer: eqx.nn.Linear, fit: Fit) -> eqx.Module:
    out, in_ = layer.weight.shape[-2:]
    if layer.bias is not None and layer.bias.shape[-1] != out:
        raise fit.refuse(
            f"its weight is left with {out} rows, its bias with {layer.bias.shape[-1]} values: "
            "declare both on the same axis."
        )
    scalar = lambda old, new: old if old == "scalar" else new
    return replace(
        layer,
        in_features=scalar(layer.in_features, in_),
        out_features=scalar(layer.out_features, out),
    )


def _mlp(layer: eqx.nn.MLP, fit: Fit) -> eqx.Module:
    first, last = layer.layers[0], layer.layers[-1]
    widths = tuple(linear.out_features for linear in layer.layers[:-1])
    hidden = layer.layers[1:-1]
    depth = len(layer.layers) - 1
    if layer.scan and hidden:
        depth = 1 + hidden[0].weight.shape[0]
        widths = (first.out_features,)
    return replace(
        layer,
        in_size=first.in_features,
        out_size=last.out_features,
        # Hidden layers of different widths have no one width.
        width_size=widths[0] if len(set(widths)) == 1 else widths or layer.width_size,
        depth=depth,
    )


def _conv(layer: eqx.nn.Conv, fit: Fit) -> eqx.Module:
    stacked = layer.weight.ndim - layer.num_spatial_dims - 2
    fit = fit.within(stacked)
    out, in_, *kernel = layer.weight.shape[stacked:]
    groups, in_channels = layer.groups, in_
    if groups > 1 and (fit.learned("weight", 0) or fit.learned("weight", 1)):
        if not groups == layer.in_channels == layer.out_channels:
            raise fit.refuse(
                f"its channels are in {groups} groups, across which an axis cannot be sliced. "
                "Only ungrouped and depthwise convolutions have learnable channels."
            )
        groups = in_channels = out
    elif groups > 1:
        in_channels = in_ * groups
    padding = layer.padding
    learned = [fit.learned("weight", 2 + i) for i in range(layer.num_spatial_dims)]
    if any(learned):
        starts = [fit.starts[parts[0].axis or ""] if parts else 0 for parts in learned]
        # The taps that are left read the same samples as before.
        padding = tuple(
            (lo - start * dilation, hi - (old - start - new) * dilation)
            for (lo, hi), start, old, new, dilation in zip(
                _padding(layer, layer.kernel_size, fit),
                starts,
                layer.kernel_size,
                kernel,
                layer.dilation,
            )
        )
        if isinstance(layer.padding, str) and padding == _padding(layer, kernel, fit):
            padding = layer.padding
    return replace(
        layer,
        in_channels=in_channels,
        out_channels=out,
        kernel_size=tuple(kernel),
        groups=groups,
        padding=padding,
    )


def _padding(
    layer: eqx.nn.Conv, kernel: Sequence[int], fit: Fit
) -> tuple[tuple[int, int], ...]:
    """What the padding of the layer amounts to, for a kernel of this size."""
    if not isinstance(layer.padding, str):
        return tuple(layer.padding)
    if layer.padding == "VALID":
        return ((0, 0),) * layer.num_spatial_dims
    if max(layer.stride) > 1:
        raise fit.refuse(
            f"a kernel extent is learned, the stride is {layer.stride} and the padding "
            f"{layer.padding!r} would move with the extent: give the padding as numbers."
        )
    totals = [(k - 1) * d for k, d in zip(kernel, layer.dilation)]
    less = [(total // 2, total - total // 2) for total in totals]
    return tuple((b, a) if layer.padding == "SAME_LOWER" else (a, b) for a, b in less)


def _conv_transpose(layer: eqx.nn.ConvTranspose, fit: Fit) -> eqx.Module:
    stacked = layer.weight.ndim - layer.num_spatial_dims - 2
    fit = fit.within(stacked)
    out, in_ = layer.weight.shape[stacked : stacked + 2]
    learned = [i for i in range(layer.num_spatial_dims + 2) if fit.learned("weight", i)]
    if learned and (layer.groups > 1 or max(learned) > 1):
        raise fit.refuse(
            "grouped channels and kernel extents of a ConvTranspose are not learnable."
        )
    return replace(layer, in_channels=in_ * layer.groups, out_channels=out)


def _embedding(layer: eqx.nn.Embedding, fit: Fit) -> eqx.Module:
    number, size = layer.weight.shape[-2:]
    return replace(layer, num_embeddings=number, embedding_size=size)


def _norm(layer: eqx.nn.LayerNorm | eqx.nn.RMSNorm, fit: Fit) -> eqx.Module:
    field = "bias" if layer.weight is None else "weight"
    affine = getattr(layer, field)
    dims = fit.dims(field)
    if affine is None or dims is None:
        return layer
    stacked = affine.ndim - len(layer.shape)
    fit = fit.within(stacked)
    shape = affine.shape[stacked:]
    learned = {part.axis for i in range(len(shape)) for part in fit.learned(field, i)}
    if learned <= fit.exact:
        return replace(layer, shape=shape)
    active = jnp.broadcast_to(fit.active(dims[stacked:]), affine.shape)
    centred = isinstance(layer, eqx.nn.LayerNorm)
    return CountedNorm(layer.weight, layer.bias, active, layer.eps, centred)


def _group_norm(layer: eqx.nn.GroupNorm, fit: Fit) -> eqx.Module:
    if layer.weight is None:
        return layer
    fit = fit.within(layer.weight.ndim - 1)
    dims = fit.dims("weight")
    if dims is None or not fit.learned("weight", 0):
        return layer
    per_group = (layer.channels or 0) // layer.groups
    parts = dims[0] if len(dims[0]) > 1 else (*dims[0], Part(None, 1))
    if parts[0].capacity != layer.groups or any(p.axis in fit.values for p in parts[1:]):
        raise fit.refuse(
            f"its {layer.channels} channels are in {layer.groups} groups, whose statistics a "
            f"slice would mix. Learn whole groups: `fused(axis, {per_group})`."
        )
    groups = fit.size(parts[0])
    return replace(layer, groups=groups, channels=layer.weight.shape[-1])


def _attention(layer: eqx.nn.MultiheadAttention, fit: Fit) -> eqx.Module:
    query, key, value = layer.query_proj, layer.key_proj, layer.value_proj
    fit = fit.within(query.weight.ndim - 2)
    heads, qk, vo = layer.num_heads, layer.qk_size, layer.vo_size
    parts = {}
    for name, width in (("query_proj", qk), ("key_proj", qk), ("value_proj", vo)):
        dims = fit.dims(f"{name}.weight")
        dim = (Part(None, heads), Part(None, width)) if dims is None else dims[0]
        if len(dim) == 1 and dim[0].axis in fit.values:
            raise fit.refuse(
                f"the rows of its `{name}` are {heads} heads x {width}: declare them as "
                "`fused(heads, width)`, with names for what is learned."
            )
        parts[name] = (Part(None, heads), Part(None, width)) if len(dim) == 1 else dim
    head, width = parts["query_proj"]
    learned = [part.axis for part in (head, width) if fit.mask(part) is not None]
    if learned != [part.axis for part in parts["key_proj"] if fit.mask(part) is not None]:
        raise fit.refuse("`query_proj` and `key_proj` must lie on the same axes.")
    mask = fit.mask(width)
    if mask is not None and width.axis not in fit.exact:
        # Attention divides by the square root of the width that it sees. That must be the
        # active width, whatever the bucket.
        active = jnp.sum(mask > 0)
        scale = jnp.sqrt(fit.size(width) / active).astype(query.weight.dtype)
        query = jtu.tree_map(lambda x: x * scale, query)
    return replace(
        layer,
        query_proj=query,
        num_heads=fit.size(head),
        query_size=query.in_features,
        key_size=key.in_features,
        value_size=value.in_features,
        output_size=layer.output_proj.out_features,
        qk_size=fit.size(width),
        vo_size=fit.size(parts["value_proj"][1]),
    )


def _recurrent(gates: int):
    def refit(layer: eqx.nn.GRUCell | eqx.nn.LSTMCell, fit: Fit) -> eqx.Module:
        fit = fit.within(layer.weight_ih.ndim - 2)
        for field in ("weight_ih", "weight_hh", "bias"):
            dims = fit.dims(field)
            if dims is not None and fit.learned(field, 0) and dims[0][0] != Part(None, gates):
                raise fit.refuse(
                    f"the rows of its `{field}` are {gates} gates x {layer.hidden_size}: "
                    f"declare them as `fused({gates}, axis)`."
                )
        return replace(
            layer,
            input_size=layer.weight_ih.shape[-1],
            hidden_size=layer.weight_hh.shape[-1],
        )

    return refit


def _refused(layer: eqx.Module, fit: Fit) -> eqx.Module:
    own = [f for f in layer.__dataclass_fields__ if fit.dims(f) is not None]
    if any(fit.learned(f, i) for f in own for i in range(len(fit.dims(f) or ()))):
        raise fit.refuse(
            f"`eqx.nn.{type(layer).__name__}` keeps arrays outside the module and cannot be "
            "sliced. `dnarch_eqx.nn.BatchNorm` normalises by the statistics of the batch."
        )
    return layer


_REFIT = {
    eqx.nn.Linear: _linear,
    eqx.nn.MLP: _mlp,
    eqx.nn.Conv: _conv,
    eqx.nn.ConvTranspose: _conv_transpose,
    eqx.nn.Embedding: _embedding,
    eqx.nn.LayerNorm: _norm,
    eqx.nn.RMSNorm: _norm,
    eqx.nn.GroupNorm: _group_norm,
    eqx.nn.MultiheadAttention: _attention,
    eqx.nn.GRUCell: _recurrent(3),
    eqx.nn.LSTMCell: _recurrent(4),
    eqx.nn.BatchNorm: _refused,
    eqx.nn.SpectralNorm: _refused,
    eqx.nn.WeightNorm: _refused,
}


def refit(module: eqx.Module, fit: Fit) -> eqx.Module:
    """A layer of `eqx.nn` whose static fields agree with its arrays; other modules as
    they are: they are to read sizes off their arrays.
    """
    for cls, function in _REFIT.items():
        if isinstance(module, cls):
            return function(module, fit)
    return module
