"""Other ways to prune: random gates, a ramp, and positions that are cut by a number each."""

from typing import Any

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
from helpers import FAST
from networks_growing import axes_of, CASES, made, output
from test_growth import OPTIMIZERS

import dnarch_eqx as dn
from dnarch_eqx import nn
from dnarch_eqx._extended import extended
from dnarch_eqx._made import made as made_of
from dnarch_eqx._state import init


@pytest.fixture(autouse=True)
def as_users_have_it(unchecked):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def gates(log_alpha, **kwargs: Any) -> Any:
    """With these numbers."""
    mask = dn.HardConcrete(len(log_alpha), **kwargs)
    return eqx.tree_at(lambda m: m.log_alpha, mask, jnp.asarray(log_alpha, float))


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x, float)))


numbers = st.lists(st.floats(-6, 6), min_size=1, max_size=12)


#
# Hard concrete gates.
#


def test_gates_by_the_paper(x64):
    """Louizos et al. 2018, Eq. 11 to 13: beta 2/3, gamma -0.1, zeta 1.1."""
    log_alpha = np.array([3.0, 0.5, -2.0, -3.0])
    mask = gates(log_alpha)
    wanted = np.clip(sigmoid(log_alpha) * 1.2 - 0.1, 0, 1)
    assert wanted[3] == 0 < wanted[2] and wanted[0] == 1
    np.testing.assert_allclose(mask(), wanted, atol=1e-12)
    # Eq. 10: how often they are open. Drawn 40,000 times, of gates that are active.
    often = sigmoid(log_alpha - 2 / 3 * np.log(0.1 / 1.1))
    assert float(mask.expected()) == pytest.approx(often.sum(), rel=1e-12)
    draw = jax.jit(jax.vmap(lambda key: mask.drawn(key, False)()))
    drawn = np.asarray(draw(jr.split(jr.key(0), 40_000)))
    np.testing.assert_allclose((drawn > 1e-5).mean(0)[:3], often[:3], atol=0.01)
    assert not np.any(drawn[:, 3]), "shut in every draw: a slice may lack it"
    # The distribution function of what lies between 0 and 1, Eq. 4.
    level = 0.3
    stretched = (level + 0.1) / 1.2
    below = sigmoid((np.log(stretched) - np.log(1 - stretched)) * 2 / 3 - log_alpha)
    np.testing.assert_allclose((drawn <= level).mean(0)[:3], below[:3], atol=0.01)
    np.testing.assert_array_equal(mask.drawn(jr.key(0), True)(), mask())
    with pytest.raises(ValueError, match="give the step a `key`"):
        mask.drawn(None, False)


@hp.settings(deadline=None, max_examples=50)
@hp.given(numbers, st.sampled_from([0.0, 0.1, 0.5]))
def test_size_of_gates_is_their_count(log_alpha, threshold):
    mask = gates(log_alpha, threshold=threshold).project()
    open_ = np.flatnonzero(np.asarray(mask()) > 0)
    assert int(mask.count()) == len(open_) >= 1
    assert int(mask.active()) == open_[-1] + 1
    assert len(open_) - 1 < float(mask.size()) <= len(open_)


def test_the_gradient_of_their_size_is_that_of_the_expected_count(x64):
    log_alpha = np.array([2.0, -1.0, -2.3, 0.4])
    size = lambda x: eqx.tree_at(lambda m: m.log_alpha, gates(log_alpha), x).size()
    often = lambda x: sigmoid(x - 2 / 3 * np.log(0.1 / 1.1)).sum()
    steps = 1e-6 * np.eye(4)
    wanted = [(often(log_alpha + d) - often(log_alpha - d)) / 2e-6 for d in steps]
    np.testing.assert_allclose(jax.grad(size)(jnp.asarray(log_alpha)), wanted, rtol=1e-7)


@hp.settings(deadline=None, max_examples=50)
@hp.given(st.permutations(range(9)), st.integers(1, 9))
def test_so_many_gates_are_the_largest(order, count):
    log_alpha = np.linspace(-4, 4, 9)[np.array(order)]
    mask = gates(log_alpha).with_count(count)
    assert set(np.flatnonzero(mask() > 0)) == set(np.argsort(-log_alpha)[:count])
    assert int(mask.with_count(count).count()) == count


