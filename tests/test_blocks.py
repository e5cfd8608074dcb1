"""Blocks of a list, and of a scan, that are left out from outside; layers of one's own; the law
by numbers.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from equinox.nn import GroupNorm, LayerNorm, Linear
from jaxtyping import Array

import dnarch_eqx as dn
from dnarch_eqx import Axes, fused, gated
from tests.hazards import hazards
from tests.networks import MLPBlock


X: Any = np.linspace(-1.0, 1.0, 4)


@pytest.fixture(autouse=True)
def as_users_have_it(unchecked):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


class Chain(eqx.Module):
    blocks: list
    head: Linear

    def __call__(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def chain(blocks):
    return Chain(blocks, Linear(4, 2, key=jr.key(9)))


def residual():
    return chain([MLPBlock(4, 6, key) for key in jr.split(jr.key(0), 4)])


DEPTH = {"depth": dn.Sigmoid(4, size=2.4, temperature=8.0)}
GONE = {".blocks": Axes(gated("depth"))}


def test_a_block_goes_over_into_the_identity(x64):
    net, x = residual(), jnp.asarray(X)
    weights = DEPTH["depth"](4)
    assert 0 < int(jnp.sum(weights > 0)) < 4
    wanted = x
    for block, weight in zip(net.blocks, weights):
        wanted = wanted + weight * (block(wanted) - wanted)
    wanted = net.head(wanted)
    frozen = dn.freeze(net, GONE, DEPTH)
    for made in (dn.materialize(net, GONE, DEPTH, {}), frozen):
        np.testing.assert_allclose(made(x), wanted, rtol=1e-12)
    assert len(frozen.blocks) == dn.exact(DEPTH)["depth"] < 4
    assert all(isinstance(block, MLPBlock) for block in frozen.blocks)
    # What a block weighs is no parameter of the network that is deployed.
    assert dn.parameters(frozen) == dn.parameters(frozen.head) + sum(
        dn.parameters(block) for block in net.blocks[: len(frozen.blocks)]
    )


def test_depth_is_found_beside_widths():
    found = dn.find_axes(residual(), X)
    assert found.axes["blocks.depth"].size == 4
    assert found.axes["blocks.depth"].in_order
    axes, _ = found.learn("blocks.depth")
    assert axes == {".blocks": Axes(gated("blocks.depth"))}


class Wide(eqx.Module):
    linear: Linear

    def __call__(self, x):
        return jnp.tanh(self.linear(x))


def test_what_stands_against_a_depth_is_said():
    keys = jr.split(jr.key(0), 3)
    equal = chain([Wide(Linear(4, 4, key=key)) for key in keys])
    (why,) = dn.find_axes(equal, X).axes["blocks.depth"].hazards
    assert "would make" in why and "one axis" in why
    sizes = (4, 5, 4)
    some = [Wide(Linear(m, n, key=k)) for m, n, k in zip(sizes, sizes[1:], keys)]
    (why,) = dn.find_axes(chain(some), X).axes["blocks.depth"].hazards
    assert "not of the shape of its first argument" in why
    with pytest.raises(ValueError, match="first argument"):
        dn.check(chain(some), GONE, {"depth": dn.Sigmoid(2)}, X)


HAZARDS = dict(hazards())


@pytest.mark.parametrize("name", HAZARDS)
def test_nothing_that_breaks_the_law_is_accepted(name):
    model, axes, masks, inputs, call = HAZARDS[name]
    with pytest.raises(ValueError) as error:
        dn.check(model, axes, masks, *inputs, call=call)
    # Which axis, or where it lies.
    known = [*map(repr, masks), *map(repr, axes), "first argument", "'["]
    assert any(word in str(error.value) for word in known), error.value


class Scaled(eqx.Module):
    """A norm by hand."""

    weight: Array

    def __call__(self, x):
        return x * jax.lax.rsqrt(jnp.mean(x**2) + 1e-6) * self.weight


class Counted(eqx.Module):
    weight: Array
    active: Array

    def __call__(self, x):
        mean = jnp.sum(x**2 * self.active) / jnp.sum(self.active)
        return x * jax.lax.rsqrt(mean + 1e-6) * self.weight


@dn.counterpart.register
def _(layer: Scaled, fit: dn.Fit):
    return Counted(layer.weight, fit.active("weight"))


class Shifted(Scaled):
    def __call__(self, x):
        return 1 + super().__call__(x)


def normed(norm):
    a, b = jr.split(jr.key(0))
    return Linear(4, 8, key=a), norm, Linear(8, 2, key=b)


def through(net, x):
    return net[2](net[1](net[0](x)))


def test_a_registered_layer_is_found_and_exact(x64):
    net = normed(Scaled(jnp.linspace(0.5, 1.5, 8)))
    found = dn.find_axes(net, X, call=through)
    axes, masks = found.learn(start=0.6)
    assert len(masks) == 1
    dn.check(net, axes, masks, X, call=through)
    assert dn.verify(net, axes, masks, X, call=through) < 1e-9
    # It is the user's own in what is trained on.
    ready = dn.pretrained(net, axes, masks)
    assert type(ready[1]) is Scaled
    assert dn.verify(ready, axes, masks, X, call=through) < 1e-9
    (size,) = dn.exact(masks).values()
    hand = through(dn.materialize(net, axes, masks, {}), X)
    h = np.asarray(net[0](X))[:size]
    h = h / np.sqrt(np.mean(h**2) + 1e-6) * np.asarray(net[1].weight)[:size]
    (mask,) = masks.values()
    wanted = np.asarray(net[2].weight)[:, :size] @ (np.asarray(mask(size)) * h)
    np.testing.assert_allclose(hand, wanted + np.asarray(net[2].bias), rtol=1e-9)


def test_what_derives_from_a_registered_layer_is_refused():
    net = normed(Shifted(jnp.ones(8)))
    assert not dn.find_axes(net, X, call=through).learn()[1]
    axes = {
        "[0].weight": Axes("h", None),
        "[0].bias": Axes("h"),
        "[1].weight": Axes("h"),
        "[2].weight": Axes(None, gated("h")),
    }
    masks = {"h": dn.Sigmoid(8, size=4.0)}
    for use in (dn.check, lambda *args: dn.materialize(*args, plan={})):
        with pytest.raises(ValueError, match="`Shifted` has a `__call__` of its own"):
            use(net, axes, masks)


@pytest.mark.parametrize(
    "norm, rows, more",
    [
        (LayerNorm(8, use_weight=False, use_bias=False), "h", {"shape": Axes("h")}),
        (
            GroupNorm(4, 8, channelwise_affine=False),
            fused("h", 2),
            {"channels": Axes(fused("h", 2)), "groups": Axes("h")},
        ),
    ],
)
def test_norms_without_parameters_are_exact_once_their_sizes_are_declared(
    x64, norm, rows, more
):
    net = normed(norm)
    columns = gated("h") if rows == "h" else fused(gated("h"), 2)
    axes = {
        "[0].weight": Axes(rows, None),
        "[0].bias": Axes(rows),
        "[2].weight": Axes(None, columns),
        **{f"[1].{field}": spec for field, spec in more.items()},
    }
    n = 8 if rows == "h" else 4
    masks = {"h": dn.Sigmoid(n, size=n / 2 + 0.2)}
    dn.check(net, axes, masks, X, call=through)
    assert dn.verify(net, axes, masks, X, call=through) < 1e-9


def test_numbers_blame_the_axis(x64):
    a, b, c = jr.split(jr.key(0), 3)
    net = (Linear(4, 8, key=a), Linear(8, 8, key=b), Linear(8, 2, key=c))
    call = lambda net, x: net[2](jax.nn.softmax(net[1](jnp.tanh(net[0](x)))))
    axes = {
        "[0].weight": Axes("fine", None),
        "[0].bias": Axes("fine"),
        "[1].weight": Axes("wrong", gated("fine")),
        "[1].bias": Axes("wrong"),
        "[2].weight": Axes(None, gated("wrong")),
    }
    masks = {name: dn.Sigmoid(8, size=4.0) for name in ("fine", "wrong")}
    with pytest.raises(dn.LawError, match=r"with \{'wrong': 4\} outputs or gradients differ"):
        dn.verify(net, axes, masks, X, call=call)


class Gated(eqx.Module):
    """A depth by a gate, right or not."""

    blocks: list
    depth: dn.Gate
    right: bool = eqx.field(static=True)

    def __call__(self, x):
        for block, m in zip(self.blocks, self.depth()):
            x = x + m * block(x) if self.right else x + block(x)
        return x


@pytest.mark.parametrize("right", [True, False])
def test_a_learner_looks_at_numbers_where_axes_enter_by_a_gate(right):
    net = Gated(residual().blocks, dn.Gate("depth", 4), right)
    loss = lambda net, x, key: jnp.mean(net(x) ** 2)
    learner = dn.Learner(loss, optax.sgd(0.1), {".blocks": Axes("depth")})
    state = learner.init(net, DEPTH)
    if right:
        state, info = learner.step(state, jnp.asarray(X, jnp.float32), {})
        assert info.finite
        return
    with pytest.raises(dn.LawError, match=r"with \{'depth': \d\}.*`verify=False`"):
        learner.step(state, jnp.asarray(X, jnp.float32), {})
