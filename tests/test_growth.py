"""Capacities that are extended and given back: the same function, and training goes on."""

import pathlib
import signal
import subprocess
import sys
import time
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
import optax
import pytest
from helpers import FAST
from networks_growing import axes_of, CASES, filled, grown, made, output, trained

import dnarch_eqx as dn
from dnarch_eqx import nn
from dnarch_eqx._extended import extended
from dnarch_eqx._growth import axes_in, compact, grow
from dnarch_eqx._pressing import pressing, slack


@pytest.fixture(autouse=True)
def as_users_have_it(unchecked):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.parametrize("share", [0.6, 1])
@pytest.mark.parametrize("name", CASES)
def test_a_grown_network_is_the_same_and_gives_back(name, share, x64):
    state, axes, optim = trained(name, share)
    new, new_axes, _ = grown(name, state, optim)
    large = CASES[name][3]
    assert {a: new.masks[a].capacity for a in large} == large
    before, after = dict(dn.exact(state.masks)), dict(dn.exact(new.masks))
    assert {a: after[a] for a in before} == before
    wanted = output(name, state, axes, {})
    for plan in ({}, after):
        given = output(name, new, new_axes, plan)
        assert np.abs(given - wanted).max() <= 1e-12 * np.abs(wanted).max()
    back = compact(new, new_axes, optim, CASES[name][2])
    assert axes_in(new_axes, back.model) == axes
    assert np.abs(output(name, back, axes, {}) - wanted).max() <= 1e-12 * np.abs(wanted).max()
    if share < 1:
        arrays = lambda s: eqx.filter((s.model, s.opt_state, s.model_state), eqx.is_array)
        for a, b in zip(*map(jtu.tree_leaves, (arrays(back), arrays(state))), strict=True):
            np.testing.assert_array_equal(a, b)
        # A model with a state has markers of its own.
        same = jtu.tree_structure(back.model) == jtu.tree_structure(state.model)
        assert same or name == "batch norm"


@pytest.mark.parametrize("name", ["gate", "outside"])
def test_depth_grows_again_and_trains_on(name, x64, quick):
    """What blocks were faded by stays, and masks of blocks that are gone go."""
    state, _, optim = trained(name, 1)
    state, axes, _ = grown(name, state, optim)
    masks = state.masks | {"depth": state.masks["depth"].resized(99.0)}
    state = eqx.tree_at(lambda s: s.masks, state, masks)
    wanted = output(name, state, axes, {})
    fresh = made(name, CASES[name][2] | CASES[name][3] | {"depth": 7}, 5)
    more = axes_of(name, fresh)
    state = grow(state, more, fresh, optim)
    assert len(state.model.blocks) == 7 and dn.exact(state.masks)["depth"] == 5
    np.testing.assert_allclose(output(name, state, more, {}), wanted, rtol=1e-12)
    state = compact(state, more, optim, {"depth": 5})
    np.testing.assert_allclose(output(name, state, axes, {}), wanted, rtol=1e-12)
    if name == "outside":
        step = eqx.filter_jit(dn.make_step(lambda net, x, key: jnp.sum(net(x)), optim, axes))
        x = CASES[name][-1].astype(float)
        _, info = step(state, x, None, None, dn.exact(state.masks))
        np.testing.assert_allclose(info.loss, np.sum(wanted), rtol=1e-12)
        assert info.covered and info.finite


@pytest.mark.parametrize("name", ["mlp", "kernel"])
def test_in_single_precision(name):
    for share in (0.6, 1):
        state, axes, optim = trained(name, share)
        new, new_axes, _ = grown(name, state, optim)
        wanted = output(name, state, axes, {})
        given = output(name, new, new_axes, {})
        assert np.abs(given - wanted).max() <= 1e-6 * np.abs(wanted).max(), share


