from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import optax
import pytest
from helpers import close, filled

import dnarch_eqx as dn


@pytest.fixture(autouse=True)
def standard():
    """Optax relies on JAX's standard promotion."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def net(getkey):
    return filled(lambda key: eqx.nn.MLP(2, 1, 24, 2, key=key), getkey())


def masks_of() -> dict[str, dn.AbstractMask]:
    return {
        "h0": dn.Sigmoid(24, size=14.0, temperature=10.0),
        "h1": dn.Gaussian(9, sigma=0.3),
    }


def updates(optim: Any, params: Any, grads: Any, count: int):
    """The first `count` updates, under the same gradients."""
    state = optim.init(params)
    step = jax.jit(optim.update)
    for _ in range(count):
        update, state = step(grads, state, params)
        yield update


def pair(net):
    return eqx.filter((net, masks_of()), eqx.is_inexact_array)


def test_adamw_without_gradient_only_decays_weights(net):
    params = pair(net)
    optim = dn.adamw(0.1, steps=10, weight_decay=0.5)
    zeros = jtu.tree_map(jnp.zeros_like, params)
    ((model, masks),) = updates(optim, params, zeros, 1)
    for layer, update in zip(params[0].layers, model.layers):
        np.testing.assert_allclose(update.weight, -0.1 * 0.5 * layer.weight, rtol=1e-6)
        assert not np.any(update.bias)
    assert not any(np.any(x) for x in jtu.tree_leaves(masks))


def test_adamw_decays_what_it_is_told(net):
    params = pair(net)
    decays = lambda x: x.shape == (24,)
    optim = dn.adamw(0.1, steps=10, weight_decay=0.5, decays=decays)
    zeros = jtu.tree_map(jnp.zeros_like, params)
    ((model, _),) = updates(optim, params, zeros, 1)
    assert [bool(np.any(n.weight)) for n in model.layers] == [False] * 3
    assert [bool(np.any(n.bias)) for n in model.layers] == [True, True, False]


@pytest.mark.parametrize("warmup", [0, 4])
@pytest.mark.parametrize("mask_rate", [1.0, 0.1, 0.0])
def test_adamw_schedule(warmup, mask_rate, net):
    """Under a constant gradient Adam's update is the learning rate."""
    params, steps = pair(net), 12
    optim = dn.adamw(0.3, steps=steps, warmup=warmup, mask_rate=mask_rate)
    ones = jtu.tree_map(jnp.ones_like, params)
    rates, mask_rates = [], []
    for model, masks in updates(optim, params, ones, steps + 1):
        rates.append(-float(model.layers[0].weight[0, 0]))
        mask_rates.append(-float(masks["h0"].offset))
        np.testing.assert_allclose(model.layers[0].bias, -rates[-1], rtol=1e-6)
    t = np.arange(steps + 1)
    cosine = 0.15 * (1 + np.cos(np.pi * (t - warmup) / (steps - warmup)))
    wanted = np.where(t < warmup, 0.3 * t / max(warmup, 1), cosine)
    np.testing.assert_allclose(rates, wanted, rtol=3e-5, atol=1e-6)
    np.testing.assert_allclose(mask_rates, mask_rate * wanted, rtol=3e-5, atol=1e-6)
    assert rates[warmup] == pytest.approx(0.3, rel=3e-5) and abs(rates[steps]) < 1e-6


def test_adamw_clips_the_gradient_of_all(net):
    # Clipping scales all gradients alike, which Adam undoes but for its epsilon.
    params = pair(net)
    ones = jtu.tree_map(jnp.ones_like, params)
    (plain,) = updates(dn.adamw(0.1, steps=9), params, ones, 1)
    (clipped,) = updates(dn.adamw(0.1, steps=9, clip=1e-8), params, ones, 1)
    norm = dn.parameters(ones) ** 0.5
    g = 1e-8 / norm
    wanted = jtu.tree_map(lambda x: x * g / (g + 1e-8), plain)
    close(clipped, wanted, rtol=1e-4)
    (loose,) = updates(dn.adamw(0.1, steps=9, clip=2 * norm), params, ones, 1)
    close(loose, plain)


#
# Schedules, and numbers that change without another compilation.
#


def rates(optim, params, count):
    """Of weights and masks, under a constant gradient."""
    ones = jtu.tree_map(jnp.ones_like, params)
    found = [
        (-float(model.layers[0].bias[0]), -float(masks["h0"].offset))
        for model, masks in updates(optim, params, ones, count)
    ]
    return np.array(found).T


