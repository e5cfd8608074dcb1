import itertools as it

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
import optax
import pytest
from helpers import close, filled, noise, same

import dnarch_eqx as dn


Axes, gated = dn.Axes, dn.gated
LADDERS = {"h0": tuple(range(2, 25)), "h1": tuple(range(2, 25))}


@pytest.fixture(autouse=True)
def standard():
    """Optax relies on JAX's standard promotion."""
    with jax.numpy_dtype_promotion("standard"):
        yield


class Net(eqx.Module):
    """Two hidden layers of learned width, with dropout after the second."""

    layers: list[eqx.nn.Linear]
    dropout: eqx.nn.Dropout

    def __init__(self, key, p=0.0):
        sizes = [2, 24, 24, 1]
        self.layers = [
            eqx.nn.Linear(*pair, key=k) for pair, k in zip(it.pairwise(sizes), jr.split(key, 3))
        ]
        self.dropout = eqx.nn.Dropout(p)

    def __call__(self, x, *, key=None):
        for layer in self.layers[:-1]:
            x = jnp.tanh(layer(x))
        return self.layers[-1](self.dropout(x, key=key))


def axes_of(net):
    declared = {
        lambda m: m.layers[0].weight: Axes("h0", None),
        lambda m: m.layers[0].bias: Axes("h0"),
        lambda m: m.layers[1].weight: Axes("h1", gated("h0")),
        lambda m: m.layers[1].bias: Axes("h1"),
        lambda m: m.layers[2].weight: Axes(None, gated("h1")),
    }
    return dn.declare(net, lambda m: [node(m) for node in declared], list(declared.values()))


def masks_of(size: float = 14.0) -> dict[str, dn.AbstractMask]:
    return {
        "h0": dn.Sigmoid(24, size=size, temperature=10.0),
        "h1": dn.Sigmoid(24, size=size - 3, temperature=16.0),
    }


def squares(net, batch, key):
    x, y = batch
    keys = None if key is None else jr.split(key, len(x))
    out = jax.vmap(lambda x, key: net(x, key=key), in_axes=(0, None if keys is None else 0))(
        x, keys
    )
    return jnp.mean((out - y) ** 2)


def batch_of(key, n: int = 16):
    x = noise(key, n, 2)
    return x, jnp.sin(2 * x[:, :1]) * x[:, 1:]


def halving(net, size: float) -> dn.Budget:
    """Holds the number of parameters to that of a network of this size."""
    cost = dn.parameter_cost(net, axes_of(net))
    return dn.Budget(cost, {"h0": size, "h1": size}, weight=1.0)


@pytest.fixture
def net(getkey):
    return filled(Net, getkey())


def test_traces_are_the_distinct_plans(getkey):
    net, calls = filled(lambda k: Net(k, p=0.2), getkey()), []

    def loss(net, batch, key):
        calls.append([layer.weight.shape for layer in net.layers])
        return squares(net, batch, key)

    optim = dn.adamw(0.01, steps=50, weight_decay=0.1)
    learner = dn.Learner(loss, optim, axes_of(net), halving(net, 8.0))
    state = learner.init(net, masks_of())
    big, small = dn.Plan({"h0": 20, "h1": 16}), dn.Plan({"h0": 16, "h1": 16})

    for _ in range(4):  # weights, masks, batch, optimizer state and key all change
        state, _ = learner.step(state, batch_of(getkey()), big, key=getkey())
    other = eqx.tree_at(lambda s: s.model, state, filled(lambda k: Net(k, p=0.2), getkey()))
    other = eqx.tree_at(lambda s: s.masks, other, masks_of(12.0))
    learner.step(other, batch_of(getkey()), dn.Plan({"h1": 16, "h0": 20}), key=getkey())
    assert len(calls) == 1

    state, _ = learner.step(state, batch_of(getkey()), small, key=getkey())
    state, _ = learner.step(state, batch_of(getkey()), small, key=getkey())
    assert len(calls) == 2
    state, _ = learner.step(state, batch_of(getkey()), big, key=getkey())
    assert len(calls) == 2, "a plan once compiled stays compiled"
    learner.step(state, batch_of(getkey()), dn.Plan({"h0": 20}), key=getkey())
    assert calls == [
        [(20, 2), (16, 20), (1, 16)],
        [(16, 2), (16, 16), (1, 16)],
        [(20, 2), (24, 20), (1, 24)],
    ]

    first, second, third = learner.compilations
    assert (first.call, first.plan, first.changes) == (0, big, {})
    assert (second.call, second.plan, second.changes) == (5, small, {"h0": (20, 16)})
    assert (third.call, third.plan) == (8, dn.Plan({"h0": 20}))
    assert third.changes == {"h1": (16, None)}
    assert all(c.seconds > 0 for c in learner.compilations)


