"""Weights that are tied by `eqx.nn.Shared`, Equinox's own way."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import pytest
from helpers import alike, close, entered, filled, law, noise, tight, width

import dnarch_eqx as dn


Axes, gated = dn.Axes, dn.gated
TOKENS = jnp.array([3, 1, 4, 1, 5])


class Language(eqx.Module):
    """An embedding that is the readout too, with a hidden layer between."""

    shared: eqx.nn.Shared
    up: eqx.nn.Linear
    down: eqx.nn.Linear

    def __init__(self, key):
        k = jr.split(key, 4)
        embed = eqx.nn.Embedding(11, 8, key=k[0])
        read = eqx.nn.Linear(8, 11, use_bias=False, key=k[1])
        self.shared = eqx.nn.Shared((embed, read), lambda p: p[1].weight, lambda p: p[0].weight)
        self.up = eqx.nn.Linear(8, 16, key=k[2])
        self.down = eqx.nn.Linear(16, 8, key=k[3])

    def __call__(self, tokens):
        embed, read = self.shared()
        x = jax.vmap(embed)(tokens)
        x = x + jax.vmap(self.down)(jnp.tanh(jax.vmap(self.up)(x)))
        return jax.vmap(read)(x)


HIDDEN = {
    ".up.weight": Axes("h", None),
    ".up.bias": Axes("h"),
    ".down.weight": Axes(None, gated("h")),
}
TIED = {
    ".shared.pytree[0].weight": Axes(None, gated("d")),
    ".up.weight": Axes("h", "d"),
    ".up.bias": Axes("h"),
    ".down.weight": Axes("d", gated("h")),
    ".down.bias": Axes("d"),
}


def language_by_hand(net, m):
    table = net.shared.pytree[0].weight * m.get("d", jnp.ones(8))
    x = table[TOKENS]
    h = jnp.tanh(x @ net.up.weight.T + net.up.bias) * m["h"]
    return (x + h @ net.down.weight.T + net.down.bias) @ table.T


@pytest.mark.parametrize("axes", [HIDDEN, TIED])
def test_tied_embeddings(axes, x64, getkey):
    net = filled(Language, getkey())
    masks: dn.Masks = {"h": width(16, 9.3)} | ({"d": width(8, 5.0)} if axes is TIED else {})
    law(net, axes, masks, [tight(masks)], lambda net: net(TOKENS), language_by_hand)
    small, n = dn.freeze(net, axes, masks), tight(masks)
    close(small(TOKENS), dn.materialize(net, axes, masks, {})(TOKENS))
    embed, read = small.shared()
    assert read.weight is embed.weight, "they are still one array"
    assert (read.in_features, embed.embedding_size) == (n.get("d", 8),) * 2
    # The array that is there once counts once.
    cost = dn.parameter_cost(net, axes)
    assert cost({}) == dn.parameters(net) == 11 * 8 + 2 * 8 * 16 + 16 + 8
    assert cost(n) == dn.parameters(small)
    assert "h " in dn.describe(net, axes, masks)


def autoencoder(key):
    a, b = eqx.nn.Linear(3, 8, key=key), eqx.nn.Linear(8, 3, key=key)
    return eqx.nn.Shared((a, b), lambda p: p[1].weight, lambda p: jnp.transpose(p[0].weight))


def test_tied_and_transposed(x64, getkey):
    net, x = filled(autoencoder, getkey()), noise(getkey(), 3)
    axes = {".pytree[0].weight": Axes(gated("d"), None), ".pytree[0].bias": Axes(gated("d"))}
    masks: dn.Masks = {"d": width(8, 5.0)}

    def call(net):
        a, b = net()
        assert (a.out_features, b.in_features) == (a.weight.shape[0],) * 2
        return b(jnp.tanh(a(x)))

    def by_hand(net, m):
        a, b = net.pytree
        weight = a.weight * m["d"][:, None]
        return weight.T @ jnp.tanh(weight @ x + m["d"] * a.bias) + b.bias

    law(net, axes, masks, [tight(masks)], call, by_hand)


def test_tied_norms(x64, getkey):
    """The statistics of both are those of the active positions."""

    def make(key):
        norms = eqx.nn.LayerNorm(8), eqx.nn.LayerNorm(8)
        where = lambda p: (p[1].weight, p[1].bias)
        return eqx.nn.Shared(norms, where, lambda p: (p[0].weight, p[0].bias))

    net, x = filled(make, getkey()), noise(getkey(), 8) + 2
    axes = {".pytree[0].weight": Axes("c"), ".pytree[0].bias": Axes("c")}
    masks: dn.Masks = {"c": width(8, 5.0)}
    alone, alone_axes = entered(net, axes, masks)
    (stock, _) = dn.freeze(alone, alone_axes, masks)
    for plan in ({"c": 5}, {"c": 7}, {}):
        first, second = dn.materialize(alone, alone_axes, masks, plan)[0]()
        n = plan.get("c", 8)
        close(first(x[:n])[:5], stock()[0](x[:5]))
        close(second(x[:n])[:5], stock()[0](x[:5]))
    alike(stock()[1], eqx.nn.LayerNorm(5))


def test_tied_whole_layers(x64, getkey):
    def make(key):
        mlp = eqx.nn.MLP(3, 3, 3, 2, key=key)
        where = lambda m: (m.layers[1], m.layers[2])
        return eqx.nn.Shared(mlp, where, lambda m: (m.layers[0], m.layers[0]))

    net, x = filled(make, getkey()), noise(getkey(), 3)
    axes = {
        ".pytree.layers[0].weight": Axes("d", gated("d")),
        ".pytree.layers[0].bias": Axes("d"),
    }
    masks: dn.Masks = {"d": dn.Sigmoid(3, size=1.7, temperature=12.0)}
    call = lambda net: jnp.sum(net()(x[: net().in_size])[:2])
    law(net, axes, masks, [tight(masks)], call)


def test_what_is_not_understood_is_refused(getkey):
    net, masks = filled(Language, getkey()), {"h": width(16, 9.3), "d": width(8, 5.0)}
    target = ".shared.pytree[1].weight"
    with pytest.raises(ValueError, match=r"ties to '.shared.pytree\[0\].weight'"):
        dn.check(net, TIED | {target: Axes(None, "d")}, masks)
    get = lambda p: 2 * p[0].weight
    twice = eqx.tree_at(lambda m: m.shared.get, net, get)
    with pytest.raises(ValueError, match=r"'.shared.pytree\[1\].weight' is computed from what"):
        dn.check(twice, TIED, masks)
    # Where nothing is learned of it, it may be computed as one likes.
    law(twice, HIDDEN, {"h": masks["h"]}, [{"h": 12}], lambda net: net(TOKENS))