def test_any_schedule(net):
    schedule = optax.linear_schedule(1.0, 0.0, 4)
    weights, masks = rates(dn.adamw(schedule, mask_rate=0.5), pair(net), 5)
    np.testing.assert_allclose(weights, [1, 0.75, 0.5, 0.25, 0], rtol=3e-5, atol=1e-6)
    np.testing.assert_allclose(masks, 0.5 * weights, rtol=1e-6)
    # Without steps the rate is as given.
    np.testing.assert_allclose(rates(dn.adamw(0.3), pair(net), 3), 0.3, rtol=3e-5)


STATIC = ("steps", "warmup", "decays", "clip")


def test_hyperparameters_can_be_injected(net):
    params = pair(net)
    make = optax.inject_hyperparams(dn.adamw, static_args=STATIC)
    kwargs: dict[str, Any] = dict(steps=12, warmup=3, weight_decay=0.1, mask_rate=0.5, clip=1e3)
    plain, injected = dn.adamw(0.3, **kwargs), make(0.3, **kwargs)
    grads = jtu.tree_map(jnp.ones_like, params)
    for a, b in zip(updates(plain, params, grads, 5), updates(injected, params, grads, 5)):
        close(b, a)
    # Changed in the state, not in the program.
    step: Any = jax.jit(injected.update)
    state: Any = injected.init(params)
    before, state = step(grads, state, params)
    state.hyperparams["mask_rate"] = jnp.zeros_like(state.hyperparams["mask_rate"])
    before, state = step(grads, state, params)
    assert before[1]["h0"].offset == 0 and np.any(before[0].layers[0].weight != 0)
    assert step._cache_size() == 1


def test_a_schedule_can_be_injected(net):
    make = optax.inject_hyperparams(dn.adamw, static_args=STATIC)
    weights, masks = rates(make(optax.linear_schedule(1.0, 0.0, 4)), pair(net), 4)
    np.testing.assert_allclose(weights, [1, 0.75, 0.5, 0.25], rtol=3e-5)
    np.testing.assert_allclose(masks, weights, rtol=1e-6)


def test_what_follows_gets_the_loss(net):
    """The rate falls where the loss does not."""
    params = pair(net)
    plateau = optax.contrib.reduce_on_plateau(factor=0.5, patience=1)
    optim = optax.chain(dn.adamw(0.1, clip=1e3), plateau)
    state, grads = optim.init(params), jtu.tree_map(jnp.ones_like, params)
    update: Any = None
    for _ in range(4):
        update, state = optim.update(grads, state, params, value=jnp.array(1.0))
    assert 0 < -float(update[1]["h0"].offset) < 0.051


#
# Any two transformations.
#


def test_partition(net):
    params = pair(net)
    optim = dn.partition(optax.sgd(0.1), optax.sgd(3.0))
    ones = jtu.tree_map(jnp.ones_like, params)
    ((model, masks),) = updates(optim, params, ones, 1)
    assert all(np.all(x == np.float32(-0.1)) for x in jtu.tree_leaves(model))
    moves = lambda mask, name: bool(np.all(np.asarray(getattr(mask, name)) == -3))
    names = ("offset", "temperature", "sigma", "mean", "made")
    moved = {(a, f) for a, m in masks.items() for f in names if hasattr(m, f) and moves(m, f)}
    assert moved == {("h0", "offset"), ("h1", "sigma")}, "what is not learned stays"


def test_what_is_not_learned_stays_under_any_transformation(net):
    params = pair(net)
    optim = dn.partition(optax.lion(0.1, weight_decay=0.3), optax.adamw(0.1, weight_decay=0.3))
    ones = jtu.tree_map(jnp.ones_like, params)
    for _, masks in updates(optim, params, ones, 3):
        assert masks["h0"].temperature == 0 and masks["h1"].mean == 0
        assert np.all(masks["h0"].made == 0) and masks["h0"].offset != 0


def test_partition_hands_the_loss_on(net):
    """To a transformation of the weights that wants it."""
    seen = []

    def update(updates, state, params=None, *, value, **extra):
        seen.append(value)
        return updates, state

    make: Any = optax.GradientTransformationExtraArgs
    wants = make(lambda params: optax.EmptyState(), update)
    optim, params = dn.partition(wants, optax.sgd(1.0)), pair(net)
    optim.update(params, optim.init(params), params, value=3.0)
    assert seen == [3.0]


def test_no_masks(net):
    params = eqx.filter((net, {}), eqx.is_inexact_array)
    ones = jtu.tree_map(jnp.ones_like, params)
    ((model, masks),) = updates(dn.adamw(0.1, steps=9), params, ones, 1)
    assert masks == {} and np.any(model.layers[0].weight != 0)
