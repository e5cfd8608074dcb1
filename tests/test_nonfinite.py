"""Steps of which something is not finite: an error, left out, or taken all the same."""

import functools as ft

import equinox as eqx
import hypothesis as hp
import hypothesis.strategies as st
import jax
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
    FAST,
    filled,
    halving,
    Layered,
    layered_axes,
    layered_masks,
    layered_parameters,
    same,
    squares,
)

import dnarch_eqx as dn
from dnarch_eqx import runtime as rt


pytestmark = pytest.mark.usefixtures("standard", "quick")

MODES = ("raise", "skip", "ignore")
PLAN = dn.Plan({"h0": 16, "h1": 16})
NAN, INF = float("nan"), float("inf")
NET = filled(Layered, jr.key(3))
BATCH = examples(jr.key(4))
BUDGET = halving(NET, 8.0)
# One for each array of the model, in their order.
GOOD = np.zeros(6, np.float32)
WEIGHTS = [f".layers[{i}].{name}" for i in range(3) for name in ("weight", "bias")]


@jax.custom_jvp
def nothing(x, bad):
    """Zero, whose gradient by all of `x` is `bad`."""
    del x, bad
    return jnp.zeros(())


@nothing.defjvp
def _(primals, tangents):
    return jnp.zeros(()), primals[1] * jnp.sum(tangents[0])


def loss(net, batch, key):
    """Is `batch[1]` more than it should be; its gradient by the i-th array `batch[2][i]`."""
    arrays = jtu.tree_leaves(eqx.filter(net, eqx.is_array))
    more = [nothing(x, bad) for x, bad in zip(arrays, batch[2])]
    return squares(net, batch[0], key) + batch[1] + sum(more)


def given(value: float = 0.0, **bad: float):
    """A batch, and how far from zero the gradients by arrays are: `w0`, `b0`, `w1`, ..."""
    by = GOOD.copy()
    for name, x in bad.items():
        by[2 * int(name[1]) + (name[0] == "b")] = x
    return BATCH, value, by


def rated(rate: float, bad: float, at: int) -> optax.GradientTransformation:
    """Gradient descent with another learning rate at one step."""
    return optax.sgd(lambda count: jnp.where(count == at, bad, rate))


@ft.cache
def learner_of(mode, **kwargs) -> dn.Learner:
    """Compiled once for all tests of a mode."""
    optim, axes = optax.sgd(0.05), layered_axes(NET)
    return dn.Learner(loss, optim, axes, BUDGET, on_nonfinite=mode, **kwargs)


def budget_of(**fields: float) -> dn.Budget:
    """With other numbers than it can be made with."""
    budget = BUDGET
    for name, value in fields.items():
        where = ft.partial(lambda name, b: getattr(b, name), name)
        budget = eqx.tree_at(where, budget, jnp.float32(value))
    return budget


def make(mode):
    """The pure step, which says everything and raises nothing."""
    learner = learner_of(mode)
    step = dn.make_step(loss, optax.sgd(0.05), learner.axes, on_nonfinite=mode)
    step = jax.jit(step, static_argnames="plan", compiler_options=FAST)
    return ft.partial(step, key=None, plan=PLAN), learner.init(NET, layered_masks())


@pytest.fixture(scope="module")
def steps():
    """Of each mode, compiled once."""
    with jax.numpy_dtype_promotion("standard"):
        return {mode: make(mode) for mode in MODES}


def named(state, info) -> list[str]:
    """What is not finite."""
    names = dn.checked(state)
    assert len(names) == len(info.flags) - 1
    return [name for name, fine in zip(names, np.asarray(info.flags)[1:]) if not fine]


def gradients(*paths: str) -> list[str]:
    return [f"the gradient or update of `model{path}`" for path in paths]


MASKS = [f"the gradient or update of the mask of axis {axis!r}" for axis in ("h0", "h1")]

