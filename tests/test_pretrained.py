"""Trained networks and small ones: importance, order, what is put into a larger capacity."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from equinox.nn import Linear

import dnarch_eqx as dn
from dnarch_eqx import Axes, concatenated, fused, gated


@pytest.fixture(autouse=True)
def as_users_have_it(unchecked):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def pair():
    a, b = jr.split(jr.key(0))
    return Linear(3, 6, key=a), Linear(6, 2, key=b)


def run(net, x):
    return net[1](jnp.tanh(net[0](x)))


AXES = {
    "[0].weight": Axes("h", None),
    "[0].bias": Axes("h"),
    "[1].weight": Axes(None, gated("h")),
}


def test_first_order_importance_is_the_squared_derivative_by_a_factor(x64):
    net, masks = pair(), {"h": dn.Sigmoid(6)}
    batches = [jr.normal(jr.key(i), (4, 3)) for i in range(2)]
    loss = lambda net, x, key: jnp.mean(jax.vmap(lambda x: run(net, x))(x) ** 3)
    given = dn.importance(net, AXES, masks, loss, batches)["h"]

    def scaled(i, factor):
        weight = net[1].weight.at[:, i].multiply(factor)
        return eqx.tree_at(lambda net: net[1].weight, net, weight)

    eps, wanted = 1e-5, np.zeros(6)
    for x in batches:
        for i in range(6):
            up, down = (float(loss(scaled(i, 1 + s * eps), x, None)) for s in (1, -1))
            wanted[i] += ((up - down) / (2 * eps)) ** 2 / len(batches)
    np.testing.assert_allclose(given, wanted, rtol=1e-6)


def test_norms_of_weights_by_hand():
    net, masks = pair(), {"h": dn.Sigmoid(6)}
    given = dn.importance(net, AXES, masks)["h"]
    squares = [
        np.sum(np.asarray(net[0].weight) ** 2, 1),
        np.asarray(net[0].bias) ** 2,
        np.sum(np.asarray(net[1].weight) ** 2, 0),
    ]
    np.testing.assert_allclose(given, np.mean([s / s.mean() for s in squares], 0), rtol=1e-5)


def test_first_order_importance_needs_batches():
    with pytest.raises(ValueError, match="`batches` is empty"):
        dn.importance(pair(), AXES, {"h": dn.Sigmoid(6)}, lambda net, x, key: jnp.zeros(()))


def test_the_most_important_come_first_on_all_arrays():
    net: Any = pair()
    found = dn.find_axes(net, jnp.ones(3), call=run)
    (name,) = found.axes
    scores = np.array([0.1, 3.0, 0.2, 2.0, 0.0, 1.0])
    order = [1, 3, 5, 2, 0, 4]
    ordered = found.ordered(net, {name: scores})
    np.testing.assert_array_equal(ordered[0].weight, net[0].weight[np.array(order)])
    np.testing.assert_array_equal(ordered[0].bias, net[0].bias[np.array(order)])
    np.testing.assert_array_equal(ordered[1].weight, net[1].weight[:, np.array(order)])
    with pytest.raises(ValueError, match=r"shape \(5,\) for axis .* which has 6 positions"):
        found.ordered(net, {name: scores[:5]})
    with pytest.raises(ValueError, match="No axis matches 'other'"):
        found.ordered(net, {"other": scores})


def test_masks_are_divided_out_where_they_are_active():
    net, masks = pair(), {"h": dn.Sigmoid(6, size=4.0)}
    values = np.asarray(masks["h"](6))
    given = dn.pretrained(net, AXES, masks)
    active = values > 0
    assert 0 < active.sum() < 6
    scale = np.where(active, 1 / np.where(active, values, 1), 1)
    np.testing.assert_allclose(given[1].weight, net[1].weight * scale, rtol=1e-6)
    np.testing.assert_array_equal(given[0].weight, net[0].weight)


def test_a_mask_is_as_large_as_it_counts():
    """Within one position, from the capacity down."""
    mask = dn.Sigmoid(64)
    assert int(mask.active()) == 64 and float(mask.size()) == 64.0
    assert float(mask.at(jnp.ones(1))[0]) == pytest.approx(0.85, abs=1e-3)
    for offset in np.linspace(0.9, -0.8, 30):
        moved = eqx.tree_at(lambda m: m.offset, mask, jnp.asarray(offset, jnp.float32))
        assert 0 <= int(moved.active()) - float(moved.size()) <= 1.0


MASKS = {"a": dn.Sigmoid(4, size=2.0), "b": dn.Sigmoid(5, size=3.0)}
PLAN = {"a": 2, "b": 3}


@pytest.mark.parametrize(
    "spec, kept",
    [
        (Axes("a", None), np.ix_(range(2), range(20))),
        (Axes("a", fused("a", "b")), np.ix_(range(2), [0, 1, 2, 5, 6, 7])),
        (Axes(None, fused("b", 4)), np.ix_(range(4), range(12))),
        (
            Axes(None, concatenated("a", fused(2, "b"), 6)),
            np.ix_(range(4), [0, 1, 4, 5, 6, 9, 10, 11, 14, 15, 16, 17, 18, 19]),
        ),
    ],
)
def test_what_is_embedded_lies_where_it_was_cut_out(spec, kept):
    full = (jnp.arange(80.0).reshape(4, 20), jnp.arange(20.0).reshape(4, 5))
    axes = {"[0]": spec, "[1]": Axes(gated("a"), gated("b"))}
    small, _ = dn.materialize(full, axes, MASKS, PLAN)
    wanted = np.array(full[0])
    wanted[kept] = -np.asarray(small)
    given = dn.embed((-small, full[1][:2, :3]), full, axes, MASKS, PLAN)
    np.testing.assert_array_equal(given[0], wanted)
    np.testing.assert_array_equal(given[1], full[1])
    with pytest.raises(ValueError, match=r"'\[0\]' of `small` has shape"):
        dn.embed((small[:1], full[1]), full, axes, MASKS, PLAN)


def test_a_small_network_in_a_larger_capacity_is_the_same(x64):
    a, b = jr.split(jr.key(1))
    small, large = (Linear(3, 3, key=a), Linear(3, 2, key=b)), pair()
    masks = {"h": dn.Sigmoid(6, size=3.0)}
    plan = dn.exact(masks)
    assert plan["h"] == 3
    grown = dn.embed(small, large, AXES, masks, plan)
    net = dn.materialize(dn.pretrained(grown, AXES, masks), AXES, masks, {})
    x = jnp.array([0.3, -1.0, 2.0])
    np.testing.assert_allclose(run(net, x), run(small, x), rtol=1e-12)
