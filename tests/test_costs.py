"""Costs that are derived from a program, against XLA and by hand."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
import pytest

import dnarch_eqx as dn
from tests.networks import Example, example


@pytest.fixture(autouse=True)
def as_users_have_it(unchecked):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def derived(network: Example):
    axes, masks = dn.find_axes(network.model, *network.inputs, call=network.call).learn()
    costs = dn.costs(network.model, axes, masks, *network.inputs, call=network.call)
    return axes, masks, costs


def counted(call, net, inputs) -> float:
    """By XLA, of the program as it is written."""
    arrays, static = eqx.partition((net, inputs), eqx.is_array)

    def outputs(arrays):
        net, inputs = eqx.combine(arrays, static)
        return eqx.filter(call(net, *inputs), eqx.is_array)

    found: Any = jax.jit(outputs).lower(arrays).cost_analysis()
    return found.get("flops", 0.0) + found.get("transcendentals", 0.0)


# All of them, with more plans, in `python -m benchmarks budgets`.
NAMES = ("u-net", "own attention", "convnext", "batch norm, running")


@pytest.mark.parametrize("name", NAMES)
def test_operations_and_parameters_of_small_networks(name):
    network = example(name)
    model, inputs, call = network.model, network.inputs, network.call
    axes, masks, costs = derived(network)
    stateful = isinstance(inputs[0], eqx.nn.State)
    rng = np.random.default_rng(0)
    for _ in range(2):
        small = {a: m.resized(rng.uniform(0.3, 1) * m.capacity) for a, m in masks.items()}
        plan = dn.exact(small)
        net = dn.freeze(model, axes, small, model_state=inputs[0] if stateful else None)
        given = inputs
        if stateful:
            net, state = net
            given = (state, *inputs[1:])
        assert np.isclose(costs.operations(plan), counted(call, net, given), rtol=0.01)
        assert costs.parameters(plan) == dn.parameters(net)


def test_by_hand():
    net = eqx.nn.MLP(5, 3, 16, 1, jnp.tanh, key=jr.key(0))
    axes, masks = dn.find_axes(net, jnp.ones(5)).learn()
    batched = lambda net, x: jax.vmap(net)(x)
    costs = dn.costs(net, axes, masks, jnp.ones((7, 5)), call=batched)
    (axis,) = masks
    for h in (1, 6.5, 16):
        # Two matrices, two biases, one tanh.
        operations = 7 * (2 * 5 * h + h + h + 2 * h * 3 + 3)
        assert np.isclose(costs.operations({axis: h}), operations)
        assert np.isclose(costs.parameters({axis: h}), 6 * h + 3 * h + 3)
    slope = jax.grad(lambda h: costs.operations({axis: h}))(jnp.array(9.0))
    assert np.isclose(slope, 7 * (10 + 2 + 6))
    # One array that a backward pass needs: the input, and tanh of the hidden layer.
    assert costs.activations({axis: 16}) == 4 * 7 * (5 + 16)
    weights = 4 * (6 * 16 + 16 * 3 + 3)
    # Input, hidden layer before and after its bias, and that bias once more.
    assert costs.memory({axis: 16}) == weights + 4 * (7 * (5 + 16 + 16) + 16)


class Scanned(eqx.Module):
    up: jax.Array
    down: jax.Array
    unroll: int = eqx.field(static=True, default=1)

    def __call__(self, x):
        layer = lambda x, w: (x + w[1] @ jnp.tanh(w[0] @ x), None)
        return jax.lax.scan(layer, x, (self.up, self.down), unroll=self.unroll)[0]


def test_scans_count_as_often_as_they_run():
    net = Scanned(jr.normal(jr.key(0), (6, 12, 4)), jr.normal(jr.key(1), (6, 4, 12)))
    x = jnp.ones(4)
    axes, masks = dn.find_axes(net, x).learn()
    depth = next(axis for axis, mask in masks.items() if mask.capacity == 6)
    costs = dn.costs(net, axes, masks, x)
    for n in (2, 6):
        short = Scanned(net.up[:n], net.down[:n], unroll=n)
        wanted = counted(lambda net, x: net(x), short, (x,))
        assert np.isclose(costs.operations({depth: n}), wanted, rtol=0.01)


class Blocks(eqx.Module):
    """Of different sizes, left out by a gate."""

    blocks: list[eqx.nn.MLP]
    depth: dn.Gate

    def __init__(self, key):
        keys = jr.split(key, 3)
        self.blocks = [eqx.nn.MLP(4, 4, 8 * (i + 1), 1, key=k) for i, k in enumerate(keys)]
        self.depth = dn.Gate("depth", 3)

    def __call__(self, x):
        for block, m in zip(self.blocks, self.depth()):
            x = x + m * block(x)
        return x


def test_blocks_that_are_left_out_cost_nothing():
    net = Blocks(jr.key(0))
    axes = dn.declare(net, lambda m: m.blocks, dn.Axes("depth"))
    masks = {"depth": dn.Sigmoid(3)}
    costs = dn.costs(net, axes, masks, jnp.ones(4))
    found = []
    for n in (1, 2, 3):
        small = dn.freeze(net, axes, {"depth": dn.Sigmoid(3, size=float(n), temperature=25.0)})
        found.append(float(costs.operations({"depth": n})))
        # What is done with a block outside of it counts as if all were there.
        wanted = counted(lambda net, x: net(x), small, (jnp.ones(4),))
        assert wanted - 4 <= found[-1] <= wanted + 8 * (3 - n)
        assert costs.parameters({"depth": n}) == dn.parameters(small)
    # In between, by its fraction.
    assert np.isclose(costs.operations({"depth": 1.25}), found[0] + (found[1] - found[0]) / 4)


def test_a_kernel_of_which_the_extent_is_learned():
    conv = eqx.nn.Conv2d(2, 3, 7, padding=3, key=jr.key(0))
    axes = dn.declare(conv, lambda m: m.weight, dn.Axes(None, None, dn.gated("k"), None))
    x, masks = jnp.ones((2, 9, 9)), {"k": dn.Gaussian(7)}
    costs = dn.costs(conv, axes, masks, x)
    for n in (3, 5, 7):
        small = dn.freeze(conv, axes, {"k": dn.Gaussian(7, size=float(n) - 0.2)})
        assert small.weight.shape[2] == n
        wanted = counted(lambda net, x: net(x), small, (x,))
        assert np.isclose(costs.operations({"k": n}), wanted, rtol=0.05)


class Halved(eqx.Module):
    gate: dn.Gate
    weight: jax.Array

    def __call__(self, x):
        half = len(self.gate()) // 2
        return jnp.sum(self.gate()) * (jnp.ones((half, 64)) @ (self.weight @ x)).sum()


def test_what_cannot_be_derived_is_refused():
    net = Halved(dn.Gate("r", 32), jr.normal(jr.key(0), (64, 4)))
    with pytest.raises(ValueError, match="axis 'r': at 19"):
        dn.costs(net, {}, {"r": dn.Sigmoid(32)}, jnp.ones(4))


@pytest.mark.parametrize("name", ["mlp, mapped", "vit", "resnet", "mixer"])
def test_activations_are_what_a_backward_pass_keeps(name):
    network = example(name)
    model, inputs, call = network.model, network.inputs, network.call
    _, _, costs = derived(network)
    weights, static = eqx.partition(model, eqx.is_inexact_array)
    outputs = lambda w: eqx.filter(call(eqx.combine(w, static), *inputs), eqx.is_inexact_array)
    kept = jax.eval_shape(lambda w: jax.vjp(outputs, w)[1], weights)
    own = {x.shape for x in jtu.tree_leaves(weights)}
    found = sum(x.size * 4 for x in jtu.tree_leaves(kept) if x.shape not in own)
    assert 0.5 * found < costs.activations({}) < 2 * found


def test_of_what_was_found():
    net = eqx.nn.MLP(5, 3, 16, 2, key=jr.key(0))
    found = dn.find_axes(net, jnp.ones(5))
    axes, masks = found.learn()
    costs = dn.costs(net, axes, masks, jnp.ones(5))
    assert found.costs == costs
    renamed = found.rename({axis: f"new.{i}" for i, axis in enumerate(masks)})
    assert renamed.costs.operations({"new.0": 4}) == costs.operations({list(masks)[0]: 4})


def test_costs_are_hashable_and_the_same_again():
    net = eqx.nn.MLP(5, 3, 16, 2, key=jr.key(0))
    axes, masks = dn.find_axes(net, jnp.ones(5)).learn()
    one, two = (dn.costs(net, axes, masks, jnp.ones(5)) for _ in range(2))
    assert one == two and hash(one.memory) == hash(two.memory)
    with pytest.raises(ValueError, match="`sizes` names 'nope'"):
        one.operations({"nope": 3.0})


#
# Latency.
#


def mlp():
    net = eqx.nn.MLP(5, 3, 32, 2, key=jr.key(0))
    axes, masks = dn.find_axes(net, jnp.ones(5)).learn()
    return net, axes, masks, jnp.ones(5)


def test_latency_finds_what_times_are_made_of(monkeypatch):
    net, axes, masks, x = mlp()
    costs = dn.costs(net, axes, masks, x)

    def measured(model, axes, some, inputs, call, repeats):
        sizes = [dict(dn.exact(m)) for m in some]
        assert len({tuple(s.items()) for s in sizes}) > 10
        of = lambda s: 3e-4 + 2e-9 * costs.operations(s) + 5e-9 * costs.traffic(s)
        return np.array([float(of(s)) for s in sizes])

    monkeypatch.setattr("dnarch_eqx._latency._measured", measured)
    found = dn.latency(net, axes, masks, x)
    assert np.isclose(found.constant, 3e-4, rtol=1e-3)
    by_name = {count.unit: seconds for seconds, count in found.terms}
    assert np.isclose(by_name["operations"], 2e-9, rtol=1e-2)
    assert np.isclose(by_name["bytes"], 5e-9, rtol=1e-2)
    assert found.error <= found.worst < 1e-4
    sizes = {axis: 7 for axis in masks}
    wanted = 3e-4 + 2e-9 * costs.operations(sizes) + 5e-9 * costs.traffic(sizes)
    assert np.isclose(found(sizes), wanted, rtol=1e-3)


def test_latency_is_measured_and_kept(tmp_path):
    net, axes, masks, x = mlp()
    found = dn.latency(net, axes, masks, x, plans=5, held_out=1, repeats=3)
    assert 0 < float(found({})) < 1 and found.error == found.worst
    found.save(tmp_path / "latency.json")
    again = dn.Latency.load(tmp_path / "latency.json")
    assert again == found and hash(again) == hash(found)
    for text in ("", "[]", '{"terms": [[1, 2]]}', '{"terms": [], "other": 1}'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(ValueError, match="is not the file of a latency"):
            dn.Latency.load(tmp_path / "bad.json")
    with pytest.raises(ValueError, match="`plans` must be at least 5"):
        dn.latency(net, axes, masks, x, plans=4)
