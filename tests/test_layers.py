from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
import pytest
from helpers import alike, attention, close, entered, filled, noise, shaped, tight, width

import dnarch_eqx as dn


Axes, fused, gated = dn.Axes, dn.fused, dn.gated


STACKED = {
    "linear": lambda key: eqx.nn.Linear(4, 4, key=key),
    "conv": lambda key: eqx.nn.Conv1d(4, 4, 3, padding=1, key=key),
    "transposed": lambda key: eqx.nn.ConvTranspose1d(4, 4, 3, padding=1, key=key),
    "gru": lambda key: eqx.nn.GRUCell(4, 4, key=key),
    "lstm": lambda key: eqx.nn.LSTMCell(4, 4, key=key),
    "embedding": lambda key: eqx.nn.Embedding(4, 4, key=key),
    "layer_norm": lambda key: eqx.nn.LayerNorm(4),
    "group_norm": lambda key: eqx.nn.GroupNorm(2, 4),
    "attention": lambda key: attention(2, 4, 3, 2, key=key),
}


@pytest.mark.parametrize("layer", STACKED)
def test_stacked_layers_keep_their_static_fields(layer, getkey):
    """Layers stacked by vmap or for a scan have one dimension more than their own."""
    make = STACKED[layer]
    stack = lambda n: shaped(lambda key: eqx.filter_vmap(make)(jr.split(key, n)))
    materialize = lambda *args: eqx.filter_eval_shape(dn.materialize, *args)
    net = (stack(5), dn.Gate("depth", 5))
    alike(materialize(net, {}, {}, {})[0], net[0])
    axes = {
        jtu.keystr(path): Axes("depth", *[None] * (x.ndim - 1))
        for path, x in jtu.tree_leaves_with_path(net)
        if isinstance(x, jax.ShapeDtypeStruct)
    }
    masks: dn.Masks = {"depth": dn.Sigmoid(5, size=2.5, temperature=8.0)}
    alike(materialize(net, axes, masks, {"depth": 3})[0], stack(3))


