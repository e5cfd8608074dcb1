import equinox as eqx
import jax.numpy as jnp
import pytest
from helpers import entered

import dnarch_eqx as dn


class Net(eqx.Module):
    """Two linears, a sequence of blocks, a gate, and an array of integers."""

    first: eqx.nn.Linear
    second: eqx.nn.Linear
    blocks: list[eqx.nn.Linear]
    depth: dn.Gate
    table: dict
    index: object

    def __init__(self, key):
        self.first = eqx.nn.Linear(3, 8, key=key)
        self.second = eqx.nn.Linear(8, 2, use_bias=False, key=key)
        self.blocks = [eqx.nn.Linear(2, 2, key=key) for _ in range(4)]
        self.depth = dn.Gate("depth", 4)
        self.table = {"a": jnp.ones((6, 5))}
        self.index = jnp.arange(8)


@pytest.fixture
def net(getkey):
    return Net(getkey())


HIDDEN = {
    ".first.weight": dn.Axes("h", None),
    ".first.bias": dn.Axes("h"),
    ".second.weight": dn.Axes(None, dn.gated("h")),
}


def test_declare_gives_paths(net):
    axes = dn.declare(
        net,
        lambda m: (m.first.weight, m.first.bias, m.second.weight),
        (dn.Axes("h", None), dn.Axes("h"), dn.Axes(None, dn.gated("h"))),
    )
    assert axes == HIDDEN


def test_declare_one_node_and_sequences(net):
    one = dn.declare(net, lambda m: m.table["a"], dn.Axes("rows", None))
    assert one == {".table['a']": dn.Axes("rows", None)}
    blocks = dn.declare(net, lambda m: m.blocks, dn.Axes("depth"))
    assert blocks == {".blocks": dn.Axes("depth")}
    inner = dn.declare(net, lambda m: [b.weight for b in m.blocks], [dn.Axes("o", None)] * 4)
    assert list(inner) == [f".blocks[{i}].weight" for i in range(4)]


def test_declare_of_a_bare_array_or_list(getkey):
    assert dn.declare(jnp.ones(3), lambda m: m, dn.Axes("n")) == {"": dn.Axes("n")}
    layers = [eqx.nn.Linear(2, 2, key=getkey()) for _ in range(3)]
    assert dn.declare(layers, lambda m: m, dn.Axes("depth")) == {"": dn.Axes("depth")}


def test_declare_skips_absent_biases(net):
    axes = dn.declare(
        net, lambda m: (m.second.weight, m.second.bias), (dn.Axes("o", None), dn.Axes("o"))
    )
    assert axes == {".second.weight": dn.Axes("o", None)}
    assert dn.declare(net, lambda m: m.second.bias, dn.Axes("o")) == {}


def test_axis_maps_join(net):
    one = dn.declare(net, lambda m: m.first.weight, dn.Axes("h", None))
    other = dn.declare(net, lambda m: m.blocks, dn.Axes("depth"))
    both = one | other
    assert dn.capacities(net, both) == {"h": 8, "depth": 4}
    assert dn.capacities(net, one) == {"h": 8, "depth": 4}, "the gate claims its axis itself"


@pytest.mark.parametrize(
    "where, axes, message",
    [
        (lambda m: (m.first.weight,), [dn.Axes("h", None)] * 2, "gives 1 but `axes` has 2"),
        (lambda m: m.first.weight, [dn.Axes("h", None)] * 2, "gives one node but .* has 2"),
        (lambda m: 3, dn.Axes("h"), "gives 3, which is no node of `model`"),
        (lambda m: [], dn.Axes("h"), r"gives \[\], which is no node of `model`"),
        # Not a node of the model: a new list. To take all of `blocks` would be a guess.
        (lambda m: m.blocks[1:], dn.Axes("depth"), "no node of `model`"),
        (lambda m: (m.first.weight, m.second.weight), dn.Axes("h", None), "no node|one each"),
        # One array twice: which of the two is meant?
        (
            lambda m: (m.first.weight, m.first.weight),
            [dn.Axes("h", None), dn.Axes(None, "i")],
            "twice",
        ),
    ],
)
def test_declare_errors(net, where, axes, message):
    with pytest.raises(ValueError, match=message):
        dn.declare(net, where, axes)


def test_gate_needs_a_position():
    with pytest.raises(ValueError, match="`size` must be a positive integer, got 0"):
        dn.Gate("d", 0)


def test_gate_is_ones_until_materialized():
    gate = dn.Gate("depth", 4)
    assert gate().tolist() == [1.0] * 4
    mask = dn.Sigmoid(4, size=2.0, temperature=8.0)
    values = dn.materialize(gate, {}, {"depth": mask}, {"depth": 3})
    assert values().tolist() == mask()[:3].tolist() and values.size == 3


#
# What the declarations amount to.
#