def test_a_batch_of_another_shape_is_recorded_without_changes(net, getkey):
    learner = dn.Learner(squares, optax.sgd(0.1), axes_of(net))
    state = learner.init(net, masks_of())
    for n in (16, 8, 16):
        state, _ = learner.step(state, batch_of(getkey(), n), dn.Plan())
    assert [(c.call, c.changes) for c in learner.compilations] == [(0, {}), (1, {})]
    assert int(state.step) == 3


def test_training_across_boundaries_is_training_at_full_capacity(x64, getkey):
    net = filled(Net, getkey())
    batch, masks, steps = batch_of(getkey()), masks_of(16.0), 200
    optim = dn.adamw(0.02, steps=steps, warmup=5, weight_decay=0.1)
    budget = halving(net, 7.0)
    lean = dn.Learner(squares, optim, axes_of(net), budget)
    full = dn.Learner(squares, optim, axes_of(net), budget)
    a, b = lean.init(net, masks), full.init(net, masks)
    plan = dn.plan(masks, LADDERS)
    crossings, losses = 0, []
    for _ in range(steps):
        new = dn.replan(plan, a.masks, LADDERS, slack=0.0, headroom=0.0)
        crossings += new != plan
        plan = new
        a, aux_a = lean.step(a, batch, plan)
        b, aux_b = full.step(b, batch, dn.Plan())
        assert aux_a.covered and aux_b.covered
        losses.append((float(aux_a.loss), float(aux_b.loss)))
    assert crossings >= 10
    assert len(lean.compilations) <= crossings + 1 and len(full.compilations) == 1
    got, wanted = np.array(losses).T
    np.testing.assert_allclose(got, wanted, rtol=1e-8)
    assert wanted[-1] < 0.3 * wanted[0]
    close((a.model, a.masks), (b.model, b.masks), rtol=1e-8)
    assert a.model.layers[1].weight.shape == (24, 24)


@pytest.mark.parametrize("rate", [1.0, 1e6])
def test_masks_stay_admissible_at_absurd_rates(rate, net, getkey):
    # The budget pulls h0 to nothing, the task loss h1 to more than there is.
    def loss(net, batch, key):
        return squares(net, batch, key) - 10 * jnp.sum(net.layers[2].weight ** 2)

    cost = lambda sizes: 1.0 + jnp.asarray(sizes["h0"]) ** 2
    optim = dn.adamw(1e-3, steps=30, mask_rate=1e3 * rate)
    learner = dn.Learner(loss, optim, axes_of(net), dn.Budget(cost, 1.0))
    state = learner.init(net, masks_of())
    batch = batch_of(getkey())
    for _ in range(20):
        state, aux = learner.step(state, batch, dn.Plan())
        assert all(np.all(np.isfinite(x)) for x in jtu.tree_leaves((state, aux)))
        for mask in state.masks.values():
            m = np.asarray(mask())
            assert m[0] >= 0.95 - 1e-3 and m[-1] <= 0.85 + 1e-3
            assert 1 <= int(mask.active()) <= 24
    assert float(state.masks["h0"]()[0]) < 0.96, "at the lower bound"
    assert float(state.masks["h1"]()[-1]) > 0.84, "at the upper bound"


#
# Coverage.
#