SMALLER = {
    "linear": (
        lambda key: eqx.nn.Linear(8, 12, key=key),
        {".weight": Axes("b", "a"), ".bias": Axes("b")},
        lambda key: eqx.nn.Linear(5, 7, key=key),
    ),
    "scalar": (
        lambda key: eqx.nn.Linear("scalar", 12, key=key),
        {".weight": Axes("b", None), ".bias": Axes("b")},
        lambda key: eqx.nn.Linear("scalar", 7, key=key),
    ),
    "mlp": (
        lambda key: eqx.nn.MLP(8, 3, 12, 1, use_final_bias=False, key=key),
        {
            ".layers[0].weight": Axes("b", "a"),
            ".layers[0].bias": Axes("b"),
            ".layers[1].weight": Axes(None, "b"),
        },
        lambda key: eqx.nn.MLP(5, 3, 7, 1, use_final_bias=False, key=key),
    ),
    "conv": (
        lambda key: eqx.nn.Conv2d(8, 12, 5, stride=2, padding=(2, 3), dilation=2, key=key),
        {".weight": Axes("b", "a", "k", None), ".bias": Axes("b", None, None)},
        lambda key: eqx.nn.Conv2d(5, 7, (3, 5), stride=2, padding=(0, 3), dilation=2, key=key),
    ),
    "same": (
        lambda key: eqx.nn.Conv1d(8, 12, 5, padding="SAME", use_bias=False, key=key),
        {".weight": Axes("b", "a", "k")},
        lambda key: eqx.nn.Conv1d(5, 7, 3, padding="SAME", use_bias=False, key=key),
    ),
    "depthwise": (
        lambda key: eqx.nn.Conv3d(12, 12, 5, padding=2, groups=12, key=key),
        {".weight": Axes("b", None, "k", "k", "k"), ".bias": Axes("b", None, None, None)},
        lambda key: eqx.nn.Conv3d(7, 7, 3, padding=1, groups=7, key=key),
    ),
    "grouped": (
        lambda key: eqx.nn.Conv1d(8, 12, 5, padding=2, groups=4, key=key),
        {".weight": Axes(None, None, "k")},
        lambda key: eqx.nn.Conv1d(8, 12, 3, padding=1, groups=4, key=key),
    ),
    "transposed": (
        lambda key: eqx.nn.ConvTranspose1d(8, 12, 4, stride=2, key=key),
        {".weight": Axes("b", "a", None), ".bias": Axes("b", None)},
        lambda key: eqx.nn.ConvTranspose1d(5, 7, 4, stride=2, key=key),
    ),
    "embedding": (
        lambda key: eqx.nn.Embedding(8, 12, key=key),
        {".weight": Axes("a", "b")},
        lambda key: eqx.nn.Embedding(5, 7, key=key),
    ),
    "layer_norm": (
        lambda key: eqx.nn.LayerNorm((12, 8, 3)),
        {".weight": Axes("b", "a", None), ".bias": Axes("b", "a", None)},
        lambda key: eqx.nn.LayerNorm((7, 5, 3)),
    ),
    "rms_norm": (
        lambda key: eqx.nn.RMSNorm(12, use_weight=False, use_bias=True),
        {".bias": Axes("b")},
        lambda key: eqx.nn.RMSNorm(7, use_weight=False, use_bias=True),
    ),
    "group_norm": (
        lambda key: eqx.nn.GroupNorm(12, 36),
        {".weight": Axes(fused("b", 3)), ".bias": Axes(fused("b", 3))},
        lambda key: eqx.nn.GroupNorm(7, 21),
    ),
    "instance_norm": (
        lambda key: eqx.nn.GroupNorm(12, 12),
        {".weight": Axes("b"), ".bias": Axes("b")},
        lambda key: eqx.nn.GroupNorm(7, 7),
    ),
    "gru": (
        lambda key: eqx.nn.GRUCell(8, 12, key=key),
        {
            ".weight_ih": Axes(fused(3, "b"), "a"),
            ".weight_hh": Axes(fused(3, "b"), "b"),
            ".bias": Axes(fused(3, "b")),
            ".bias_n": Axes("b"),
        },
        lambda key: eqx.nn.GRUCell(5, 7, key=key),
    ),
    "lstm": (
        lambda key: eqx.nn.LSTMCell(8, 12, use_bias=False, key=key),
        {".weight_ih": Axes(fused(4, "b"), "a"), ".weight_hh": Axes(fused(4, "b"), "b")},
        lambda key: eqx.nn.LSTMCell(5, 7, use_bias=False, key=key),
    ),
    "heads": (
        lambda key: eqx.nn.MultiheadAttention(8, 12, qk_size=6, vo_size=3, key=key),
        {
            ".query_proj.weight": Axes(fused("a", 6), "b"),
            ".key_proj.weight": Axes(fused("a", 6), "b"),
            ".value_proj.weight": Axes(fused("a", 3), "b"),
            ".output_proj.weight": Axes("b", fused("a", 3)),
        },
        lambda key: eqx.nn.MultiheadAttention(5, 7, qk_size=6, vo_size=3, key=key),
    ),
    "widths_of_heads": (
        lambda key: eqx.nn.MultiheadAttention(2, 9, qk_size=8, vo_size=12, key=key),
        {
            ".query_proj.weight": Axes(fused(2, "a"), None),
            ".key_proj.weight": Axes(fused(2, "a"), None),
            ".value_proj.weight": Axes(fused(2, "b"), None),
            ".output_proj.weight": Axes(None, fused(2, "b")),
        },
        lambda key: eqx.nn.MultiheadAttention(2, 9, qk_size=5, vo_size=7, key=key),
    ),
}