def test_the_count_is_changed_as_little_as_that_takes():
    mask = gates([3.0, -4.0, 1.0, 1.0])
    assert mask.with_count(3) is mask
    fewer, more = mask.with_count(1), mask.with_count(4)
    np.testing.assert_array_equal(fewer()[:1], mask()[:1])
    np.testing.assert_array_equal(more()[jnp.array([0, 2, 3])], mask()[jnp.array([0, 2, 3])])
    assert int(fewer.count()) == 1 and int(more.count()) == 4
    # Also of those that are alike.
    assert int(gates(np.zeros(40)).with_count(30).count()) == 30
    assert dn.HardConcrete(8, learn=()).with_count(3).count() == 8
    assert mask.between() == (1, 4)


@pytest.mark.parametrize("probability", [0.7, 0.9, 0.9999])
def test_gates_are_moved_alike_by_a_factor_of_the_expected_count(probability, x64):
    mask: Any = dn.HardConcrete(100, probability=probability)
    for factor in (0.5, 0.99, 1.001):
        new: Any = mask.resized(factor * mask.unclipped_size())
        wanted = min(factor * float(mask.expected()), 100 - 1e-3)
        assert float(new.expected()) == pytest.approx(wanted, rel=1e-4)
        apart = new.log_alpha - mask.log_alpha
        np.testing.assert_allclose(apart[1:], apart[-1], atol=1e-9)
    # One is never shut.
    none = eqx.tree_at(lambda m: m.log_alpha, mask, jnp.full(100, -9.0)).project()
    assert int(none.count()) == 1 and np.sum(none.log_alpha == -9.0) == 99


def test_norms_count_the_same_positions_in_every_draw():
    """Gates that are drawn as 0 would leave a norm nothing to divide by."""
    state, axes, _ = with_gates("attention")
    few = {
        axis: gates([-2.0, -2.1] + [-9.0] * (m.capacity - 2)) for axis, m in state.masks.items()
    }
    x = CASES["attention"][-1]

    def draw(key):
        drawn: Any = {axis: mask.drawn(key, False) for axis, mask in few.items()}
        return dn.materialize(state.model, axes, drawn, {})(x)

    drawn = np.asarray(jax.jit(jax.vmap(draw))(jr.split(jr.key(2), 300)))
    assert np.all(np.isfinite(drawn)) and len(np.unique(drawn[:, 0, 0])) > 50


def test_arguments_of_gates():
    assert int(dn.HardConcrete(7).count()) == 7
    mask = dn.HardConcrete(8, size=3, probability=0.7)
    assert int(mask.count()) == int(mask.active()) == 3
    often = sigmoid(np.asarray(mask.log_alpha)[:3] - 2 / 3 * np.log(0.1 / 1.1))
    np.testing.assert_allclose(often, 0.7, atol=0.01)
    bad: list[tuple[dict, str]] = [
        ({"capacity": 0}, "`capacity`"),
        ({"size": 0.0}, "`size` must lie above 0 and at most at the capacity 8, got 0.0"),
        ({"size": 9}, "`size` must lie above 0"),
        ({"probability": 0.3}, "`probability` must lie between 0.31"),
        ({"probability": 1.0}, "`probability` must lie between"),
        ({"threshold": 0.9}, r"`threshold` must lie in \[0, 0.85\)"),
        ({"learn": ("offset",)}, "`learn` must be a sequence of names among"),
    ]
    for kwargs, message in bad:
        with pytest.raises(ValueError, match=message):
            given: Any = {"capacity": 8} | kwargs
            dn.HardConcrete(**given)
    with pytest.raises(ValueError, match="made otherwise: `capacity` 8 in a mask of 9"):
        other = eqx.tree_at(lambda m: m.made, dn.HardConcrete(9), dn.HardConcrete(8).made)
        dn.exact({"h": other})


@pytest.mark.parametrize("capacity", [3, 6, 9])
def test_gates_of_another_capacity(capacity):
    mask = gates([2.0, -3.0, 1.0, -4.0, -4.0, -4.0])
    new = extended(mask, capacity)
    assert new.capacity == capacity and new().shape == (capacity,)
    np.testing.assert_array_equal(new()[:3], mask()[:3])
    assert int(new.count()) == 2 and dn.exact({"h": new})["h"] == 3


#
# Positions that change places.
#


