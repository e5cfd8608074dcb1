import equinox as eqx
import jax
import jax.tree_util as jtu
import pytest
from helpers import alike, close, filled, mlp_axes, noise, width

import dnarch_eqx as dn


@pytest.fixture
def mlp(getkey):
    mlp = filled(lambda k: eqx.nn.MLP(3, 2, width_size=16, depth=2, key=k), getkey())
    masks: dn.Masks = {"h0": width(16, 8.3), "h1": width(16, 5.0)}
    return mlp, mlp_axes(mlp, ["h0", "h1"]), masks


def test_result_has_the_arrays_of_its_plan_and_no_masks(mlp, getkey):
    mlp, axes, masks = mlp
    net = dn.materialize(mlp, axes, masks, dn.Plan({"h0": 12, "h1": 8}))
    assert type(net) is eqx.nn.MLP
    shapes = [layer.weight.shape for layer in net.layers]
    assert shapes == [(12, 3), (8, 12), (2, 8)]
    assert [(n.out_features, n.in_features) for n in net.layers] == shapes
    assert [x.shape for x in jtu.tree_leaves(net)[1:6:2]] == [(12,), (8,), (2,)]
    is_mask = lambda x: isinstance(x, dn.AbstractMask)
    assert not any(map(is_mask, jtu.tree_leaves(net, is_leaf=is_mask)))
    # An axis without a bucket is at its capacity, one without a mask is not learned.
    net = dn.materialize(mlp, axes, masks, {"h0": 12})
    assert [layer.weight.shape for layer in net.layers] == [(12, 3), (16, 12), (2, 16)]
    alike(dn.materialize(mlp, axes, {}, {}), mlp)
    one = {"h0": masks["h0"]}
    net = dn.materialize(mlp, axes, one, {"h0": 12})
    assert [layer.weight.shape for layer in net.layers] == [(12, 3), (16, 12), (2, 16)]


def test_plans_that_do_not_cover(mlp, getkey):
    mlp, axes, masks = mlp
    x = noise(getkey(), 3)
    with pytest.raises(ValueError, match=r"not cover .*'h0' \(bucket 8, 9 active\)\. Make"):
        dn.materialize(mlp, axes, masks, {"h0": 8, "h1": 8})
    assert dn.materialize(mlp, axes, masks, {"h0": 8}, check_coverage=False)(x).shape == (2,)

    @eqx.filter_jit
    def run(mlp, masks, plan):
        return dn.materialize(mlp, axes, masks, plan)(x)

    with jax.debug_nans(False), pytest.raises(RuntimeError, match="`plan` does not cover"):
        jax.block_until_ready(run(mlp, masks, dn.Plan({"h0": 8})))
    plan = dn.Plan({"h0": 9})
    close(run(mlp, masks, plan), dn.materialize(mlp, axes, masks, plan)(x))


def test_plans_of_other_axes_and_sizes(mlp):
    mlp, axes, masks = mlp
    for function in (dn.materialize, dn.freeze):
        with pytest.raises(ValueError, match="bucket for 'h2', which has no mask"):
            function(mlp, axes, masks, {"h0": 16, "h2": 4})
        with pytest.raises(ValueError, match="bucket 17 for axis 'h0', whose capacity is 16"):
            function(mlp, axes, masks, {"h0": 17})
        with pytest.raises(ValueError, match=r"(?=.*'h0').*bucket.*\b0\b"):
            function(mlp, axes, masks, {"h0": 0})
        with pytest.raises(ValueError, match="but no array lies on it"):
            function(mlp, axes, masks | {"h2": masks["h0"]}, {})
