"""Learners: steps that are compiled by plan, the budget beside them, and the network."""

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
import optax
import pytest
from helpers import (
    close,
    descended,
    examples,
    filled,
    halving,
    Layered,
    layered_axes,
    layered_by_hand,
    layered_masks,
    layered_parameters,
    moved,
    same,
    squares,
)

import dnarch_eqx as dn
from dnarch_eqx import runtime as rt


pytestmark = pytest.mark.usefixtures("standard", "quick")

LADDERS = {"h0": tuple(range(2, 25, 2)), "h1": tuple(range(3, 25, 3))}
PLAN = dn.Plan({"h0": 16, "h1": 12})


@pytest.fixture
def net(getkey):
    return filled(Layered, getkey())


def dropping(key):
    """Half of the second layer is dropped."""
    return filled(lambda key: Layered(key, p=0.5), key)


#
# Steps.
#


def test_traces_are_the_distinct_plans(getkey):
    net, calls = dropping(getkey()), []

    def loss(net, batch, key):
        calls.append([layer.weight.shape for layer in net.layers])
        return squares(net, batch, key)

    optim = dn.adamw(0.01, steps=50, weight_decay=0.1)
    learner = dn.Learner(loss, optim, layered_axes(net), halving(net, 8.0), verify=False)
    state = learner.init(net, layered_masks())
    big, small = dn.Plan({"h0": 20, "h1": 16}), dn.Plan({"h0": 16, "h1": 16})

    for _ in range(4):  # weights, masks, batch, optimizer state and key all change
        state, _ = learner.step(state, examples(getkey()), big, key=getkey())
    other = eqx.tree_at(lambda s: s.model, state, dropping(getkey()))
    other = eqx.tree_at(lambda s: s.masks, other, layered_masks(12.0))
    learner.step(other, examples(getkey()), {"h1": 16, "h0": 20}, key=getkey())
    assert len(calls) == 1

    state, _ = learner.step(state, examples(getkey()), small, key=getkey())
    state, _ = learner.step(state, examples(getkey()), small, key=getkey())
    assert len(calls) == 2
    state, _ = learner.step(state, examples(getkey()), big, key=getkey())
    assert len(calls) == 2, "a plan once compiled stays compiled"
    learner.step(state, examples(getkey()), dn.Plan({"h0": 20}), key=getkey())
    assert calls == [
        [(20, 2), (16, 20), (1, 16)],
        [(16, 2), (16, 16), (1, 16)],
        [(20, 2), (24, 20), (1, 24)],
    ]

    first, second, third = learner.compilations
    assert (first.call, first.plan, first.changes) == (0, big, {})
    assert (second.call, second.plan, second.changes) == (5, small, {"h0": (20, 16)})
    assert (third.call, third.plan) == (8, dn.Plan({"h0": 20}))
    assert third.changes == {"h0": (16, 20), "h1": (16, None)}
    assert all(c.seconds > 0 for c in learner.compilations)


def test_a_batch_of_another_shape_is_recorded_without_changes(net, getkey):
    learner = dn.Learner(squares, optax.sgd(0.1), layered_axes(net))
    state = learner.init(net, layered_masks())
    for n in (16, 8, 16):
        state, _ = learner.step(state, examples(getkey(), n), dn.Plan())
    assert [(c.call, c.changes) for c in learner.compilations] == [(0, {}), (1, {})]
    assert int(state.step) == 3


def test_training_across_boundaries_is_training_at_full_capacity(x64, getkey):
    net = filled(Layered, getkey())
    batch, masks, steps = examples(getkey()), layered_masks(16.0), 200
    optim = dn.adamw(0.02, steps=steps, warmup=5, weight_decay=0.1)
    budget = halving(net, 7.0)
    lean = dn.Learner(squares, optim, layered_axes(net), budget, keep=100)
    full = dn.Learner(squares, optim, layered_axes(net), budget)
    a, b = lean.init(net, masks), full.init(net, masks)
    plans, losses = [], []
    for _ in range(steps):
        plans.append(dn.plan(a.masks, LADDERS))
        a, info_a = lean.step(a, batch, plans[-1])
        b, info_b = full.step(b, batch, dn.Plan())
        assert info_a.covered and info_b.covered
        losses.append((float(info_a.loss), float(info_b.loss)))
    assert len(set(plans)) >= 6
    assert len(lean.compilations) == len(set(plans)) and len(full.compilations) == 1
    got, wanted = np.array(losses).T
    np.testing.assert_allclose(got, wanted, rtol=1e-8)
    assert wanted[-1] < 0.3 * wanted[0]
    close((a.model, a.masks), (b.model, b.masks), rtol=1e-8)
    assert a.model.layers[1].weight.shape == (24, 24)


