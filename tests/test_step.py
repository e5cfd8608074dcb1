"""The training step as a pure function, that anybody may compile."""

import functools as ft
from typing import Any

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import optax
import optax.contrib
import pytest
from helpers import (
    close,
    descended,
    examples,
    FAST,
    filled,
    halving,
    Layered,
    layered_axes,
    layered_by_hand,
    layered_masks,
    layered_parameters,
    same,
    squares,
    tight,
)

import dnarch_eqx as dn


pytestmark = pytest.mark.usefixtures("standard", "quick")

PLAN = dn.Plan({"h0": 16, "h1": 12})


@pytest.fixture
def net(getkey):
    return filled(Layered, getkey())


def start(model, masks, axes, optim) -> dn.State:
    return dn.Learner(squares, optim, axes).init(model, masks)


def offset(mask: Any) -> jax.Array:
    return mask.offset


def jitted(step):
    return jax.jit(step, static_argnames="plan", compiler_options=FAST)


#
# What it computes.
#


@pytest.mark.parametrize("run", (jitted, eqx.filter_jit))
def test_a_step_is_gradient_descent(run, x64, getkey):
    """With Equinox's jit, and with JAX's own."""
    net, masks, batch = filled(Layered, getkey()), layered_masks(), examples(getkey())
    optim, axes = optax.sgd(0.05), layered_axes(net)
    step = run(dn.make_step(squares, optim, axes))
    state = start(net, masks, axes, optim)
    budget = halving(net, 8.0)
    target = layered_parameters(8.0, 8.0)
    new, info = step(state, batch, None, None, PLAN)
    close((new.model, new.masks), descended(net, masks, batch, 0.05))
    assert int(new.step) == 1
    new, info = step(state, batch, None, budget, PLAN)
    wanted = descended(net, masks, batch, 0.05, target, 1.0)
    close((new.model, new.masks), wanted)
    x, y = batch
    out = jax.vmap(lambda x: layered_by_hand(net, masks, x))(x)
    close(info.loss, jnp.mean((out - y) ** 2))
    # And at another plan.
    new, _ = step(state, batch, None, budget, dn.Plan())
    close((new.model, new.masks), wanted)


def test_only_the_plan_is_static(net, getkey):
    calls = []

    def loss(net, batch, key):
        calls.append([layer.weight.shape for layer in net.layers])
        return squares(net, batch, key)

    optim, axes = optax.sgd(0.05), layered_axes(net)
    step = jitted(dn.make_step(loss, optim, axes))
    state, budget = start(net, layered_masks(), axes, optim), halving(net, 8.0)
    losses = set()
    for weight in (0.0, 1.0, 2.0):  # state, batch, target and weight change
        scheduled = dn.Budget(budget.cost, budget.target + weight, weight)
        state, info = step(state, examples(getkey()), None, scheduled, PLAN)
        losses.add(float(info.loss))
    assert len(calls) == 1 and len(losses) == 3
    step(state, examples(getkey()), None, budget, dn.Plan({"h0": 16}))
    assert calls == [[(16, 2), (12, 16), (1, 12)], [(16, 2), (24, 16), (1, 24)]]


def test_steps_can_be_scanned(net, getkey):
    optim, axes = optax.adam(0.01), layered_axes(net)
    pure, budget = dn.make_step(squares, optim, axes), halving(net, 8.0)
    step = lambda state, batch: pure(state, batch, None, budget, PLAN)
    start_ = start(net, layered_masks(), axes, optim)
    batches = [examples(getkey()) for _ in range(4)]
    stacked = jtu.tree_map(lambda *xs: jnp.stack(xs), *batches)
    last, infos = jax.jit(lambda state, xs: lax.scan(step, state, xs))(start_, stacked)
    state, one_by_one, once = start_, [], jax.jit(step)
    for batch in batches:
        state, info = once(state, batch)
        one_by_one.append(info)
    arrays = lambda state: eqx.filter(state, eqx.is_inexact_array)
    close(arrays(last), arrays(state), rtol=1e-4)
    assert infos.covered.tolist() == infos.finite.tolist() == [True] * 4
    assert infos.active.shape == infos.position.shape == (4, 2)
    wanted = jtu.tree_map(lambda *xs: jnp.stack(xs), *one_by_one)
    assert infos.active.tolist() == wanted.active.tolist()
    np.testing.assert_allclose(infos.loss, wanted.loss, rtol=1e-4)