def test_uncovered_plans(net, getkey):
    calls = []

    def loss(net, batch, key):
        calls.append(1)
        return squares(net, batch, key)

    uncovered = dn.Plan({"h0": 12, "h1": 12})
    optim = dn.adamw(0.01, steps=10)
    strict = dn.Learner(loss, optim, axes_of(net))
    state = strict.init(net, masks_of())
    message = r"does not cover the masks: .*'h0' \(bucket 12, 14 active\)\. Make a new one"
    with pytest.raises(ValueError, match=message):
        strict.step(state, batch_of(getkey()), uncovered)
    assert not calls and not strict.compilations

    lenient = dn.Learner(loss, optim, axes_of(net), strict=False)
    state, aux = lenient.step(state, batch_of(getkey()), dn.Plan({"h0": 14}))
    assert aux.covered and int(state.step) == 1
    new, aux = lenient.step(state, batch_of(getkey()), uncovered)
    assert not aux.covered and np.isfinite(aux.loss)
    assert same(new, state), "no array changed, not even the count of steps"
    new, aux = lenient.step(new, batch_of(getkey()), dn.Plan({"h0": 14}))
    assert aux.covered and int(new.step) == 2 and not same(new.model, state.model)


def test_an_uncovered_step_that_diverges_changes_nothing(net, getkey):
    loss = lambda net, batch, key: jnp.nan * squares(net, batch, key)
    learner = dn.Learner(loss, dn.adamw(0.1, steps=10), axes_of(net), strict=False)
    state = learner.init(net, masks_of())
    new, _ = learner.step(state, batch_of(getkey()), dn.Plan({"h0": 5}))
    assert same(new, state)


def test_init_checks(net):
    learner = dn.Learner(squares, optax.sgd(0.1), axes_of(net))
    masks = masks_of()
    with pytest.raises(ValueError, match="axis 'h2', but no array lies on it"):
        learner.init(net, masks | {"h2": masks["h0"]})
    with pytest.raises(ValueError, match="'h0' has capacity 24 .* but 8"):
        learner.init(net, masks | {"h0": dn.Sigmoid(8)})


def test_plan_of_an_axis_without_mask(net, getkey):
    learner = dn.Learner(squares, optax.sgd(0.1), axes_of(net), strict=False)
    state = learner.init(net, masks_of())
    with pytest.raises(ValueError, match="bucket for 'h2', which has no mask"):
        learner.step(state, batch_of(getkey()), dn.Plan({"h2": 3}))


#
# The optimizer.
#


def updates(optim, params, grads, count: int):
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


@pytest.mark.parametrize(
    "kwargs, message",
    [
        (
            {"steps": 10, "warmup": 10},
            "`warmup` must be at least 0 and below `steps` = 10, got 10",
        ),
        ({"steps": 10, "warmup": -1}, "`warmup` must be at least 0 and below"),
        ({"steps": 0}, "`steps` must be at least 1, got 0"),
        ({"steps": 10, "learning_rate": 0.0}, "`learning_rate` must be positive"),
        ({"steps": 10, "mask_rate": -0.1}, "`mask_rate` and `weight_decay` at least 0"),
        ({"steps": 10, "weight_decay": -0.1}, "got 0.1, 1.0 and -0.1"),
        ({"steps": 10, "learning_rate": float("nan")}, "`learning_rate` must be positive"),
    ],
)
def test_adamw_errors(kwargs, message):
    with pytest.raises(ValueError, match=message):
        dn.adamw(**({"learning_rate": 0.1} | kwargs))


#
# Budget and metrics.
#


def test_budget_is_reported_and_reached(x64, getkey):
    net = filled(Net, getkey())
    axes, target = axes_of(net), {"h0": 8.0, "h1": 10.0}
    # The parameters of the network of that size, counted by hand.
    count = lambda a, b: 2 * a + a + a * b + b + b + 1
    cost = dn.parameter_cost(net, axes)
    budget = dn.Budget(cost, target, weight=0.5)
    np.testing.assert_allclose(budget.target, count(8, 10))

    indifferent = lambda net, batch, key: 0.0 * jnp.sum(net.layers[0].weight)
    optim = dn.adamw(0.05, steps=150, warmup=5)
    learner = dn.Learner(indifferent, optim, axes, budget)
    state, plan = learner.init(net, masks_of()), dn.Plan()
    state, aux = learner.step(state, None, plan)
    np.testing.assert_allclose(aux.relative, count(14, 11) / count(8, 10))
    assert float(aux.loss) == 0, "the loss of the task alone"
    for _ in range(149):
        state, aux = learner.step(state, None, plan)
    final = dn.sizes(state.masks)
    assert abs(count(float(final["h0"]), float(final["h1"])) / count(8, 10) - 1) < 0.01
    assert abs(float(aux.relative) - 1) < 0.01


