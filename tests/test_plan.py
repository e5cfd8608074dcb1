import itertools as it
import math
import pickle
import subprocess
import sys

import equinox as eqx
import hypothesis as hp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import moved

import dnarch_eqx as dn
from dnarch_eqx import ladders


few = hp.settings(max_examples=40, deadline=None, derandomize=True)


# Made once: every walk below then runs the same compiled functions.
_WIDTH = dn.Sigmoid(64, size=32.0)
_DEPTH = dn.Sigmoid(8, size=4.0, temperature=16.0)
_KERNEL = dn.Gaussian(33, size=11.0)


def some_masks(width=32.0, depth=4.0, kernel=11.0):
    """Masks of given sizes, from Eq. 6 and 5. Small widths and kernels are admissible."""
    cutoff_sigmas = math.sqrt(2 * math.log(10))
    masks: dn.Masks = {
        "width": moved(_WIDTH, "offset", width / 32 - 1 - math.log(9) / 25),
        "depth": moved(_DEPTH, "offset", depth / 4 - 1 - math.log(9) / 16),
        "kernel": moved(_KERNEL, "sigma", kernel / 33 / cutoff_sigmas),
    }
    return masks


def counted(masks):
    """Active counts, by looking at the values."""
    return {axis: int(np.count_nonzero(mask())) for axis, mask in masks.items()}


def largest(size, capacity):
    """How many positions i of `capacity` lie at or below a size: 2 i / (N - 1) <= 2 s / N."""
    return int(size * (capacity - 1) / capacity) + 1


_LADDERS = {
    "width": ladders.multiples(8)(64),
    "depth": ladders.every()(8),
    "kernel": ladders.odd()(33),
}

sizes = st.tuples(st.floats(7, 64), st.floats(1.5, 8), st.floats(2.1, 33))


#
# Ladders.
#


_RULES = {
    "multiples": ladders.multiples(8),
    "multiples of 5": ladders.multiples(5),
    "geometric": ladders.geometric(),
    "geometric of 1": ladders.geometric(1.5, 1),
    "smooth": ladders.smooth(),
    "smooth, all": ladders.smooth(1.0),
    "odd": ladders.odd(),
    "odd, all": ladders.odd(1.0),
    "every": ladders.every(),
    "full": ladders.full(),
}


def factors(n):
    found, p = set(), 2
    while n > 1:
        while n % p == 0:
            found.add(p)
            n //= p
        p += 1
    return found


@pytest.mark.parametrize("name", _RULES)
@few
@hp.given(capacity=st.integers(1, 2000))
def test_ladders_increase_to_the_capacity(name, capacity):
    ladder = _RULES[name](capacity)
    assert ladder[0] >= 1
    assert all(a < b for a, b in it.pairwise(ladder))
    assert ladder[-1] == capacity
    assert all(type(n) is int for n in ladder)


@pytest.mark.parametrize(
    "rule, capacity, wanted",
    (
        (ladders.multiples(8), 28, (8, 16, 24, 28)),
        (ladders.multiples(8), 24, (8, 16, 24)),
        (ladders.multiples(8), 5, (5,)),
        (ladders.geometric(1.25, 8), 100, (8, 16, 24, 32, 40, 56, 72, 96, 100)),
        (ladders.geometric(2.0, 1), 20, (1, 2, 4, 8, 16, 20)),
        (ladders.smooth(1.0), 21, (1, 2, 3, 4, 5, 6, 8, 9, 10, 12, 15, 16, 18, 20, 21)),
        (ladders.smooth(1.0), 26, (2, 4, 6, 8, 10, 12, 16, 18, 20, 24, 26)),
        (ladders.odd(1.0), 9, (3, 5, 7, 9)),
        (ladders.odd(1.25), 33, (3, 5, 7, 9, 13, 17, 23, 29, 33)),
        (ladders.odd(), 3, (3,)),
        (ladders.every(), 4, (1, 2, 3, 4)),
        (ladders.full(), 4, (4,)),
    ),
)
def test_ladders_by_hand(rule, capacity, wanted):
    assert rule(capacity) == wanted


