import itertools as it
from collections.abc import Callable
from typing import Any

import equinox as eqx
import hypothesis
import hypothesis.strategies as st
import jax
import jax.lax as lax
import jax.nn as jnn
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
import pytest
from helpers import alike, close, filled, halfway, law, noise, shaped, tight, values

import dnarch_eqx as dn


gated, fused, Axes = dn.gated, dn.fused, dn.Axes


@pytest.fixture(params=[False, True], ids=["float32", "float64"])
def precision(request):
    with jax.enable_x64(request.param):
        yield


def width(capacity: int, size: float) -> dn.Sigmoid:
    return dn.Sigmoid(capacity, size=size, temperature=12.0)


def channels(values, ndim: int = 3):
    """The values of a mask, to be multiplied along the leading of `ndim` dimensions."""
    return values.reshape(-1, *[1] * (ndim - 1))


#
# The law: MLPs.
#


def mlp_axes(mlp, names):
    layers = lambda m: m.layers
    nodes, axes = [], []
    for i, (below, above) in enumerate(it.pairwise([None, *names, None])):
        nodes += [lambda m, i=i: layers(m)[i].weight, lambda m, i=i: layers(m)[i].bias]
        axes += [Axes(above, None if below is None else gated(below)), Axes(above)]
    return dn.declare(mlp, lambda m: [node(m) for node in nodes], axes)


def mlp_by_hand(x):
    def run(mlp, m):
        h = x
        for i, layer in enumerate(mlp.layers):
            h = h @ layer.weight.T + layer.bias
            if i < len(mlp.layers) - 1:
                h = jnn.relu(h) * m[f"h{i}"]
        return h

    return run


@pytest.fixture
def mlp(getkey):
    mlp = filled(lambda k: eqx.nn.MLP(3, 2, width_size=16, depth=2, key=k), getkey())
    masks: dn.Masks = {"h0": width(16, 9.3), "h1": width(16, 5.0)}
    return mlp, mlp_axes(mlp, ["h0", "h1"]), masks


def test_mlp(precision, getkey):
    mlp = filled(lambda k: eqx.nn.MLP(3, 2, width_size=16, depth=2, key=k), getkey())
    masks: dn.Masks = {"h0": width(16, 9.3), "h1": width(16, 5.0)}
    x = noise(getkey(), 5, 3)
    axes = mlp_axes(mlp, ["h0", "h1"])
    plans = [tight(masks), halfway(masks), {"h0": 15, "h1": 8}]
    law(mlp, axes, masks, plans, lambda net: jax.vmap(net)(x), mlp_by_hand(x))


def test_gated_rows_mask_the_preactivation(x64, getkey):
    mlp = filled(
        lambda k: eqx.nn.MLP(3, 2, width_size=16, depth=1, activation=jnn.softplus, key=k),
        getkey(),
    )
    axes = dn.declare(
        mlp,
        lambda m: (m.layers[0].weight, m.layers[0].bias, m.layers[1].weight),
        (Axes(gated("h"), None), Axes(gated("h")), Axes(None, "h")),
    )
    # Rows that are zero still give softplus(0): that is no law, but the bucket of 16 has it.
    masks: dn.Masks = {"h": width(16, 9.3)}
    x = noise(getkey(), 3)

    def by_hand(mlp, m):
        first, last = mlp.layers
        h = jnn.softplus(m["h"] * (first.weight @ x + first.bias))
        return last.weight @ h + last.bias

    close(dn.materialize(mlp, axes, masks, {})(x), by_hand(mlp, {"h": values(masks["h"])}))


@pytest.mark.parametrize("scan", [False, True])
def test_mlp_of_one_width(scan, x64, getkey):
    mlp = filled(lambda k: eqx.nn.MLP(3, 2, width_size=12, depth=3, scan=scan, key=k), getkey())
    # A scan stacks the two hidden layers.
    stack = (None,) if scan else ()
    hidden = mlp.layers[1:-1]
    nodes = lambda m: (
        [m.layers[0].weight, m.layers[0].bias, m.layers[-1].weight]
        + [array for layer in m.layers[1:-1] for array in (layer.weight, layer.bias)]
    )
    inner = [Axes(*stack, "h", gated("h")), Axes(*stack, "h")] * len(hidden)
    specs = [Axes("h", None), Axes("h"), Axes(None, gated("h")), *inner]
    axes = dn.declare(mlp, nodes, specs)
    x = noise(getkey(), 3)

    def by_hand(mlp, m):
        first, *hidden, last = mlp.layers
        h = jnn.relu(first.weight @ x + first.bias) * m["h"]
        weights = hidden[0].weight if scan else [layer.weight for layer in hidden]
        biases = hidden[0].bias if scan else [layer.bias for layer in hidden]
        for weight, bias in zip(weights, biases):
            h = jnn.relu(weight @ h + bias) * m["h"]
        return last.weight @ h + last.bias

    masks: dn.Masks = {"h": width(12, 6.2)}
    law(mlp, axes, masks, [tight(masks)], lambda net: net(x), by_hand)
    alike(
        dn.materialize(mlp, axes, masks, {"h": 7}),
        shaped(lambda k: eqx.nn.MLP(3, 2, width_size=7, depth=3, scan=scan, key=k)),
    )


def test_scanned_mlp_of_learned_depth(x64, getkey):
    mlp = filled(lambda k: eqx.nn.MLP(3, 2, width_size=12, depth=4, scan=True, key=k), getkey())
    axes = dn.declare(
        mlp,
        lambda m: (m.layers[1].weight, m.layers[1].bias),
        (Axes("depth", None, None), Axes("depth", None)),
    )
    masks: dn.Masks = {"depth": dn.Sigmoid(3, size=1.5, temperature=8.0)}
    net = dn.materialize(mlp, axes, masks, {"depth": 2})
    alike(net, shaped(lambda k: eqx.nn.MLP(3, 2, width_size=12, depth=3, scan=True, key=k)))
    x = noise(getkey(), 3)
    first, hidden, last = mlp.layers
    h = jnn.relu(first(x))
    for i in range(2):
        h = jnn.relu(hidden.weight[i] @ h + hidden.bias[i])
    close(net(x), last(h))