def with_gates(name, optim: Any = None, seed=0) -> tuple[Any, Any, Any]:
    """A state whose masks keep any positions, with a little behind it, its axes and optim."""
    sizes = CASES[name][2]
    model, model_state = made(name, sizes, 0), None
    axes = axes_of(name, model)
    if name == "batch norm":
        model, model_state = model
    rng = np.random.default_rng(seed)
    masks = {axis: gates(rng.normal(size=n) * 3 - 2).project() for axis, n in sizes.items()}
    optim = optax.adam(1e-2) if optim is None else optim
    state = init(model, masks, axes, optim, model_state)
    params = eqx.filter((state.model, state.masks), eqx.is_inexact_array)
    update = jax.jit(optim.update, compiler_options=FAST)
    opt_state = update(noise(params, 7), state.opt_state, params)[1]
    return eqx.tree_at(lambda s: s.opt_state, state, opt_state), axes, optim


def noise(params, seed):
    return jtu.tree_map(
        lambda x: jnp.asarray(np.random.default_rng(seed + x.size).normal(size=x.shape)), params
    )


# The others take long to compile.
FEW = ("adam", "flat", "factored", "schedule free")
slow = lambda names, few: [
    name if name in few else pytest.param(name, marks=pytest.mark.slow) for name in names
]


KINDS = ("mlp", "attention", "batch norm", "scanned", "tied")


@pytest.mark.parametrize("name", slow(KINDS, ("mlp", "attention", "batch norm")))
def test_active_positions_come_first(name, x64):
    """The same function, under a plan that it did not fit into, and frozen."""
    state, axes, optim = with_gates(name)
    wanted = output(name, state, axes, {})
    new = dn.reordered(state, axes, optim)
    counts = {axis: int(mask.count()) for axis, mask in state.masks.items()}
    assert dict(dn.exact(new.masks)) == counts
    assert any(counts[a] < n for a, n in dn.exact(state.masks).items())
    for plan in ({}, counts):
        given = output(name, new, axes, plan)
        np.testing.assert_allclose(given, wanted, rtol=0, atol=1e-12 * np.abs(wanted).max())
    assert dn.reordered(new, axes, optim) is new
    pair = dn.reordered((state.model, state.masks), axes) if state.model_state is None else None
    if pair is not None:
        for a, b in zip(*map(jtu.tree_leaves, (pair, (new.model, new.masks))), strict=True):
            np.testing.assert_array_equal(a, b)
        small = dn.freeze(state.model, axes, state.masks)
        x = CASES[name][-1]
        x = x if jnp.issubdtype(x.dtype, jnp.integer) else x.astype(float)
        np.testing.assert_allclose(small(x), wanted, rtol=0, atol=1e-12 * np.abs(wanted).max())
        assert dn.parameters(small) < dn.parameters(state.model)


@pytest.mark.parametrize("name", slow([*OPTIMIZERS, "factored"], FEW))
def test_updates_commute_with_places(name, x64):
    """Of the reordered state as of the state: what an optimizer keeps has gone along."""
    make = OPTIMIZERS.get(name, lambda: optax.adafactor(1e-2, min_dim_size_to_factor=4))
    state, axes, optim = with_gates("mlp", make())
    is_open = {a: np.asarray(m() > 0) for a, m in state.masks.items()}
    i, j = (np.argsort(~is_open[axis], kind="stable") for axis in ("h0", "h1"))
    assert np.any(np.diff(i) < 0) and np.any(np.diff(j) < 0)
    new = dn.reordered(state, axes, optim)
    arrays = lambda s: eqx.filter((s.model, s.masks), eqx.is_inexact_array)
    where = lambda p: [
        *(p[0][k].weight for k in (0, 1, 3)),
        *(p[0][k].bias for k in (0, 1)),
        *(p[1][axis].log_alpha for axis in ("h0", "h1")),
    ]

    def placed(params):
        """By hand."""
        a, b, c, d, e, f, g = where(params)
        new = [a[i], b[np.ix_(j, i)], c[:, j], d[i], e[j], f[i], g[j]]
        return eqx.tree_at(where, params, new)

    update = jax.jit(optim.update, compiler_options=FAST)
    for seed in (1, 2):
        grads = noise(arrays(state), seed)
        wanted, kept = update(grads, state.opt_state, arrays(state))
        given, there = update(placed(grads), new.opt_state, arrays(new))
        for a, b in zip(*map(jtu.tree_leaves, (given, placed(wanted))), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-15)
        state = eqx.tree_at(lambda s: s.opt_state, state, kept)
        new = eqx.tree_at(lambda s: s.opt_state, new, there)