@few
@hp.given(capacity=st.integers(1, 2000), of=st.integers(1, 64))
def test_multiples(capacity, of):
    ladder = ladders.multiples(of)(capacity)
    assert ladder[:-1] == tuple(n for n in range(1, capacity) if n % of == 0)


@few
@hp.given(
    capacity=st.integers(1, 2000),
    ratio=st.sampled_from([1.0, 1.25, 1.5, 2.0]),
    multiple=st.integers(1, 32),
)
def test_geometric(capacity, ratio, multiple):
    *inner, _ = ladders.geometric(ratio, multiple)(capacity)
    # The next is the smallest multiple that is `ratio` times as large.
    n, wanted = multiple, []
    while n < capacity:
        wanted.append(n)
        n = next(m for m in range(n + multiple, 9000, multiple) if m >= ratio * n)
    assert inner == wanted


@few
@hp.given(capacity=st.integers(1, 1500), ratio=st.sampled_from([1.0, 1.125, 1.5]))
def test_smooth(capacity, ratio):
    *inner, _ = ladders.smooth(ratio)(capacity)
    # Only even ones of an even capacity.
    allowed = [n for n in range(1, capacity) if n % 2 == 0 or capacity % 2 == 1]
    candidates = [n for n in allowed if factors(n) <= {2, 3, 5}]
    assert set(inner) <= set(candidates)
    # The next is the smallest candidate that is far enough away.
    for a, b in it.pairwise(inner):
        assert b == next(n for n in candidates if n > a and n >= ratio * a)
    if candidates:
        assert inner[0] == candidates[0]
        assert not any(n >= ratio * inner[-1] and n > inner[-1] for n in candidates)


@few
@hp.given(capacity=st.integers(1, 1000).map(lambda n: 2 * n + 1), ratio=st.floats(1, 3))
def test_odd(capacity, ratio):
    ladder = ladders.odd(ratio)(capacity)
    assert all(n % 2 == 1 and n >= 3 for n in ladder)
    for a, b in it.pairwise(ladder[:-1]):
        assert b >= ratio * a and (b - 2 <= a or b - 2 < ratio * a)


@pytest.mark.parametrize(
    "make, message",
    (
        (lambda: ladders.multiples(0), "`of` must be a positive integer, got 0"),
        (lambda: ladders.geometric(0.9), "`ratio` must be at least 1, got 0.9"),
        (lambda: ladders.geometric(math.nan), "`ratio` must be at least 1, got nan"),
        (lambda: ladders.geometric(1.5, 0), "`multiple` must be a positive integer, got 0"),
        (lambda: ladders.smooth(0.5), "`ratio` must be at least 1, got 0.5"),
        (lambda: ladders.odd(0.5), "`ratio` must be at least 1, got 0.5"),
    ),
)
def test_rule_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


#
# Ladders of all axes.
#


def test_buckets_by_default():
    found = dn.buckets(some_masks())
    assert found == {
        "width": (8, 16, 24, 32, 40, 48, 56, 64),
        "depth": (1, 2, 3, 4, 5, 6, 7, 8),
        "kernel": (3, 5, 7, 9, 13, 17, 23, 29, 33),
    }


def test_buckets_by_one_rule():
    masks: dn.Masks = {"a": dn.Sigmoid(6), "b": dn.Sigmoid(3)}
    assert dn.buckets(masks, ladders.every()) == {"a": (1, 2, 3, 4, 5, 6), "b": (1, 2, 3)}


def test_buckets_by_pattern():
    masks: dn.Masks = {
        "blocks.0.mid": dn.Sigmoid(20),
        "blocks.1.mid": dn.Sigmoid(20),
        "blocks.0.kernel.y": dn.Gaussian(9),
        "depth": dn.Sigmoid(3),
    }
    rules = {
        "blocks.1.*": ladders.full(),
        "*.kernel*": ladders.odd(1.0),
        "*.mid": ladders.multiples(10),
        "*": ladders.every(),
        "depth": ladders.full(),  # too late: the first that matches counts
    }
    assert dn.buckets(masks, rules) == {
        "blocks.0.mid": (10, 20),
        "blocks.1.mid": (20,),
        "blocks.0.kernel.y": (3, 5, 7, 9),
        "depth": (1, 2, 3),
    }


