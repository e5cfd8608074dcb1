import itertools as it

import equinox as eqx
import hypothesis
import hypothesis.strategies as st
import jax
import jax.nn as jnn
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from helpers import (
    alike,
    close,
    conv_axes,
    conv_masks,
    ConvNet,
    entered,
    filled,
    halfway,
    law,
    mlp_axes,
    noise,
    Residual,
    residual,
    shaped,
    tight,
    values,
    width,
)

import dnarch_eqx as dn


Axes, fused, gated = dn.Axes, dn.fused, dn.gated


@pytest.fixture(params=[False, True], ids=["float32", "float64"])
def precision(request):
    with jax.enable_x64(request.param):
        yield


def mlp_by_hand(x):
    def run(mlp, m):
        h = x
        for i, layer in enumerate(mlp.layers):
            h = h @ layer.weight.T + layer.bias
            if i < len(mlp.layers) - 1:
                h = jnn.relu(h) * m[f"h{i}"]
        return h

    return run


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
    net, _ = dn.materialize(*entered(mlp, axes, masks), masks, {"depth": 2})
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
            size = draw(st.floats(0.35 * capacity, min(0.85 * capacity, capacity - 1)))
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

        rtol = None if x.dtype == jnp.float64 else 6e-5
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
            size = draw(st.floats(0.4 * groups, min(0.75 * groups, groups - 1)))
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

        rtol = None if x.dtype == jnp.float64 else 6e-5
        law(layers, axes, masks, [plan], call, rtol=rtol)