def test_an_average_follows(x64):
    """By the masks of the state that it is kept beside."""
    state, axes, optim = with_gates("mlp")
    half = jtu.tree_map(lambda x: 0.5 * x if eqx.is_inexact_array(x) else x, state.model)
    other = {a: gates(np.flip(np.asarray(m.log_alpha))) for a, m in state.masks.items()}
    model, masks = dn.reordered((half, other), axes, masks=state.masks)
    new = dn.reordered(state, axes, optim)
    for a, b in zip(*map(jtu.tree_leaves, (model, new.model)), strict=True):
        if eqx.is_inexact_array(a):
            np.testing.assert_array_equal(a, 0.5 * b)
    order = state.masks["h0"].order()
    np.testing.assert_array_equal(masks["h0"].log_alpha, other["h0"].log_alpha[order])


def test_a_gate_that_keeps_values(x64):
    """Of a network that was frozen, and is learned again."""
    state, axes, _ = with_gates("gate")
    masks = {axis: dn.Sigmoid(m.capacity, temperature=12.0) for axis, m in state.masks.items()}
    net = dn.freeze(state.model, axes, masks)
    again = {axis: mask for axis, mask in state.masks.items() if axis != "depth"}
    again["depth"] = gates([3.0, 2.0, 1.0])
    x = jnp.ones(5)
    wanted = dn.materialize(net, axes, again, {})(x)
    np.testing.assert_allclose(dn.freeze(net, axes, again)(x), wanted, rtol=1e-12)

    class Scaled(eqx.Module):
        weight: jax.Array
        gate: dn.Gate

        def __call__(self, x):
            return jnp.sum(self.weight * self.gate() * x)

    net = Scaled(jnp.arange(1.0, 5.0), dn.Gate("h", 4))
    axes = {".weight": dn.Axes("h")}
    # What the gate keeps is its own, whatever masks say.
    kept = eqx.tree_at(
        lambda n: n.gate.stored,
        net,
        jnp.array([1.0, 2.0, 3.0, 4.0]),
        is_leaf=lambda x: x is None,
    )
    mask = {"h": gates([-9.0, 3.0, -9.0, 3.0])}
    new, masks = dn.reordered((kept, mask), axes)
    np.testing.assert_array_equal(new.weight, [2, 4, 1, 3])
    np.testing.assert_array_equal(new.gate.values, [2, 4, 1, 3])
    assert float(dn.freeze(kept, axes, mask)(2.0)) == pytest.approx(
        float(dn.materialize(kept, axes, mask, {})(2.0))
    )


def test_masks_of_three_positions(x64):
    """Numbers that say how a mask was made are three, too."""
    optim = optax.contrib.schedule_free(optax.sgd(1e-2), 1e-2, b1=0.9)
    net: Any = eqx.nn.MLP(2, 2, 3, 1, key=jr.key(0))
    axes, masks = dn.find_axes(net, jnp.ones(2)).learn()
    (axis,) = masks
    state = init(net, {axis: gates([-9.0, 3.0, 2.0])}, axes, optim)
    new = dn.reordered(state, axes, optim)
    average, mask = new.opt_state.z[1][axis], state.masks[axis]
    np.testing.assert_array_equal(average.made, made_of(mask))
    np.testing.assert_array_equal(average.log_alpha, [3.0, 2.0, -9.0])


def test_blocks_and_kernels_stay(x64):
    """Their positions have an order of their own."""
    state, axes, optim = with_gates("gate")
    masks = state.masks | {
        "depth": gates([3.0, -3.0, 3.0]),
        "h0": gates([-3.0] * 3 + [3.0] * 3),
    }
    state = eqx.tree_at(lambda s: s.masks, state, masks)
    new = dn.reordered(state, axes, optim)
    assert dn.exact(new.masks)["depth"] == 3 and dn.exact(new.masks)["h0"] == 3
    np.testing.assert_allclose(
        output("gate", new, axes, {}), output("gate", state, axes, {}), rtol=1e-12
    )


#
# Training with gates.
#