def test_arrays_by_hand(x64):
    """Old ones in front, new ones as built; of an open mask what it loses is in the weights."""
    state, _, optim = trained("mlp", 1)
    new, _, fresh = grown("mlp", state, optim)
    first, second, _, last = new.model
    np.testing.assert_array_equal(first.weight[:16], state.model[0].weight)
    np.testing.assert_array_equal(first.weight[16:], fresh[0].weight[16:])
    ratio = np.asarray(state.masks["h0"]()) / np.asarray(new.masks["h0"]())[:16]
    assert 2 < ratio.max() < 8.5 and ratio.min() >= 1
    np.testing.assert_allclose(second.weight[:12, :16], state.model[1].weight * ratio)
    np.testing.assert_array_equal(second.weight[12:], fresh[1].weight[12:])
    np.testing.assert_array_equal(second.weight[:, 16:], fresh[1].weight[:, 16:])
    np.testing.assert_array_equal(last.weight[:, 12:], fresh[3].weight[:, 12:])
    moments = new.opt_state[0].mu[0][1].weight
    # Gradients are smaller by what the weights became larger.
    was = state.opt_state[0].mu[0][1].weight
    np.testing.assert_allclose(moments[:12, :16], was / ratio, rtol=1e-12)
    squares, were = (s.opt_state[0].nu[0][1].weight for s in (new, state))
    np.testing.assert_allclose(squares[:12, :16], were / ratio**2, rtol=1e-12)
    assert not np.any(moments[12:]) and not np.any(moments[:, 16:])
    assert (first.out_features, second.in_features) == (24, 24)


def test_to_less_than_the_fresh_one_has(x64):
    """Sizes that no constructor gives."""
    state, axes, optim = trained("mlp", 0.6)
    new, new_axes, _ = grown("mlp", state, optim, capacities={"h1": 20})
    assert new.model[1].weight.shape == (20, 24) and new.model[3].in_features == 20
    np.testing.assert_allclose(
        output("mlp", new, new_axes, {}), output("mlp", state, axes, {}), rtol=1e-12
    )


def test_averages(x64):
    state, axes, optim = trained("mlp", 1)
    average = jtu.tree_map(lambda x: 0.9 * x if eqx.is_inexact_array(x) else x, state.model)
    (model, masks), new_axes, _ = grown("mlp", (average, state.masks), None)
    x = CASES["mlp"][-1]
    np.testing.assert_allclose(
        dn.materialize(model, new_axes, masks, {})(x),
        dn.materialize(average, axes, state.masks, {})(x),
        rtol=1e-12,
    )


#
# Optimizers.
#

OPTIMIZERS: dict[str, Any] = {
    "adam": lambda: optax.adam(1e-2),
    "dn.adamw": lambda: dn.adamw(1e-2, steps=50, weight_decay=0.1, clip=1.0),
    "momentum": lambda: optax.sgd(1e-2, momentum=0.9),
    "lion": lambda: dn.partition(optax.lion(1e-3), optax.adam(1e-2)),
    "adafactor": lambda: optax.adafactor(
        1e-2,
        min_dim_size_to_factor=4,
        multiply_by_parameter_scale=False,
        clipping_threshold=None,
    ),
    "injected": lambda: optax.inject_hyperparams(optax.adam)(1e-2),
    "flat": lambda: optax.flatten(optax.adam(1e-2)),
    "sm3": lambda: dn.partition(optax.sm3(1e-2), optax.sgd(1e-2)),
    "schedule free": lambda: optax.contrib.schedule_free(optax.sgd(1e-2), 1e-2, b1=0.9),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_next_update_is_what_it_would_have_been(name, x64):
    state, _, optim = trained("mlp", 0.6, OPTIMIZERS[name]())
    new, _, _ = grown("mlp", state, optim)
    old_params, params = (
        eqx.filter((s.model, s.masks), eqx.is_inexact_array) for s in (state, new)
    )
    inner = state.opt_state, new.opt_state
    update = jax.jit(optim.update, compiler_options=FAST)
    for step in range(2):
        wanted, old_state = update(filled(old_params, old_params, step), inner[0], old_params)
        given, new_state = update(filled(params, old_params, step), inner[1], params)
        inner = old_state, new_state
        for a, b in zip(*map(jtu.tree_leaves, (given[0], wanted[0])), strict=True):
            a = np.asarray(a)[tuple(map(slice, b.shape))]
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-15)
            assert np.any(b != 0)