# What is given, and what has to be said of it.
CASES = {
    "a good step": ((given(), {}), []),
    "a NaN in the loss": ((given(NAN), {}), ["the loss"]),
    "an infinite loss": ((given(INF), {}), ["the loss"]),
    "a NaN in one gradient": ((given(b1=NAN), {}), gradients(".layers[1].bias")),
    "an infinite gradient": ((given(b0=-INF), {}), gradients(".layers[0].bias")),
    "a NaN in the target": ((given(), {"target": NAN}), ["the complexity", *MASKS]),
    "a NaN in the budget's weight": ((given(), {"weight": NAN}), MASKS),
    "an infinite weight of the budget": ((given(), {"weight": INF}), MASKS),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("mode", MODES)
def test_what_is_not_finite_is_named_and_does_not_spread(mode, case, steps):
    step, state = steps[mode]
    (batch, budget), wanted = CASES[case]
    new, info = step(state, batch, budget=budget_of(**budget))
    assert named(state, info) == wanted
    assert info.covered and bool(info.finite) == (not wanted)
    if not wanted:
        target = layered_parameters(8.0, 8.0)
        by_hand = descended(NET, layered_masks(), BATCH, 0.05, target, 1.0)
        close((new.model, new.masks), by_hand)
        return
    if mode != "ignore":
        assert same(new, state), "left out as a whole, with the count of steps"
        return
    # It is taken, but for the masks that would be lost.
    assert int(new.step) == 1
    good, _ = step(state, given(), budget=budget_of())
    for path, x, y in zip(WEIGHTS, *map(jtu.tree_leaves, (new.model, good.model))):
        if f"the gradient or update of `model{path}`" in wanted:
            # What the plan crops has no gradient.
            assert not np.isfinite(x[:16]).any() and same(x[16:], y[16:])
        else:
            np.testing.assert_allclose(x, y, rtol=1e-6)
    for axis, name in zip(("h0", "h1"), MASKS):
        assert same(new.masks[axis], state.masks[axis]) == (name in wanted)


def test_each_array_is_told_apart(steps):
    step, state = steps["skip"]
    short = [f"{name}{i}" for i in range(3) for name in "wb"]
    for path, bad in zip(WEIGHTS, short):
        _, info = step(state, given(**{bad: NAN}), budget=budget_of())
        found = named(state, info)
        # Where a mask lies on a weight, its gradient is one of the mask's as well.
        assert [name for name in found if name not in MASKS] == gradients(path)


@pytest.mark.parametrize("rate", (INF, NAN))
@pytest.mark.parametrize("mode", MODES)
def test_an_infinite_learning_rate(mode, rate):
    """All gradients are finite; no update is."""
    optim = rated(0.05, rate, 1)
    axes, masks = layered_axes(NET), layered_masks()
    learner = dn.Learner(loss, optim, axes, BUDGET, on_nonfinite=mode)
    first, _ = learner.step(learner.init(NET, masks), given(), PLAN)
    new, info = learner.step(first, given(), PLAN)
    assert named(first, info) == [*gradients(*WEIGHTS), *MASKS]
    assert same(new.masks, first.masks)
    if mode == "ignore":
        assert not any(np.isfinite(x).all() for x in jtu.tree_leaves(new.model))
    else:
        assert same(new, first)


@hp.settings(max_examples=20, deadline=None, derandomize=True)
@hp.given(
    mode=st.sampled_from(MODES),
    run=st.lists(
        st.tuples(
            st.sampled_from((0.0, 0.0, NAN, INF)),
            st.sampled_from(("w0", "b0", "w1", "b1", "w2", "b2")),
            st.sampled_from((0.0, 1e3, -1e3, 1e38, NAN, INF)),
            st.sampled_from(({}, {}, {"target": NAN}, {"weight": INF}, {"weight": 1e38})),
        ),
        min_size=1,
        max_size=8,
    ),
)
def test_masks_are_never_lost(mode, run, steps):
    """Whatever is ignored: finite, admissible, and with an active position at least."""
    step, state = steps[mode]
    for value, name, bad, budget in run:
        state, info = step(state, given(value, **{name: bad}), budget=budget_of(**budget))
        for mask in state.masks.values():
            assert all(np.isfinite(x).all() for x in jtu.tree_leaves(mask))
            first, end = mask.at(jnp.array([-1.0, 1.0]))
            assert first >= 0.95 - 1e-3 and end <= 0.85 + 1e-3
            assert 1 <= int(mask.active()) <= 24
        weights = jtu.tree_leaves(state.model)
        if mode != "ignore":
            assert all(np.isfinite(x).all() for x in weights)
        if not info.covered:
            break


#
# Learners.
#


@pytest.mark.parametrize("strict", (True, False))
def test_a_learner_raises_and_can_go_on(strict):
    learner = learner_of.__wrapped__("raise", strict=strict)
    state = learner.init(NET, layered_masks())
    state, first = learner.step(state, given(), PLAN)
    new, info = learner.step(state, given(b1=NAN), PLAN)
    # Without `strict` nothing waits for them.
    jax.block_until_ready((first, info))
    assert same(new, state)
    message = (
        r"At step 1 this is not finite: the gradient or update of "
        r"`model.layers\[1\].bias`\. The state is as it was before that step"
    )
    with pytest.raises(rt.NotFiniteError, match=message):
        learner.step(new, given(), PLAN)
    assert issubclass(rt.NotFiniteError, FloatingPointError)
    # It is said once; the same call goes on.
    after, info = learner.step(new, given(), PLAN)
    assert info.finite and int(after.step) == 2
    # The last one is as good as if there had been no other.
    wanted, _ = learner.step(state, given(), PLAN)
    assert same(after, wanted)


@pytest.mark.parametrize("mode", ("skip", "ignore"))
def test_a_learner_says_nothing_if_it_is_not_to(mode):
    learner = learner_of(mode)
    state = learner.init(NET, layered_masks())
    for batch in (given(), given(NAN), given(), given(b0=NAN)):
        state, _ = learner.step(state, batch, PLAN)
    state, info = learner.step(state, given(), PLAN)
    assert int(state.step) == (3 if mode == "skip" else 5)
    assert bool(info.finite) == (mode == "skip")


def test_many_are_counted():
    learner = learner_of("raise")
    state = learner.init(NET, layered_masks())
    batch = given(NAN, w0=NAN, b0=NAN, w1=NAN, b1=NAN, b2=NAN)
    state, _ = learner.step(state, batch, PLAN)
    with pytest.raises(rt.NotFiniteError, match=r"the loss, .*weight`, .*bias`, and \d more\."):
        learner.step(state, given(), PLAN)


def test_a_step_that_was_not_covered_is_no_error():
    """It is done again anyway, under a larger plan."""
    learner = learner_of("raise", strict=False)
    state = learner.init(NET, layered_masks())
    new, info = learner.step(state, given(NAN), dn.Plan({"h0": 5}))
    assert not info.covered and same(new, state)
    jax.block_until_ready(info)
    _, info = learner.step(new, given(), PLAN)
    assert info.covered and info.finite


@pytest.mark.parametrize(
    "poison, message",
    (
        (lambda x: x.at[0, 1].set(NAN), r"`model.layers\[1\].weight` is not finite"),
        (lambda x: x.at[0, 1].set(-INF), r"`model.layers\[1\].weight` is not finite"),
        (lambda x: x.astype(jnp.float16), r"`model.layers\[1\].weight` is in float16"),
    ),
)
def test_weights_to_start_from(poison, message):
    net = eqx.tree_at(lambda net: net.layers[1].weight, NET, replace_fn=poison)
    with pytest.raises(ValueError, match=message):
        learner_of("raise").init(net, layered_masks())