def test_a_step_draws_until_sizes_are_settled(x64):
    state, axes, optim = with_gates("mlp", optax.sgd(0.0))
    loss = lambda net, batch, key: jnp.sum(net(batch))
    x, plan = CASES["mlp"][-1].astype(float), {}
    step = eqx.filter_jit(dn.make_step(loss, optim, axes))

    def by_hand(key):
        keys = jr.split(jr.fold_in(key, 0x6D61736B), len(state.masks))
        drawn = {
            axis: mask.drawn(k, False) for (axis, mask), k in zip(state.masks.items(), keys)
        }
        return float(jnp.sum(dn.materialize(state.model, axes, drawn, plan)(x)))

    losses = [float(step(state, x, jr.key(i), None, plan)[1].loss) for i in range(3)]
    np.testing.assert_allclose(losses, [by_hand(jr.key(i)) for i in range(3)], rtol=1e-12)
    assert len(set(losses)) == 3
    still = eqx.tree_at(lambda s: s.settled, state, jnp.array(True))
    losses = {float(step(still, x, jr.key(i), None, plan)[1].loss) for i in range(3)}
    wanted = float(np.sum(output("mlp", state, axes, {})))
    assert len(losses) == 1 and losses.pop() == pytest.approx(wanted, rel=1e-12)
    with pytest.raises(ValueError, match="`dn.HardConcrete` is random: give the step a `key`"):
        step(state, x, None, None, plan)


@pytest.mark.parametrize("hold", slow(["exact", "penalty"], ["exact"]))
def test_gates_meet_a_budget(hold):
    """Of twelve features the four that carry the signal stay, wherever they lie."""
    net: Any = eqx.nn.MLP(12, 1, 12, 1, key=jr.key(0))
    masks = {"in": dn.HardConcrete(12, probability=0.95)}
    axes = dn.declare(net, lambda m: m.layers[0].weight, dn.Axes(None, dn.gated("in")))
    rng, signal = np.random.default_rng(0), [1, 5, 6, 11]

    def loss(net, batch, key):
        x, y = batch
        pick = net.layers[0].weight
        h = jax.nn.relu(x[:, : pick.shape[1]] @ pick.T + net.layers[0].bias)
        return jnp.mean((h @ net.layers[1].weight.T + net.layers[1].bias - y) ** 2)

    size: Any = lambda sizes: sizes["in"]
    settings: Any = {"steps": 200} if hold == "exact" else {"weight": 1.0}
    budget, info = dn.Budget(size, 4.0, **settings), None
    learner = dn.Learner(loss, dn.adamw(1e-2, mask_rate=10.0), axes, budget, verify=False)
    state = learner.init(net, masks)
    for i in range(400):
        x = rng.normal(size=(64, 12)).astype(np.float32)
        y = x[:, signal].sum(1, keepdims=True)
        state, info = learner.step(state, (x, y), {}, key=jr.key(i))
    assert set(np.flatnonzero(state.masks["in"]() > 0)) == set(signal)
    assert info is not None and float(info.deployed) == pytest.approx(1.0)


def test_gates_are_settled_and_deployed():
    """A budget is met by whole positions, wherever they lie."""
    net: Any = eqx.nn.MLP(5, 3, 32, 2, key=jr.key(0))
    found = dn.find_axes(net, jnp.zeros(5))
    axes, masks = found.learn()
    rng = np.random.default_rng(0)
    some = {a: gates(rng.normal(size=m.capacity)) for a, m in masks.items()}
    budget = dn.Budget(found.costs.parameters, "40%", steps=20)
    loss = lambda net, x, key: jnp.mean(jax.vmap(net)(x) ** 2)
    learner = dn.Learner(loss, dn.adamw(1e-3), axes, budget)
    planner = dn.Planner(learner, some)
    x = rng.normal(size=(8, 5)).astype(np.float32)
    state, _ = planner.step(learner.init(net, some), x, key=jr.key(0))
    state = planner.settle(state)
    assert any(mask.order() is not None for mask in state.masks.values())
    state, info = planner.step(state, x, key=jr.key(1))
    small = planner.deploy(state)
    assert float(info.deployed) == pytest.approx(1.0, abs=0.01)
    assert dn.parameters(small) == pytest.approx(0.4 * dn.parameters(net), rel=0.01)
    whole = dn.materialize(state.model, axes, state.masks, {})
    state = planner.finish()
    whole = dn.materialize(state.model, axes, state.masks, {})
    np.testing.assert_allclose(jax.vmap(small)(x), jax.vmap(whole)(x), atol=1e-6)


#
# Pruning by a number for each position.
#


