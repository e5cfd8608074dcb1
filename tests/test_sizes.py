import math
from typing import Any

import equinox as eqx
import hypothesis as hp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import pytest
from helpers import entered, mlp_axes as axes_of, moved

import dnarch_eqx as dn


few = hp.settings(max_examples=30, deadline=None, derandomize=True)


def some_masks():
    return {
        "width": dn.Sigmoid(64, size=40.0),
        "depth": dn.Sigmoid(8, size=4.0, temperature=8.0),
        "kernel": dn.Gaussian(33, size=11.0),
    }


def operations(sizes):
    return sizes["depth"] * (sizes["width"] ** 2 + sizes["width"] * sizes["kernel"])


#
# Dictionaries of masks.
#


def test_sizes():
    sizes = dn.sizes(some_masks())
    assert list(sizes) == ["width", "depth", "kernel"]
    assert np.allclose(
        [sizes["width"], sizes["depth"], sizes["kernel"]], [40, 4, 11], rtol=1e-6
    )
    assert dn.sizes({}) == {}


def test_active():
    masks = some_masks()
    # Eq. 3 and 4 in numpy: the positions whose value is at or above 0.1.
    at = lambda n: -1 + 2 * (np.arange(n) + 1e-3) / n
    depth = 1 / (1 + np.exp(-8.0 * (-math.log(9) / 8 - at(8))))
    width = at(64) <= 40 / 32 - 1
    kernel = np.abs(np.linspace(-1, 1, 33)) <= 11 / 32
    wanted = {"width": width.sum(), "depth": (depth >= 0.1).sum(), "kernel": kernel.sum()}
    found = dn.active(masks)
    assert {axis: int(n) for axis, n in found.items()} == wanted
    assert dn.active({}) == {}


def test_project():
    masks = {
        "width": moved(dn.Sigmoid(280, size=140.0), "offset", -5.0),
        "kernel": moved(dn.Gaussian(33), "sigma", -5.0),
    }
    projected = dn.project(masks)
    assert np.isclose(float(projected["width"].size()), 28.79, atol=0.005)
    assert projected["kernel"].active() == 3
    assert eqx.tree_equal(dn.project(projected), projected)


def test_sizes_have_gradients_and_active_counts_have_none():
    masks = some_masks()
    gradient = jax.grad(lambda m: sum(dn.sizes(m).values()))(masks)
    # By hand: half a capacity per unit of offset, 32 * sqrt(-2 ln 0.1) per unit of sigma.
    found = (gradient["width"].offset, gradient["depth"].offset, gradient["kernel"].sigma)
    assert np.allclose(found, (32, 4, 32 * math.sqrt(2 * math.log(10))), rtol=1e-5)
    assert all(jnp.issubdtype(n.dtype, jnp.integer) for n in dn.active(masks).values())


@pytest.mark.parametrize(
    "depth, wanted",
    (
        (0.0, (0, 0, 0, 0)),
        (2.0, (1, 1, 0, 0)),
        (2.75, (1, 1, 0.75, 0)),
        (9.5, (1, 1, 1, 1)),
    ),
)
def test_present(depth, wanted):
    assert np.allclose(dn.present(depth, 4), wanted)
    assert np.allclose(dn.present(jnp.array(depth), 4), wanted)


@few
@hp.given(st.floats(0, 6))
def test_present_blocks_sum_to_the_depth(depth):
    assert np.isclose(dn.present(depth, 6).sum(), depth, atol=1e-5)


def test_gradient_of_present():
    slopes = jax.jacobian(lambda depth: dn.present(depth, 4))(jnp.array(2.75))
    assert slopes.tolist() == [0, 0, 1, 0]


#
# Budget.
#


@pytest.mark.parametrize("target, weight", ((6000.0, 0.1), (12000.0, 5.0), (8160.0, 1.0)))
def test_budget(target, weight, x64):
    masks = some_masks()
    budget = dn.Budget(operations, target, weight)
    complexity = 4 * (40**2 + 40 * 11)  # 8160
    assert np.isclose(budget.complexity(masks), complexity / target, rtol=1e-12)
    wanted = weight * (complexity / target - 1) ** 2
    assert np.isclose(budget(masks), wanted, rtol=1e-9, atol=1e-18)
    assert np.isclose(eqx.filter_jit(budget)(masks), wanted, rtol=1e-9, atol=1e-18)


def test_default_weight_is_the_papers():
    assert np.isclose(
        float(dn.Budget(operations, 4080.0, hold="penalty")(some_masks())), 0.1, rtol=1e-5
    )


@pytest.mark.parametrize(
    "axis, name", (("width", "offset"), ("depth", "offset"), ("kernel", "sigma"))
)
def test_gradient_of_budget(axis, name, x64):
    masks = some_masks()
    budget = dn.Budget(operations, 6000.0, 5.0)
    loss = lambda x: float(budget(masks | {axis: moved(masks[axis], name, x)}))
    at = float(getattr(masks[axis], name))
    central = (loss(at + 1e-6) - loss(at - 1e-6)) / 2e-6
    found = getattr(jax.grad(budget)(masks)[axis], name)
    assert abs(central) > 1
    assert np.isclose(found, central, rtol=1e-6)