def test_patterns_mind_the_case():
    masks: dn.Masks = {"Mid": dn.Sigmoid(20)}
    with pytest.raises(ValueError, match=r"`rules` matches axis 'Mid': \['mid', 'm\*'\]"):
        dn.buckets(masks, {"mid": ladders.every(), "m*": ladders.every()})


@pytest.mark.parametrize(
    "ladder, message",
    (
        ((8, 16), r"axis 'width' .*its capacity 64; got \(8, 16\)"),
        ((16, 8, 64), r"axis 'width' must be increasing.* got \(16, 8, 64\)"),
        ((8, 8, 64), r"axis 'width' must be increasing.* got \(8, 8, 64\)"),
        ((0, 64), r"axis 'width' must be increasing.* got \(0, 64\)"),
        ((-8, 64), r"axis 'width' must be increasing.* got \(-8, 64\)"),
        ((64, 72), r"axis 'width' .*its capacity 64; got \(64, 72\)"),
        ((), r"axis 'width' .*its capacity 64; got \(\)"),
    ),
)
def test_bad_ladders(ladder, message):
    masks: dn.Masks = {"width": _WIDTH}
    with pytest.raises(ValueError, match=message):
        dn.buckets(masks, lambda capacity: ladder)
    # A ladder written by hand is looked at too.
    with pytest.raises(ValueError, match=message):
        dn.plan(masks, {"width": ladder})


def test_even_buckets_of_a_kernel():
    with pytest.raises(ValueError, match="buckets of axis 'kernel', a Gaussian's, must be odd"):
        dn.buckets({"kernel": _KERNEL}, ladders.multiples(8))


def test_buckets_of_unknown_axes():
    masks: dn.Masks = {"width": _WIDTH}
    with pytest.raises(ValueError, match=r"`buckets` names axes without a mask: \['breadth'\]"):
        dn.plan(masks, {"breadth": (64,)})


#
# Plans as values.
#


def test_plans_are_equal_whatever_their_order():
    a, b = dn.Plan({"x": 8, "y": 3}), dn.Plan({"y": 3, "x": 8})
    assert a == b and hash(a) == hash(b) and {a: "one"}[b] == "one"
    assert list(a) == list(b) == ["x", "y"]
    for other in ({"x": 8}, {"x": 8, "y": 4}, {"x": 8, "z": 3}, {"x": 8, "y": 3, "z": 1}, {}):
        assert a != dn.Plan(other)
    assert a != "x=8, y=3"


def test_plans_are_mappings():
    plan = dn.Plan({"y": 3, "x": 8})
    assert dict(plan) == {"x": 8, "y": 3}
    assert len(plan) == 2 and plan["x"] == 8 and "z" not in plan and plan.get("z") is None
    assert all(type(size) is int for size in plan.values())
    with pytest.raises(KeyError, match="z"):
        plan["z"]
    assert dn.Plan() == dn.Plan({}) and len(dn.Plan()) == 0


def test_plans_print():
    plan = dn.Plan({"y": 3, "blocks.0.mid": 8, "it's": 1})
    assert repr(plan) == """Plan({'blocks.0.mid': 8, "it's": 1, 'y': 3})"""
    for each in (plan, dn.Plan()):
        assert eval(repr(each), {"Plan": dn.Plan}) == each


def test_plans_are_immutable():
    sizes = {"x": 8}
    plan = dn.Plan(sizes)
    sizes["x"] = 9
    assert plan["x"] == 8
    with pytest.raises(TypeError):
        plan["x"] = 9  # pyright: ignore
    with pytest.raises(TypeError):
        del plan["x"]  # pyright: ignore
    with pytest.raises(AttributeError):
        plan.new = 9  # pyright: ignore


@pytest.mark.parametrize("size", (0, -8, 2.5, math.nan))
def test_plans_hold_positive_integers(size):
    with pytest.raises(ValueError, match=f"Axis 'x': a bucket is a positive.*not {size}"):
        dn.Plan({"y": 1, "x": size})  # beartype looks at the first bucket only


def test_union():
    a, b = dn.Plan({"x": 8, "y": 3}), dn.Plan({"y": 5, "z": 1})
    assert a | b == dn.Plan({"x": 8, "y": 5, "z": 1})
    assert a | {"y": 7} == dn.Plan({"x": 8, "y": 7})
    assert a == dn.Plan({"x": 8, "y": 3})