@pytest.mark.parametrize("layer", SMALLER)
def test_frozen_layer_is_the_stock_layer_of_that_size(layer, getkey):
    """Static fields, shapes and dtypes: all that a layer of that size has."""
    make, axes, make_smaller = SMALLER[layer]
    masks: dn.Masks = {"a": width(8, 5.0), "b": width(12, 7.0), "k": dn.Gaussian(5, size=3.5)}
    layer, used = filled(make, getkey()), str(list(axes.values()))
    masks = {axis: mask for axis, mask in masks.items() if f"'{axis}'" in used}
    assert tight(masks) == {axis: _SIZES[axis][1] for axis in masks}
    frozen, _ = dn.freeze(*entered(layer, axes, masks), masks)
    alike(frozen, shaped(make_smaller))
    # Not gated, so the weights are those of the leading positions, the centre of a kernel.
    arrays = lambda tree: {
        jtu.keystr(path): x for path, x in jtu.tree_leaves_with_path(tree) if eqx.is_array(x)
    }
    small = arrays(frozen)
    for path, x in arrays(layer).items():
        wanted = _kept(x, axes[path]) if path in axes else x
        np.testing.assert_array_equal(small[path], wanted.reshape(small[path].shape))


def _kept(x, spec):
    """What is left of an array, every part of a dimension on its own."""
    shape, kept = [], []
    part: Any
    for dim, n in zip(spec.dims, x.shape):
        for part in dim.parts if isinstance(dim, dn.Fused) else (dim or n,):
            n, m = (part, part) if isinstance(part, int) else _SIZES[part]
            start = (n - m) // 2 if part == "k" else 0
            shape.append(n)
            kept.append(slice(start, start + m))
    return np.asarray(x).reshape(shape)[tuple(kept)]


# Axis -> capacity and active positions.
_SIZES = {"a": (8, 5), "b": (12, 7), "k": (5, 3)}


def test_layer_norm_of_a_bucket_is_that_of_the_active_positions(x64, getkey):
    norm = filled(lambda k: eqx.nn.LayerNorm((8, 3)), getkey())
    axes = dn.declare(norm, lambda n: (n.weight, n.bias), (Axes("c", None),) * 2)
    masks: dn.Masks = {"c": width(8, 5.0)}
    x = noise(getkey(), 8, 3) + 2
    stock = eqx.nn.LayerNorm((5, 3))
    stock = eqx.tree_at(lambda n: (n.weight, n.bias), stock, (norm.weight[:5], norm.bias[:5]))
    for bucket in (5, 6, 8):
        net, _ = dn.materialize(*entered(norm, axes, masks), masks, {"c": bucket})
        close(net(x[:bucket])[:5], stock(x[:5]))
        with pytest.raises(ValueError, match=r"norm over shape \(\d, 3\) got shape \(4, 3\)"):
            net(x[:4])


def conv(**kwargs):
    return lambda key: eqx.nn.Conv1d(8, 8, 5, key=key, **kwargs)