def test_gradients_are_those_of_finite_differences(x64, getkey):
    mlp = filled(
        lambda k: eqx.nn.MLP(3, 2, width_size=16, depth=2, activation=jnn.tanh, key=k), getkey()
    )
    axes = mlp_axes(mlp, ["h0", "h1"])
    masks: dn.Masks = {"h0": width(16, 9.3), "h1": width(16, 5.0)}
    x = noise(getkey(), 3)
    plan = tight(masks)

    def loss(masks):
        return jnp.sum(jnp.sin(dn.materialize(mlp, axes, masks, plan)(x)))

    grads = eqx.filter_grad(loss)(masks)
    for axis in masks:
        move = lambda by: (
            masks
            | {axis: eqx.tree_at(lambda m: m.offset, masks[axis], replace_fn=lambda o: o + by)}
        )
        difference = (loss(move(1e-5)) - loss(move(-1e-5))) / 2e-5
        np.testing.assert_allclose(grads[axis].offset, difference, rtol=1e-7)
        assert abs(difference) > 1e-3


#
# The law: convolutions and norms.
#


class ConvNet(eqx.Module):
    """Convolution, norm, depthwise convolution; then pointwise, or flattened and linear."""

    first: eqx.nn.Conv2d
    norm: eqx.Module
    depthwise: eqx.nn.Conv2d
    last: eqx.Module

    def __init__(self, norm, flatten: bool = False, *, key, **conv):
        k = jr.split(key, 3)
        self.first = eqx.nn.Conv2d(2, 12, 5, key=k[0], **conv)
        self.norm = norm
        self.depthwise = eqx.nn.Conv2d(12, 12, 3, groups=12, padding=1, key=k[1])
        if flatten:
            self.last = eqx.nn.Linear(12 * 6 * 6, 3, key=k[2])
        else:
            self.last = eqx.nn.Conv2d(12, 3, 1, key=k[2])

    def __call__(self, x):
        h = self.depthwise(self.norm(jnn.gelu(self.first(x))))  # pyright: ignore
        if isinstance(self.last, eqx.nn.Linear):
            h = h.reshape(-1)
        return self.last(h)  # pyright: ignore


def conv_axes(net: ConvNet, per_group: tuple[int, ...] = ()):
    """Learned channels, or groups of them, and kernel extents."""
    rows = fused("c", *per_group)
    axes = dn.declare(
        net,
        lambda n: (n.first.weight, n.first.bias, n.depthwise.weight, n.depthwise.bias),
        (
            Axes(rows, None, gated("ky"), gated("kx")),
            Axes(rows, None, None),
            Axes(rows, None, None, None),
            Axes(rows, None, None),
        ),
    )
    if isinstance(net.last, eqx.nn.Linear):
        columns = Axes(None, fused(gated("c"), *per_group, 6 * 6))
    else:
        columns = Axes(None, fused(gated("c"), *per_group), None, None)
    axes |= dn.declare(net, lambda n: n.last.weight, columns)
    if not isinstance(net.norm, eqx.nn.Identity):
        spec = Axes(rows, *[None] * (net.norm.weight.ndim - 1))  # pyright: ignore
        axes |= dn.declare(net, lambda n: (n.norm.weight, n.norm.bias), (spec, spec))
    return axes


def conv_masks(groups: int = 12) -> dn.Masks:
    return {
        "c": dn.Sigmoid(groups, size=0.55 * groups, temperature=12.0),
        "ky": dn.Gaussian(5, size=3.1),
        "kx": dn.Gaussian(5, size=3.9),
    }