def hard(sizes) -> dict[str, Any]:
    return {axis: dn.Sigmoid(n, temperature=1e6) for axis, n in sizes.items()}


def prunable(optim: Any = None) -> tuple[Any, Any, Any]:
    optim = optax.adam(1e-2) if optim is None else optim
    sizes = CASES["mlp"][2]
    model = made("mlp", sizes, 0)
    axes = axes_of("mlp", model)
    return init(model, hard(sizes), axes, optim), axes, optim


@pytest.mark.parametrize("most", [27.0, 20.0, 9.5, 2.0])
def test_what_is_cut_is_the_least_important(most, x64):
    """By a search over all thresholds."""
    state, axes, optim = prunable()
    rng = np.random.default_rng(1)
    scores = {axis: rng.random(m.capacity) for axis, m in state.masks.items()}
    total: Any = lambda sizes: sizes["h0"] + sizes["h1"]
    new = dn.pruned(state, axes, scores, dn.Budget(total, most, hold="bound"), optim)
    every = np.sort(np.concatenate([*scores.values(), [2.0]]))
    left = lambda t: {axis: max(int(np.sum(x >= t)), 1) for axis, x in scores.items()}
    wanted = next(left(t) for t in every if sum(left(t).values()) <= most)
    assert dict(dn.exact(new.masks)) == wanted
    # The largest, in their order, and what goes with them.
    largest = lambda axis: np.argsort(-scores[axis], kind="stable")[: wanted[axis]]
    kept = [np.sort(largest(axis)) for axis in ("h0", "h1")]
    for get in (lambda s: s.model, lambda s: s.opt_state[0].mu[0]):
        w, v = get(state)[1].weight, get(new)[1].weight
        np.testing.assert_array_equal(
            v[: wanted["h1"], : wanted["h0"]], np.asarray(w)[np.ix_(kept[1], kept[0])]
        )
    # As a network whose other positions are put to zero.
    cut = [np.isin(np.arange(len(scores[a])), k) for a, k in zip(("h0", "h1"), kept)]
    zeroed = eqx.tree_at(
        lambda m: (m[1].weight, m[3].weight),
        state.model,
        (state.model[1].weight * cut[0], state.model[3].weight * cut[1]),
    )
    x = CASES["mlp"][-1].astype(float)
    np.testing.assert_allclose(output("mlp", new, axes, wanted), zeroed(x), rtol=1e-12)


@pytest.mark.parametrize("most", [44.0, 31.0, 9.0])
def test_what_still_fits_is_kept(most):
    """No position could be added, and the order is that of the numbers."""
    state, axes, optim = prunable()
    rng = np.random.default_rng(2)
    scores = {axis: rng.random(m.capacity) for axis, m in state.masks.items()}
    total: Any = lambda sizes: 3 * sizes["h0"] + sizes["h1"]
    new = dn.pruned(state, axes, scores, dn.Budget(total, most, hold="bound"), optim)
    kept = dn.exact(new.masks)
    assert most - 1 < float(total(kept)) <= most or kept["h1"] == 12
    least = min(np.sort(scores[axis])[::-1][n - 1] for axis, n in kept.items())
    one = {axis: int(np.sum(x > least)) for axis, x in scores.items()}
    assert all(
        kept[axis] >= n or total(kept | {axis: kept[axis] + 1}) > most
        for axis, n in one.items()
    )


def test_layers_stay_in_their_order(x64):
    """Of a scanned stack: those that are left."""
    state, axes, _ = with_gates("scanned")
    masks: Any = hard({axis: m.capacity for axis, m in state.masks.items()})
    total: Any = lambda sizes: sizes["depth"]
    scores = {"depth": np.array([0.3, 0.9, 0.1, 0.5])}
    same, _ = dn.pruned((state.model, masks), axes, scores, dn.Budget(total, 4.0))
    assert eqx.tree_equal(same, state.model)
    model, masks = dn.pruned((state.model, masks), axes, scores, dn.Budget(total, 2.0))
    x = jnp.ones(5)
    kept = jnp.array([1, 3])
    fewer = eqx.tree_at(
        lambda m: (m.up, m.down), state.model, (state.model.up[kept], state.model.down[kept])
    )
    given = dn.materialize(model, axes, masks, {"depth": 2})(x)
    np.testing.assert_allclose(given, fewer(x), rtol=1e-12)


