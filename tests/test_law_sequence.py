from typing import Any

import equinox as eqx
import jax.lax as lax
import jax.nn as jnn
import jax.numpy as jnp
import pytest
from helpers import (
    alike,
    Attention,
    attention_axes,
    attention_masks,
    filled,
    law,
    noise,
    shaped,
    tight,
    width,
)

import dnarch_eqx as dn


Axes, fused, gated = dn.Axes, dn.fused, dn.gated


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