def test_gradient_passes_at_the_capacity():
    # All masks are clipped to their capacities: the budget still pulls on them.
    masks = {
        "width": moved(dn.Sigmoid(64, size=40.0), "offset", 9.0).project(),
        "depth": moved(dn.Sigmoid(8, size=4.0, temperature=8.0), "offset", 9.0).project(),
        "kernel": moved(dn.Gaussian(33, size=11.0), "sigma", 9.0).project(),
    }
    base = operations({"width": 32, "depth": 4, "kernel": 11})
    budget = dn.Budget(operations, base, 0.1)
    assert np.isclose(
        float(budget.complexity(masks)),
        8 * (64**2 + 64 * 33) / (4 * (32**2 + 32 * 11)),
        rtol=1e-5,
    )
    gradient = jax.grad(budget)(masks)
    assert gradient["width"].offset > 0
    assert gradient["depth"].offset > 0
    assert gradient["kernel"].sigma > 0


@pytest.mark.parametrize("wanted", ({"width": 40.0, "depth": 4.0, "kernel": 11.0}, "numbers"))
def test_target_from_sizes(wanted):
    masks = some_masks()
    if wanted == "numbers":
        wanted = {"width": 40, "depth": jnp.array(4.0), "kernel": np.float32(11)}
    budget = dn.Budget(operations, wanted)
    assert budget.target == 8160
    assert np.isclose(float(budget.complexity(masks)), 1, rtol=1e-5)
    assert float(budget(masks)) < 1e-9
    # A plan is a mapping too.
    assert dn.Budget(operations, dn.Plan({"width": 10, "depth": 2, "kernel": 5})).target == 300


def test_budget_trains_masks_only():
    budget = dn.Budget(operations, 6000.0, 0.1)
    both = lambda pair: pair[0](pair[1])
    gradient, of_masks = eqx.filter_grad(both)((budget, some_masks()))
    assert gradient.target == 0 and gradient.weight == 0
    assert all(
        getattr(of_masks[axis], name) != 0
        for axis, name in (("width", "offset"), ("depth", "offset"), ("kernel", "sigma"))
    )


def test_annealing_a_budget_does_not_retrace():
    traces = 0

    @eqx.filter_jit
    def loss(budget, masks):
        nonlocal traces
        traces += 1
        return budget(masks)

    masks = some_masks()
    values = [loss(dn.Budget(operations, 6000.0, weight), masks) for weight in (0.1, 0.2, 1.0)]
    assert np.allclose(np.array(values) / values[0], [1, 2, 10], rtol=1e-5)
    assert traces == 1
    assert not any(
        x.weak_type for x in jtu.tree_leaves(dn.Budget(operations, 3)) if eqx.is_array(x)
    )


@pytest.mark.parametrize(
    "target", (0.0, 0, -3.0, math.nan, {"width": 0, "depth": 1, "kernel": 1})
)
def test_target_must_be_positive(target):
    with pytest.raises(
        ValueError, match="`target` must be a positive, finite number, got (0|-3.0|nan)"
    ):
        dn.Budget(operations, target)


@pytest.mark.parametrize("weight", (-0.1, math.nan, math.inf))
def test_weight_must_not_be_negative(weight):
    with pytest.raises(
        ValueError, match=f"`weight` must be a finite number of at least 0, got {weight}"
    ):
        dn.Budget(operations, 1.0, weight)


def test_target_and_weight_are_numbers():
    with pytest.raises(ValueError, match="`target` must be a number"):
        dn.Budget(operations, jnp.ones(2))
    with pytest.raises(ValueError, match="`weight` must be a number"):
        dn.Budget(operations, 1.0, jnp.ones(2))
    assert dn.Budget(operations, 1.0, 0.0)(some_masks()) == 0


def test_target_is_finite():
    with pytest.raises(ValueError, match="`target` must be a.* number, got inf"):
        dn.Budget(operations, math.inf)


#
# The number of parameters, against networks that were made.
#


def mlp_axes(mlp):
    return axes_of(mlp, ["h0", "h1"])


def held(tree):
    return sum(np.asarray(x).size for x in jtu.tree_leaves(eqx.filter(tree, eqx.is_array)))