@pytest.mark.parametrize(
    "dims, capacities",
    [
        ((dn.fused(2, "r"), "c"), {"r": 3, "c": 5}),
        ((dn.fused("r", 3), dn.gated("c")), {"r": 2, "c": 5}),
        ((dn.fused("r", dn.gated("c")), "c"), None),  # 6 is no multiple of 5
        ((dn.fused("m", "h"), None), None),  # two unknowns
        ((dn.fused(2, 3), "c"), {"c": 5}),
    ],
)
def test_capacities_of_fused(net, dims, capacities):
    axes = {".table['a']": dn.Axes(*dims)}
    if capacities is None:
        with pytest.raises(ValueError, match=r"dimension 0 of \"\.table\['a'\]\""):
            dn.capacities(net, axes)
    else:
        assert dn.capacities(net, axes) == {"depth": 4} | capacities


def test_fused_is_told_apart_by_other_arrays_and_by_masks(net):
    axes = {".table['a']": dn.Axes(dn.fused("m", "n"), None)}
    with pytest.raises(ValueError, match="cannot be told apart. Give masks .* for all but one"):
        dn.capacities(net, axes)
    mask = dn.Sigmoid(3, temperature=8.0)
    assert dn.capacities(net, axes, {"n": mask}) == {"m": 2, "n": 3, "depth": 4}
    other = eqx.tree_at(lambda m: m.index, net, jnp.arange(2))
    assert dn.capacities(other, axes | {".index": dn.Axes("m")})["n"] == 3


def test_fused_that_does_not_multiply(net):
    axes = {".table['a']": dn.Axes(dn.fused(4, "n"), None)}
    with pytest.raises(ValueError, match=r"dimension 0 of .*table.* has size 6, which .*4"):
        dn.capacities(net, axes)
    axes = {".table['a']": dn.Axes(dn.fused(2, 2), None)}
    with pytest.raises(ValueError, match="has size 6"):
        dn.capacities(net, axes)


@pytest.mark.parametrize(
    "axes, message",
    [
        ({".third": dn.Axes("h")}, r"declares '\.third', which is no path in `model`"),
        ({".first.weight": dn.Axes("h")}, r"'\.first\.weight' has 2 dimensions, \(8, 3\)"),
        ({".first": dn.Axes("h")}, r"'\.first' is neither an array nor a sequence"),
        ({".blocks": dn.Axes("depth", None)}, "sequence of 4 modules: .* must be one name"),
        ({".blocks": dn.Axes(dn.fused("depth", 2))}, "its axes must be one name, or `gated"),
        ({".layers": dn.Axes(dn.gated("d"))}, r"'\.layers', which is no path"),
        (
            {".first.weight": dn.Axes("h", None), ".second.weight": dn.Axes("h", None)},
            r"'h' has capacity 8 by .*'\.first\.weight', but 2 by .*'\.second\.weight'",
        ),
        (
            {".first.bias": dn.Axes("depth")},
            r"'depth' has capacity 8 by .*'\.first\.bias', but 4 by the gate at '\.depth'",
        ),
    ],
)
def test_layout_errors(net, axes, message):
    with pytest.raises(ValueError, match=message):
        dn.capacities(net, axes)
    with pytest.raises(ValueError, match=message):
        dn.check(net, axes, {})
    with pytest.raises(ValueError, match=message):
        dn.parameter_cost(net, axes)


def test_check_of_masks(net):
    h: dn.AbstractMask = dn.Sigmoid(8, size=4.0)
    dn.check(net, HIDDEN, {"h": h})
    with pytest.raises(
        ValueError, match=r"axis 'w', but no array lies on it.*\['depth', 'h'\]"
    ):
        dn.check(net, HIDDEN, {"h": h, "w": h})
    with pytest.raises(ValueError, match="'h' has capacity 8 .* but 9 by its mask"):
        dn.check(net, HIDDEN, {"h": dn.Sigmoid(9, size=4.0)})
    with pytest.raises(ValueError, match="'depth' has capacity 4 by the gate.* 8 by its mask"):
        dn.check(net, HIDDEN, {"depth": h})


def test_check_of_a_mask_against_a_fused_dimension(net):
    # The parts with masks of 2 and 4 make 8, not 6.
    axes = {".table['a']": dn.Axes(dn.fused("m", "n"), None)}
    masks: dn.Masks = {"m": dn.Sigmoid(2, temperature=8.0), "n": dn.Sigmoid(4, temperature=8.0)}
    with pytest.raises(ValueError, match=r"has size 6, which .* parts of \[2, 4\] is not"):
        dn.check(net, axes, masks)


def test_gated_integers_are_refused(net):
    masks: dn.Masks = {"h": dn.Sigmoid(8, size=4.0)}
    with_gate, axes = entered(net, {".index": dn.Axes("h")}, masks)
    dn.check(with_gate, axes, masks)
    sliced, _ = dn.materialize(with_gate, axes, masks, {"h": 5})
    assert sliced.index.tolist() == [0, 1, 2, 3, 4]
    axes = {".index": dn.Axes(dn.gated("h"))}
    dn.check(net, axes, {})  # without a mask nothing is multiplied
    with pytest.raises(ValueError, match=r"'\.index' is gated, but is no array of floats"):
        dn.check(net, axes, masks)
