import itertools as it
from collections.abc import Callable

import dnarch_eqx as dn
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
from helpers import alike, close, law, laws, objective, plans, tight, values


gated, fused, Axes = dn.gated, dn.fused, dn.Axes


@pytest.fixture(params=[False, True], ids=["float32", "float64"])
def precision(request):
    with jax.enable_x64(request.param):
        yield


def generic(model, key):
    """The model with noise on all arrays: no weights of ones, no biases of zeros."""
    arrays, rest = eqx.partition(model, eqx.is_inexact_array)
    leaves, treedef = jtu.tree_flatten(arrays)
    leaves = [
        x + 0.3 * jr.normal(k, x.shape, x.dtype)
        for x, k in zip(leaves, jr.split(key, len(leaves)))
    ]
    return eqx.combine(treedef.unflatten(leaves), rest)


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
    mlp = eqx.nn.MLP(3, 2, width_size=16, depth=2, key=getkey())
    masks: dn.Masks = {"h0": width(16, 9.3), "h1": width(16, 5.0)}
    return mlp, mlp_axes(mlp, ["h0", "h1"]), masks


def test_mlp(precision, getkey):
    mlp = eqx.nn.MLP(3, 2, width_size=16, depth=2, key=getkey())
    masks: dn.Masks = {"h0": width(16, 9.3), "h1": width(16, 5.0)}
    x = jr.normal(getkey(), (5, 3), mlp.layers[0].weight.dtype)
    axes = mlp_axes(mlp, ["h0", "h1"])
    laws(mlp, axes, masks, lambda net: jax.vmap(net)(x), reference=mlp_by_hand(x))


def test_gated_rows_mask_the_preactivation(x64, getkey):
    mlp = eqx.nn.MLP(3, 2, width_size=16, depth=1, activation=jnn.softplus, key=getkey())
    axes = dn.declare(
        mlp,
        lambda m: (m.layers[0].weight, m.layers[0].bias, m.layers[1].weight),
        (Axes(gated("h"), None), Axes(gated("h")), Axes(None, "h")),
    )
    # Rows that are zero still give softplus(0): that is no law, but the bucket of 16 has it.
    masks: dn.Masks = {"h": width(16, 9.3)}
    x = jr.normal(getkey(), (3,))

    def by_hand(mlp, m):
        first, last = mlp.layers
        h = jnn.softplus(m["h"] * (first.weight @ x + first.bias))
        return last.weight @ h + last.bias

    close(dn.materialize(mlp, axes, masks, {})(x), by_hand(mlp, {"h": values(masks["h"])}))


@pytest.mark.parametrize("scan", [False, True])
def test_mlp_of_one_width(scan, x64, getkey):
    mlp = eqx.nn.MLP(3, 2, width_size=12, depth=3, scan=scan, key=getkey())
    # A scan stacks the two hidden layers.
    stack = (None,) if scan else ()
    hidden = mlp.layers[1:-1]
    nodes = lambda m: [m.layers[0].weight, m.layers[0].bias, m.layers[-1].weight] + [
        array for layer in m.layers[1:-1] for array in (layer.weight, layer.bias)
    ]
    inner = [Axes(*stack, "h", gated("h")), Axes(*stack, "h")] * len(hidden)
    specs = [Axes("h", None), Axes("h"), Axes(None, gated("h")), *inner]
    axes = dn.declare(mlp, nodes, specs)
    x = jr.normal(getkey(), (3,))

    def by_hand(mlp, m):
        first, *hidden, last = mlp.layers
        h = jnn.relu(first.weight @ x + first.bias) * m["h"]
        weights = hidden[0].weight if scan else [layer.weight for layer in hidden]
        biases = hidden[0].bias if scan else [layer.bias for layer in hidden]
        for weight, bias in zip(weights, biases):
            h = jnn.relu(weight @ h + bias) * m["h"]
        return last.weight @ h + last.bias

    masks: dn.Masks = {"h": width(12, 6.2)}
    laws(mlp, axes, masks, lambda net: net(x), reference=by_hand)
    alike(
        dn.materialize(mlp, axes, masks, {"h": 7}),
        eqx.nn.MLP(3, 2, width_size=7, depth=3, scan=scan, key=getkey()),
    )


def test_scanned_mlp_of_learned_depth(x64, getkey):
    mlp = eqx.nn.MLP(3, 2, width_size=12, depth=4, scan=True, key=getkey())
    axes = dn.declare(
        mlp,
        lambda m: (m.layers[1].weight, m.layers[1].bias),
        (Axes("depth", None, None), Axes("depth", None)),
    )
    masks: dn.Masks = {"depth": dn.Sigmoid(3, size=1.5, temperature=8.0)}
    net = dn.materialize(mlp, axes, masks, {"depth": 2})
    alike(net, eqx.nn.MLP(3, 2, width_size=12, depth=3, scan=True, key=getkey()))
    x = jr.normal(getkey(), (3,))
    first, hidden, last = mlp.layers
    h = jnn.relu(first(x))
    for i in range(2):
        h = jnn.relu(hidden.weight[i] @ h + hidden.bias[i])
    close(net(x), last(h))


