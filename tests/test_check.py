"""What is declared is checked against the program: what would be another network under another
plan is refused, with the user's file and line.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
import pytest
from equinox.nn import Linear

import dnarch_eqx as dn
from dnarch_eqx import Axes, concatenated, fused, gated
from tests.networks import Heads, OwnAttention, OwnNorm


X = jnp.linspace(-1.0, 1.0, 3)
H = {"h": dn.Sigmoid(16, size=6.0)}
FILE = r"(test_check|networks)\.py"


@pytest.fixture(autouse=True)
def as_users_have_it(unchecked):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def three(middle):
    return (Linear(3, 16, key=jr.key(0)), middle, Linear(16, 2, key=jr.key(1)))


def run(net, x):
    return net[2](net[1](jnp.tanh(net[0](x))))


def declared(net, row: Any = "h", column: Any = gated("h")):
    specs = (Axes(row, None), Axes(row), Axes(None, column))
    return dn.declare(net, lambda m: (m[0].weight, m[0].bias, m[2].weight), specs)


def channel_shuffle(h):
    return h.reshape(2, -1).T.reshape(-1)


REFUSED = {
    "softmax": (jax.nn.softmax, "reduce_max"),
    "its norm": (lambda h: h / jnp.linalg.norm(h), "reduce_sum"),
    "minus its mean": (lambda h: h - jnp.mean(h), "reduce_sum"),
    "flip": (jnp.flip, "rev"),
    "roll": (lambda h: jnp.roll(h, 1), "cannot change its size"),
    "sort": (jnp.sort, "sort"),
    "cumulative sum": (jnp.cumsum, "cumsum"),
    "largest": (lambda h: h - h.max(), "reduce_max"),
    "first of the largest": (lambda h: h * (jnp.argmax(h) + 1.0), "argmax"),
    "top k": (lambda h: h * (h >= jax.lax.top_k(h, 3)[0][-1]), "top_k"),
    "channel shuffle": (channel_shuffle, "taken apart"),
    "group norm": (eqx.nn.GroupNorm(4, channelwise_affine=False), "taken apart"),
    "layer norm": (eqx.nn.LayerNorm(16, use_weight=False, use_bias=False), "reduce_sum"),
    "a norm of one's own": (OwnNorm(16), "is not declared on it"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_reads_an_axis_without_a_parameter(name):
    middle, says = REFUSED[name]
    net = three(middle)
    with pytest.raises(ValueError, match=says):
        dn.check(net, declared(net), H, X, call=run)


@pytest.mark.parametrize("name", sorted(set(REFUSED) - {"a norm of one's own"}))
def test_gating_the_producer_too_makes_only_sums_exact(name):
    net = three(REFUSED[name][0])
    axes = declared(net, row=gated("h"))
    if name == "its norm":
        return dn.check(net, axes, H, X, call=run)
    with pytest.raises(ValueError):
        dn.check(net, axes, H, X, call=run)


ACCEPTED = {
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "softplus": jax.nn.softplus,
    "gelu": jax.nn.gelu,
    "exp": jnp.exp,
    "layer norm": eqx.nn.LayerNorm(16),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_is_exact_is_accepted(name):
    middle = ACCEPTED[name]
    net = three(middle)
    axes = declared(net)
    if isinstance(middle, eqx.nn.LayerNorm):
        axes |= dn.declare(net, lambda m: (m[1].weight, m[1].bias), (Axes("h"), Axes("h")))
    dn.check(net, axes, H, X, call=run)


ZERO = (
    "tanh",
    "gelu",
    "silu",
    "relu",
    "leaky_relu",
    "elu",
    "selu",
    "celu",
    "soft_sign",
    "relu6",
)
NOT_ZERO = ("sigmoid", "softplus", "log_sigmoid", "hard_sigmoid")


@pytest.mark.parametrize("name", (*ZERO, *NOT_ZERO))
def test_gates_before_a_nonlinearity(name):
    """Exact if it is 0 at 0."""
    net = three(getattr(jax.nn, name, jnp.tanh))
    axes = declared(net, row=gated("h"), column="h")
    run = lambda net, x: net[2](net[1](net[0](x)))
    if name in ZERO:
        return dn.check(net, axes, H, X, call=run)
    with pytest.raises(ValueError, match=f"dot_general.*{FILE}.*gated"):
        dn.check(net, axes, H, X, call=run)


def test_one_of_two_readers():
    net = Heads()
    where = lambda m: (m.up.weight, m.up.bias, m.policy.weight, m.value.weight)
    specs = [Axes("h", None), Axes("h"), Axes(None, gated("h")), Axes(None, "h")]
    with pytest.raises(ValueError, match=rf"`dot_general` goes over it .*{FILE}:\d+"):
        dn.check(net, dn.declare(net, where, specs), H, X)
    axes = dn.declare(net, where, [*specs[:3], Axes(None, gated("h"))])
    dn.check(net, axes, H, X)
    del axes[".value.weight"]
    with pytest.raises(ValueError, match="Dimension 1 of '.value.weight' goes with axis 'h'"):
        dn.check(net, axes, H, X)


class Merge(eqx.Module):
    skip: Linear
    up: Linear
    merge: Linear

    def __init__(self):
        a, b, c = jr.split(jr.key(0), 3)
        self.skip, self.up = Linear(3, 8, key=a), Linear(8, 8, key=b)
        self.merge = Linear(16, 2, key=c)

    def __call__(self, x):
        h = jnp.tanh(self.skip(x))
        return self.merge(jnp.concatenate([jnp.tanh(self.up(h)), h]))


def merged(column, skip="a", up="b"):
    net = Merge()
    where = lambda m: (m.skip.weight, m.skip.bias, m.up.weight, m.up.bias, m.merge.weight)
    rows = (Axes(skip, None), Axes(skip), Axes(up, gated(skip)), Axes(up))
    axes = dn.declare(net, where, (*rows, Axes(None, column)))
    masks = {axis: dn.Sigmoid(8, size=4.0 + i) for i, axis in enumerate({skip, up})}
    return net, axes, masks


def test_concatenations(x64):
    net, axes, masks = merged(concatenated(gated("b"), gated("a")))
    dn.check(net, axes, masks, X)
    full, small = (dn.materialize(net, axes, masks, p)(X) for p in ({}, dn.exact(masks)))
    assert jnp.allclose(full, small, rtol=1e-12)
    assert dn.freeze(net, axes, masks).merge.weight.shape == (2, sum(dn.exact(masks).values()))
    cost = dn.parameter_cost(net, axes)
    assert cost({"a": 3.0, "b": 5.0}) == 3 * 3 + 3 + 5 * 3 + 5 + 2 * (5 + 3) + 2
    net, axes, masks = merged(concatenated(gated("a"), gated("b")))
    with pytest.raises(ValueError, match="are the same in the program"):
        dn.check(net, axes, masks, X)


def test_the_order_of_fused_parts():
    net, axes, masks = merged(fused(2, gated("c")), "c", "c")
    dn.check(net, axes, masks, X)
    net, axes, masks = merged(fused(gated("c"), 2), "c", "c")
    with pytest.raises(ValueError, match="cannot change its size"):
        dn.check(net, axes, masks, X)


def test_a_number_of_heads_that_goes_stale():
    net = OwnAttention(32, 8, jr.key(0))
    rows, columns = fused(3, "heads", 4), fused(gated("heads"), 4)
    where = lambda m: (m.qkv.weight, m.qkv.bias, m.out.weight)
    axes = dn.declare(net, where, (Axes(rows, None), Axes(rows), Axes(None, columns)))
    with pytest.raises(ValueError, match=r"'heads'.*networks\.py:\d+ \(OwnAttention"):
        dn.check(net, axes, {"heads": dn.Sigmoid(8, size=4.0)}, jnp.ones((5, 32)))


def test_axes_under_each_others_names():
    net = tuple(Linear(*shape, key=jr.key(0)) for shape in ((3, 8), (8, 8), (8, 2)))
    where = lambda m: (m[0].weight, m[0].bias, m[1].weight, m[1].bias, m[2].weight)
    specs = (
        Axes("a", None),
        Axes("a"),
        Axes("b", gated("b")),
        Axes("b"),
        Axes(None, gated("a")),
    )
    masks = {axis: dn.Sigmoid(8, size=4.0) for axis in "ab"}
    run = lambda net, x: net[2](jax.nn.relu(net[1](jax.nn.relu(net[0](x)))))
    with pytest.raises(ValueError, match="'a' and 'b' are the same"):
        dn.check(net, dn.declare(net, where, specs), masks, X, call=run)


def test_training_looks_once_before_the_first_step():
    net = three(jax.nn.softmax)
    loss = lambda net, batch, key: jnp.mean(run(net, batch) ** 2)
    learner = dn.Learner(loss, optax.sgd(0.1), declared(net))
    state = learner.init(net, H)
    with pytest.raises(ValueError, match="reduce_max"):
        learner.step(state, X, dn.Plan())
    with pytest.raises(ValueError, match="reduce_max"):
        dn.Planner(learner, H, background=False).step(state, X)
    unverified = dn.Learner(loss, optax.sgd(0.1), declared(net), verify=False)
    state, info = unverified.step(state, X, dn.Plan())
    assert info.covered


class Asserts(eqx.Module):
    """Fails where two sizes are equal."""

    up: Linear
    mix: Linear
    down: Linear

    def __call__(self, x):
        h = jnp.tanh(self.up(x))
        g = jnp.tanh(self.mix(h))
        assert len(h) != len(g), "equal"
        return self.down(g)


def test_what_fails_where_sizes_agree_is_refused():
    a, b, c = jr.split(jr.key(0), 3)
    net = Asserts(Linear(3, 8, key=a), Linear(8, 6, key=b), Linear(6, 2, key=c))
    axes = {
        ".up.weight": Axes("a", None),
        ".up.bias": Axes("a"),
        ".mix.weight": Axes("b", gated("a")),
        ".mix.bias": Axes("b"),
        ".down.weight": Axes(None, gated("b")),
    }
    masks = {"a": dn.Sigmoid(8, size=3.0), "b": dn.Sigmoid(6, size=3.0)}
    with pytest.raises(ValueError, match=rf"'a' or 'b'.*fails .equal.*{FILE}:\d+"):
        dn.check(net, axes, masks, X)
    found = dn.find_axes(net, X)
    assert any("equal" in why for axis in found.axes.values() for why in axis.hazards)


def test_a_learner_checks_at_once_given_a_batch():
    net = three(channel_shuffle)
    learner = dn.Learner(
        lambda net, x, key: jnp.sum(run(net, x)), optax.sgd(0.1), declared(net)
    )
    learner.init(net, H)
    with pytest.raises(dn.LawError, match="taken apart"):
        learner.init(net, H, batch=X)