def test_pruning_in_steps():
    """A target that goes down; what is cut does not come back, whatever its weights become."""
    state, axes, optim = prunable()
    total: Any = lambda sizes: sizes["h0"] + sizes["h1"]
    budget = dn.Budget(total, optax.linear_schedule(28.0, 10.0, 3), hold="bound")
    kept = []
    for step in range(5):
        state = eqx.tree_at(lambda s: s.step, state, jnp.array(step, jnp.int32))
        importance = dn.importance(state.model, axes, state.masks)
        state = dn.pruned(state, axes, importance, budget, optim)
        kept.append(sum(dn.exact(state.masks).values()))
        wild = jtu.tree_map(
            lambda x: (
                jnp.asarray(np.random.default_rng(step).normal(size=x.shape), x.dtype)
                if eqx.is_inexact_array(x)
                else x
            ),
            state.model,
        )
        state = eqx.tree_at(lambda s: s.model, state, wild)
    assert kept == [28, 22, 16, 10, 10]


def test_what_cannot_be_pruned():
    state, axes, optim = prunable()
    total: Any = lambda sizes: sizes["h0"] + sizes["h1"]
    some, scores = dn.Budget(total, 9.0), {"h0": np.ones(16)}
    cases: list[tuple[tuple, str]] = [
        (({}, some), "`importance` must be a dictionary from axis to numbers, not empty"),
        (({"h7": np.ones(3)}, some), "`importance` names 'h7', which has no mask"),
        (
            ({"h0": np.ones(3)}, some),
            r"has shape \(3,\) for axis 'h0': it must be 16 finite numbers",
        ),
        (
            ({"h0": np.full(16, np.nan)}, some),
            "`importance` has numbers that are not finite for axis 'h0'",
        ),
        ((scores, None), "`budget` is None"),
        ((scores, some), "one position on each axis of `importance` it is exceeded 1.444"),
    ]
    for args, message in cases:
        with pytest.raises(ValueError, match=message):
            prune: Any = dn.pruned
            prune(state, axes, *args, optim)
    with pytest.raises(ValueError, match="`optim` is needed"):
        dn.pruned(state, axes, scores, dn.Budget(total, 20.0))
    soft = eqx.tree_at(
        lambda s: s.masks, state, {a: dn.Sigmoid(m.capacity) for a, m in state.masks.items()}
    )
    with pytest.raises(ValueError, match="cannot have 1 active positions, but 2 to 16"):
        dn.pruned(soft, axes, {"h0": np.arange(16.0)}, dn.Budget(total, 13.0), optim)
    with pytest.raises(ValueError, match="`budget` has a share of the start"):
        dn.pruned(state, axes, scores, dn.Budget(total, "50% of start"), optim)
    for masks in ({a: dn.HardConcrete(m.capacity) for a, m in state.masks.items()},):
        gated = eqx.tree_at(lambda s: s.masks, state, masks)
        with pytest.raises(ValueError, match="whose positions cannot change places"):
            dn.pruned(gated, axes, scores, some, optim)


@pytest.mark.slow
def test_channels_of_a_ccnn(getkey):
    """Those that its blocks read and write are the first of the stream: not to be moved; but
    inner ones are, and the stream's own where all blocks have the whole of it.
    """
    from recipes import _network, _pruning

    network = _network.Network((16,), 3)
    settings: Any = {"sigma": 0.3, "temperatures": (25, 25, 8), "omega_0": 10.0, "dropout": 0.0}
    key, x = jr.key(0), jr.normal(jr.key(1), (4, 1, 16))
    plain = _network.build(network, nn.Base(2, 6), "W", **settings, stream=True, key=key)
    built = _pruning.build("magnitude", network, nn.Base(2, 6), **settings, key=key)
    run = lambda net: jax.vmap(net, axis_name="batch")(x)
    total: Any = lambda sizes: sum(sizes.values(), start=jnp.zeros(()))
    for axis in ("blocks.0.in", "blocks.1.out", "stream"):
        masks = hard({a: m.capacity for a, m in plain.masks.items()})
        with pytest.raises(ValueError, match="cannot change places"):
            scores = {axis: np.ones(12)}
            dn.pruned((plain.model, masks), plain.axes, scores, dn.Budget(total, 60.0))
    rng = np.random.default_rng(0)
    scores = {axis: rng.random(m.capacity) for axis, m in built.masks.items()}
    pair = built.model, built.masks
    model, masks = dn.pruned(pair, built.axes, scores, dn.Budget(total, 20.0))
    counts = dn.exact(masks)
    assert sum(counts.values()) == 20
    given = run(dn.materialize(model, built.axes, masks, counts))
    # By zeros where channels are read.
    keep = {a: np.isin(np.arange(12), np.argsort(-s)[: counts[a]]) for a, s in scores.items()}
    old = built.model
    where = lambda m: [
        *(b.linear1.weight for b in m.blocks),
        *(b.linear2.weight for b in m.blocks),
        m.decoder.weight,
    ]
    zeroed = [
        *(b.linear1.weight * keep["stream"] for b in old.blocks),
        *(b.linear2.weight * keep[f"blocks.{i}.mid"] for i, b in enumerate(old.blocks)),
        old.decoder.weight * keep["stream"],
    ]
    np.testing.assert_allclose(given, run(eqx.tree_at(where, old, zeroed)), atol=2e-5)
    small = _network.deploy(built, model, masks, {})
    np.testing.assert_allclose(run(small), given, atol=2e-5)