def test_what_a_step_reports(net, getkey):
    masks, optim, axes = layered_masks(), optax.sgd(0.5), layered_axes(net)
    step = jitted(dn.make_step(squares, optim, axes))
    state = start(net, masks, axes, optim)
    new, info = step(state, examples(getkey()), None, halving(net, 8.0), PLAN)
    # Before the update.
    active = tight(masks)
    assert info.active.tolist() == [active["h0"], active["h1"]]
    assert info.active.dtype == np.int32 and isinstance(info.active, np.ndarray)
    for axis, count, position in zip(("h0", "h1"), info.active, info.position):
        # Where the mask meets the threshold of 0.1, counted in positions: those that begin
        # before it, the first at 0, the others a thousandth beyond where they would.
        cutoff = float(masks[axis].offset) + np.log(9) / float(masks[axis].temperature)
        np.testing.assert_allclose(position, 1 + (cutoff + 1) / 2 * 24 - 1e-3, rtol=1e-6)
        assert count == int(position)
    wanted = layered_parameters(14.0, 11.0) / layered_parameters(8.0, 8.0)
    np.testing.assert_allclose(info.complexity, wanted, rtol=1e-5)
    assert info.covered and info.finite and info.metrics is None
    assert not same(new.masks, state.masks)
    _, without = step(state, examples(getkey()), None, None, PLAN)
    assert float(without.complexity) == 1.0


def test_what_a_step_reports_inside_jit(net, getkey):
    optim, axes = optax.sgd(0.5), layered_axes(net)
    step = dn.make_step(squares, optim, axes)

    @ft.partial(jax.jit, compiler_options=FAST)
    def inside(state, batch):
        _, info = step(state, batch, None, None, PLAN)
        return info, (info.covered, info.finite, info.active, info.position)

    info, (covered, finite, active, position) = inside(
        start(net, layered_masks(), axes, optim), examples(getkey())
    )
    assert bool(covered) is bool(finite) is True
    assert active.tolist() == info.active.tolist() == [14, 11]
    assert position.tolist() == info.position.tolist()


def test_metrics(net, getkey):
    def loss(net, batch, key):
        value = squares(net, batch, key)
        return value, {"twice": 2 * value}

    optim, axes = optax.sgd(0.1), layered_axes(net)
    step = jitted(dn.make_step(loss, optim, axes, has_aux=True))
    _, info = step(
        start(net, layered_masks(), axes, optim), examples(getkey()), None, None, PLAN
    )
    np.testing.assert_allclose(info.metrics["twice"], 2 * info.loss)


def test_a_plan_too_small_changes_nothing(net, getkey):
    optim, axes = optax.adam(0.1), layered_axes(net)
    step = jitted(dn.make_step(squares, optim, axes))
    state = start(net, layered_masks(), axes, optim)
    for plan in ({"h0": 13, "h1": 24}, {"h0": 24, "h1": 10}):
        new, info = step(state, examples(getkey()), None, halving(net, 8.0), dn.Plan(plan))
        assert not info.covered and info.finite and same(new, state)
        assert info.active.tolist() == [14, 11]
    new, info = step(state, examples(getkey()), None, None, dn.Plan({"h0": 14, "h1": 11}))
    assert info.covered and int(new.step) == 1


def test_without_masks(getkey):
    net, batch = eqx.nn.Linear(2, 1, key=getkey()), examples(getkey())
    loss = lambda net, batch, key: jnp.mean((jax.vmap(net)(batch[0]) - batch[1]) ** 2)
    optim = optax.sgd(0.1)
    step = jitted(dn.make_step(loss, optim, {}))
    state = start(net, {}, {}, optim)
    new, info = step(state, batch, None, None, dn.Plan())
    grads = eqx.filter_grad(loss)(net, batch, None)
    close(new.model, jtu.tree_map(lambda x, g: x - 0.1 * g, net, grads))
    assert info.covered and info.finite and info.active.shape == (0,)


#
# What it does to weights and masks.
#


class Complex(eqx.Module):
    layers: Layered
    phases: jax.Array