def test_without_a_budget(net, getkey):
    learner = dn.Learner(squares, optax.sgd(0.0), axes_of(net))
    batch = batch_of(getkey())
    _, aux = learner.step(learner.init(net, masks_of()), batch, dn.Plan({"h0": 14}))
    assert float(aux.relative) == 1.0 and aux.metrics is None
    whole = dn.materialize(net, axes_of(net), masks_of(), {})
    close(aux.loss, squares(whole, batch, None))


def test_budget_gradient_is_added(net, getkey):
    """One step of gradient descent on loss + budget, and the projection."""
    axes, masks, batch = axes_of(net), masks_of(), batch_of(getkey())
    budget = halving(net, 8.0)
    learner = dn.Learner(squares, optax.sgd(0.01), axes, budget)
    state, _ = learner.step(learner.init(net, masks), batch, dn.Plan({"h0": 14}))

    def total(params):
        whole = dn.materialize(params[0], axes, params[1], {})
        complexity = budget.cost(dn.sizes(params[1])) / budget.target
        return squares(whole, batch, None) + (complexity - 1) ** 2

    grads = eqx.filter_grad(total)((net, masks))
    wanted = eqx.apply_updates((net, masks), jtu.tree_map(lambda g: -0.01 * g, grads))
    close((state.model, state.masks), wanted)
    assert state.masks["h0"].size() < masks["h0"].size()


def test_has_aux(net, getkey):
    def loss(net, batch, key):
        value = squares(net, batch, key)
        return value, {"twice": 2 * value, "width": net.layers[0].out_features}

    learner = dn.Learner(loss, optax.sgd(0.1), axes_of(net), has_aux=True)
    state = learner.init(net, masks_of())
    _, aux = learner.step(state, batch_of(getkey()), dn.Plan({"h0": 15}))
    np.testing.assert_allclose(aux.metrics["twice"], 2 * aux.loss)
    assert aux.metrics["width"] == 15


def test_key_reaches_the_loss(getkey):
    net = filled(lambda k: Net(k, p=0.5), getkey())
    batch, key = batch_of(getkey()), getkey()
    learner = dn.Learner(squares, optax.sgd(0.1), axes_of(net))
    state = learner.init(net, masks_of())
    losses = [
        float(learner.step(state, batch, dn.Plan(), key=k)[1].loss)
        for k in (key, key, getkey())
    ]
    assert losses[0] == losses[1] != losses[2]


#
# Evaluation.
#


def test_network_is_in_inference_mode(getkey):
    net = filled(lambda k: Net(k, p=0.5), getkey())
    learner = dn.Learner(squares, optax.sgd(0.1), axes_of(net))
    state = learner.init(net, masks_of())
    plan = dn.Plan({"h0": 14, "h1": 11})
    small = learner.network(state, plan)
    assert small.dropout.inference and not state.model.dropout.inference
    assert [n.weight.shape for n in small.layers] == [(14, 2), (11, 14), (1, 11)]
    x = jnp.array([0.3, -0.4])
    wanted = dn.materialize(eqx.nn.inference_mode(net), axes_of(net), masks_of(), {})
    close(small(x), wanted(x))


class Normalised(eqx.Module):
    """Returns what it was given, and what it makes of its batch."""

    def __call__(self, x):
        mean = jnp.mean(x["a"])
        size = jnp.full(len(x["a"]), len(x["a"]))
        return {"a": x["a"], "b": x["b"], "mean": jnp.full(len(x["a"]), mean), "size": size}


