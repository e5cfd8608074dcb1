"""What goes together in a module is found, and what is found keeps the law."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
import optax
import pytest
from helpers import FAST

import dnarch_eqx as dn
from tests.networks import Example, example as made, mapped, NAMES, OwnAttention, OwnNorm


@pytest.fixture(autouse=True)
def as_users_have_it(unchecked):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def found_in(example: Example) -> dn.Found:
    return dn.find_axes(example.model, *example.inputs, call=example.call)


def outputs(example: Example, net, inputs):
    """Without the state that is returned."""
    is_state = lambda x: isinstance(x, eqx.nn.State)
    found = jtu.tree_leaves(example.call(net, *inputs), is_leaf=is_state)
    return [x for x in found if not is_state(x)]


def under(example: Example, axes, masks, plan, make=dn.materialize):
    """Network and inputs."""
    state = example.inputs[0] if isinstance(example.inputs[0], eqx.nn.State) else None
    net = make(example.model, axes, masks, plan, model_state=state)
    return (net, example.inputs) if state is None else (net[0], (net[1], *example.inputs[1:]))


def outputs_and_gradients(example: Example, axes, masks, plan):
    """Of a sum of squares, for weights and masks, at full shape."""
    make = functools.partial(dn.materialize, check_coverage=False)

    def total(learned):
        changed = example._replace(model=learned[0])
        found = outputs(example, *under(changed, axes, learned[1], plan, make))
        return sum(jnp.sum(jnp.sin(x + 1)) for x in found), found

    (_, found), grads = compiled(
        eqx.filter_value_and_grad(total, has_aux=True), (example.model, masks)
    )
    return found, jtu.tree_leaves(grads)


def compiled(function, *args):
    """Its results, compiled in little time."""
    arrays, static = eqx.partition(args, eqx.is_array)
    run = jax.jit(lambda arrays: function(*eqx.combine(arrays, static)), compiler_options=FAST)
    return run(arrays)


def alike(xs, ys):
    assert len(xs) == len(ys)
    for x, y in zip(xs, ys):
        np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_what_can_be_learned_is_found_and_exact(x64, name):
    example = made(name)
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
    frozen, inputs = under(example, axes, masks, None, dn.freeze)
    alike(compiled(functools.partial(outputs, example), frozen, inputs), wanted[0])


FEW = ("lstm", "scanned blocks", "spectral norm")


def mostly_slow(names):
    """All names, those that are not among these as slow tests."""
    slow = pytest.mark.slow
    return [name if name in names else pytest.param(name, marks=slow) for name in NAMES]


@pytest.mark.parametrize("name", mostly_slow(FEW))
def test_a_trained_network_becomes_learnable_as_it_is(x64, name):
    """With the most important positions first, and masks divided out."""
    example = made(name)
    found = found_in(example)
    axes, masks = found.learn()
    model = example.model
    score = lambda mask, i: jr.uniform(jr.key(i), (mask.capacity,))
    importance = {axis: score(mask, i) for i, (axis, mask) in enumerate(masks.items())}
    state = example.inputs[0] if isinstance(example.inputs[0], eqx.nn.State) else None
    inputs = example.inputs
    if state is None:
        model = found.ordered(model, importance)
    else:
        model, state = found.ordered((model, state), importance)
        inputs = (state, *inputs[1:])
    changed = example._replace(model=dn.pretrained(model, axes, masks), inputs=inputs)

    def both(model, masks):
        changed_now = changed._replace(model=model)
        make = functools.partial(dn.materialize, check_coverage=False)
        return (
            outputs(example, *under(changed_now, axes, masks, {}, make)),
            outputs(example, example.model, example.inputs),
        )

    alike(*compiled(both, changed.model, masks))


@pytest.mark.parametrize("name", mostly_slow(("attention", "batch norm, running")))
def test_trained_across_a_bucket_and_frozen(name, quick):
    example = made(name)
    state = example.inputs[0] if isinstance(example.inputs[0], eqx.nn.State) else None
    axes, masks = found_in(example).learn(start=0.8)

    def loss(net, *rest):
        *state, batch, key = rest
        given = example.call(net, *state, *batch)
        found = [x for x in jtu.tree_leaves(given) if eqx.is_inexact_array(x)]
        if state:
            return jnp.mean(given[0] ** 2), given[1]
        return sum((jnp.mean(jnp.abs(x) ** 2) for x in found), start=jnp.zeros(()))

    budget = dn.Budget(
        dn.parameter_cost(example.model, axes, masks),
        {axis: 0.3 * mask.capacity for axis, mask in masks.items()},
        5.0,
    )
    learner = dn.Learner(loss, optax.adam(0.03), axes, budget)
    train = learner.init(example.model, masks, state)
    planner = dn.Planner(learner, masks, policy=dn.runtime.Every(10), background=False)
    batch = example.inputs if state is None else example.inputs[1:]
    for _ in range(50):
        train, _ = planner.step(train, batch)
    train = planner.finish(train)
    assert len({plan for _, plan in planner.state.switches}) > 1
    changed = example._replace(model=train.model)
    if state is not None:
        changed = changed._replace(inputs=(train.model_state, *batch))
    run = functools.partial(compiled, functools.partial(outputs, example))
    small = run(*under(changed, axes, train.masks, None, dn.freeze))
    full = run(*under(changed, axes, train.masks, {}))
    for x, y in zip(small, full, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4)


def test_a_table_that_people_can_read():
    shown = repr(found_in(made("experts")))
    assert shown.splitlines()[0].split() == ["axis", "size", "arrays", "gated", "against", "it"]
    (router,) = [line for line in shown.splitlines() if line.startswith("router.")]
    assert "reduce_max" in router and "networks.py:" in router


def test_depends_on_shapes_alone():
    example = made("mlp, mapped")
    (x,) = example.inputs
    given = dn.find_axes(example.model, jax.ShapeDtypeStruct(x.shape, x.dtype), call=mapped)
    assert repr(given) == repr(found_in(example))


def test_renamed_restricted_and_chosen():
    found = found_in(made("vit"))
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
    found = found_in(made("u-net"))
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


def test_numbers_that_modules_keep_follow_their_axes(getkey):
    net = OwnAttention(32, 8, getkey())
    found = dn.find_axes(net, jnp.ones((5, 32)))
    assert (".heads", 0) in found.axes["qkv.heads"].arrays
    axes, masks = found.learn("qkv.heads", start=0.5)
    assert axes[".heads"] == dn.Axes("qkv.heads")
    assert dn.freeze(net, axes, masks).heads == dn.exact(masks)["qkv.heads"] < 8
    # The width of a head: scores are divided by its root, in Python.
    (hazard,) = found.axes["qkv.width"].hazards
    assert "at another size" in hazard and "OwnAttention.__call__" in hazard


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
    found = found_in(made("mlp"))
    assert found.fixed[".layers[0].weight"] == (None, "an input")
    assert found.fixed[".layers[2].bias"] == ("an output",)