def test_changes():
    before, after = dn.Plan({"x": 8, "y": 3, "w": 2}), dn.Plan({"x": 16, "y": 3, "z": 4})
    assert after.changes(before) == {"x": (8, 16), "z": (None, 4), "w": (2, None)}
    assert before.changes(before) == {}


def test_pickled_plans_are_found_by_another_process():
    # Hashes of strings differ from process to process.
    plan = dn.Plan({"x": 8, "y": 3})
    assert pickle.loads(pickle.dumps(plan)) == plan
    code = (
        "import pickle, dnarch_eqx as dn; "
        f"print(dn.Plan({{'x': 8, 'y': 3}}) in {{pickle.loads({pickle.dumps(plan)!r})}})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "True", done.stderr


def test_one_trace_a_plan():
    traces = 0

    @eqx.filter_jit
    def f(plan, x):
        nonlocal traces
        traces += 1
        return x[: plan["x"]]

    x = jnp.arange(8.0)
    assert f(dn.Plan({"x": 3, "y": 1}), x).shape == (3,)
    assert f(dn.Plan({"y": 1, "x": 3}), x).shape == (3,)
    assert traces == 1
    assert f(dn.Plan({"x": 4, "y": 1}), x).shape == (4,)
    assert traces == 2
    assert f(dn.Plan({"x": 3, "y": 1}), x).shape == (3,)
    assert traces == 2
    g = jax.jit(lambda plan, x: x[: plan["x"]], static_argnums=0)
    assert g(dn.Plan({"x": 5}), x).shape == (5,)


#
# Covering.
#


def test_covers():
    masks = some_masks()
    now = counted(masks)
    assert now == {"width": largest(32, 64), "depth": largest(4, 8), "kernel": 11}
    covers = eqx.filter_jit(lambda plan, masks: plan.covers(masks))
    exact = dn.Plan(now)
    for plan, wanted in (
        (exact, True),
        (dn.Plan(), True),  # an axis without a bucket is at its capacity
        (dn.Plan({"width": 64}), True),
        (exact | {"width": 64}, True),
        *((exact | {axis: n - 1}, False) for axis, n in now.items()),
        (dn.Plan({"depth": now["depth"] - 1}), False),
        (exact | {"nobody": 1}, True),
    ):
        for covered in (plan.covers(masks), covers(plan, masks)):
            assert covered.shape == () and covered.dtype == bool
            assert bool(covered) is wanted


@few
@hp.given(sizes)
def test_exact(wanted):
    masks = some_masks(*wanted)
    plan = dn.exact(masks)
    assert plan == dn.Plan(counted(masks))
    assert plan.covers(masks)


def test_exact_keeps_one_position():
    dead = moved(_WIDTH, "offset", -9.0)
    assert counted({"width": dead}) == {"width": 0}
    assert dn.exact({"width": dead}) == dn.Plan({"width": 1})


@few
@hp.given(sizes)
def test_plan_is_the_smallest_that_covers(wanted):
    masks = some_masks(*wanted)
    now = counted(masks)
    covering = [
        sizes
        for sizes in it.product(*_LADDERS.values())
        if all(size >= now[axis] for axis, size in zip(_LADDERS, sizes))
    ]
    smallest = min(covering, key=sum)
    assert dn.plan(masks, _LADDERS) == dn.Plan(dict(zip(_LADDERS, smallest)))


def test_plan_without_a_ladder():
    masks = some_masks()
    ladders = {"depth": _LADDERS["depth"]}
    assert dn.plan(masks, ladders) == dn.Plan({"width": 64, "depth": 4, "kernel": 33})
    assert dn.plan({}, {}) == dn.Plan()


def test_headroom_is_rounded_down():
    masks = some_masks(32.0, 4.0, 11.0)
    assert counted(masks) == {"width": 32, "depth": 4, "kernel": 11}
    # 35.2 of 32, 4.4 of 4, 12.1 of 11
    found = dn.plan(masks, _LADDERS, headroom=0.1)
    assert found == dn.Plan({"width": 40, "depth": 4, "kernel": 13})
