"""Axes that are decided: the same function without their masks, that trains on."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
import optax
import pytest
from networks_growing import axes_of, CASES, made, output, trained

import dnarch_eqx as dn
from dnarch_eqx._state import init


@pytest.fixture(autouse=True)
def as_users_have_it(unchecked):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.parametrize("share", [0.6, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", CASES)
def test_the_function_stays_and_masks_are_gone(name, share, x64):
    state, axes, optim = trained(name, share)
    new, left = dn.absorbed(state, axes, optim)
    assert (new.masks, left) == ({}, {})
    wanted = output(name, state, axes, {})
    given = output(name, new, left, {})
    assert np.abs(given - wanted).max() <= 1e-12 * np.abs(wanted).max()
    # As many weights as the network that is deployed has.
    frozen = dn.freeze(state.model, axes, state.masks, model_state=state.model_state)
    net = frozen if state.model_state is None else frozen[0]
    assert dn.parameters(new.model) == dn.parameters(net)


def test_some_axes_under_a_plan(x64):
    state, axes, optim = trained("mlp", 0.6)
    new, left = dn.absorbed(state, axes, optim, names=["h1"], plan={"h1": 10})
    assert left == {p: axes[p] for p in (".layers[0].weight", ".layers[0].bias")} | {
        ".layers[1].weight": dn.Axes(None, dn.gated("h0"))
    }
    assert list(new.masks) == ["h0"] and eqx.tree_equal(new.masks["h0"], state.masks["h0"])
    assert [x.shape for x in jtu.tree_leaves(eqx.filter(new.model, eqx.is_array))] == [
        *((16, 4), (16,), (10, 16), (10,), (3, 10), (3,))
    ]
    # By hand: what reads the axis is multiplied by its mask, all else is as it was.
    old, values = state.model.layers, np.asarray(state.masks["h1"]())
    np.testing.assert_array_equal(new.model[1].weight, old[1].weight[:10])
    np.testing.assert_array_equal(new.model[3].weight, old[3].weight[:, :10] * values[:10])
    wanted, given = output("mlp", state, axes, {}), output("mlp", new, left, {"h0": 12})
    np.testing.assert_allclose(given, wanted, rtol=1e-12)
    pair = state.model, state.masks
    both, _ = dn.absorbed(pair, axes, names=["h1"], plan={"h1": 10})
    assert eqx.tree_equal(both[0], new.model) and list(both[1]) == ["h0"]


OPTIMIZERS = {
    "adamw": lambda: dn.adamw(1e-2, weight_decay=0.1),
    "momentum": lambda: dn.partition(optax.sgd(1e-2, momentum=0.9), optax.adam(1e-2)),
    "lion": lambda: dn.partition(optax.lion(1e-2), optax.adam(1e-2)),
    "one vector": lambda: dn.partition(optax.flatten(optax.adam(1e-2)), optax.adam(1e-2)),
    "clipped": lambda: optax.chain(optax.clip_by_global_norm(1e6), dn.adamw(1e-2)),
}


_SLOW = ("momentum", "lion", "clipped")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in _SLOW else ()) for n in OPTIMIZERS]
)
def test_moments_are_those_of_the_weights_that_are_left(name, x64):
    """Steps that move nothing, before and after: moments of gradients are the same."""
    still = optax.chain(OPTIMIZERS[name](), optax.scale(0.0))
    model = made("mlp", CASES["mlp"][2], 0)
    axes = axes_of("mlp", model)
    masks = {axis: dn.Sigmoid(n, size=0.6 * n) for axis, n in CASES["mlp"][2].items()}
    state = init(model, masks, axes, still)
    loss = lambda net, x, key: jnp.sum(jnp.sin(net(x)))

    def steps(state: Any, axes: Any) -> Any:
        learner = dn.Learner(loss, still, axes)
        for x in jr.normal(jr.key(1), (3, 4)):
            state, _ = learner.step(state, x, {})
        return state

    one, left = dn.absorbed(steps(state, axes), axes, still)
    before, _ = dn.absorbed(state, axes, still)
    other = steps(before, left)
    assert jtu.tree_structure(one.opt_state) == jtu.tree_structure(other.opt_state)
    moved = 0
    for a, b in zip(*map(jtu.tree_leaves, (one.opt_state, other.opt_state)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
        moved += np.size(a) > 1 and bool(np.any(a))
    assert moved
    assert int(one.step) == 3 and eqx.tree_equal(one.model, before.model)


def test_gates_anywhere_come_first():
    """And a network that trains on."""
    model = made("mlp", {"h0": 8, "h1": 6}, 0)
    axes, optim = axes_of("mlp", model), dn.adamw(1e-2)
    probability = jnp.array([0.9, 0.01, 0.9, 0.9, 0.01, 0.01, 0.9, 0.01])
    gates = eqx.tree_at(lambda m: m.log_alpha, dn.HardConcrete(8), 10 * (probability - 0.5))
    masks = {"h0": gates, "h1": dn.Sigmoid(6)}
    state = init(model, masks, axes, optim)
    new, left = dn.absorbed(state, axes, optim)
    assert new.model.layers[0].weight.shape == (4, 4)
    wanted = output("mlp", state, axes, {})
    np.testing.assert_allclose(output("mlp", new, left, {}), wanted, rtol=1e-4)
    loss = lambda net, x, key: jnp.sum(net(x) ** 2)
    learner = dn.Learner(loss, optim, left)
    losses = []
    for _ in range(20):
        new, info = learner.step(new, jnp.ones(4), {})
        losses.append(float(info.loss))
    assert losses[-1] < losses[0] / 2


def test_what_cannot_be():
    state, axes, optim = trained("mlp", 0.6)
    with pytest.raises(ValueError, match="`names` has 'h2', which has no mask"):
        dn.absorbed(state, axes, optim, names=["h2"])
    with pytest.raises(ValueError, match="bucket 3, 10 active"):
        dn.absorbed(state, axes, optim, plan={"h0": 3})
    with pytest.raises(ValueError, match="`plan` has bucket 99 for axis 'h0'"):
        dn.absorbed(state, axes, optim, plan={"h0": 99})
    with pytest.raises(ValueError, match="`plan` has a bucket for 'h2', which has no mask"):
        dn.absorbed(state, axes, optim, plan={"h2": 3})
    with pytest.raises(ValueError, match="`optim` is needed"):
        dn.absorbed(state, axes)
