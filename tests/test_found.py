"""What goes together in a module is found, and what is found keeps the law."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
import optax
import pytest

import dnarch_eqx as dn
from tests.networks import Example, examples, mapped, OwnAttention, OwnNorm


NAMES = tuple(examples())


@pytest.fixture(autouse=True)
def as_users_have_it(unchecked):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def found_in(example: Example) -> dn.Found:
    return dn.find_axes(example.model, *example.inputs, call=example.call)


def outputs_and_gradients(example: Example, axes, masks, plan):
    """Of a sum of squares, for weights and masks, at full shape."""

    def total(learned):
        net = dn.materialize(learned[0], axes, learned[1], plan, check_coverage=False)
        outputs = jtu.tree_leaves(example.call(net, *example.inputs))
        return sum(jnp.sum(jnp.sin(x + 1)) for x in outputs), outputs

    step = eqx.filter_jit(eqx.filter_value_and_grad(total, has_aux=True))
    (_, outputs), grads = step((example.model, masks))
    return outputs, jtu.tree_leaves(grads)


def alike(xs, ys):
    assert len(xs) == len(ys)
    for x, y in zip(xs, ys):
        np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_what_can_be_learned_is_found_and_exact(x64, name):
    example = examples()[name]
    found = found_in(example)
    assert {axis.name for axis in found.axes.values() if not axis.hazards} == example.learned
    axes, masks = found.learn(start=0.6)
    assert set(masks) == example.learned
    dn.check(example.model, axes, masks, *example.inputs, call=example.call)
    wanted = outputs_and_gradients(example, axes, masks, {})
    exact = dn.exact(masks)
    assert any(exact[axis] < mask.capacity for axis, mask in masks.items())
    rng = np.random.default_rng(0)
    between = {a: int(rng.integers(exact[a], m.capacity + 1)) for a, m in masks.items()}
    for plan in (exact, dn.Plan(between)):
        for given, want in zip(outputs_and_gradients(example, axes, masks, plan), wanted):
            alike(given, want)
    frozen = dn.freeze(example.model, axes, masks)
    alike(jtu.tree_leaves(example.call(frozen, *example.inputs)), wanted[0])


@pytest.mark.parametrize("name", ("mlp", "u-net", "attention"))
def test_trained_across_a_bucket_and_frozen(name):
    example = examples()[name]
    axes, masks = found_in(example).learn(start=0.8)
    loss = lambda net, batch, key: jnp.mean(example.call(net, *batch) ** 2)
    budget = dn.Budget(
        dn.parameter_cost(example.model, axes, masks),
        {axis: 0.4 * mask.capacity for axis, mask in masks.items()},
        5.0,
    )
    learner = dn.Learner(loss, optax.adam(0.03), axes, budget)
    state = learner.init(example.model, masks)
    planner = dn.Planner(learner, masks, policy=dn.runtime.Every(10), background=False)
    for _ in range(50):
        state, _ = planner.step(state, example.inputs)
    state = planner.finish(state)
    assert len({plan for _, plan in planner.state.switches}) > 1
    full = dn.materialize(state.model, axes, state.masks, {})
    small = dn.freeze(state.model, axes, state.masks)
    np.testing.assert_allclose(
        example.call(small, *example.inputs),
        example.call(full, *example.inputs),
        rtol=1e-3,
        atol=1e-5,
    )


def test_a_table_that_people_can_read():
    shown = repr(found_in(examples()["experts"]))
    assert shown.splitlines()[0].split() == ["axis", "size", "arrays", "gated", "against", "it"]
    (router,) = [line for line in shown.splitlines() if line.startswith("router.")]
    assert "reduce_max" in router and "networks.py:" in router


def test_depends_on_shapes_alone():
    example = examples()["mlp, mapped"]
    (x,) = example.inputs
    given = dn.find_axes(example.model, jax.ShapeDtypeStruct(x.shape, x.dtype), call=mapped)
    assert repr(given) == repr(found_in(example))


def test_renamed_restricted_and_chosen():
    found = found_in(examples()["vit"])
    axes, masks = found.learn("*.up.hidden", start=0.5)
    assert set(masks) == {"blocks.0.up.hidden"}
    assert axes[".blocks[0].down.weight"] == dn.Axes(None, dn.gated("blocks.0.up.hidden"))
    named = found.rename({"patches.channels": "width"}).only("width", "*.heads")
    assert list(named.axes) == ["width", "blocks.0.attention.query_proj.heads"]
    _, masks = named.learn("width")
    assert set(masks) == {"width"}
    with pytest.raises(ValueError, match="No axis matches 'nothing'"):
        found.learn("nothing")
    with pytest.raises(ValueError, match="same name"):
        found.rename({"patches.channels": "blocks.0.up.hidden"})
    with pytest.raises(ValueError, match=r"`start` must lie in \(0, 1\]"):
        found.learn(start=0.0)


def test_concatenations_are_said_as_such():
    found = found_in(examples()["u-net"])
    axes, _ = found.learn()
    part = dn.fused(dn.gated("inner.channels"), 2)
    assert axes[".up.weight"] == dn.Axes(
        None, dn.concatenated(part, dn.gated("down.channels")), None
    )


def test_a_norm_of_ones_own_is_refused_with_its_line(getkey):
    a, b = jr.split(getkey())
    net = (eqx.nn.Linear(3, 16, key=a), OwnNorm(16), eqx.nn.Linear(16, 2, key=b))
    run = lambda net, x: net[2](net[1](net[0](x)))
    found = dn.find_axes(net, jnp.ones(3), call=run)
    (axis,) = found.axes.values()
    assert "networks.py" in axis.hazards[0] and "OwnNorm.__call__" in axis.hazards[0]
    with pytest.raises(ValueError, match="cannot be learned"):
        found.learn(axis.name)
    assert found.learn() == ({}, {})


def test_a_number_of_heads_that_a_module_keeps_is_refused(getkey):
    found = dn.find_axes(OwnAttention(32, 8, getkey()), jnp.ones((5, 32)))
    assert all("OwnAttention.__call__" in axis.hazards[0] for axis in found.axes.values())


def test_what_is_not_known_fixes_what_it_touches(getkey):
    net = eqx.nn.MLP(4, 3, 16, 2, key=getkey())

    def run(net, x):
        h = net.layers[0](x)
        h = jax.pure_callback(lambda h: h, jax.ShapeDtypeStruct(h.shape, h.dtype), h)
        return net.layers[2](jnp.tanh(net.layers[1](h)))

    found = dn.find_axes(net, jnp.ones(4), call=run)
    assert set(found.axes) == {"layers.1.hidden"}
    why, given = found.fixed[".layers[0].weight"]
    assert "pure_callback" in str(why) and given == "an input"


def test_inputs_and_outputs_keep_their_sizes():
    found = found_in(examples()["mlp"])
    assert found.fixed[".layers[0].weight"] == (None, "an input")
    assert found.fixed[".layers[2].bias"] == ("an output",)