def test_a_step_is_that_of_the_pure_function(net, getkey):
    batch, budget = examples(getkey()), halving(net, 8.0)
    learner = dn.Learner(squares, optax.sgd(0.05), layered_axes(net), budget)
    state, info = learner.step(learner.init(net, layered_masks()), batch, PLAN)
    wanted = descended(net, layered_masks(), batch, 0.05, layered_parameters(8.0, 8.0), 1.0)
    close((state.model, state.masks), wanted)
    assert int(state.step) == 1 and state.masks["h0"].size() < 14.0


def test_metrics(net, getkey):
    def loss(net, batch, key):
        value = squares(net, batch, key)
        # What is no array is returned as well.
        return value, {"twice": 2 * value, "width": net.layers[0].out_features}

    learner = dn.Learner(loss, optax.sgd(0.1), layered_axes(net), has_aux=True)
    state = learner.init(net, layered_masks())
    for width in (15, 17, 15):
        plan = dn.Plan({"h0": width})
        state, info = learner.step(state, examples(getkey()), plan)
        np.testing.assert_allclose(info.metrics["twice"], 2 * info.loss)
        assert info.metrics["width"] == width and type(info.metrics["width"]) is int


def test_a_loss_of_a_tuple_needs_has_aux(net, getkey):
    loss = lambda *args: (squares(*args), 1.0)
    learner = dn.Learner(loss, optax.sgd(0.1), layered_axes(net))
    state = learner.init(net, layered_masks())
    with pytest.raises(ValueError, match="`loss` returns a tuple: .*has_aux=True"):
        learner.step(state, examples(getkey()), PLAN)
    assert not learner.compilations


def test_the_key_is_the_losss(getkey):
    net, batch, key = dropping(getkey()), examples(getkey()), getkey()
    learner = dn.Learner(squares, optax.sgd(0.1), layered_axes(net))
    state = learner.init(net, layered_masks())
    losses = [
        float(learner.step(state, batch, dn.Plan(), key=k)[1].loss)
        for k in (key, key, getkey())
    ]
    assert losses[0] == losses[1] != losses[2]
    whole = dn.materialize(net, layered_axes(net), layered_masks(), {})
    np.testing.assert_allclose(losses[0], squares(whole, batch, key), rtol=1e-5)


#
# Coverage.
#


def test_strict_refuses_a_plan_too_small_before_it_is_compiled(net, getkey):
    learner = dn.Learner(squares, optax.sgd(0.1), layered_axes(net))
    state = learner.init(net, layered_masks())
    message = r"does not cover the masks: .*'h0' \(bucket 12, 14 active\)\. Make another"
    with pytest.raises(ValueError, match=message):
        learner.step(state, examples(getkey()), dn.Plan({"h0": 12, "h1": 12}))
    assert not learner.compilations
    state, info = learner.step(state, examples(getkey()), dn.Plan({"h0": 14, "h1": 11}))
    assert info.covered


def test_else_such_a_step_changes_nothing(net, getkey):
    optim = dn.adamw(0.01, steps=10)
    learner = dn.Learner(squares, optim, layered_axes(net), strict=False)
    state = learner.init(net, layered_masks())
    state, info = learner.step(state, examples(getkey()), dn.Plan({"h0": 14}))
    assert info.covered and int(state.step) == 1
    new, info = learner.step(state, examples(getkey()), dn.Plan({"h0": 12, "h1": 12}))
    assert not info.covered and np.isfinite(info.loss)
    assert same(new, state), "no array changed, not even the count of steps"
    new, info = learner.step(new, examples(getkey()), dn.Plan({"h0": 14}))
    assert info.covered and int(new.step) == 2 and not same(new.model, state.model)


#
# Budgets.
#


def test_a_budget_is_reported_and_reached(x64, getkey):
    net = filled(Layered, getkey())
    axes, target = layered_axes(net), layered_parameters(8.0, 10.0)
    cost = dn.parameter_cost(net, axes)
    budget = dn.Budget(cost, {"h0": 8.0, "h1": 10.0}, weight=0.5)
    np.testing.assert_allclose(budget.target, target)

    indifferent = lambda net, batch, key: 0.0 * jnp.sum(net.layers[0].weight)
    optim = dn.adamw(0.05, steps=150, warmup=5)
    # A sum of weights is no loss of a network.
    learner = dn.Learner(indifferent, optim, axes, budget, verify=False)
    state, plan = learner.init(net, layered_masks()), dn.Plan()
    state, info = learner.step(state, None, plan)
    np.testing.assert_allclose(info.complexity, layered_parameters(14, 11) / target)
    assert float(info.loss) == 0, "the loss of the task alone"
    for _ in range(149):
        state, info = learner.step(state, None, plan)
    final = dn.sizes(state.masks)
    reached = layered_parameters(float(final["h0"]), float(final["h1"])) / target
    assert abs(reached - 1) < 0.01 and abs(float(info.complexity) - 1) < 0.01