def test_parameters_that_an_optimizer_keeps_go_with_them(x64):
    """Rescaled and moved as they are: what is between the two stays between them."""
    optim = optax.contrib.schedule_free(optax.sgd(1e-2), 1e-2, b1=0.9)
    state, _, _ = trained("mlp", 1, optim)
    new, _, _ = grown("mlp", state, optim)
    z, params = new.opt_state.z, (new.model, new.masks)
    old = state.opt_state.z, (state.model, state.masks)
    ratio = new.model[1].weight[:12, :16] / state.model[1].weight
    np.testing.assert_allclose(z[0][1].weight[:12, :16], old[0][0][1].weight * ratio)
    np.testing.assert_array_equal(z[0][1].weight[:, 16:], params[0][1].weight[:, 16:])
    apart = [pair[0][1]["h0"].offset - pair[1][1]["h0"].offset for pair in ((z, params), old)]
    np.testing.assert_allclose(apart[0], apart[1] * 16 / 24, atol=1e-12)


def test_moments_that_become_factored(x64):
    """Means of what they were, with zeros for what is new."""
    optim = optax.adafactor(1e-2, min_dim_size_to_factor=14)
    state, _, _ = trained("mlp", 0.6, optim)
    new, _, _ = grown("mlp", state, optim)
    old, moments = (s.opt_state[0] for s in (state, new))
    whole = np.zeros((40, 24))
    whole[:12, :16] = old.v[0][1].weight
    # Rows are the smaller dimension.
    np.testing.assert_allclose(moments.v_row[0][1].weight, whole.mean(0))
    np.testing.assert_allclose(moments.v_col[0][1].weight, whole.mean(1))
    assert moments.v[0][1].weight.shape == (1,)


def test_what_cannot_be_told_begins_anew_and_says_so():
    odd = optax.GradientTransformation(
        lambda params: {"v": jnp.zeros(1 + max(x.size for x in jtu.tree_leaves(params)))},
        lambda updates, state, params=None: (updates, state),
    )
    state, _, _ = trained("mlp", 0.6, odd)
    with pytest.warns(UserWarning, match=r"`opt_state\['v'\]` begins anew"):
        new, _, _ = grown("mlp", state, odd)
    assert new.opt_state["v"].shape == (24 * 40 + 1,)


#
# Training goes on, and who says when.
#


def test_masks_reach_new_positions(x64, quick):
    pull = lambda net, batch, key: -jnp.sum(jnp.abs(net[1].weight)) / 50
    optim = dn.adamw(1e-2, mask_rate=5.0)
    state, axes, _ = trained("mlp", 1, optim)
    assert pressing(state.masks) == {"h0": 24, "h1": 18}
    state, axes, _ = grown("mlp", state, optim)
    assert pressing(state.masks) == {}

    def value(mask):
        net = dn.materialize(state.model, axes, state.masks | {"h0": mask}, {})
        return pull(net, None, None)

    assert eqx.filter_grad(value)(state.masks["h0"]).offset < -1e-3
    step = eqx.filter_jit(dn.make_step(pull, optim, axes))
    for _ in range(8):
        state, info = step(state, None, None, None, {})
        assert info.covered and info.finite
    assert dn.exact(state.masks)["h0"] > 16
    before = np.asarray(state.model[1].weight)[:12, 17]
    for _ in range(8):
        state, _ = step(state, None, None, None, {})
    assert np.all(np.asarray(state.model[1].weight)[:12, 17] != before)