def conv_by_hand(x, norm: Callable, active: int):
    """The network at full width, the norm over its active channels alone."""

    def run(net, m):
        weight = net.first.weight * m["ky"][:, None] * m["kx"]
        h = jnn.gelu(eqx.tree_at(lambda c: c.weight, net.first, weight)(x))
        kept = norm(net.norm, h[:active])
        h = jnp.concatenate([kept, jnp.zeros_like(h[active:])])
        h = net.depthwise(h) * jnp.repeat(m["c"], 12 // m["c"].size)[:, None, None]
        return net.last(h.reshape(-1) if isinstance(net.last, eqx.nn.Linear) else h)

    return run


def affine(norm, x):
    """`x`, normalised, times the weights and plus the biases of its channels."""
    weight, bias = norm.weight[: len(x)], norm.bias[: len(x)]
    if weight.ndim == 1:
        weight, bias = weight[:, None, None], bias[:, None, None]
    return x * weight + bias


def layer_norm(norm, x):
    return affine(norm, (x - jnp.mean(x)) / jnp.sqrt(jnp.var(x) + norm.eps))


def rms_norm(norm, x):
    return affine(norm, x / jnp.sqrt(jnp.mean(x**2) + norm.eps))


def group_norm(norm, x):
    groups = x.reshape(-1, 3, 6, 6)
    mean = jnp.mean(groups, (1, 2, 3), keepdims=True)
    var = jnp.var(groups, (1, 2, 3), keepdims=True)
    return affine(norm, ((groups - mean) / jnp.sqrt(var + norm.eps)).reshape(x.shape))


NORMS = {
    "none": (lambda: eqx.nn.Identity(), lambda norm, x: x, ()),
    "layer": (lambda: eqx.nn.LayerNorm((12, 6, 6)), layer_norm, ()),
    "rms": (lambda: eqx.nn.RMSNorm((12, 6, 6)), rms_norm, ()),
    "group": (lambda: eqx.nn.GroupNorm(4, 12), group_norm, (3,)),
}


@pytest.mark.parametrize("norm", NORMS)
def test_convolutions_and_norms(norm, x64, getkey):
    make, by_hand, per_group = NORMS[norm]
    make_net = lambda k: ConvNet(make(), False, padding=2, key=k)
    net = filled(make_net, getkey())
    masks = conv_masks(4 if per_group else 12)
    axes = conv_axes(net, per_group)
    active = tight(masks)["c"] * (3 if per_group else 1)
    x = noise(getkey(), 2, 6, 6)
    reference = conv_by_hand(x, by_hand, active)
    law(net, axes, masks, [tight(masks)], lambda net: net(x), reference)


@pytest.mark.parametrize(
    "padding, dilation",
    [("SAME", 1), ("SAME_LOWER", 2), ("VALID", 1), (0, 1), (1, 2), (((2, 1), (0, 3)), 1)],
)
def test_learned_kernel_extents_under_any_padding(padding, dilation, x64, getkey):
    conv = filled(
        lambda k: eqx.nn.Conv2d(2, 3, 5, padding=padding, dilation=dilation, key=k), getkey()
    )
    axes = dn.declare(conv, lambda c: c.weight, Axes(None, None, gated("ky"), gated("kx")))
    masks: dn.Masks = {"ky": dn.Gaussian(5, size=3.1), "kx": dn.Gaussian(5, size=3.9)}
    x = noise(getkey(), 2, 11, 10)

    def by_hand(conv, m):
        weight = conv.weight * m["ky"][:, None] * m["kx"]
        return eqx.tree_at(lambda c: c.weight, conv, weight)(x)

    plan = {"ky": 3, "kx": 3}
    law(conv, axes, masks, [plan], lambda net: net(x), by_hand)
    assert dn.materialize(conv, axes, masks, plan).weight.shape == (3, 2, 3, 3)


@pytest.mark.parametrize("mode, stride", [("REFLECT", 1), ("REPLICATE", 2), ("CIRCULAR", 1)])
def test_learned_kernel_extents_in_other_padding_modes(mode, stride, x64, getkey):
    conv = filled(
        lambda k: eqx.nn.Conv1d(2, 3, 7, stride, padding=3, padding_mode=mode, key=k), getkey()
    )
    axes = dn.declare(conv, lambda c: c.weight, Axes(None, None, gated("k")))
    x = noise(getkey(), 2, 11)
    by_hand = lambda conv, m: eqx.tree_at(lambda c: c.weight, conv, conv.weight * m["k"])(x)
    masks: dn.Masks = {"k": dn.Gaussian(7, size=3.5)}
    law(conv, axes, masks, [tight(masks)], lambda net: net(x), by_hand)


def test_kernel_that_keeps_a_prefix(x64, getkey):
    # A sigmoid crops a kernel at its end, so that only the padding there is less.
    conv = filled(lambda k: eqx.nn.Conv1d(2, 3, 8, padding=((4, 4),), key=k), getkey())
    axes = dn.declare(conv, lambda c: c.weight, Axes(None, None, gated("k")))
    x = noise(getkey(), 2, 11)
    by_hand = lambda conv, m: eqx.tree_at(lambda c: c.weight, conv, conv.weight * m["k"])(x)
    masks: dn.Masks = {"k": width(8, 3.5)}
    law(conv, axes, masks, [tight(masks)], lambda net: net(x), by_hand)


@pytest.mark.parametrize("norm", ["none", "layer", "group"])
def test_flattened_channels(norm, x64, getkey):
    make, by_hand, per_group = NORMS[norm]
    make_net = lambda k: ConvNet(make(), True, padding="SAME", key=k)
    net = filled(make_net, getkey())
    masks = conv_masks(4 if per_group else 12)
    axes = conv_axes(net, per_group)
    x = noise(getkey(), 2, 6, 6)
    active = tight(masks)["c"] * (3 if per_group else 1)
    reference = conv_by_hand(x, by_hand, active)
    law(net, axes, masks, [tight(masks)], lambda net: net(x), reference)
    linear = dn.materialize(net, axes, masks, tight(masks)).last
    assert linear.in_features == linear.weight.shape[1] == active * 6 * 6  # pyright: ignore


def test_transposed_convolution(x64, getkey):
    conv = filled(
        lambda k: eqx.nn.ConvTranspose2d(8, 6, 3, stride=2, padding=1, key=k), getkey()
    )
    axes = dn.declare(
        conv,
        lambda c: (c.weight, c.bias),
        (Axes("out", gated("in"), None, None), Axes("out", None, None)),
    )
    masks: dn.Masks = {"in": width(8, 4.4), "out": width(6, 3.3)}
    x, readout = noise(getkey(), 8, 4, 4), noise(getkey(), 6)

    # The consumer here is the test's: it masks what it reads.
    def call(net):
        y = net(x[: net.in_channels])
        m = values(masks["out"])[: net.out_channels]
        return jnp.einsum("c,cij->ij", readout[: net.out_channels] * m, y)

    def by_hand(conv, m):
        y = conv(x * channels(m["in"]))
        return jnp.einsum("c,cij->ij", readout * values(masks["out"]), y)

    law(conv, axes, masks, [tight(masks)], call, by_hand)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("kind", [eqx.nn.LayerNorm, eqx.nn.RMSNorm])
def test_norm_in_half_precision_is_that_of_the_stock_layer(dtype, kind, getkey):
    # 1000 active positions, whose squares sum to more than float16 can hold.
    norm = kind(1200)
    axes = dn.declare(norm, lambda n: (n.weight, n.bias), (Axes("c"), Axes("c")))
    masks: dn.Masks = {"c": dn.Sigmoid(1200, size=999.5, temperature=25.0)}
    active = tight(masks)["c"]
    x = (20 * noise(getkey(), 1200) + 4).astype(dtype)
    got = dn.materialize(norm, axes, masks, {})(x)[:active]
    wanted = kind(active)(x[:active])
    assert got.dtype == wanted.dtype
    close(got.astype(jnp.float32), wanted.astype(jnp.float32), rtol=1e-2)


#
# The law: attention, recurrence, embeddings.
#


class Attention(eqx.Module):
    """Embedding, attention after a norm, residual, norm, readout."""

    embed: eqx.nn.Embedding
    norm: eqx.nn.LayerNorm
    attention: eqx.nn.MultiheadAttention
    readout: eqx.nn.Linear

    def __init__(self, key):
        k = jr.split(key, 5)
        self.embed = eqx.nn.Embedding(7, 12, key=k[0])
        self.norm = eqx.nn.LayerNorm(12)
        self.attention = attention(4, 12, 6, 5, key=k[2])
        self.readout = eqx.nn.Linear(12, 2, key=k[3])

    def __call__(self, tokens):
        x = jax.vmap(self.embed)(tokens)
        y = jax.vmap(self.norm)(x)
        x = x + self.attention(y, y, y)
        return jax.vmap(self.readout)(jax.vmap(self.norm)(x))


def attention(heads, size, qk, vo, *, key):
    return eqx.nn.MultiheadAttention(
        heads,
        size,
        qk_size=qk,
        vo_size=vo,
        use_query_bias=True,
        use_key_bias=True,
        use_value_bias=True,
        use_output_bias=True,
        key=key,
    )


def attention_axes(net: Attention, *learned: str):
    """Of the axes heads, qk, vo and stream, those in `learned`."""
    sizes: dict[str, Any] = {"heads": 4, "qk": 6, "vo": 5}

    def name(axis: str) -> Any:
        return axis if axis in learned else sizes.get(axis)

    def gate(axis: str) -> Any:
        return gated(axis) if axis in learned else sizes.get(axis)

    queries, keys = fused(name("heads"), gate("qk")), fused(name("heads"), name("qk"))
    rows, columns = fused(name("heads"), name("vo")), fused(gate("heads"), gate("vo"))
    stream, consumer = name("stream"), gate("stream")
    declared = {
        lambda m: m.embed.weight: Axes(None, stream),
        lambda m: m.norm.weight: Axes(stream),
        lambda m: m.norm.bias: Axes(stream),
        lambda m: m.attention.query_proj.weight: Axes(queries, consumer),
        lambda m: m.attention.query_proj.bias: Axes(queries),
        lambda m: m.attention.key_proj.weight: Axes(keys, consumer),
        lambda m: m.attention.key_proj.bias: Axes(keys),
        lambda m: m.attention.value_proj.weight: Axes(rows, consumer),
        lambda m: m.attention.value_proj.bias: Axes(rows),
        lambda m: m.attention.output_proj.weight: Axes(stream, columns),
        lambda m: m.attention.output_proj.bias: Axes(stream),
        lambda m: m.readout.weight: Axes(None, consumer),
    }
    return dn.declare(net, lambda m: [node(m) for node in declared], list(declared.values()))


def attention_masks(*learned: str) -> dn.Masks:
    masks: dn.Masks = {
        "heads": dn.Sigmoid(4, size=2.6, temperature=12.0),
        "qk": width(6, 3.3),
        "vo": width(5, 2.8),
        "stream": width(12, 7.2),
    }
    return {axis: masks[axis] for axis in learned}


def attention_by_hand(tokens, active):
    def run(net, m):
        one = {
            "heads": jnp.ones(4),
            "qk": jnp.ones(6),
            "vo": jnp.ones(5),
            "stream": jnp.ones(12),
        }
        m = one | m
        n = active.get("stream", 12)

        def norm(x):
            kept = x[:, :n]
            mean = jnp.mean(kept, 1, keepdims=True)
            var = jnp.var(kept, 1, keepdims=True)
            kept = (kept - mean) / jnp.sqrt(var + net.norm.eps)
            x = jnp.concatenate([kept, jnp.zeros_like(x[:, n:])], 1)
            return (x * net.norm.weight + net.norm.bias) * m["stream"]

        linear = lambda layer, x: x @ layer.weight.T + layer.bias
        x = net.embed.weight[tokens]
        y = norm(x)
        a = net.attention
        q = linear(a.query_proj, y).reshape(-1, 4, 6) * m["qk"]
        k = linear(a.key_proj, y).reshape(-1, 4, 6)
        v = linear(a.value_proj, y).reshape(-1, 4, 5)
        logits = jnp.einsum("shd,Shd->hsS", q, k) / jnp.sqrt(1.0 * active.get("qk", 6))
        out = jnp.einsum("hsS,Shd->shd", jnn.softmax(logits), v)
        out = out * m["heads"][:, None] * m["vo"]
        x = x + linear(a.output_proj, out.reshape(-1, 20))
        return linear(net.readout, norm(x))

    return run


@pytest.mark.parametrize("learned", [("heads",), ("qk",), ("heads", "qk", "vo", "stream")])
def test_attention(learned, x64, getkey):
    net = filled(Attention, getkey())
    tokens = jnp.array([3, 1, 4, 1, 5])
    axes, masks = attention_axes(net, *learned), attention_masks(*learned)
    reference = attention_by_hand(tokens, tight(masks))
    law(net, axes, masks, [tight(masks)], lambda net: net(tokens), reference)


class Recurrent(eqx.Module):
    cell: Any
    readout: eqx.nn.Linear

    def __call__(self, xs):
        state: Any = jnp.zeros(self.cell.hidden_size, xs.dtype)
        is_lstm = isinstance(self.cell, eqx.nn.LSTMCell)
        state = (state, state) if is_lstm else state
        state, _ = lax.scan(lambda state, x: (self.cell(x, state), None), state, xs)
        return self.readout(state[0] if is_lstm else state)


def recurrent_axes(net: Recurrent, gates: int):
    where = lambda m: (
        m.cell.weight_ih,
        m.cell.weight_hh,
        m.cell.bias,
        m.readout.weight,
    )
    rows = fused(gates, "h")
    columns = Axes(None, gated("h"))
    axes = dn.declare(
        net, where, (Axes(rows, None), Axes(rows, gated("h")), Axes(rows), columns)
    )
    if gates == 3:
        axes |= dn.declare(net, lambda m: m.cell.bias_n, Axes("h"))
    return axes


def gru_by_hand(xs):
    def run(net, m):
        c = net.cell
        h = jnp.zeros(8)
        for x in xs:
            i = (c.weight_ih @ x + c.bias).reshape(3, 8)
            g = (c.weight_hh @ (m["h"] * h)).reshape(3, 8)
            reset, update = jnn.sigmoid(i[0] + g[0]), jnn.sigmoid(i[1] + g[1])
            new = jnp.tanh(i[2] + reset * (g[2] + c.bias_n))
            h = update * h + (1 - update) * new
        return net.readout.weight @ (m["h"] * h) + net.readout.bias

    return run


def lstm_by_hand(xs):
    def run(net, m):
        h, c = jnp.zeros(8), jnp.zeros(8)
        for x in xs:
            rows = net.cell.weight_ih @ x + net.cell.weight_hh @ (m["h"] * h) + net.cell.bias
            i, f, g, o = rows.reshape(4, 8)
            c = jnn.sigmoid(f) * c + jnn.sigmoid(i) * jnp.tanh(g)
            h = jnn.sigmoid(o) * jnp.tanh(c)
        return net.readout.weight @ (m["h"] * h) + net.readout.bias

    return run


@pytest.mark.parametrize(
    "kind, gates, by_hand",
    [(eqx.nn.GRUCell, 3, gru_by_hand), (eqx.nn.LSTMCell, 4, lstm_by_hand)],
)
def test_recurrent_cells(kind, gates, by_hand, x64, getkey):
    make = lambda k: Recurrent(kind(3, 8, key=k), eqx.nn.Linear(8, 2, key=k))
    net = filled(make, getkey())
    xs = noise(getkey(), 4, 3)
    masks: dn.Masks = {"h": width(8, 4.4)}
    axes = recurrent_axes(net, gates)
    law(net, axes, masks, [tight(masks)], lambda net: net(xs), by_hand(xs))
    alike(dn.materialize(net, axes, masks, {"h": 5}).cell, shaped(lambda k: kind(3, 5, key=k)))


#
# The law: depth.
#


class Residual(eqx.Module):
    """A list of blocks, or the same blocks stacked for a scan."""

    blocks: list[eqx.nn.Linear] | eqx.nn.Linear
    gate: dn.Gate

    def __call__(self, x):
        if isinstance(self.blocks, list):
            for block, m in zip(self.blocks, self.gate()):
                x = x + m * jnn.tanh(block(x))
            return x
        step = lambda x, each: (x + each[1] * jnn.tanh(each[0](x)), None)
        return lax.scan(step, x, (self.blocks, self.gate()))[0]


def residual(stacked: bool, depth: int, key) -> tuple[Residual, dict[str, dn.Axes]]:
    linear = lambda key: eqx.nn.Linear(4, 4, key=key)

    def make(key):
        keys = jr.split(key, depth)
        blocks = jax.vmap(linear)(keys) if stacked else [linear(key) for key in keys]
        return Residual(blocks, dn.Gate("depth", depth))

    net = filled(make, key)
    if not stacked:
        return net, dn.declare(net, lambda m: m.blocks, Axes("depth"))
    specs = (Axes("depth", None, None), Axes("depth", None))
    return net, dn.declare(net, lambda m: (m.blocks.weight, m.blocks.bias), specs)


@pytest.mark.parametrize("stacked", [False, True])
def test_depth(stacked, precision, getkey):
    net, axes = residual(stacked, 6, getkey())
    masks: dn.Masks = {"depth": dn.Sigmoid(6, size=2.7, temperature=8.0)}
    x = noise(getkey(), 4)

    def by_hand(net, m):
        y = x
        for i in range(6):
            block = net.blocks if stacked else net.blocks[i]
            weight, bias = (
                (block.weight[i], block.bias[i]) if stacked else (block.weight, block.bias)
            )
            y = y + m["depth"][i] * jnp.tanh(weight @ y + bias)
        return y

    law(net, axes, masks, [tight(masks)], lambda net: net(x), by_hand)
    small = dn.materialize(net, axes, masks, {"depth": 3})
    assert small.gate.size == small.gate().size == 3
    if isinstance(small.blocks, list):
        assert len(small.blocks) == 3
    else:
        alike(small.blocks, residual(True, 3, getkey())[0].blocks)


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


def test_stacked_layers_of_learned_width(x64, getkey):
    """Both at once: a scan over residual blocks of one learned inner width."""

    class Block(eqx.Module):
        norm: eqx.nn.LayerNorm
        up: eqx.nn.Linear
        down: eqx.nn.Linear

        def __init__(self, key):
            a, b = jr.split(key)
            self.norm = eqx.nn.LayerNorm(4)
            self.up = eqx.nn.Linear(4, 10, key=a)
            self.down = eqx.nn.Linear(10, 4, key=b)

        def __call__(self, x):
            return self.down(jnn.gelu(self.up(self.norm(x))))

    stack = lambda key: eqx.filter_vmap(Block)(jr.split(key, 6))
    net = Residual(filled(stack, getkey()), dn.Gate("depth", 6))
    axes = dn.declare(
        net.blocks,
        lambda b: (
            b.norm.weight,
            b.norm.bias,
            b.up.weight,
            b.up.bias,
            b.down.weight,
            b.down.bias,
        ),
        (
            Axes("depth", None),
            Axes("depth", None),
            Axes("depth", "mid", None),
            Axes("depth", "mid"),
            Axes("depth", None, gated("mid")),
            Axes("depth", None),
        ),
    )
    axes = {f".blocks{path}": spec for path, spec in axes.items()}
    masks: dn.Masks = {
        "depth": dn.Sigmoid(6, size=2.7, temperature=8.0),
        "mid": width(10, 5.2),
    }
    x = noise(getkey(), 4)

    def by_hand(net, m):
        y, b = x, net.blocks
        for i in range(6):
            h = (y - jnp.mean(y)) / jnp.sqrt(jnp.var(y) + 1e-5)
            h = h * b.norm.weight[i] + b.norm.bias[i]
            h = jnn.gelu(b.up.weight[i] @ h + b.up.bias[i]) * m["mid"]
            y = y + m["depth"][i] * jnp.tanh(b.down.weight[i] @ h + b.down.bias[i])
        return y

    law(net, axes, masks, [tight(masks)], lambda net: net(x), by_hand)


#
# The law: dropout, and many architectures.
#


def few(examples: int):
    """Every example compiles: no search for a smaller one."""
    return hypothesis.settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[hypothesis.Phase.generate],
    )