def test_complex_weights_descend(x64, getkey):
    target = jnp.array([1 + 2j, -0.5j, 3.0])
    model = Complex(filled(Layered, getkey()), jnp.array([0.3 - 1j, 2 + 0.1j, -1j]))
    axes = {f".layers{path}": spec for path, spec in layered_axes(model.layers).items()}

    def loss(net, batch, key):
        return jnp.mean(jnp.abs(net.phases - target) ** 2) + squares(net.layers, batch, key)

    optim = optax.sgd(0.3)
    step = jitted(dn.make_step(loss, optim, axes))
    state = start(model, layered_masks(), axes, optim)
    batch, wanted = examples(getkey()), model.phases
    for _ in range(5):
        state, _ = step(state, batch, None, None, dn.Plan())
        # The steepest descent of |z - t|^2 is towards t.
        wanted = wanted - 0.3 * 2 * (wanted - target) / 3
        close(state.model.phases, wanted)
    for _ in range(100):
        state, _ = step(state, batch, None, None, dn.Plan())
    assert np.max(np.abs(state.model.phases - target)) < 1e-6


def test_what_is_not_learned_of_masks_stays(net, getkey):
    """Whatever an optimizer does to all that it is given."""
    masks = {
        "h0": dn.Sigmoid(24, size=14.0, temperature=10.0, learn=()),
        "h1": dn.Sigmoid(24, size=11.0, temperature=16.0),
    }
    optim, axes = optax.adamw(0.01, weight_decay=5.0), layered_axes(net)
    step = jitted(dn.make_step(squares, optim, axes))
    state = first = start(net, masks, axes, optim)
    for _ in range(3):
        state, _ = step(state, examples(getkey()), None, None, PLAN)
    assert same(state.masks["h0"], first.masks["h0"])
    for name in ("temperature", "made"):
        assert same(getattr(state.masks["h1"], name), getattr(first.masks["h1"], name))
    assert not same(offset(state.masks["h1"]), offset(first.masks["h1"]))
    assert not same(state.model, first.model)


@pytest.mark.parametrize("rate", [1.0, 1e6])
def test_masks_stay_admissible_at_absurd_rates(rate, net, getkey):
    # The loss pulls h0 to nothing, and h1 to more than there is.
    def loss(net, batch, key):
        weights = [jnp.sum(layer.weight**2) for layer in net.layers]
        return squares(net, batch, key) + 10 * weights[1] - 10 * weights[2]

    optim, axes = dn.adamw(1e-3, steps=30, mask_rate=1e3 * rate), layered_axes(net)
    step = jitted(dn.make_step(loss, optim, axes))
    state, batch = start(net, layered_masks(), axes, optim), examples(getkey())
    for _ in range(20):
        state, info = step(state, batch, None, None, dn.Plan())
        assert info.covered and info.finite
        for mask in state.masks.values():
            curve: Any = mask
            first, end = curve.at(jnp.array([-1.0, 1.0]))
            assert first >= 0.95 - 1e-3 and end <= 0.85 + 1e-3
            assert 1 <= int(mask.active()) <= 24
    assert float(state.masks["h0"]()[0]) < 0.96, "at the lower bound"
    curve = state.masks["h1"]
    assert float(curve.at(jnp.ones(1))[0]) > 0.84, "at the upper bound"


def test_masks_in_half_precision_are_widened_and_refused(net, getkey):
    half = jtu.tree_map(lambda x: x.astype(jnp.bfloat16), layered_masks())
    optim, axes = optax.sgd(0.1), layered_axes(net)
    state = start(net, half, axes, optim)
    assert all(x.dtype == jnp.float32 for x in jtu.tree_leaves(state.masks))
    for axis, mask in half.items():
        assert float(offset(state.masks[axis])) == float(mask.offset)
    step = jitted(dn.make_step(squares, optim, axes))
    new, info = step(state, examples(getkey()), None, None, PLAN)
    assert info.covered and not same(new.masks, state.masks)
    narrow = eqx.tree_at(lambda state: state.masks, state, half)
    with pytest.raises(ValueError, match="mask of axis 'h0' is in bfloat16.*in float32"):
        step(narrow, examples(getkey()), None, None, PLAN)


def test_weights_in_half_precision_stay(net, getkey):
    half = jtu.tree_map(lambda x: x.astype(jnp.bfloat16), net)
    optim, axes = optax.sgd(0.1), layered_axes(net)
    state = start(half, layered_masks(), axes, optim)
    step = jitted(dn.make_step(squares, optim, axes))
    batch = jtu.tree_map(lambda x: x.astype(jnp.bfloat16), examples(getkey()))
    new, info = step(state, batch, None, halving(net, 8.0), PLAN)
    assert info.covered and info.finite
    assert all(x.dtype == jnp.bfloat16 for x in jtu.tree_leaves(new.model))
    wanted = descended(net, layered_masks(), batch, 0.1, layered_parameters(8.0, 8.0), 1.0)
    close(jtu.tree_map(lambda x: x.astype(jnp.float32), new.model), wanted[0], rtol=0.02)