@pytest.mark.slow
def test_a_run_that_is_killed_and_gone_on_with(tmp_path):
    """Before and after it has grown, each time after another checkpoint: the same run, bit for
    bit.
    """
    script = pathlib.Path(__file__).parent / "process_growing.py"
    ends = []
    for name, kills in (("one", ()), ("two", (6, 12, 21))):
        folder = tmp_path / name
        folder.mkdir()
        for kill in (*kills, None):
            process = subprocess.Popen([sys.executable, str(script), str(folder)])
            log, until = folder / "log", time.monotonic() + 120
            seen = lambda log=log: log.read_text().splitlines() if log.exists() else []
            while kill is not None and not any(line.startswith(f"{kill} ") for line in seen()):
                assert process.poll() is None and time.monotonic() < until
                time.sleep(0.05)
            if kill is not None:
                process.kill()
            assert process.wait(120) == (0 if kill is None else -signal.SIGKILL)
        ends.append((folder / "done").read_text())
    assert ends[0] == ends[1]
    widths = [line.split()[1] for line in (tmp_path / "two" / "log").read_text().splitlines()]
    assert set(widths) == {"8", "12", "18"}


@pytest.mark.slow
def test_a_ccnn_grows(x64):
    """In widths, in the stream and in depth; its input is as large as kernels and resolutions
    can be.
    """
    made = lambda base, key: nn.dnarch(
        base, "KRWD", 1, 3, (16,), omega_0=5.0, stream=True, hidden=8, key=jr.key(key)
    )
    (model, masks), (fresh, large) = made(nn.Base(1, 6), 0), made(nn.Base(2, 10), 5)
    x, optim = jr.normal(jr.key(1), (8, 1, 16)), dn.adamw(1e-2, steps=100)
    loss = lambda net, x, key: jnp.mean((jax.vmap(net, axis_name="batch")(x) - 1) ** 2)
    learner = dn.Learner(loss, optim, nn.axes(model))
    state = learner.init(model, masks)
    for _ in range(2):
        state, _ = learner.step(state, x, {})
    outputs = lambda state, axes: jax.vmap(
        dn.materialize(state.model, axes, state.masks, {}), axis_name="batch"
    )(x)
    wanted = outputs(state, nn.axes(model))
    added = {axis: mask for axis, mask in large.items() if axis not in masks}
    state = grow(state, nn.axes(fresh), fresh, optim, masks=added)
    np.testing.assert_allclose(outputs(state, nn.axes(fresh)), wanted, rtol=0, atol=1e-12)
    assert {axis: mask.capacity for axis, mask in state.masks.items()} == {
        axis: mask.capacity for axis, mask in large.items()
    }
    cost = nn.complexity(fresh)
    budget = dn.Budget(cost, nn.base_sizes(fresh, nn.Base(2, 10)), steps=10)
    learner = dn.Learner(loss, optim, nn.axes(fresh))
    learner.budget, info = budget.resolved(state.masks), None
    for _ in range(12):
        state, info = learner.step(state, x, {})
    assert info is not None and float(info.complexity) == pytest.approx(1, abs=0.01)
    assert dn.exact(state.masks)["depth"] == 2


def test_who_presses_and_who_has_slack():
    masks: Any = {
        "open": dn.Sigmoid(64),
        "near": dn.Sigmoid(64, size=61.0),
        "half": dn.Sigmoid(64, size=30.0),
        "few": dn.Sigmoid(64, size=9.0),
        "kernel": dn.Gaussian(9, size=9.0),
        "depth": dn.Sigmoid(4, size=4.0),
    }
    assert pressing(masks) == {"open": 96, "near": 96, "kernel": 15, "depth": 5}
    rules = {"depth": dn.ladders.multiples(2), "*": dn.ladders.geometric(2, 8)}
    some = {axis: masks[axis] for axis in ("open", "depth")}
    assert pressing(some, rules=rules) == {"open": 128, "depth": 6}
    assert pressing(some, limits={"open": 80, "d*": 4}) == {"open": 80}
    assert slack(masks) == {"half": 40, "few": 16}
    assert slack([{"half": dn.Sigmoid(64, size=50.0)}, masks]) == {"few": 16}
    assert slack(masks, headroom=0.0) == {"half": 40, "few": 16}
    with pytest.raises(ValueError, match="`limits` has 60 for axis 'open', below its capacity"):
        pressing(some, limits={"open": 60})
    with pytest.raises(ValueError, match=r"`share` must lie in \(0, 1\], got 1.5"):
        pressing(masks, share=1.5)


