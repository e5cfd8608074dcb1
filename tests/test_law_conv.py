from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.nn as jnn
import jax.numpy as jnp
import pytest
from helpers import (
    channels,
    close,
    conv_axes,
    conv_masks,
    ConvNet,
    entered,
    filled,
    law,
    noise,
    tight,
    values,
    width,
)

import dnarch_eqx as dn


Axes, fused, gated = dn.Axes, dn.fused, dn.gated


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


@pytest.mark.parametrize("mode", ["REFLECT", "REPLICATE", "CIRCULAR"])
@pytest.mark.parametrize(
    "padding, stride, dilation, kind",
    [
        (3, 1, 1, dn.Gaussian),
        (1, 1, 1, dn.Gaussian),
        (0, 2, 1, dn.Gaussian),
        ("VALID", 1, 1, dn.Sigmoid),
        ("SAME", 1, 1, dn.Sigmoid),
        (((1, 6),), 2, 2, dn.Gaussian),
    ],
)
def test_learned_kernel_extents_in_other_padding_modes(
    mode, padding, stride, dilation, kind, x64, getkey
):
    """Also where less is padded than taps are dropped: samples are left out then, after the
    rest was padded from all of them.
    """

    def make(key):
        options: dict[str, Any] = dict(padding=padding, padding_mode=mode, dilation=dilation)
        return eqx.nn.Conv1d(2, 3, 7, stride, **options, key=key)

    conv = filled(make, getkey())
    axes = dn.declare(conv, lambda c: c.weight, Axes(None, None, gated("k")))
    x = noise(getkey(), 2, 15)
    by_hand = lambda conv, m: eqx.tree_at(lambda c: c.weight, conv, conv.weight * m["k"])(x)
    masks: dn.Masks = {"k": dn.Gaussian(7, size=3.5) if kind is dn.Gaussian else width(7, 3.5)}
    law(conv, axes, masks, [tight(masks)], lambda net: net(x), by_hand)
    # The deployed layer is a convolution like any other, whose kernel can be learned again.
    small = dn.freeze(conv, axes, masks)
    assert isinstance(small, eqx.nn.Conv) and small.kernel_size == small.weight.shape[2:]
    close(small(x), dn.materialize(conv, axes, masks, {})(x))
    if kind is dn.Gaussian:
        rounded, again = dn.freeze(conv, axes, masks, {"k": 5}), {"k": dn.Gaussian(5, size=3.1)}
        assert tight(again) == {"k": 3}
        close(dn.freeze(rounded, axes, again)(x), dn.materialize(rounded, axes, again, {})(x))


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
    def call(pair):
        net, _ = pair
        y = net(x[: net.in_channels])
        m = values(masks["out"])[: net.out_channels]
        return jnp.einsum("c,cij->ij", readout[: net.out_channels] * m, y)

    def by_hand(pair, m):
        y = pair[0](x * channels(m["in"]))
        return jnp.einsum("c,cij->ij", readout * values(masks["out"]), y)

    law(*entered(conv, axes, masks), masks, [tight(masks)], call, by_hand)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("kind", [eqx.nn.LayerNorm, eqx.nn.RMSNorm])
def test_norm_in_half_precision_is_that_of_the_stock_layer(dtype, kind, getkey):
    # 1000 active positions, whose squares sum to more than float16 can hold.
    norm = kind(1200)
    axes = dn.declare(norm, lambda n: (n.weight, n.bias), (Axes("c"), Axes("c")))
    masks: dn.Masks = {"c": dn.Sigmoid(1200, size=999.5, temperature=25.0)}
    active = tight(masks)["c"]
    x = (20 * noise(getkey(), 1200) + 4).astype(dtype)
    got = dn.materialize(*entered(norm, axes, masks), masks, {})[0](x)[:active]
    wanted = kind(active)(x[:active])
    assert got.dtype == wanted.dtype
    close(got.astype(jnp.float32), wanted.astype(jnp.float32), rtol=1e-2)