def test_a_budget_that_is_assigned_acts_at_once(x64, getkey):
    """On plans that are compiled, too, and without another compilation."""
    net = filled(Layered, getkey())
    masks, batch = layered_masks(), examples(getkey())
    budget = halving(net, 8.0)
    learner = dn.Learner(squares, optax.sgd(0.05), layered_axes(net), budget)
    state = learner.init(net, masks)
    plans = (PLAN, dn.Plan())
    for plan in plans:
        learner.compile(state, batch, plan)
    with rt.forbid_compilation():
        found = []
        for size, weight in ((8.0, 1.0), (8.0, 0.25), (12.0, 0.25), (8.0, 0.0), (8.0, 1.0)):
            target = layered_parameters(size, size)
            learner.budget = dn.Budget(budget.cost, target, weight)
            found.append([learner.step(state, batch, plan) for plan in plans])
    runs = ((8.0, 1.0), (8.0, 0.25), (12.0, 0.25), (8.0, 0.0), (8.0, 1.0))
    for (size, weight), both in zip(runs, found):
        target = layered_parameters(size, size)
        wanted = descended(net, masks, batch, 0.05, target, weight)
        for new, info in both:
            close((new.model, new.masks), wanted)
            complexity = layered_parameters(14.0, 11.0) / target
            np.testing.assert_allclose(info.complexity, complexity)
    assert len(learner.compilations) == 2
    # What is counted is another program.
    learner.budget = dn.Budget(lambda sizes: jnp.asarray(sizes["h0"]), 7.0, 0.1)
    _, info = learner.step(state, batch, PLAN)
    np.testing.assert_allclose(info.complexity, 2.0)
    learner.budget = None
    new, info = learner.step(state, batch, PLAN)
    assert float(info.complexity) == 1.0 and len(learner.compilations) == 4
    close((new.model, new.masks), descended(net, masks, batch, 0.05))


@pytest.mark.parametrize("target, reachable", ((1.0, False), (1e6, False), (300.0, True)))
def test_a_target_out_of_reach(target, reachable, net):
    cost = dn.parameter_cost(net, layered_axes(net))
    make = lambda weight: dn.Learner(
        squares, optax.sgd(0.1), layered_axes(net), dn.Budget(cost, target, weight)
    ).init(net, layered_masks())
    make(0.0)
    if reachable:
        make(0.1)
        return
    # The smallest sizes that are admissible: 2.57 / temperature of the capacity.
    ends = [layered_parameters(24 * 2.5708 / 10, 24 * 2.5708 / 16), layered_parameters(24, 24)]
    lowest, highest = (f"{n / target:.4g}"[:4] for n in ends)
    with pytest.raises(ValueError, match=f"out of reach.*from {lowest}.* to {highest}.* times"):
        make(0.1)


#
# What is given.
#


def test_model_axes_and_masks_have_to_fit(net):
    axes, masks = layered_axes(net), layered_masks()
    learner = dn.Learner(squares, optax.sgd(0.1), axes)
    with pytest.raises(ValueError, match="axis 'h2', but no array lies on it"):
        learner.init(net, masks | {"h2": masks["h0"]})
    with pytest.raises(ValueError, match="'h0' has capacity 24 .* but 8"):
        learner.init(net, masks | {"h0": dn.Sigmoid(8)})
    ungated = lambda dim: dim.axis if isinstance(dim, dn.Gated) else dim
    nowhere = {path: dn.Axes(*map(ungated, spec.dims)) for path, spec in axes.items()}
    with pytest.raises(ValueError, match="Axis 'h0' has a mask, but it enters nowhere"):
        dn.Learner(squares, optax.sgd(0.1), nowhere).init(net, masks)


def test_a_plan_of_an_axis_without_mask(net, getkey):
    learner = dn.Learner(squares, optax.sgd(0.1), layered_axes(net), strict=False)
    state = learner.init(net, layered_masks())
    with pytest.raises(ValueError, match="bucket for 'h2', which has no mask"):
        learner.step(state, examples(getkey()), dn.Plan({"h2": 3}))


