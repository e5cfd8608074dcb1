import equinox as eqx
import jax
import jax.nn as jnn
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import optax
import pytest
from helpers import (
    alike,
    Attention,
    attention,
    attention_axes,
    attention_masks,
    close,
    conv_axes,
    conv_masks,
    ConvNet,
    entered,
    filled,
    noise,
    Residual,
    residual,
    same,
    shaped,
    tight,
    width,
)

import dnarch_eqx as dn


Axes, fused, gated = dn.Axes, dn.fused, dn.gated


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
    whole, axes = entered(model, axes, masks)
    frozen, _ = dn.freeze(whole, axes, masks)
    alike(frozen, {"a": [Precomputed(jnp.arange(5.0))], "b": eqx.nn.Identity()})
    assert frozen["a"][0]().tolist() == [0, 1, 4, 9, 16]
    assert type(dn.materialize(whole, axes, masks, {})[0]["a"][0]) is Squares


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
# What does not train is out of an optimizer's reach.
#


class Tuned(eqx.Module):
    """A norm over a learned width, and blocks of a learned depth."""

    first: eqx.nn.Linear
    norm: eqx.nn.LayerNorm
    last: eqx.nn.Linear
    residual: Residual

    def __init__(self, key):
        k = jr.split(key, 3)
        self.first = eqx.nn.Linear(3, 32, key=k[0])
        self.norm = eqx.nn.LayerNorm(32)
        self.last = eqx.nn.Linear(32, 4, key=k[1])
        blocks = [eqx.nn.Linear(4, 4, key=key) for key in jr.split(k[2], 3)]
        self.residual = Residual(blocks, dn.Gate("depth", 3))

    def __call__(self, x):
        return self.residual(self.last(jnn.gelu(self.norm(self.first(x)))))


TUNED = {
    ".first.weight": Axes("c", None),
    ".first.bias": Axes("c"),
    ".norm.weight": Axes("c"),
    ".norm.bias": Axes("c"),
    ".last.weight": Axes(None, gated("c")),
    ".residual.blocks": Axes("depth"),
}


@pytest.mark.parametrize("double", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_fine_tuning_leaves_constants_alone(double, getkey, tmp_path):
    """With Equinox and Optax alone, weight decay and all, in a bucket larger than the axis."""
    with jax.enable_x64(double), jax.numpy_dtype_promotion("standard"):
        net, xs = filled(Tuned, getkey()), noise(getkey(), 5, 3)
        masks: dn.Masks = {
            "c": dn.Sigmoid(32, size=19.0),
            "depth": dn.Sigmoid(3, size=2.0, temperature=8.0),
        }
        small = dn.freeze(net, TUNED, masks, {"c": 24})
        close(jax.vmap(small)(xs), jax.vmap(dn.materialize(net, TUNED, masks, {}))(xs))
        depth = tight(masks)["depth"]
        assert small.residual.gate().tolist() == masks["depth"]()[:depth].tolist()
        by_hand = 24 * 3 + 3 * 24 + 4 * 24 + 4 + depth * (4 * 4 + 4)
        assert dn.parameters(small) == by_hand

        optim = optax.adamw(0.1, weight_decay=0.5)
        params, static = eqx.partition(small, eqx.is_inexact_array)
        state = optim.init(params)
        loss = lambda params: jnp.sum(jax.vmap(eqx.combine(params, static))(xs) ** 2)
        step = jax.jit(lambda p, s: optim.update(jax.grad(loss)(p), s, p))
        for _ in range(3):
            updates, state = step(params, state)
            params = eqx.apply_updates(params, updates)
        tuned = eqx.combine(params, static)
        assert not same(tuned.first, small.first)
        assert same(tuned.norm.active, small.norm.active) and int(tuned.norm.active.sum()) == 19
        assert same(tuned.residual.gate(), small.residual.gate())

        # They are saved with the rest, and are the same under jit and vmap.
        eqx.tree_serialise_leaves(tmp_path / "net.eqx", tuned)
        read = eqx.tree_deserialise_leaves(tmp_path / "net.eqx", small)
        assert same(read, tuned)
        batch = jtu.tree_map(lambda *x: jnp.stack(x), tuned, small)
        both = jax.jit(jax.vmap(lambda net: net(xs[0])))(batch)
        close(both, jnp.stack([tuned(xs[0]), small(xs[0])]))


def test_a_gate_frozen_twice():
    masks: dn.Masks = {"depth": dn.Sigmoid(6, size=4.0, temperature=8.0)}
    once = dn.freeze(dn.Gate("depth", 6), {}, masks)
    again = dn.freeze(once, {}, {})
    assert same(once, again) and dn.parameters(again) == 0
    # Learned once more, from what is left: both masks count, as in a weight.
    more: dn.Masks = {"depth": dn.Sigmoid(once.size, size=2.2, temperature=8.0)}
    twice = dn.freeze(once, {}, more)
    assert twice.size == tight(more)["depth"] < once.size
    close(twice(), (once() * more["depth"]())[: twice.size])