REFUSED = {
    "rows of heads": (
        lambda key: eqx.nn.MultiheadAttention(4, 2, qk_size=2, vo_size=2, key=key),
        {".query_proj.weight": Axes("c", None), ".key_proj.weight": Axes("c", None)},
        r"its `query_proj.weight` are 4 heads x 2: declare them as `fused\(heads, width\)`",
    ),
    "queries and keys": (
        lambda key: eqx.nn.MultiheadAttention(2, 3, qk_size=8, vo_size=2, key=key),
        {".query_proj.weight": Axes(fused(2, "c"), None)},
        r"its `query_proj.weight` lies on fused\(2, 'c'\), .* `key_proj.weight` on no learned",
    ),
    "rows of a GRU": (
        lambda key: eqx.nn.GRUCell(8, 8, key=key),
        {".weight_ih": Axes(fused("c", 3), None)},
        r"its `weight_ih` are 3 gates x 8: declare them as `fused\(3, axis\)`",
    ),
    "rows of an LSTM": (
        lambda key: eqx.nn.LSTMCell(8, 2, key=key),
        {".weight_hh": Axes("c", None)},
        r"its `weight_hh` are 4 gates x 2: declare them as `fused\(4, axis\)`",
    ),
    "groups of a norm": (
        lambda key: eqx.nn.GroupNorm(4, 8),
        {".weight": Axes("c"), ".bias": Axes("c")},
        r"its 8 channels are in 4 groups.* Learn whole groups: `fused\(axis, 2\)`",
    ),
    "inside the groups of a norm": (
        lambda key: eqx.nn.GroupNorm(4, 32),
        {".weight": Axes(fused(4, "c")), ".bias": Axes(fused(4, "c"))},
        "32 channels are in 4 groups",
    ),
    "batch norm": (
        lambda key: eqx.nn.BatchNorm(8, "batch", mode="batch"),
        {".weight": Axes("c")},
        "dimension 0 of its `weight` lies on 'c', dimension 0 of its `bias` on no learned",
    ),
    "grouped convolution": (
        conv(groups=4),
        {".weight": Axes("c", None, None), ".bias": Axes("c", None)},
        "its channels are in 4 groups, across which an axis cannot be sliced",
    ),
    "stride and SAME": (
        conv(padding="SAME", stride=2),
        {".weight": Axes(None, None, gated("k"))},
        "a kernel extent is learned, the stride is .2,. and the padding 'SAME'",
    ),
    "transposed extent": (
        lambda key: eqx.nn.ConvTranspose1d(2, 2, 5, key=key),
        {".weight": Axes(None, None, gated("k"))},
        "kernel extents of a ConvTranspose are not learnable",
    ),
    "transposed groups": (
        lambda key: eqx.nn.ConvTranspose1d(8, 8, 3, groups=2, key=key),
        {".weight": Axes("c", None, None), ".bias": Axes("c", None)},
        "grouped channels .* of a ConvTranspose are not learnable",
    ),
}


@pytest.mark.parametrize("layer", REFUSED)
@pytest.mark.filterwarnings("ignore:.*BatchNorm")
def test_refused_layers(layer, getkey):
    make, axes, message = REFUSED[layer]
    masks: dn.Masks = {"c": width(8, 4.5), "k": dn.Gaussian(5, size=3.5)}
    masks = {axis: mask for axis, mask in masks.items() if f"'{axis}'" in str(axes)}
    module = make(getkey()) if layer == "batch norm" else filled(make, getkey())
    net, axes = entered(module, axes, masks)
    # Whatever the plan: nothing may come to light in the middle of a run.
    for plan in (tight(masks), {}):
        with pytest.raises(ValueError, match=r"'\[0\].*': .*" + message):
            dn.materialize(net, axes, masks, plan)
    for function in (dn.check, dn.freeze):
        with pytest.raises(ValueError, match=r"'\[0\].*': .*" + message):
            function(net, axes, masks)
    # What is not learned may lie on any axis.
    alike(dn.materialize(net, axes, {}, {}), net)


#
# Declarations with a slip are refused, by layer and axis, whatever the plan: nothing may come
# to light in the middle of a run, and nothing be broadcast.
#


def linear(*sizes):
    return lambda key: eqx.nn.Linear(*sizes, key=key)