#
# DiffStride's mask.
#


@hp.settings(deadline=None, max_examples=50)
@hp.given(st.integers(1, 40), st.floats(0.05, 1.0), st.floats(0.02, 1.0), st.floats(0.01, 0.8))
def test_ramp(capacity, ramp, share, threshold):
    """By hand: the size counts, and values fall by 1 over the ramp, in positions."""
    ramp = max(ramp * capacity, 0.1)
    smallest = (0.95 - threshold) * ramp
    largest = min(capacity - 1 + (0.85 - threshold) * ramp, capacity)
    hp.assume(smallest <= largest)
    size = smallest + share * (largest - smallest)
    mask = dn.Ramp(capacity, size=size, ramp=ramp, threshold=threshold)
    assert float(mask.size()) == pytest.approx(size, rel=1e-4, abs=1e-4)
    end = size + threshold * ramp
    k = np.arange(capacity)
    wanted = np.clip((end - k - 1e-3 * (k > 0)) / ramp, 0, 1)
    near = np.abs(wanted - threshold) < 1e-4 * max(1, capacity / ramp)
    wanted = np.where(wanted < threshold, 0, wanted)
    given = np.asarray(mask())
    assert np.all((np.abs(given - wanted) < 1e-4 * max(1, capacity / ramp)) | near)
    assert abs(int(mask.active()) - float(mask.size())) < 1.01
    assert float(mask.resized(size / 2).unclipped_size()) == pytest.approx(
        max(size / 2, smallest), rel=1e-4, abs=1e-4
    )


def test_ramp_ends_where_it_can_move(x64):
    """At both ends a position has a gradient; 0.95 and 0.85 of it are left."""
    mask = dn.Ramp(16)
    high, low = (eqx.tree_at(lambda m: m.offset, mask, jnp.array(x)) for x in (9.0, -9.0))
    assert float(low.project()()[0]) == pytest.approx(0.95)
    curve: Any = high.project()
    assert float(curve()[-1]) == pytest.approx(0.85)
    for end in (low.project(), high.project()):
        slope = jax.grad(lambda m: jnp.sum(m()))(end)
        assert float(slope.offset) > 0
    assert float(low.project().size()) == pytest.approx(float(mask.smallest_size()))
    assert dn.exact({"r": dn.Ramp(16)})["r"] == 16
    for kwargs, message in (
        ({"ramp": 17.0}, "`ramp` must lie above 0 and at most at the capacity 16"),
        ({"capacity": 1}, "`capacity` of a ramp must be at least 2, got 1"),
        ({"size": 1.0}, "`size` must lie between 3.4 and 18, which are admissible"),
        ({"threshold": 0.9}, "`threshold` must lie in"),
    ):
        with pytest.raises(ValueError, match=message):
            make: Any = dn.Ramp
            make(**({"capacity": 16} | kwargs))
    assert float(dn.Ramp(3).ramp) == 3 and int(dn.Ramp(3).active()) == 3
    with pytest.raises(ValueError, match="a ramp of 4 positions does not fit into 3"):
        extended(dn.Ramp(16), 3)
    for capacity in (8, 32):
        new = extended(dn.Ramp(16, size=7.0), capacity)
        np.testing.assert_allclose(new()[:8], dn.Ramp(16, size=7.0)()[:8], atol=1e-12)