@pytest.mark.parametrize("n", [33, 100])
@pytest.mark.parametrize("make", [dn.Sigmoid, dn.Gaussian])
def test_values_stay_where_they_are(make, n, x64):
    """On an axis of any other capacity, with any size; their numbers are those of one made."""
    for size in (5.0, 7.3, 13.0, 15.0):
        mask = make(15, size=size)
        n += make is dn.Gaussian and n % 2 == 0
        other = extended(mask, n)
        window = other.window(15)
        np.testing.assert_allclose(other()[window], mask(), atol=1e-13)
        np.testing.assert_allclose(other.size(), mask.size())
        assert int(other.active()) == int(mask.active())
        assert jtu.tree_structure(other) == jtu.tree_structure(make(n))
        np.testing.assert_allclose(other.made, make(n).made)


#
# What is refused.
#


PAIR = eqx.nn.make_with_state(eqx.nn.Identity)()


def test_errors():
    state, axes, optim = trained("mlp", 0.6)
    large = {"h0": 24, "h1": 40}
    fresh = made("mlp", large, 9)

    def refused(match, function, *args, **kwargs):
        with pytest.raises(ValueError, match=match):
            function(*args, **kwargs)

    smaller = made("mlp", {"h0": 8, "h1": 40}, 9)
    refused(
        r"'h0' has capacity 16, and is to have 8.*dn.compact", grow, state, axes, smaller, optim
    )
    other = eqx.tree_at(lambda m: m.layers[3].weight, fresh, jnp.zeros((4, 40)))
    refused(
        r"at '.layers\[3\].weight' .*shape \(4, 40\) where", grow, state, axes, other, optim
    )
    other = eqx.tree_at(lambda m: m.layers[3].bias, fresh, None)
    refused(
        r"`fresh`: '.layers\[3\].bias' is neither an array",
        grow,
        state,
        axes,
        other,
        optim,
    )
    longer = eqx.nn.Sequential([*fresh, eqx.nn.Identity()])
    refused("at '.layers' it has 5 where the model has 4", grow, state, axes, longer, optim)
    refused("`optim` is not the optimizer", grow, state, axes, fresh, optax.sgd(0.1, 0.9))
    refused("`optim` is needed", grow, state, axes, fresh)
    refused("`state` must be a `dn.State`", grow, state.model, axes, fresh)
    refused("`masks` has one for axis 'h0'", grow, state, axes, fresh, optim, masks=state.masks)
    refused(
        "capacities.*50 for axis 'h0'", grow, state, axes, fresh, optim, capacities={"h0": 50}
    )
    refused("names 'x'", grow, state, axes, fresh, optim, capacities={"x": 50})
    refused("must be a dictionary", grow, state, axes, fresh, optim, capacities=[("h0", 20)])
    refused("`fresh` must be the model alone", grow, state, axes, PAIR, optim)
    only = (state.model, {"h0": state.masks["h0"]})
    refused("'h1' has no mask, and cannot change from 12 to 40", grow, only, axes, fresh)
    away = {path: spec for path, spec in axes.items() if "h1" not in repr(spec)}
    refused("'h1' has a mask, but lies nowhere in `fresh`", grow, state, away, fresh, optim)
    refused("traced", jax.jit(lambda m: grow((m, {}), {}, m)), state.model.layers[0].weight)

    refused("how a object is extended .* `dn.extended.register`", extended, object(), 20)
    refused(
        "`capacities` has 5 for axis 'h0', of whose 16", compact, state, axes, optim, {"h0": 5}
    )
    refused("must lie between", compact, state, axes, optim, {"h0": 17})
    refused("names 'x', which has no mask", compact, state, axes, optim, {"x": 4})
    kernel, where, _ = trained("kernel", 0.6)
    refused("must be odd and at least 3, not 4", compact, kernel, where, optim, {"k": 4})
    refused("must be odd", grow, kernel, where, made("kernel", {"k": 8}, 9), optim)
    heads, where, _ = trained("attention", 0.6)
    large = CASES["attention"][3]
    refused("Here: give `capacities`", grow, heads, where, made("attention", large, 9), optim)