@pytest.mark.parametrize(
    "h0, h1", ((24.0, 24.0), (12.0, 12.0), (3.0, 20.0), (23.5, 2.6), (7.7, 9.1))
)
def test_parameter_cost_of_materialized_networks(h0, h1, getkey):
    mlp = eqx.nn.MLP(5, 3, width_size=24, depth=2, key=getkey())
    axes = mlp_axes(mlp)
    masks: dn.Masks = {"h0": dn.Sigmoid(24, size=h0), "h1": dn.Sigmoid(24, size=h1)}
    plan = dn.exact(masks)
    net = dn.materialize(mlp, axes, masks, plan)
    assert net.layers[1].weight.shape == (plan["h1"], plan["h0"])
    assert net(jnp.ones(5)).shape == (3,)
    cost = dn.parameter_cost(mlp, axes)
    assert cost(plan) == held(net) == dn.parameters(net)
    # At the continuous sizes, by hand.
    by_hand = h0 * 5 + h0 + h1 * h0 + h1 + 3 * h1 + 3
    assert np.isclose(float(cost(dn.sizes(masks))), by_hand, rtol=1e-5)


def test_parameter_cost_of_a_whole_network(getkey):
    mlp = eqx.nn.MLP(5, 3, width_size=24, depth=2, key=getkey())
    cost = dn.parameter_cost(mlp, mlp_axes(mlp))
    assert cost({}) == held(mlp)
    # One axis at its capacity for want of a size.
    masks: dn.Masks = {"h0": dn.Sigmoid(24, size=10.0)}
    net = dn.materialize(mlp, mlp_axes(mlp), masks, dn.Plan({"h0": 16}))
    assert cost({"h0": 16}) == held(net)


def test_gradient_of_parameter_cost(getkey):
    mlp = eqx.nn.MLP(5, 3, width_size=24, depth=2, key=getkey())
    cost = dn.parameter_cost(mlp, mlp_axes(mlp))
    gradient = jax.grad(cost)({"h0": jnp.array(10.0), "h1": jnp.array(8.0)})
    assert gradient == {"h0": 5 + 1 + 8, "h1": 10 + 1 + 3}


@pytest.mark.parametrize("kept", (1, 2, 4))
def test_parameter_cost_of_a_depth(kept, getkey):
    blocks = [eqx.nn.Linear(6, 6, key=getkey()) for _ in range(4)]
    axes = dn.declare(blocks, lambda m: m, dn.Axes("depth"))
    masks: dn.Masks = {
        "depth": dn.Sigmoid(4, size=max(float(kept) - 0.1, 1.3), temperature=8.0)
    }
    net, _ = dn.materialize(
        *entered(blocks, axes, masks), masks, dn.Plan({"depth": kept}), check_coverage=False
    )
    cost = dn.parameter_cost(blocks, axes)
    assert len(net) == kept
    assert cost({"depth": kept}) == held(net) == kept * 42
    assert np.isclose(float(cost({"depth": kept - 0.25})), (kept - 0.25) * 42)


#
# A budget as data: only its cost is static.
#


def test_budget_inside_jit():
    masks = some_masks()
    make = lambda target, weight: dn.Budget(operations, target, weight)
    inside = jax.jit(lambda *numbers: make(*numbers)(masks))
    for numbers in ((6000.0, 0.1), (9000.0, 5.0)):
        assert np.isclose(inside(*numbers), make(*numbers)(masks), rtol=1e-5)
    # So are the sizes of a base network.
    of = jax.jit(
        lambda width: dn.Budget(operations, {"width": width, "depth": 4, "kernel": 11}).target
    )
    assert of(40.0) == 8160
    with pytest.raises(ValueError, match="`target` must be a number"):
        jax.jit(lambda target: make(target, 0.1).target)(jnp.ones(2))


def test_only_the_cost_of_a_budget_is_static():
    arrays, static = eqx.partition(dn.Budget(operations, 3.0), eqx.is_array)
    assert len(jtu.tree_leaves(arrays)) == 3 and not jtu.tree_leaves(static)
    again: Any = lambda sizes: operations(sizes)
    other = dn.Budget(again, 3.0)
    assert jtu.tree_structure(other) != jtu.tree_structure(dn.Budget(operations, 3.0))


@pytest.mark.parametrize("axis", ("width", "depth", "kernel"))
def test_what_a_budget_can_reach(axis):
    """By moving the masks as far as they go."""
    masks = some_masks()
    if axis != "kernel":
        masks["kernel"] = dn.Gaussian(33, size=11.0, learn=())  # its size stays
    cost: Any = lambda sizes: sizes[axis] + 0.0 * sizes["width"]
    lowest, highest = dn.Budget(cost, 4.0).reachable(masks)
    name = "sigma" if axis == "kernel" else "offset"
    far = [float(moved(masks[axis], name, to).project().size()) / 4 for to in (-9.0, 9.0)]
    assert np.allclose((lowest, highest), far, rtol=1e-5)
    assert lowest < dn.Budget(cost, 4.0).complexity(masks) < highest
    of_kernel: Any = lambda sizes: sizes["kernel"]
    fixed = dn.Budget(of_kernel, 11.0).reachable(masks)
    assert np.allclose(fixed, 1, rtol=1e-5) == (axis != "kernel")
