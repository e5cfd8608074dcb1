import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from helpers import filled, mlp_axes, noise, tight, width

import dnarch_eqx as dn
from dnarch_eqx import nn


Axes, gated = dn.Axes, dn.gated


#
# What lies on each axis.
#


def rows_of(table: str) -> list[list[str]]:
    """The cells, told apart by two spaces at least; columns are aligned."""
    header, rule, *rows = table.splitlines()
    starts = [i for i, c in enumerate(rule) if c == "-" and (i == 0 or rule[i - 1] == " ")]
    for row in (header, *rows):
        assert all(row[i - 2 : i].strip() == "" for i in starts[1:])
    ends = [*starts[1:], None]
    return [[row[a:b].strip() for a, b in zip(starts, ends)] for row in (header, *rows)]


def test_describe(getkey):
    blocks = lambda key: [eqx.nn.Linear(2, 2, key=key) for _ in range(4)]
    make = lambda key: (eqx.nn.MLP(3, 2, 8, 1, key=key), blocks(key), dn.Gate("depth", 4))
    net = filled(make, getkey())
    masks: dn.Masks = {
        "h": dn.Sigmoid(8, size=4.0, temperature=25.0),
        "depth": dn.Sigmoid(4, size=2.5, temperature=8.0),
    }
    axes = {f"[0]{path}": spec for path, spec in mlp_axes(net[0], ["h"]).items()}
    axes |= {"[1]": Axes("depth")}
    header, *rows = rows_of(dn.describe(net, axes, masks, {"h": 6}))
    assert header == ["axis", "capacity", "size", "active", "bucket", "arrays"]
    # Of 2.5 blocks the third is there, too.
    assert rows[0][:5] == ["h", "8", "4.0", "4", "6"]
    places = ("weight:0", "bias:0", "weight:1*")
    layers = "[*].layers[*]"
    assert rows[0][5] == ", ".join(f"{layers}.{place}" for place in places)
    assert rows[1] == ["depth", "4", "2.5", "3", "4", "[*]:0, [*]*"]
    assert rows_of(dn.describe(net, axes, masks))[1][4] == "8"
    with pytest.raises(ValueError, match="no array lies on it"):
        dn.describe(net, axes, masks | {"w": masks["h"]})


def test_describe_of_a_large_network_fits_a_screen():
    model, masks = nn.dnarch(
        nn.Base(4, 4), "KRWD", 3, 10, (32, 32), stream=True, hidden=2, key=KEY
    )
    assert len(model.blocks) == 8
    table = dn.describe(model, nn.axes(model), masks)
    assert len(table.splitlines()) == 2 + len(masks)
    assert max(map(len, table.splitlines())) <= 120
    assert len(rows_of(table)) == 1 + len(masks)


def test_describe_of_an_axis_that_is_everywhere(getkey):
    """Layers that are alike but for their place are one, and the rest is counted."""
    make = lambda key: [
        {f"layer_with_a_name_{i % 7}": eqx.nn.Linear(4, 4, use_bias=False, key=key)}
        for i in range(70)
    ]
    net = filled(make, getkey())
    axis = "a" * 300 + "\nb"
    axes = {
        f"[{i}]['layer_with_a_name_{i % 7}'].weight": Axes(axis, gated(axis)) for i in range(70)
    }
    table = dn.describe(net, axes, {axis: width(4, 2.5)})
    assert len(table.splitlines()) == 3, "the line break is in no line"
    assert max(map(len, table.splitlines())) <= 120
    ((_, *numbers, arrays),) = rows_of(table)[1:]
    assert numbers == ["4", "2.5", str(tight({"a": width(4, 2.5)})["a"]), "4"]
    assert arrays.endswith("and 130 more") and "x10" in arrays


#
# Networks side by side.
#


def count(a, b):
    return 2 * a + a + a * b + b + b + 1


def test_report(getkey):
    net = filled(lambda key: eqx.nn.MLP(2, 1, 24, 2, key=key), getkey())
    masks: dn.Masks = {"h0": width(24, 14.0), "h1": width(24, 11.0)}
    frozen = dn.freeze(net, mlp_axes(net, ["h0", "h1"]), masks)
    x = noise(getkey(), 2)
    header, *rows = rows_of(dn.report({"before": net, "after": frozen}, x, repeats=2))
    assert header == ["network", "parameters", "operations", "milliseconds"]
    active = tight(masks)
    sizes = {"before": (24, 24), "after": (active["h0"], active["h1"])}
    for (name, parameters, operations, milliseconds), wanted in zip(rows, sizes):
        assert name == wanted
        a, b = sizes[name]
        assert parameters == f"{count(a, b):,}"
        # Two operations for a weight at least; biases and activations beside them.
        products = 2 * (2 * a + a * b + b)
        assert products <= float(operations) <= 2 * products
        assert float(milliseconds) >= 0
    assert dn.parameters(frozen) == count(*sizes["after"])


KEY = jr.key(0)
NET = eqx.nn.Sequential(
    [eqx.nn.Linear(3, 10, key=KEY), eqx.nn.Dropout(0.1), eqx.nn.Linear(10, 2, key=KEY)]
)
WEIGHT = jnp.ones((2, 3))


def of_a_global(x):
    return NET(x, key=KEY)


def of_a_closure():
    net, other = NET, jnp.ones(3)  # a second input is no parameter
    return lambda x: net(x + other, key=KEY)


class Holder:
    """A class of the user's own, not a module."""

    def __init__(self):
        self.networks = {"one": [NET]}

    def __call__(self, x):
        return self.networks["one"][0](x, key=KEY)

    def method(self, x):
        return self(x)


WRAPPED = {
    "lambda": lambda x: NET(x, key=KEY),
    "function": of_a_global,
    "closure": of_a_closure(),
    "function that calls another": lambda x: of_a_global(x),
    "partial": functools.partial(NET, key=KEY),
    "partial of a function": functools.partial(lambda net, x: net(x, key=KEY), NET),
    "object": Holder(),
    "method": Holder().method,
    "method of a module": eqx.nn.inference_mode(NET).__call__,
    "jit": jax.jit(of_a_global),
    "filter_jit": eqx.filter_jit(of_a_global),
    "vmap": jax.vmap(eqx.nn.inference_mode(NET), in_axes=None, axis_size=2),
    "layer": eqx.nn.Lambda(of_a_global),
    "twice the same": lambda x: NET(x, key=KEY) + of_a_global(x),
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_parameters_of_wrapped_networks(kind):
    assert dn.parameters(WRAPPED[kind]) == 3 * 10 + 10 + 10 * 2 + 2
    (_, row) = rows_of(dn.report({"net": WRAPPED[kind]}, jnp.ones(3), repeats=1))
    assert row[1] == "62"


def test_parameters_that_nobody_knows_are_said_to_be_unknown():
    """Arrays of a function that are in no module may be weights or inputs."""
    table = dn.report({"bare": lambda x: WEIGHT @ x, "none": eqx.nn.Identity()}, jnp.ones(3))
    assert [row[1] for row in rows_of(table)[1:]] == ["unknown", "0"]
    with pytest.raises(ValueError, match="closes over no module"):
        dn.parameters(lambda x: WEIGHT @ x)
    assert dn.parameters({"w": WEIGHT, "n": np.arange(3)}) == 6
