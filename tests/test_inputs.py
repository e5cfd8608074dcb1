"""Bad and odd inputs to the top level: each is a clear error that names what was given and what
is allowed, or it is sound. As users see them: without type checks at run time.
"""

import math
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import jaxtyping
import numpy as np
import optax
import pytest
from helpers import entered

import dnarch_eqx as dn
from dnarch_eqx import ladders, nn


Axes, fused, gated = dn.Axes, dn.fused, dn.gated
NAN, INF = math.nan, math.inf
KEY = jr.key(0)


@pytest.fixture(autouse=True)
def as_users_see_it():
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


class Net(eqx.Module):
    a: eqx.nn.Linear
    b: eqx.nn.Linear


NET: Any = Net(eqx.nn.Linear(4, 16, key=KEY), eqx.nn.Linear(16, 3, key=KEY))
AXES: Any = {
    ".a.weight": Axes("h", None),
    ".a.bias": Axes("h"),
    ".b.weight": Axes(None, gated("h")),
}
MASKS: Any = {"h": dn.Sigmoid(16, size=8.0)}
COST: Any = dn.parameter_cost(NET, AXES)
dn_any: Any = dn


def gate(name="h", size: Any = 16):
    return dn.Gate(name, size)


def shape(where, value):
    return eqx.tree_at(where, NET, value)