@pytest.mark.parametrize(
    "arguments, message",
    (
        ({"axes": [1]}, r"`axes` must be a dictionary from `dn.declare`, not \[1\]"),
        ({"budget": 0.1}, "`budget` must be a `dn.Budget`, or several, not 0.1"),
        ({"optim": 0.1}, "`optim` must be an Optax transformation"),
        ({"on_nonfinite": "stop"}, "must be 'raise', 'skip' or 'ignore'"),
        ({"loss": lambda net, batch: 0.0}, "`loss` must take three arguments"),
        ({"keep": 0}, "`keep` must be at least 1, got 0"),
        ({"keep": "all"}, "`keep` must be a number, got 'all'"),
    ),
)
def test_arguments_of_a_learner(arguments, message, net, unchecked):
    good = {"loss": squares, "optim": optax.sgd(0.1), "axes": layered_axes(net)}
    with pytest.raises(ValueError, match=message):
        dn.Learner(**(good | arguments))


@pytest.mark.parametrize(
    "arguments, message",
    (
        ({"state": 3}, "`state` must be a `dn.State`, from `Learner.init`, not 3"),
        ({"plan": 8}, "`plan` must be a `dn.Plan` or a dictionary, not 8"),
        ({"plan": {"h0": 0}}, "a bucket is a positive integer, not 0"),
        ({"key": 7}, "`key` must be a key, as `jax.random.key.0.` gives, not 7"),
    ),
)
def test_arguments_of_a_step(arguments, message, net, unchecked):
    learner = dn.Learner(squares, optax.sgd(0.1), layered_axes(net))
    state = learner.init(net, layered_masks())
    good = {"state": state, "batch": examples(jr.key(0)), "plan": PLAN}
    with pytest.raises(ValueError, match=message):
        learner.step(**(good | arguments))


#
# The network.
#


def test_the_network_is_the_one_that_trains(getkey):
    net, masks = dropping(getkey()), layered_masks()
    learner = dn.Learner(squares, optax.sgd(0.1), layered_axes(net))
    state = learner.init(net, masks)
    small = learner.network(state, dn.Plan({"h0": 14, "h1": 11}))
    assert [n.weight.shape for n in small.layers] == [(14, 2), (11, 14), (1, 11)]
    # In inference mode: nothing is dropped.
    assert small.dropout.inference and not state.model.dropout.inference
    x = jnp.array([0.3, -0.4])
    close(small(x), layered_by_hand(net, masks, x))
    close(learner.network(state, {})(x), layered_by_hand(net, masks, x))


def test_a_plan_too_small_has_no_network(net):
    learner = dn.Learner(squares, optax.sgd(0.1), layered_axes(net), strict=False)
    state = learner.init(net, layered_masks())
    message = r"does not cover the masks: .*'h1' \(bucket 10, 11 active\)"
    with pytest.raises(ValueError, match=message):
        learner.network(state, dn.Plan({"h0": 14, "h1": 10}))
    # Of an average of states, whose masks may be larger than any.
    wide = moved(state.masks["h1"], "offset", 0.5)
    average = eqx.tree_at(lambda state: state.masks["h1"], state, wide)
    with pytest.raises(ValueError, match="does not cover the masks: .*'h1'"):
        learner.network(average, dn.Plan({"h0": 14, "h1": 11}))


def test_networks_are_compiled_once_and_not_kept_for_ever(net, getkey):
    learner = dn.Learner(squares, optax.sgd(0.1), layered_axes(net), keep=2)
    state = learner.init(net, layered_masks())
    learner.network(state, PLAN)
    other, _ = learner.step(state, examples(getkey()), PLAN)
    with rt.forbid_compilation():
        small = learner.network(other, PLAN)
    x = jnp.array([0.9, -0.4])
    close(small(x), layered_by_hand(other.model, other.masks, x))
    for size in (14, 15):
        learner.network(state, dn.Plan({"h0": size}))
    with rt.forbid_compilation():
        learner.network(state, dn.Plan({"h0": 14}))
        learner.network(state, dn.Plan({"h0": 15}))
        with pytest.raises(RuntimeError, match=r"Compiling the network of Plan\(\{'h0': 16"):
            learner.network(state, PLAN)
    assert len(learner.compilations) == 1, "networks are no steps"


def test_a_network_can_be_saved_and_read(net, tmp_path):
    """It is a module like any other."""
    learner = dn.Learner(squares, optax.sgd(0.1), layered_axes(net))
    small = learner.network(learner.init(net, layered_masks()), PLAN)
    eqx.tree_serialise_leaves(tmp_path / "net.eqx", small)
    zeros = jtu.tree_map(jnp.zeros_like, small)
    assert same(eqx.tree_deserialise_leaves(tmp_path / "net.eqx", zeros), small)