def test_gradients_are_those_of_finite_differences(x64, getkey):
    mlp = eqx.nn.MLP(3, 2, width_size=16, depth=2, activation=jnn.tanh, key=getkey())
    axes = mlp_axes(mlp, ["h0", "h1"])
    masks: dn.Masks = {"h0": width(16, 9.3), "h1": width(16, 5.0)}
    x = jr.normal(getkey(), (3,))
    plan = tight(masks)

    def loss(masks):
        return jnp.sum(jnp.sin(dn.materialize(mlp, axes, masks, plan)(x)))

    grads = eqx.filter_grad(loss)(masks)
    for axis in masks:
        move = lambda by: masks | {
            axis: eqx.tree_at(lambda m: m.offset, masks[axis], replace_fn=lambda o: o + by)
        }
        difference = (loss(move(1e-5)) - loss(move(-1e-5))) / 2e-5
        np.testing.assert_allclose(grads[axis].offset, difference, rtol=1e-7)
        assert abs(difference) > 1e-3


#
# The law: convolutions and norms.
#


class ConvNet(eqx.Module):
    """Convolution, norm, depthwise convolution, pointwise convolution, pool or flatten."""

    first: eqx.nn.Conv2d
    norm: eqx.Module
    depthwise: eqx.nn.Conv2d
    last: eqx.Module
    flatten: bool

    def __init__(self, norm, *, flatten=False, key, **conv):
        k = jr.split(key, 4)
        self.first = eqx.nn.Conv2d(2, 12, 5, key=k[0], **conv)
        self.norm = generic(norm, k[3])
        self.depthwise = eqx.nn.Conv2d(12, 12, 3, groups=12, padding=1, key=k[1])
        self.flatten = flatten
        size = (12 * 6 * 6, 3) if flatten else (12, 3, 1)
        self.last = (eqx.nn.Linear if flatten else eqx.nn.Conv2d)(*size, key=k[2])

    def __call__(self, x):
        x = self.depthwise(self.norm(jnn.gelu(self.first(x))))  # pyright: ignore
        return self.last(x.reshape(-1) if self.flatten else x)  # pyright: ignore


def conv_axes(net: ConvNet, c: str | dn.Axes = "c", per_group: int | None = None):
    """Learned channels `c` (whole groups of them) and kernel extents `ky`, `kx`."""
    plain = "c" if per_group is None else fused("c", per_group)
    gate = gated("c") if per_group is None else fused(gated("c"), per_group)
    parts = ("c",) if per_group is None else ("c", per_group)
    consumer = Axes(None, gate, None, None)
    if net.flatten:
        consumer = Axes(None, fused(gated("c"), *parts[1:], 6 * 6))
    norm = [] if isinstance(net.norm, eqx.nn.Identity) else [net.norm.weight, net.norm.bias]  # pyright: ignore
    axes = dn.declare(
        net,
        lambda n: (
            n.first.weight,
            n.first.bias,
            n.depthwise.weight,
            n.depthwise.bias,
            n.last.weight,
        ),
        (
            Axes(plain, None, gated("ky"), gated("kx")),
            Axes(plain, None, None),
            Axes(plain, None, None, None),
            Axes(plain, None, None),
            consumer,
        ),
    )
    if norm:
        spec = Axes(plain, *[None] * (norm[0].ndim - 1))
        axes |= dn.declare(net, lambda n: (n.norm.weight, n.norm.bias), (spec, spec))
    return axes


def conv_masks(groups: int = 12) -> dn.Masks:
    return {
        "c": dn.Sigmoid(groups, size=0.55 * groups, temperature=12.0),
        "ky": dn.Gaussian(5, size=4.0),
        "kx": dn.Gaussian(5, size=3.1),
    }


def conv_by_hand(x, norm: Callable, per_group: int = 1):
    """The network at full width. `norm` gets the active channels alone."""

    def run(net, m):
        weight = net.first.weight * m["ky"][:, None] * m["kx"]
        mask = jnp.repeat(m["c"], per_group)
        active = int(np.sum(np.asarray(lax.stop_gradient(tight_channels(m)))) * per_group)
        h = jnn.gelu(eqx.tree_at(lambda c: c.weight, net.first, weight)(x))
        kept = norm(net.norm, h[:active])
        h = jnp.concatenate([kept, jnp.zeros((12 - active, *kept.shape[1:]), kept.dtype)])
        h = net.depthwise(h) * channels(mask)
        return net.last(h.reshape(-1) if net.flatten else h)

    return run