# Name of the case -> what is called, and what the error says.
ERRORS: dict[str, tuple[Any, str]] = {
    # Masks.
    "capacity 0": (lambda: dn.Sigmoid(0), "`capacity` must be a positive integer, got 0"),
    "capacity text": (lambda: dn_any.Sigmoid("8"), "`capacity` must be a positive .* '8'"),
    "capacity float": (lambda: dn_any.Gaussian(9.0), "`capacity` must be a positive .* 9.0"),
    "gaussian even": (lambda: dn.Gaussian(8), "`capacity` of a Gaussian mask must be odd"),
    "temperature inf": (
        lambda: dn.Sigmoid(16, temperature=INF),
        "`temperature` must lie .* inf",
    ),
    "temperature nan": (
        lambda: dn.Sigmoid(16, temperature=NAN),
        "`temperature` must lie .* nan",
    ),
    "temperature negative": (
        lambda: dn.Sigmoid(16, temperature=-5),
        "`temperature` must .* -5",
    ),
    "temperature text": (
        lambda: dn_any.Sigmoid(16, temperature="hot"),
        "`temperature` must be a number, got 'hot'",
    ),
    "temperature none": (
        lambda: dn_any.Sigmoid(16, temperature=None),
        "`temperature` must be a number, got None",
    ),
    "temperature vector": (
        lambda: dn_any.Sigmoid(16, temperature=np.ones(2)),
        "`temperature` must be a number, got array",
    ),
    "size too small": (lambda: dn.Sigmoid(16, size=0.1), "`size` must lie between 1.645.* 0.1"),
    "size nan": (lambda: dn.Sigmoid(16, size=NAN), "`size` must lie between .* nan"),
    "size text": (lambda: dn_any.Gaussian(9, size="all"), "`size` must be a number, got 'all'"),
    "sigma nan": (lambda: dn.Gaussian(9, sigma=NAN), "`sigma` must lie between .* nan"),
    "sigma text": (lambda: dn_any.Gaussian(9, sigma="wide"), "`sigma` must be a number"),
    "threshold out": (lambda: dn.Sigmoid(16, threshold=0.99), r"`threshold` must lie in \(0"),
    "threshold nan": (lambda: dn.Gaussian(9, threshold=NAN), r"`threshold` must lie in \(0"),
    "threshold text": (
        lambda: dn_any.Sigmoid(16, threshold="low"),
        "`threshold` must be a number, got 'low'",
    ),
    "learn text": (
        lambda: dn.Sigmoid(16, learn="offset"),
        "`learn` must be a sequence of names",
    ),
    "learn none": (lambda: dn_any.Sigmoid(16, learn=None), "`learn` must be a .* got None"),
    "learn unknown": (lambda: dn.Sigmoid(16, learn=("sigma",)), "`learn` must be .*'offset'"),
    # Dictionaries of masks.
    "masks list": (
        lambda: dn_any.check(NET, AXES, [dn.Sigmoid(16)]),
        "`masks` must be a dictionary from axis to mask, got list",
    ),
    "masks none": (
        lambda: dn_any.check(NET, AXES, None),
        "`masks` must be a dictionary .* got None",
    ),
    "masks array": (
        lambda: dn_any.check(NET, AXES, {"h": jnp.ones(16)}),
        "`masks` has ArrayImpl for axis 'h': give a mask",
    ),
    "masks int name": (
        lambda: dn_any.check(NET, AXES, {3: dn.Sigmoid(16)}),
        "`masks`: an axis is named by a string, not empty; got 3",
    ),
    "masks empty name": (
        lambda: dn.check(NET, AXES, {"": dn.Sigmoid(16)}),
        "`masks`: an axis is named by a string, not empty; got ''",
    ),
    "masks other capacity": (
        lambda: dn.check(NET, AXES, {"h": dn.Sigmoid(12)}),
        "Axis 'h' has capacity 16 by dimension 0 of '.a.weight', but 12 by its mask",
    ),
    "masks other name": (
        lambda: dn.check(NET, AXES, {"k": dn.Sigmoid(16)}),
        r"`masks` has a mask for axis 'k', but no array lies on it. .* \['h'\]",
    ),
    "masks array described": (
        lambda: dn_any.describe(NET, AXES, {"h": jnp.ones(16)}),
        "`masks` has ArrayImpl for axis 'h'",
    ),
    "masks list frozen": (
        lambda: dn_any.freeze(NET, AXES, [1]),
        "`masks` must be a dictionary",
    ),
    "masks list counted": (lambda: dn_any.exact([1]), "`masks` must be a dictionary"),
    "masks list planned": (lambda: dn_any.plan([1], {}), "`masks` must be a dictionary"),
    "masks list for buckets": (lambda: dn_any.buckets([1]), "`masks` must be a dictionary"),
    "masks list materialized": (
        lambda: dn_any.materialize(NET, AXES, [1], {}),
        "`masks` must be a dictionary",
    ),
    "masks list for cost": (
        lambda: dn_any.parameter_cost(NET, AXES, [1]),
        "`masks` must be a dictionary",
    ),
    # Axes and declarations.
    "axis int": (
        lambda: dn_any.Axes(3, None),
        "A dimension of `Axes` is None, a name, .* got 3",
    ),
    "axis empty": (
        lambda: dn.Axes("", None),
        "`Axes`: an axis is named by .* not empty; got ''",
    ),
    "axis blank": (lambda: dn.Axes(" "), "`Axes`: an axis is named by a string, not empty"),
    "gated int": (lambda: dn_any.gated(3), "`gated`: an axis is named by a string"),
    "fused nothing": (lambda: dn.fused(), r"parts of `fused` are names, .* got \(\)"),
    "fused zero": (
        lambda: dn.fused(0, "h"),
        "parts of `fused` are names, .* positive integers",
    ),
    "fused float": (lambda: dn_any.fused(2.0, "h"), "parts of `fused` are names, .* got"),
    "fused boolean": (lambda: dn.fused(True, "h"), "parts of `fused` are names, .* got"),
    "fused empty": (lambda: dn.fused(2, ""), "parts of `fused` are names, .* got"),
    "gate zero": (lambda: gate(size=0), "`size` must be a positive integer, got 0"),
    "gate float": (lambda: gate(size=3.0), "`size` must be a positive integer, got 3.0"),
    "gate without name": (lambda: gate(name=""), "`axis`: an axis is named by a string"),
    "axes none": (
        lambda: dn_any.check(NET, None, MASKS),
        "`axes` must be a dictionary from path to `Axes`, .* got NoneType",
    ),
    "axes one": (
        lambda: dn_any.materialize(NET, Axes("h"), MASKS, {}),
        "`axes` must be a dictionary from path to `Axes`, .* got Axes",
    ),
    "axes of tuples": (
        lambda: dn_any.check(NET, {".a.weight": ("h", None)}, MASKS),
        r"`axes` has \('h', None\) for '.a.weight': give `dn.Axes\(...\)`",
    ),
    "axes none for cost": (
        lambda: dn_any.parameter_cost(NET, None),
        "`axes` must be a dictionary from path to `Axes`",
    ),
    "axes none for capacities": (
        lambda: dn_any.capacities(NET, None),
        "`axes` must be a dictionary from path to `Axes`",
    ),
    "no such path": (
        lambda: dn.check(NET, {".c.weight": Axes("h", None)}, MASKS),
        "`axes` declares '.c.weight', which is no path in `model`",
    ),
    "wrong rank": (
        lambda: dn.check(NET, {".a.weight": Axes("h")}, MASKS),
        r"'.a.weight' has 2 dimensions, \(16, 4\), but its axes are Axes\('h'\)",
    ),
    "half declared": (
        lambda: dn.check(NET, {k: v for k, v in AXES.items() if "bias" not in k}, MASKS),
        "'.a': dimension 0 of its `weight` lies on 'h', dimension 0 of its `bias` on no",
    ),
    "not gated": (
        lambda: dn.check(NET, AXES | {".b.weight": Axes(None, "h")}, MASKS),
        "Axis 'h' has a mask, but it enters nowhere",
    ),
    "integers gated": (
        lambda: dn.check(
            shape(lambda m: m.b.weight, jnp.ones((3, 16), jnp.int32)), AXES, MASKS
        ),
        "'.b.weight' is gated, but is no array of floats",
    ),
    "no length": (
        lambda: dn.check(
            shape(
                lambda m: (m.a.weight, m.a.bias, m.b.weight),
                (jnp.ones((0, 4)), jnp.ones(0), jnp.ones((3, 0))),
            ),
            AXES,
            MASKS,
        ),
        "Axis 'h' has no position, by dimension 0 of '.a.weight'",
    ),
    "no length of a part": (
        lambda: dn.capacities([jnp.ones((0, 4))], {"[0]": Axes(fused("g", 3), None)}),
        "Axis 'g' has no position, by dimension 0",
    ),
    "a model without arrays": (
        lambda: dn.check(eqx.nn.Identity(), {}, MASKS),
        r"mask for axis 'h', but no array lies on it. The declared axes are \[\]",
    ),
    "where gives an integer": (
        lambda: dn.declare(NET, lambda m: 3, Axes("h")),
        "`where` gives 3, which is no node of `model`",
    ),
    "where gives integers": (
        lambda: dn.declare(NET, lambda m: (1, 2), (Axes("h"), Axes("h"))),
        "`where` gives 1, which is no node of `model`",
    ),
    "where gives fewer": (
        lambda: dn.declare(NET, lambda m: (m.a.bias,), (Axes("h"), Axes("h"))),
        "`where` gives 1 but `axes` has 2",
    ),
    "declare without axes": (
        lambda: dn_any.declare(NET, lambda m: m.a.bias, None),
        r"`axes` must be `dn.Axes\(...\)` or a sequence of them, got None",
    ),
    "declare with names": (
        lambda: dn_any.declare(NET, lambda m: m.a.weight, ("h", None)),
        r"`axes` must be `dn.Axes\(...\)` or a sequence of them",
    ),
    # Plans.
    "plan unknown axis": (
        lambda: dn.materialize(NET, AXES, MASKS, {"q": 8, "h": 16}),
        r"`plan` has a bucket for 'q', which has no mask. These have: \['h'\]",
    ),
    "plan too large": (
        lambda: dn.materialize(NET, AXES, MASKS, {"h": 17}),
        "`plan` has bucket 17 for axis 'h', whose capacity is 16",
    ),
    "plan zero": (lambda: dn.Plan({"h": 0}), "Axis 'h': a bucket is a positive integer, not 0"),
    "plan float": (lambda: dn_any.Plan({"h": 8.0}), "Axis 'h': a bucket is .* not 8.0"),
    "plan nan": (lambda: dn_any.Plan({"h": NAN}), "Axis 'h': a bucket is .* not nan"),
    "plan boolean": (lambda: dn.Plan({"h": True}), "Axis 'h': a bucket is .* not True"),
    "plan text": (lambda: dn_any.Plan("h"), "`sizes` must be a dictionary .* got str"),
    "plan list": (lambda: dn_any.Plan([8]), "`sizes` must be a dictionary .* got list"),
    "plan int name": (lambda: dn_any.Plan({3: 8}), "`sizes`: an axis is named by a string"),
    "plan text materialized": (
        lambda: dn_any.materialize(NET, AXES, MASKS, "h"),
        "`sizes` must be a dictionary from axis to bucket, got str",
    ),
    "plan float frozen": (
        lambda: dn_any.freeze(NET, AXES, MASKS, {"h": 9.0}),
        "Axis 'h': a bucket is a positive integer, not 9.0",
    ),
    "plan text described": (
        lambda: dn_any.describe(NET, AXES, MASKS, "h"),
        "`sizes` must be a dictionary from axis to bucket, got str",
    ),
    "plan that crops": (
        lambda: dn.materialize(NET, AXES, MASKS, {"h": 2}),
        r"`plan` does not cover the masks: .* 'h' \(bucket 2, 8 active\)",
    ),
    "plan that crops frozen": (
        lambda: dn.freeze(NET, AXES, MASKS, {"h": 2}),
        r"`plan` does not cover the masks: .* 'h' \(bucket 2, 8 active\)",
    ),
    "headroom nan": (
        lambda: dn.plan(MASKS, dn.buckets(MASKS), headroom=NAN),
        "`headroom` must be at least 0, got nan",
    ),
    "headroom text": (
        lambda: dn_any.plan(MASKS, dn.buckets(MASKS), headroom="some"),
        "`headroom` must be a number, got 'some'",
    ),
    # Ladders.
    "ladder unknown axis": (
        lambda: dn.plan(MASKS, {"h": (8, 16), "q": (2, 4)}),
        r"`buckets` names axes without a mask: \['q'\]",
    ),
    "ladder not to capacity": (
        lambda: dn.plan(MASKS, {"h": (4, 8)}),
        r"buckets of axis 'h' must be increasing, .* capacity 16; got \(4, 8\)",
    ),
    "ladder falling": (
        lambda: dn.plan(MASKS, {"h": (16, 8)}),
        r"buckets of axis 'h' must be increasing, .* got \(16, 8\)",
    ),
    "ladder floats": (
        lambda: dn_any.plan(MASKS, {"h": (8.5, 16)}),
        r"buckets of axis 'h' must be a tuple or list of integers, got \(8.5, 16\)",
    ),
    "ladder generator": (
        lambda: dn_any.plan(MASKS, {"h": (i for i in (8, 16))}),
        "buckets of axis 'h' must be a tuple or list of integers, got <generator",
    ),
    "ladder text": (lambda: dn_any.plan(MASKS, {"h": "8"}), "axis 'h' must be a tuple or list"),
    "ladder none": (
        lambda: dn_any.plan(MASKS, {"h": None}),
        "axis 'h' must be a tuple or list",
    ),
    "ladder even for a kernel": (
        lambda: dn.plan({"k": dn.Gaussian(15)}, {"k": (8, 15)}),
        "buckets of axis 'k', a Gaussian's, must be odd",
    ),
    "buckets a rule": (
        lambda: dn_any.plan(MASKS, ladders.every()),
        "`buckets` must be a dictionary from axis to ladder, .* got function",
    ),
    "rule not called": (
        lambda: dn_any.buckets(MASKS, ladders.every),
        "call it, as in `dn.ladder",
    ),
    "rule not called in a dictionary": (
        lambda: dn_any.buckets(MASKS, {"*": ladders.multiples}),
        "call it, as in `dn.ladders.every",
    ),
    "rule a ladder": (
        lambda: dn_any.buckets(MASKS, {"h": (8, 16)}),
        r"`rules` has \(8, 16\) for axis 'h': give a rule",
    ),
    "rule that returns floats": (
        lambda: dn_any.buckets(MASKS, lambda n: (n / 2, n)),
        r"buckets of axis 'h' must be a tuple or list of integers, got \(8.0, 16\)",
    ),
    "multiples of a float": (
        lambda: dn_any.ladders.multiples(8.5),
        "`of` must be a positive integer, got 8.5",
    ),
    "ratio text": (lambda: dn_any.ladders.smooth("x"), "`ratio` must be a number, got 'x'"),
    # Optimizers.
    "rate negative": (
        lambda: dn.adamw(-1e-3, steps=10),
        "`learning_rate` must be a positive, finite number, got -0.001",
    ),
    "rate zero": (
        lambda: dn.adamw(0.0, steps=10),
        "`learning_rate` must be a positive, finite",
    ),
    "rate nan": (lambda: dn.adamw(NAN, steps=10), "`learning_rate` must be .* got nan"),
    "rate inf": (lambda: dn.adamw(INF, steps=10), "`learning_rate` must be .* got inf"),
    "rate text": (lambda: dn_any.adamw("fast", steps=10), "`learning_rate` must be a number"),
    "mask_rate inf": (
        lambda: dn.adamw(1e-2, steps=10, mask_rate=INF),
        "`mask_rate` must be a finite number of at least 0, got inf",
    ),
    "mask_rate negative": (
        lambda: dn.adamw(1e-2, mask_rate=-0.1),
        "`mask_rate` must be a finite",
    ),
    "weight_decay inf": (
        lambda: dn.adamw(1e-2, steps=10, weight_decay=INF),
        "`weight_decay` must be a finite number of at least 0, got inf",
    ),
    "weight_decay negative": (
        lambda: dn.adamw(1e-2, weight_decay=-0.1),
        "`weight_decay` must be a finite number of at least 0, got -0.1",
    ),
    "clip negative": (
        lambda: dn.adamw(1e-2, steps=10, clip=-1.0),
        "`clip` must be a positive, finite number, got -1.0",
    ),
    "clip zero": (lambda: dn.adamw(1e-2, clip=0.0), "`clip` must be a positive, finite number"),
    "steps zero": (
        lambda: dn.adamw(1e-3, steps=0),
        "`steps` must be a positive integer, got 0",
    ),
    "steps float": (
        lambda: dn_any.adamw(1e-3, steps=1e3),
        "`steps` must be a positive integer",
    ),
    "warmup beyond": (
        lambda: dn.adamw(1e-3, steps=10, warmup=10),
        "`warmup` must be at least 0 and below `steps` = 10, got 10",
    ),
    "warmup negative": (
        lambda: dn.adamw(1e-3, steps=10, warmup=-1),
        "`warmup` must be at least",
    ),
    "warmup without steps": (lambda: dn.adamw(1e-3, warmup=5), "`warmup` of 5 needs `steps`"),
    "schedule and steps": (
        lambda: dn.adamw(optax.constant_schedule(0.1), steps=10),
        "`learning_rate` is a schedule: give no `steps`",
    ),
    "transformation of the weights alone": (
        lambda: dn_any.partition(optax.adam, optax.adam(0.1)),
        "`weights` must be an Optax transformation",
    ),
    # Budgets.
    "target zero": (
        lambda: dn.Budget(COST, 0.0),
        "`target` must be a positive, finite number, got 0.0",
    ),
    "target negative": (lambda: dn.Budget(COST, -1.0), "`target` must be a positive, finite"),
    "target nan": (lambda: dn.Budget(COST, NAN), "`target` must be a positive, finite"),
    "target text": (
        lambda: dn_any.Budget(COST, "small"),
        "`target` must be a number, sizes, a function of the step or a share as '30%'",
    ),
    "target none": (lambda: dn_any.Budget(COST, None), "`target` must be a number, got None"),
    "target unknown axis": (
        lambda: dn.Budget(COST, {"q": 3.0}),
        r"`sizes` names 'q'; the axes are \['h'\]",
    ),
    "target size nan": (
        lambda: dn.Budget(COST, {"h": NAN}),
        r"`target\['h'\]` must be a finite number of at least 0, got nan",
    ),
    "target size negative": (
        lambda: dn.Budget(COST, {"h": -1.0}),
        r"`target\['h'\]` must be a finite number of at least 0, got -1.0",
    ),
    "target size text": (
        lambda: dn_any.Budget(COST, {"h": "half"}),
        r"`target\['h'\]` must be a number, got 'half'",
    ),
    "target size beyond capacity": (
        lambda: dn.Budget(COST, {"h": 1e6}),
        "`sizes` has 1000000.0 for axis 'h'; sizes lie between 0 and the capacity, here 16",
    ),
    "weight negative": (
        lambda: dn.Budget(COST, 1.0, -1),
        "`weight` must be a finite number of at least 0, got -1",
    ),
    "weight nan": (lambda: dn.Budget(COST, 1.0, NAN), "`weight` must be a finite number"),
    "weight inf": (lambda: dn.Budget(COST, 1.0, INF), "`weight` must be a finite number"),
    "weight text": (lambda: dn_any.Budget(COST, 1.0, "much"), "`weight` must be a number"),
    "cost no function": (
        lambda: dn_any.Budget(3.0, 1.0),
        "`cost` must be a function of the sizes",
    ),
    "cost not hashable": (
        lambda: dn_any.Budget(eqx.nn.Linear(1, 1, key=KEY), 1.0),
        "`cost` is part of the compiled program and must be hashable: give a function, not L",
    ),
    "cost not scalar": (
        lambda: dn.Budget(lambda s: jnp.stack([s["h"], s["h"]]), 3.0, 0.1)(MASKS),
        r"`cost` must give one real number, got float32 of shape \(2,\)",
    ),
    "cost complex": (
        lambda: dn_any.Budget(lambda s: s["h"].astype("complex64"), 3.0, 0.1)(MASKS),
        "`cost` must give one real number, got complex64",
    ),
    "cost of an unknown axis": (
        lambda: dn_any.Budget(lambda s: s["nope"], 3.0, 0.1)(MASKS),
        r"`cost` asks for the size of 'nope'; there are those of \['h'\]",
    ),
    "cost none": (
        lambda: dn_any.Budget(lambda s: None, 3.0, 0.1)(MASKS),
        "`cost` must give one real",
    ),
    "sizes list": (
        lambda: COST([8]),
        r"`sizes` must be a dictionary from axis to size, got \[8\]",
    ),
    # Reports.
    "repeats zero": (
        lambda: dn.report({"a": eqx.nn.Identity()}, 1.0, repeats=0),
        "`repeats` must be a positive integer, got 0",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case):
    call, message = ERRORS[case]
    with pytest.raises(ValueError, match=message):
        call()


def test_a_size_of_another_capacity_of_a_ccnn(getkey):
    model = nn.CCNN(1, 1, (6,), depth=1, width=4, hidden=1, key=getkey())
    for sizes in ({"depth": 2.0}, {"blocks.0.mid": 5}, {"blocks.0.kernel": 8}, {"stream": -1}):
        with pytest.raises(ValueError, match="`sizes` has .* sizes lie between 0 and the cap"):
            nn.complexity(model)(sizes)


#
# Odd, but sound.
#


NAMES = (" h", "a.b[0]", "ü☃", "x\ny", "*", "[", "a" * 2000, "/..", "{0}", "%s", "3")


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_any_name(name):
    axes = {
        ".a.weight": Axes(name, None),
        ".a.bias": Axes(name),
        ".b.weight": Axes(None, gated(name)),
    }
    masks: dn.Masks = {name: dn.Sigmoid(16, size=8.0), "[h]?": dn.Sigmoid(4, size=2.0)}
    net = (NET, dn.Gate("[h]?", 4))
    axes = {f"[0]{path}": spec for path, spec in axes.items()}
    # A name is not taken for a pattern before it is taken for itself.
    rules = {name: ladders.multiples(4), "[h]?": ladders.full(), "**": ladders.every()}
    buckets = dn.buckets(masks, rules)
    assert buckets[name] == (4, 8, 12, 16)
    plan = dn.plan(masks, buckets)
    assert plan[name] == 8
    assert eval(repr(plan), {"Plan": dn.Plan}) == plan
    small, _ = dn.materialize(net, axes, masks, plan)
    assert small.a.weight.shape == (8, 4)
    budget = dn.Budget(dn.parameter_cost(net, axes), {name: 8.0})
    assert np.isclose(float(budget.complexity(masks)), 1, rtol=1e-5)
    assert len(dn.describe(net, axes, masks, plan).splitlines()) == 4


def test_ladders_may_be_lists_and_arrays():
    for ladder in ([8, 16], np.array([8, 16]), (np.int64(8), 16)):
        assert dn_any.plan(MASKS, {"h": ladder}) == dn.Plan({"h": 8})


def test_numbers_may_be_of_numpy_and_jax():
    for of in (np.float32, np.float64, jnp.asarray, np.asarray):
        mask: Any = dn.Sigmoid(np.int64(16), size=of(8.0), temperature=of(25.0))  # pyright: ignore
        assert hash(tuple(mask.__dict__[name] for name in ("capacity", "threshold")))
        assert dn.exact({"h": mask}) == dn.exact(MASKS)
        dn.adamw(of(1e-3), steps=np.int64(9), weight_decay=of(0.1))  # pyright: ignore
        assert dn.Budget(COST, of(9.0), of(0.3)).target == 9
    kernel = dn.Gaussian(9, sigma=np.float32(0.5), threshold=np.float32(0.1))  # pyright: ignore
    assert isinstance(kernel.threshold, float) and dn.exact({"k": kernel})["k"] == 9


def test_masks_of_one_position():
    mask = dn.Sigmoid(1)
    assert mask.active() == 1 and np.isclose(float(mask.size()), 1)
    assert dn.buckets({"h": mask}) == {"h": (1,)}


def test_infinite_headroom_is_the_capacity():
    assert dn.plan(MASKS, dn.buckets(MASKS), headroom=INF) == dn.Plan({"h": 16})


def test_no_masks_at_all():
    assert dn.exact({}) == dn.plan({}, {}) == dn.Plan()
    dn.check(NET, AXES, {})
    assert eqx.tree_equal(dn.materialize(NET, AXES, {}, {}), NET)
    assert len(dn.describe(NET, AXES, {}).splitlines()) == 2


def test_integers_that_are_not_gated_are_sliced(getkey):
    ids = jnp.arange(16)
    net, axes = entered({"ids": ids}, {"['ids']": Axes("h")}, MASKS)
    assert dn.freeze(net, axes, MASKS)[0]["ids"].tolist() == list(range(8))