#
# Optimizers.
#


def test_the_optimizer_gets_the_loss(net, getkey):
    plateau = optax.contrib.reduce_on_plateau(factor=0.5, patience=1)
    optim, axes = optax.chain(optax.sgd(0.1), plateau), layered_axes(net)
    loss = lambda net, batch, key: batch + 0.0 * jnp.sum(net.layers[0].weight)
    step = jitted(dn.make_step(loss, optim, axes))
    state = start(net, layered_masks(), axes, optim)
    scales = []
    for level in (5.0, 4.0, 6.0, 6.0, 3.0, 3.5, 3.0, 2.0):
        state, _ = step(state, jnp.float32(level), None, halving(net, 8.0), PLAN)
        scales.append(float(state.opt_state[1].scale))
    # Halved whenever the loss is no better than it was; the budget falls all the time.
    assert scales == [1, 1, 1 / 2, 1 / 4, 1 / 4, 1 / 8, 1 / 16, 1 / 16]


def test_another_optimizers_state_is_refused(net, getkey):
    axes = layered_axes(net)
    state = start(net, layered_masks(), axes, optax.sgd(0.1))
    step = jitted(dn.make_step(squares, optax.adam(0.1), axes))
    message = r"`state.opt_state` is not that of this learner's optimizer.*\n.*ScaleByAdam"
    with pytest.raises(ValueError, match=message):
        step(state, examples(getkey()), None, None, PLAN)


#
# What is wrong with a loss.
#


@pytest.mark.parametrize(
    "result, message",
    (
        (lambda value: None, "must return a real number, as an array; got None"),
        (lambda value: 1.0, "must return a real number, as an array; got 1.0"),
        (lambda value: (value, value), "returns a tuple: give `has_aux=True`"),
        (lambda value: [value], r"must return a real number, as an array; got \["),
        (lambda value: value[None], r"got float32 of shape \(1,\)"),
        (lambda value: value.astype(int), r"got int32 of shape \(\)"),
        (lambda value: value > 0, r"got bool of shape \(\)"),
        (lambda value: value + 0j, r"got complex64 of shape \(\)"),
    ),
)
def test_losses_that_are_none(result, message, net, getkey):
    optim, axes = optax.sgd(0.1), layered_axes(net)
    step = dn.make_step(lambda *args: result(squares(*args)), optim, axes)
    state = start(net, layered_masks(), axes, optim)
    with pytest.raises(ValueError, match=message):
        step(state, examples(getkey()), None, None, PLAN)


@pytest.mark.parametrize(
    "result, message",
    (
        (lambda value: value, r"returns \(value, metrics\); got float32 of shape \(\)"),
        (lambda value: (value, 1, 2), r"returns \(value, metrics\); got \("),
        (lambda value: (1.0, value), "as an array; got 1.0"),
    ),
)
def test_losses_without_metrics(result, message, net, getkey):
    optim, axes = optax.sgd(0.1), layered_axes(net)
    loss = lambda *args: result(squares(*args))
    step = dn.make_step(loss, optim, axes, has_aux=True)
    state = start(net, layered_masks(), axes, optim)
    with pytest.raises(ValueError, match=message):
        step(state, examples(getkey()), None, None, PLAN)


class Callable:
    def __call__(self, net, batch, key):
        return squares(net, batch, key)


def test_what_a_loss_takes(net):
    make = lambda loss: dn.make_step(loss, optax.sgd(0.1), layered_axes(net))
    for loss in (squares, lambda *args: 0.0, Callable(), ft.partial(squares), jax.jit(squares)):
        make(loss)
    for loss in (lambda net, batch: 0.0, lambda: 0.0, lambda net, batch, *, key: 0.0):
        with pytest.raises(ValueError, match=r"must take three arguments, \(net, batch, key\)"):
            make(loss)


@pytest.mark.parametrize(
    "arguments, message",
    (
        ({"optim": 0.1}, "`optim` must be an Optax transformation.*not 0.1"),
        ({"optim": optax.sgd}, "`optim` must be an Optax transformation"),
        ({"on_nonfinite": "stop"}, "must be 'raise', 'skip' or 'ignore', got 'stop'"),
        ({"loss": None}, "`loss` must"),
    ),
)
def test_other_arguments(arguments, message, net, unchecked):
    good = {"loss": squares, "optim": optax.sgd(0.1), "axes": layered_axes(net)}
    make: Any = dn.make_step
    with pytest.raises(ValueError, match=message):
        make(**(good | arguments))