@pytest.mark.parametrize("n, batch_size", [(12, 4), (10, 4), (7, 6), (5, 5), (3, 1)])
def test_predict(n, batch_size, getkey):
    x = {"a": jnp.arange(float(n)), "b": jnp.arange(2 * n).reshape(n, 2)}
    y = dn.predict(Normalised(), x, batch_size=batch_size, key=getkey())
    assert same({"a": y["a"], "b": y["b"]}, x), "the order is restored"
    assert y["size"].tolist() == [batch_size] * n
    means = np.asarray(y["mean"])
    _, counts = np.unique(means, return_counts=True)
    if n % batch_size == 0 and n // batch_size > 1 and batch_size > 1:
        blocks = np.asarray(x["a"]).reshape(-1, batch_size).mean(1)
        assert not np.allclose(np.sort(np.unique(means)), blocks), "the examples are mixed"
        # Every example once: the batches' means average to the mean of all.
        np.testing.assert_allclose(means.mean(), np.mean(x["a"]), rtol=1e-6)
    # The last batch is filled with examples that it does not have already.
    biggest = np.sort(np.asarray(x["a"]))[::-1][:batch_size].mean()
    assert means.max() <= biggest + 1e-6


def test_predict_mixes_by_its_key(getkey):
    x, key = {"a": jnp.arange(12.0), "b": jnp.arange(12)}, getkey()
    mean = lambda key: dn.predict(Normalised(), x, batch_size=3, key=key)["mean"].tolist()
    assert mean(key) == mean(key) != mean(getkey())


@pytest.mark.parametrize("batch_size", [0, 13, -1])
def test_predict_errors(batch_size, getkey):
    x = {"a": jnp.zeros(12), "b": jnp.zeros((12, 2))}
    message = f"`batch_size` must lie between 1 and the 12 examples, got {batch_size}"
    with pytest.raises(ValueError, match=message):
        dn.predict(Normalised(), x, batch_size=batch_size, key=getkey())
    with pytest.raises(ValueError, match=r"must agree in their leading axis, got \{.*\}"):
        dn.predict(Normalised(), x | {"b": jnp.zeros(3)}, batch_size=2, key=getkey())


def test_report(net, getkey):
    axes, masks = axes_of(net), masks_of()
    frozen = dn.freeze(net, axes, masks)
    x = noise(getkey(), 2)
    table = dn.report({"before": net, "after": frozen}, x, repeats=2)
    header, rule, *rows = [line.split() for line in table.splitlines()]
    assert header == ["network", "parameters", "operations", "milliseconds"]
    assert set("".join(rule)) == {"-"}
    count = lambda a, b: 2 * a + a + a * b + b + b + 1
    active = {axis: int(mask.active()) for axis, mask in masks.items()}
    sizes = {"before": (24, 24), "after": (active["h0"], active["h1"])}
    for (name, parameters, operations, milliseconds), wanted in zip(rows, sizes):
        assert name == wanted
        a, b = sizes[name]
        assert parameters == f"{count(a, b):,}"
        # Two operations for a weight at least; biases and activations beside them.
        products = 2 * (2 * a + a * b + b)
        assert products <= float(operations) <= 2 * products
        assert float(milliseconds) >= 0
    with pytest.raises(ValueError, match="`repeats` must be at least 1, got 0"):
        dn.report({"before": net}, x, repeats=0)
    assert dn.parameters(frozen) == count(*sizes["after"])


def test_a_mask_that_enters_nowhere_is_refused(net):
    axes = {path: dn.Axes(*map(ungated, spec.dims)) for path, spec in axes_of(net).items()}
    learner = dn.Learner(squares, optax.sgd(0.1), axes)
    with pytest.raises(ValueError, match="Axis 'h0' has a mask, but it enters nowhere"):
        learner.init(net, masks_of())


def ungated(dim):
    return dim.axis if isinstance(dim, dn.Gated) else dim


def test_a_loss_of_a_tuple_needs_has_aux(net, getkey):
    learner = dn.Learner(
        lambda *args: (squares(*args), 1.0), optax.sgd(0.1), axes_of(net), strict=False
    )
    state = learner.init(net, masks_of())
    with pytest.raises(ValueError, match="`loss` returns a tuple: .*has_aux=True"):
        learner.step(state, batch_of(getkey()), dn.plan(state.masks, dn.buckets(state.masks)))