def test_dropout_of_a_learned_prefix(x64, getkey):
    """The bits of a prefix are the prefix of the bits, of a leading learned axis."""
    make_net = lambda k: ConvNet(eqx.nn.Identity(), False, padding=2, key=k)
    net = filled(make_net, getkey())
    axes, masks = conv_axes(net), conv_masks()
    x, key, dropout = noise(getkey(), 2, 6, 6), getkey(), eqx.nn.Dropout(0.4)

    def call(net):
        return net.last(dropout(net.depthwise(jnn.gelu(net.first(x))), key=key))

    law(net, axes, masks, [tight(masks)], call)
    assert np.max(np.abs(call(net) - net(x))) > 0.01, "the dropout drops something"


@few(6)
@hypothesis.given(st.data())
def test_any_mlp_under_any_covering_plan(data):
    draw = data.draw
    with jax.enable_x64(draw(st.booleans())):
        depth = draw(st.integers(1, 3))
        key = jr.key(draw(st.integers(0, 2**31 - 1)))
        capacities = [draw(st.integers(4, 20)) for _ in range(depth)]
        activation = draw(st.sampled_from([jnn.relu, jnn.softplus, jnp.cos]))
        sizes = [3, *capacities, 2]
        masks, plan = {}, {}
        for i, capacity in enumerate(capacities):
            temperature = draw(st.floats(8.0, 60.0))
            size = draw(st.floats(0.35 * capacity, 0.85 * capacity))
            masks[f"h{i}"] = dn.Sigmoid(capacity, size=size, temperature=temperature)
        for axis, n in tight(masks).items():
            plan[axis] = draw(st.integers(n, masks[axis].capacity - 1))

        def make(key):
            layers = [eqx.nn.Linear(*pair, key=key) for pair in it.pairwise(sizes)]
            mlp = eqx.nn.MLP(3, 2, width_size=1, depth=depth, activation=activation, key=key)
            return eqx.tree_at(lambda m: m.layers, mlp, tuple(layers))

        mlp = filled(make, key)
        x = noise(key, 3, 3)
        axes = mlp_axes(mlp, list(masks))

        def by_hand(mlp, m):
            h = x
            for i, layer in enumerate(mlp.layers[:-1]):
                h = activation(h @ layer.weight.T + layer.bias) * m[f"h{i}"]
            return h @ mlp.layers[-1].weight.T + mlp.layers[-1].bias

        rtol = None if x.dtype == jnp.float64 else 3e-5
        law(mlp, axes, masks, [plan], lambda net: jax.vmap(net)(x), by_hand, rtol)