SLIPS = {
    "bias of a linear": (
        lambda key: (linear(3, 8)(key), linear(8, 2)(key)),
        {"[0].weight": Axes("c", None), "[1].weight": Axes(None, gated("c"))},
        r"'\[0\]': dimension 0 of its `weight` lies on 'c', dimension 0 of its `bias` on no",
    ),
    "bias of a norm": (
        lambda key: (eqx.nn.LayerNorm(8), linear(8, 2)(key)),
        {"[0].weight": Axes("c"), "[1].weight": Axes(None, gated("c"))},
        r"'\[0\]': .* `weight` lies on 'c', .* `bias` on no learned axis",
    ),
    "weight of a norm": (
        lambda key: (eqx.nn.RMSNorm(8, use_bias=True), linear(8, 2)(key)),
        {"[0].bias": Axes("c"), "[1].weight": Axes(None, gated("c"))},
        r"'\[0\]': .* `weight` lies on no learned axis, .* `bias` on 'c'",
    ),
    "weight of a group norm": (
        lambda key: (eqx.nn.GroupNorm(8, 8), linear(8, 2)(key)),
        {"[0].bias": Axes("c"), "[1].weight": Axes(None, gated("c"))},
        r"'\[0\]': .* `weight` lies on no learned axis, .* `bias` on 'c'",
    ),
    "bias of a convolution": (
        lambda key: (eqx.nn.Conv2d(1, 8, 1, key=key),),
        {"[0].weight": Axes(gated("c"), None, None, None)},
        r"'\[0\]': .* `weight` lies on 'c', dimension 0 of its `bias` on no learned axis",
    ),
    "bias of a transposed convolution": (
        lambda key: (eqx.nn.ConvTranspose1d(1, 8, 1, key=key),),
        {"[0].weight": Axes(gated("c"), None, None)},
        r"'\[0\]': .* `weight` lies on 'c', dimension 0 of its `bias` on no learned axis",
    ),
    "order of a fused bias": (
        lambda key: (linear(3, 24)(key), linear(24, 2)(key)),
        {
            "[0].weight": Axes(fused("c", 3), None),
            "[0].bias": Axes(fused(3, "c")),
            "[1].weight": Axes(None, fused(gated("c"), 3)),
        },
        r"'\[0\]': .* lies on fused\('c', 3\), .* `bias` on fused\(3, 'c'\)",
    ),
    "reader in an MLP": (
        lambda key: (eqx.nn.MLP(3, 2, 8, 2, key=key),),
        {
            "[0].layers[0].weight": Axes("c", None),
            "[0].layers[0].bias": Axes("c"),
            "[0].layers[2].weight": Axes(None, gated("c")),
        },
        r"`layers\[1\].weight` lies on no learned axis, .* `layers\[0\].weight` on 'c'",
    ),
    "values of an attention": (
        lambda key: (eqx.nn.MultiheadAttention(8, 16, key=key),),
        {
            "[0].query_proj.weight": Axes(fused(gated("c"), 2), None),
            "[0].key_proj.weight": Axes(fused("c", 2), None),
        },
        "the heads of `query_proj`, `key_proj`, `value_proj` and `output_proj` must lie",
    ),
    "readers of an attention": (
        lambda key: (eqx.nn.MultiheadAttention(8, 16, key=key),),
        {
            "[0].query_proj.weight": Axes(fused(gated("c"), 2), None),
            "[0].key_proj.weight": Axes(fused("c", 2), None),
            "[0].value_proj.weight": Axes(fused("c", 2), None),
        },
        r"`value_proj.weight` lies on fused\('c', 2\), .* `output_proj.weight` on no learned",
    ),
    "hidden state of a GRU": (
        lambda key: (eqx.nn.GRUCell(3, 8, key=key),),
        {
            "[0].weight_ih": Axes(fused(3, "c"), None),
            "[0].weight_hh": Axes(fused(3, "c"), gated("c")),
            "[0].bias": Axes(fused(3, "c")),
        },
        r"rows of its `weight_hh` lie on \['c'\], dimension 0 of its `bias_n` does not",
    ),
    "input of a GRU": (
        lambda key: (eqx.nn.GRUCell(3, 8, key=key),),
        {"[0].weight_hh": Axes(fused(3, "c"), gated("c")), "[0].bias_n": Axes("c")},
        r"`weight_ih` lies on no learned axis, .* `weight_hh` on fused\(3, 'c'\)",
    ),
    "depth without a gate": (
        lambda key: ([linear(3, 3)(key) for _ in range(8)],),
        {"[0]": Axes("c")},
        r"Axis 'c' has a mask, but it enters nowhere: put `gated\('c'\)`",
    ),
    "a wrong name that fits": (
        lambda key: (linear(3, 8)(key), linear(8, 8)(key), linear(8, 2)(key)),
        {
            "[0].weight": Axes("d", None),
            "[0].bias": Axes("d"),
            "[1].weight": Axes("c", gated("d")),
            "[1].bias": Axes("c"),
            "[2].weight": Axes(None, gated("d")),
        },
        "Axis 'c' has a mask, but it enters nowhere",
    ),
    "a kernel extent of two axes": (
        lambda key: (eqx.nn.Conv1d(2, 2, 16, key=key),),
        {"[0].weight": Axes(None, None, fused(gated("c"), 2))},
        "a kernel extent that is learned is one axis, not `fused`",
    ),
}


