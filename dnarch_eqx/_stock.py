# What `materialize` has to know of the layers of `eqx.nn`, which keep sizes in static fields
# and, some of them, compute with those. Every layer is brought in line with its sliced
# arrays, or refused: by what lies on which axis, and so whatever the plan.

import itertools as it
import math
from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu

from ._conv import conv, conv_transpose
from ._counterpart import counterpart
from ._fit import Fit
from ._layout import Factor
from ._misc import replace
from ._norms import group_norm, norm


def _linear(layer: eqx.nn.Linear, fit: Fit) -> eqx.Module:
    out, in_ = layer.weight.shape[-2:]
    if layer.bias is not None:
        stacked = layer.weight.ndim - 2
        fit.within(stacked).agree("weight", 0, "bias", 0)
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
    stacks = [linear.weight.ndim - 2 for linear in layer.layers]
    for i, (below, above) in enumerate(it.pairwise(stacks)):
        fit.agree(f"layers[{i + 1}].weight", above + 1, f"layers[{i}].weight", below)
    if layer.scan and hidden:
        fit.agree("layers[1].weight", 1, "layers[1].weight", 2)
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


def _embedding(layer: eqx.nn.Embedding, fit: Fit) -> eqx.Module:
    number, size = layer.weight.shape[-2:]
    return replace(layer, num_embeddings=number, embedding_size=size)


def _attention(layer: eqx.nn.MultiheadAttention, fit: Fit) -> eqx.Module:
    query, key, value = layer.query_proj, layer.key_proj, layer.value_proj
    fit = fit.within(query.weight.ndim - 2)
    heads, width = _heads(layer, "query_proj.weight", layer.qk_size, fit)
    _heads(layer, "key_proj.weight", layer.qk_size, fit)
    value_heads, value_width = _heads(layer, "value_proj.weight", layer.vo_size, fit)
    fit.agree("query_proj.weight", 0, "key_proj.weight", 0)
    fit.agree("value_proj.weight", 0, "output_proj.weight", 1)
    learned = lambda parts: [part.axis for part in parts if fit.mask(part) is not None]
    if learned(heads) != learned(value_heads):
        raise fit.refuse(
            "the heads of `query_proj`, `key_proj`, `value_proj` and `output_proj` must lie on "
            "the same axes."
        )
    if learned(width) and type(layer).__call__ is not eqx.nn.MultiheadAttention.__call__:
        raise fit.refuse("its `__call__` is its own, and the width of its heads is learned.")
    # Attention divides by the square root of the width that it sees. That must be the active
    # width, whatever the bucket.
    for axis in learned(width):
        if axis not in fit.exact:
            values = fit.values[axis]
            scale = jnp.sqrt(len(values) / jnp.sum(values > 0)).astype(query.weight.dtype)
            query = jtu.tree_map(lambda x, scale=scale: x * scale, query)
    return replace(
        layer,
        query_proj=query,
        num_heads=fit.size(*heads),
        query_size=query.in_features,
        key_size=key.in_features,
        value_size=value.in_features,
        output_size=layer.output_proj.out_features,
        qk_size=fit.size(*width),
        vo_size=fit.size(*value_width),
    )


def _heads(
    layer: eqx.nn.MultiheadAttention, field: str, width: int, fit: Fit
) -> tuple[tuple[Factor, ...], tuple[Factor, ...]]:
    """The rows of a projection, as the parts of the heads and those of each one's width."""
    heads = layer.num_heads
    dim = (fit.dims(field) or [()])[0]
    for i in range(len(dim), -1, -1):
        if dim and math.prod(part.capacity for part in dim[:i]) == heads:
            return dim[:i], dim[i:]
    if fit.learned(field, 0):
        raise fit.refuse(
            f"the rows of its `{field}` are {heads} heads x {width}: declare them as "
            "`fused(heads, width)`, with names for what is learned."
        )
    return (Factor(None, heads),), (Factor(None, width),)


def _recurrent(gates: int):
    def refit(layer: eqx.nn.GRUCell | eqx.nn.LSTMCell, fit: Fit) -> eqx.Module:
        fit = fit.within(layer.weight_ih.ndim - 2)
        for field in ("weight_ih", "weight_hh", "bias"):
            dims = fit.dims(field)
            if dims is not None and fit.learned(field, 0) and dims[0][0] != Factor(None, gates):
                raise fit.refuse(
                    f"the rows of its `{field}` are {gates} gates x {layer.hidden_size}: "
                    f"declare them as `fused({gates}, axis)`."
                )
        fit.agree("weight_ih", 0, "weight_hh", 0)
        if layer.bias is not None:
            fit.agree("weight_ih", 0, "bias", 0)
        rows = [part.axis for part in fit.learned("weight_hh", 0)]
        columns = {"weight_hh": 1} | ({"bias_n": 0} if hasattr(layer, "bias_n") else {})
        for field, dim in columns.items():
            if getattr(layer, field) is None:
                continue
            if [part.axis for part in fit.learned(field, dim)] != rows:
                raise fit.refuse(
                    f"the rows of its `weight_hh` lie on {rows}, dimension {dim} of its "
                    f"`{field}` does not: all are its hidden state."
                )
        return replace(
            layer,
            input_size=layer.weight_ih.shape[-1],
            hidden_size=layer.weight_hh.shape[-1],
        )

    return refit


def _batch_norm(layer: eqx.nn.BatchNorm, fit: Fit) -> eqx.Module:
    if layer.weight is None or layer.bias is None:
        return layer
    fit.within(layer.weight.ndim - 1).agree("weight", 0, "bias", 0)
    return replace(layer, input_size=layer.weight.shape[-1])


_STOCK: dict[type, Callable] = {
    eqx.nn.Linear: _linear,
    eqx.nn.MLP: _mlp,
    eqx.nn.Conv: conv,
    eqx.nn.ConvTranspose: conv_transpose,
    eqx.nn.Embedding: _embedding,
    eqx.nn.LayerNorm: norm,
    eqx.nn.RMSNorm: norm,
    eqx.nn.GroupNorm: group_norm,
    eqx.nn.MultiheadAttention: _attention,
    eqx.nn.GRUCell: _recurrent(3),
    eqx.nn.LSTMCell: _recurrent(4),
    eqx.nn.BatchNorm: _batch_norm,
}
for _cls, _function in _STOCK.items():
    counterpart.register(_cls, _function)