@few(6)
@hypothesis.given(st.data())
def test_any_cnn_under_any_covering_plan(data):
    draw = data.draw
    with jax.enable_x64(draw(st.booleans())):
        key = jr.key(draw(st.integers(0, 2**31 - 1)))
        depth = draw(st.integers(1, 2))
        masks, plan, layers, axes, below, inputs = {}, {}, [], {}, None, 2
        for i in range(depth):
            per_group = draw(st.integers(1, 3))
            groups = draw(st.integers(3, 5))
            extent = draw(st.sampled_from([3, 5, 7]))
            padding = draw(st.sampled_from(["SAME", 0, extent // 2]))
            norm = draw(st.sampled_from(["layer", "group", "none"]))
            c, k = f"c{i}", f"k{i}"
            size = draw(st.floats(0.4 * groups, 0.75 * groups))
            masks[c] = dn.Sigmoid(groups, size=size, temperature=20.0)
            sizes = (inputs, groups * per_group, extent)
            conv = shaped(lambda k: eqx.nn.Conv1d(*sizes, padding=padding, key=k))
            spec = Axes(fused(c, per_group), below, gated(k) if extent > 3 else None)
            axes[f"[{len(layers)}].weight"] = spec
            axes[f"[{len(layers)}].bias"] = Axes(fused(c, per_group), None)
            layers.append(conv)
            if extent > 3:
                masks[k] = dn.Gaussian(extent, size=draw(st.floats(2.5, extent - 2.1)))
            if norm == "group":
                axes[f"[{len(layers)}].weight"] = Axes(fused(c, per_group))
                axes[f"[{len(layers)}].bias"] = Axes(fused(c, per_group))
                layers.append(eqx.nn.GroupNorm(groups, groups * per_group))
            if norm == "layer":
                axes[f"[{len(layers)}].weight"] = Axes(fused(c, per_group))
                layers.append(eqx.nn.LayerNorm(groups * per_group, use_bias=False))
            layers.append(jnp.cos)
            below, inputs = fused(gated(c), per_group), groups * per_group
        layers.append(shaped(lambda k: eqx.nn.Conv1d(inputs, 2, 1, key=k)))
        axes[f"[{len(layers) - 1}].weight"] = Axes(None, below, None)
        for axis, n in tight(masks).items():
            step = 2 if axis.startswith("k") else 1
            plan[axis] = draw(st.sampled_from(range(n, masks[axis].capacity, step)))
        layers, x = filled(lambda key: layers, key), noise(key, 2, 16)

        def call(layers):
            h = x
            for layer in layers:
                over_time = (
                    "LayerNorm" in type(layer).__name__ or "Counted" in type(layer).__name__
                )
                h = jax.vmap(layer, 1, 1)(h) if over_time else layer(h)
            return h

        rtol = None if x.dtype == jnp.float64 else 3e-5
        law(layers, axes, masks, [plan], call, rtol=rtol)


#
# What comes out.
#


def test_result_has_the_arrays_of_its_plan_and_no_masks(mlp, getkey):
    mlp, axes, masks = mlp
    net = dn.materialize(mlp, axes, masks, dn.Plan({"h0": 12, "h1": 8}))
    assert type(net) is eqx.nn.MLP
    shapes = [layer.weight.shape for layer in net.layers]
    assert shapes == [(12, 3), (8, 12), (2, 8)]
    assert [(n.out_features, n.in_features) for n in net.layers] == shapes
    assert [x.shape for x in jtu.tree_leaves(net)[1:6:2]] == [(12,), (8,), (2,)]
    is_mask = lambda x: isinstance(x, dn.AbstractMask)
    assert not any(map(is_mask, jtu.tree_leaves(net, is_leaf=is_mask)))
    # An axis without a bucket is at its capacity, one without a mask is not learned.
    net = dn.materialize(mlp, axes, masks, {"h0": 12})
    assert [layer.weight.shape for layer in net.layers] == [(12, 3), (16, 12), (2, 16)]
    alike(dn.materialize(mlp, axes, {}, {}), mlp)
    one = {"h0": masks["h0"]}
    net = dn.materialize(mlp, axes, one, {"h0": 12})
    assert [layer.weight.shape for layer in net.layers] == [(12, 3), (16, 12), (2, 16)]


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
    sizes = {"a": 5, "b": 7, "k": 3}
    assert tight(masks) == {axis: sizes[axis] for axis in masks}
    frozen = dn.freeze(layer, axes, masks)
    alike(frozen, shaped(make_smaller))
    # Not gated, so the weights are those of the leading positions, the centre of a kernel.
    weight = jtu.tree_leaves(layer)[0]
    small = jtu.tree_leaves(frozen)[0]
    assert float(jnp.max(jnp.abs(small))) <= float(jnp.max(jnp.abs(weight)))


def test_layer_norm_of_a_bucket_is_that_of_the_active_positions(x64, getkey):
    norm = filled(lambda k: eqx.nn.LayerNorm((8, 3)), getkey())
    axes = dn.declare(norm, lambda n: (n.weight, n.bias), (Axes("c", None),) * 2)
    masks: dn.Masks = {"c": width(8, 5.0)}
    x = noise(getkey(), 8, 3) + 2
    stock = eqx.nn.LayerNorm((5, 3))
    stock = eqx.tree_at(lambda n: (n.weight, n.bias), stock, (norm.weight[:5], norm.bias[:5]))
    for bucket in (5, 6, 8):
        net = dn.materialize(norm, axes, masks, {"c": bucket})
        close(net(x[:bucket])[:5], stock(x[:5]))
        with pytest.raises(ValueError, match=r"norm over shape \(\d, 3\) got shape \(4, 3\)"):
            net(x[:4])


#
# Freezing.
#


class Precomputed(eqx.Module):
    table: jax.Array

    def __call__(self):
        return self.table


class Squares(dn.AbstractFreezable):
    """A module that can compute its table beforehand."""

    inner: eqx.Module
    x: jax.Array

    def __call__(self):
        return self.x**2

    def freeze(self):
        assert not isinstance(self.inner, Squares), "the modules inside come first"
        return Precomputed(self.x**2)


def test_freeze_calls_freeze_of_what_is_materialized():
    inner = Squares(eqx.nn.Identity(), jnp.arange(4.0))
    model = {"a": [Squares(inner, jnp.arange(8.0))], "b": eqx.nn.Identity()}
    axes = dn.declare(model, lambda m: m["a"][0].x, Axes("n"))
    masks: dn.Masks = {"n": width(8, 5.0)}
    frozen = dn.freeze(model, axes, masks)
    alike(frozen, {"a": [Precomputed(jnp.arange(5.0))], "b": eqx.nn.Identity()})
    assert frozen["a"][0]().tolist() == [0, 1, 4, 9, 16]
    assert type(dn.materialize(model, axes, masks, {})["a"][0]) is Squares


def test_frozen_attention_computes_the_same_from_stock_layers(x64, getkey):
    net, learned = filled(Attention, getkey()), ("heads", "qk", "vo", "stream")
    axes, masks = attention_axes(net, *learned), attention_masks(*learned)
    tokens = jnp.array([3, 1, 4, 1, 5])
    frozen = dn.freeze(net, axes, masks)
    close(frozen(tokens), dn.materialize(net, axes, masks, {})(tokens))
    n = tight(masks)
    alike(frozen.norm, eqx.nn.LayerNorm(n["stream"]))
    alike(
        frozen.attention,
        shaped(lambda k: attention(n["heads"], n["stream"], n["qk"], n["vo"], key=k)),
    )


def test_freeze_at_a_plan(x64, getkey):
    net, learned = filled(Attention, getkey()), ("qk", "stream")
    axes, masks = attention_axes(net, *learned), attention_masks(*learned)
    tokens = jnp.array([3, 1, 4, 1, 5])
    exact = tight(masks)
    frozen = dn.freeze(net, axes, masks, {"stream": exact["stream"] + 1})
    assert frozen.embed.embedding_size == exact["stream"] + 1
    assert frozen.attention.qk_size == exact["qk"]
    close(frozen(tokens), dn.freeze(net, axes, masks)(tokens))
    with pytest.raises(ValueError, match="'stream' .bucket 3, . active"):
        dn.freeze(net, axes, masks, {"stream": 3})


def test_freeze_of_depth_and_convolutions(x64, getkey):
    net, axes = residual(False, 6, getkey())
    masks: dn.Masks = {"depth": dn.Sigmoid(6, size=2.7, temperature=8.0)}
    x = noise(getkey(), 4)
    frozen = dn.freeze(net, axes, masks)
    assert isinstance(frozen.blocks, list) and len(frozen.blocks) == tight(masks)["depth"]
    close(frozen(x), dn.materialize(net, axes, masks, {})(x))

    make_net = lambda k: ConvNet(eqx.nn.LayerNorm((12, 6, 6)), True, padding=2, key=k)
    net = filled(make_net, getkey())
    axes, masks = conv_axes(net), conv_masks()
    x = noise(getkey(), 2, 6, 6)
    frozen = dn.freeze(net, axes, masks)
    n = tight(masks)
    alike(frozen.first, shaped(lambda k: eqx.nn.Conv2d(2, n["c"], (3, 3), padding=1, key=k)))
    alike(frozen.norm, eqx.nn.LayerNorm((n["c"], 6, 6)))
    close(frozen(x), dn.materialize(net, axes, masks, {})(x))


#
# What is refused.
#


def test_plans_that_do_not_cover(mlp, getkey):
    mlp, axes, masks = mlp
    x = noise(getkey(), 3)
    with pytest.raises(ValueError, match=r"not cover .*'h0' \(bucket 8, 9 active\)\. Make"):
        dn.materialize(mlp, axes, masks, {"h0": 8, "h1": 8})
    assert dn.materialize(mlp, axes, masks, {"h0": 8}, check_coverage=False)(x).shape == (2,)

    @eqx.filter_jit
    def run(mlp, masks, plan):
        return dn.materialize(mlp, axes, masks, plan)(x)

    with jax.debug_nans(False), pytest.raises(RuntimeError, match="`plan` does not cover"):
        jax.block_until_ready(run(mlp, masks, dn.Plan({"h0": 8})))
    plan = dn.Plan({"h0": 9})
    close(run(mlp, masks, plan), dn.materialize(mlp, axes, masks, plan)(x))


def test_plans_of_other_axes_and_sizes(mlp):
    mlp, axes, masks = mlp
    for function in (dn.materialize, dn.freeze):
        with pytest.raises(ValueError, match="bucket for 'h2', which has no mask"):
            function(mlp, axes, masks, {"h0": 16, "h2": 4})
        with pytest.raises(ValueError, match="bucket 17 for axis 'h0', whose capacity is 16"):
            function(mlp, axes, masks, {"h0": 17})
        with pytest.raises(ValueError, match=r"(?=.*'h0').*bucket.*\b0\b"):
            function(mlp, axes, masks, {"h0": 0})
        with pytest.raises(ValueError, match="but no array lies on it"):
            function(mlp, axes, masks | {"h2": masks["h0"]}, {})


def conv(**kwargs):
    return lambda key: eqx.nn.Conv1d(8, 8, 5, key=key, **kwargs)


REFUSED = {
    "rows of heads": (
        lambda key: eqx.nn.MultiheadAttention(4, 2, qk_size=2, vo_size=2, key=key),
        {".query_proj.weight": Axes("c", None), ".key_proj.weight": Axes("c", None)},
        r"its `query_proj` are 4 heads x 2: declare them as `fused\(heads, width\)`",
    ),
    "queries and keys": (
        lambda key: eqx.nn.MultiheadAttention(2, 3, qk_size=8, vo_size=2, key=key),
        {".query_proj.weight": Axes(fused(2, "c"), None)},
        "`query_proj` and `key_proj` must lie on the same axes",
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
        {".weight": Axes("c"), ".bias": Axes("c")},
        "`eqx.nn.BatchNorm` keeps arrays outside the module .* `dnarch_eqx.nn.BatchNorm`",
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
        {".weight": Axes("c", None, None)},
        "grouped channels .* of a ConvTranspose are not learnable",
    ),
}


@pytest.mark.parametrize("layer", REFUSED)
@pytest.mark.filterwarnings("ignore:.*BatchNorm")
def test_refused_layers(layer, getkey):
    make, axes, message = REFUSED[layer]
    masks: dn.Masks = {"c": width(8, 4.5), "k": dn.Gaussian(5, size=3.5)}
    masks = {axis: mask for axis, mask in masks.items() if f"'{axis}'" in str(axes)}
    net = [make(getkey()) if layer == "batch norm" else filled(make, getkey())]
    axes = {f"[0]{path}": spec for path, spec in axes.items()}
    with pytest.raises(ValueError, match=r"'\[0\]': .*" + message):
        dn.materialize(net, axes, masks, tight(masks))
    # What is not learned may lie on any axis.
    alike(dn.materialize(net, axes, {}, {}), net)