@pytest.mark.parametrize("slip", SLIPS)
def test_slips(slip, getkey):
    make, axes, message = SLIPS[slip]
    net, masks = filled(make, getkey()), {"c": width(8, 4.5), "d": width(8, 4.5)}
    masks = {axis: mask for axis, mask in masks.items() if f"'{axis}'" in str(axes)}
    bucket = {axis: 1 for axis in masks}
    for f in (
        lambda: dn.check(net, axes, masks),
        lambda: dn.freeze(net, axes, masks),
        lambda: dn.materialize(net, axes, masks, {}),
        lambda: dn.materialize(net, axes, masks, bucket, check_coverage=False),
    ):
        with pytest.raises(ValueError, match=message):
            f()


class Pair(NamedTuple):
    first: eqx.nn.Linear
    second: eqx.nn.Linear


def test_a_tuple_with_names_has_no_depth(getkey):
    make = lambda key: (Pair(linear(3, 3)(key), linear(3, 3)(key)), dn.Gate("depth", 2))
    masks: dn.Masks = {"depth": dn.Sigmoid(2, size=1.5, temperature=8.0)}
    net = filled(make, getkey())
    with pytest.raises(
        ValueError, match=r"'\[0\]' is a Pair, .* hold what lies on 'depth' in a"
    ):
        dn.materialize(net, {"[0]": Axes("depth")}, masks, {})
    # Elsewhere it is a tuple like any other.
    axes = {"[0].first.weight": Axes("h", None), "[0].first.bias": Axes("h")}
    axes |= {"[0].second.weight": Axes(None, gated("h"))}
    small = dn.materialize(net, axes, {"h": dn.Sigmoid(3, size=2.0)}, {"h": 2})
    assert isinstance(small[0], Pair) and small[0].first.out_features == 2


@pytest.mark.parametrize("rows", [(2, "g", 6), ("g", 2, 6), (4, 3, "w"), (4, "w", 3)])
def test_rows_of_an_attention_in_more_parts(rows, x64, getkey):
    """Groups of heads, and widths that are pairs, as of a rotary embedding."""
    make = lambda key: eqx.nn.MultiheadAttention(4, 5, qk_size=6, vo_size=3, key=key)
    net, x = filled(make, getkey()), noise(getkey(), 3, 5)
    axis = next(part for part in rows if isinstance(part, str))
    gate = lambda parts: fused(*(gated(p) if isinstance(p, str) else p for p in parts))
    axes = {
        ".query_proj.weight": Axes(gate(rows), None),
        ".key_proj.weight": Axes(fused(*rows), None),
    }
    if axis == "g":
        values = (*rows[:2], 3)
        axes |= {".value_proj.weight": Axes(fused(*values), None)}
        axes |= {".output_proj.weight": Axes(None, gate(values))}
    masks: dn.Masks = {axis: dn.Sigmoid(2, size=1.0, temperature=25.0)}
    assert tight(masks) == {axis: 1}
    small = dn.freeze(net, axes, masks)
    half = {"g": (2, 6), "w": (4, 3)}[axis]
    assert (small.num_heads, small.qk_size) == half
    close(small(x, x, x), dn.materialize(net, axes, masks, {})(x, x, x))
