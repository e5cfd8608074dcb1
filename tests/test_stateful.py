"""Networks with an `eqx.nn.State` train, under plans as at full capacity."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
import optax
import pytest

import dnarch_eqx as dn
from tests.networks_vision import batched, BatchNormed


def images():
    return jr.normal(jr.key(1), (4, 1, 6, 6))


@pytest.fixture(autouse=True)
def as_users_have_it(unchecked):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def loss(net, state, batch, key):
    y, state = batched(net, state, batch)
    return jnp.mean((y - 1) ** 2), state


def normed(mode="batch"):
    net, state = eqx.nn.make_with_state(BatchNormed)(mode, jr.key(0))
    found = dn.find_axes(net, state, images(), call=batched)
    return net, state, *found.learn(start=0.6)


def floats(tree):
    return [x for x in jtu.tree_leaves(tree) if eqx.is_inexact_array(x)]


@pytest.mark.parametrize("mode", ["ema"])
def test_without_masks_as_a_loop_of_plain_equinox(mode, quick):
    net, state, axes, _ = normed(mode)
    learner = dn.Learner(loss, optax.sgd(0.1), axes)
    train = learner.init(net, {}, state)
    for _ in range(3):
        train, _ = learner.step(train, images(), {})

    @eqx.filter_jit
    def step(net, state):
        grads, state = eqx.filter_grad(loss, has_aux=True)(net, state, images(), None)
        return eqx.apply_updates(net, jtu.tree_map(lambda g: -0.1 * g, grads)), state

    for _ in range(3):
        net, state = step(net, state)
    for a, b in zip(
        floats((train.model, train.model_state)), floats((net, state)), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("mode", ["ema", "batch"])
def test_what_a_small_plan_writes_goes_back_to_its_places(x64, mode, quick):
    net, state, axes, masks = normed(mode)
    plan = {axis: n + 1 for axis, n in dn.exact(masks).items()}
    learner = dn.Learner(loss, optax.sgd(0.1), axes)
    ends = []
    for which in ({}, plan):
        train = learner.init(net, masks, state)
        for _ in range(3):
            train, _ = learner.step(train, images(), which)
        ends.append(dn.freeze(train.model, axes, train.masks, model_state=train.model_state))
    for a, b in zip(floats(ends[0]), floats(ends[1]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
    # Positions outside of the plan are as they were.
    mean = lambda state: jtu.tree_leaves(state)[-4]
    whole = train.model_state
    assert whole is not None
    assert mean(whole).shape == mean(state).shape
    small, small_state = ends[1]
    assert floats(small_state)[0].shape == (dn.exact(train.masks)["first.channels"],)
    y, _ = batched(eqx.nn.inference_mode(small), small_state, images())
    assert jnp.all(jnp.isfinite(y))


def test_a_rejected_step_leaves_the_state_alone(quick):
    net, state, axes, masks = normed()
    learner = dn.Learner(loss, optax.sgd(0.1), axes, strict=False)
    train = learner.init(net, masks, state)
    cropped = {axis: max(n - 1, 1) for axis, n in dn.exact(masks).items()}
    after, info = learner.step(train, images(), cropped)
    assert not info.covered
    for a, b in zip(jtu.tree_leaves(after.model_state), jtu.tree_leaves(state), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_planner_trains_it_and_the_network_is_evaluated(quick):
    net, state, axes, masks = normed()
    learner = dn.Learner(loss, optax.adam(1e-2), axes)
    train, planner = learner.init(net, masks, state), dn.Planner(learner, masks)
    losses = []
    for _ in range(20):
        train, info = planner.step(train, images())
        losses.append(float(info.loss))
    train = planner.finish(train)
    assert losses[-1] < losses[0]
    small, small_state = learner.network(train, dn.exact(train.masks))
    y, _ = batched(small, small_state, images())
    assert y.shape == (4, 2)


def test_what_is_not_finite_is_named(quick):
    net, state, axes, masks = normed()

    def broken(net, state, batch, key):
        value, state = loss(net, state, batch, key)
        return value, jtu.tree_map(lambda x: x / 0 if eqx.is_inexact_array(x) else x, state)

    learner = dn.Learner(broken, optax.sgd(0.1), axes, verify=False)
    train = learner.init(net, masks, state)
    train, _ = learner.step(train, images(), {})
    with pytest.raises(dn.runtime.NotFiniteError, match="the model's state"):
        learner.step(train, images(), {})


@pytest.mark.parametrize("has_aux", [False, True])
def test_what_a_loss_has_to_return(has_aux, quick):
    net, state, axes, masks = normed()
    silent = lambda net, state, batch, key: (loss(net, state, batch, key)[0], 0.0)
    learner = dn.Learner(silent, optax.sgd(0.1), axes, has_aux=has_aux, verify=False)
    wanted = "(value, (model_state, metrics))" if has_aux else "(value, model_state)"
    with pytest.raises(ValueError, match="loss of a model with a state returns") as error:
        learner.step(learner.init(net, masks, state), images(), {})
    assert wanted in str(error.value)


def test_a_state_that_is_not_declared_is_named(quick):
    net, state, axes, masks = normed()
    axes = {path: spec for path, spec in axes.items() if ".init" not in path}
    with pytest.raises(ValueError, match=r"norm1\.batch_state_index\.init.*not declared on it"):
        dn.check(net, axes, masks, state, images(), call=batched)


class Initial(eqx.Module):
    """A field whose name begins as that of a state's values."""

    initial: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    last: eqx.nn.Linear

    def __init__(self, key):
        a, b = jr.split(key)
        self.initial, self.last = eqx.nn.Linear(3, 8, key=a), eqx.nn.Linear(8, 2, key=b)
        self.norm = eqx.nn.BatchNorm(8, "batch", mode="batch")

    def __call__(self, x, state):
        x, state = self.norm(self.initial(x), state)
        return self.last(jnp.tanh(x)), state


def test_a_field_may_be_called_as_a_states_values_are(quick):
    net, state = eqx.nn.make_with_state(Initial)(jr.key(0))
    x = jr.normal(jr.key(1), (4, 3))
    axes, masks = dn.find_axes(net, state, x, call=batched).learn(start=0.5)
    learner = dn.Learner(loss, optax.sgd(0.1), axes)
    train = learner.init(net, masks, state)
    train, info = learner.step(train, x, {axis: n + 1 for axis, n in dn.exact(masks).items()})
    assert info.covered and info.finite
