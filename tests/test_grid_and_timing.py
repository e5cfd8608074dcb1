"""The ladders of all axes as one, and what plans are taken to cost."""

import itertools as it
import math
import statistics

import hypothesis as hp
import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import ladder_grid, ladder_masks, LADDERS, total

import dnarch_eqx as dn
from dnarch_eqx import runtime as rt


few = hp.settings(max_examples=25, deadline=None, derandomize=True)
CAPACITY = tuple(ladder[-1] for ladder in LADDERS.values())


#
# The ladders of all axes.
#


@few
@hp.given(
    ladders=st.lists(st.sets(st.integers(1, 40), min_size=1), max_size=4),
    data=st.data(),
)
def test_fit_is_the_search_axis_by_axis(ladders, data):
    ladders = {f"x{i}": tuple(sorted(ladder)) for i, ladder in enumerate(ladders)}
    grid = ladder_grid(ladders)
    assert grid.axes == tuple(ladders)
    assert grid.capacity.tolist() == [ladder[-1] for ladder in ladders.values()]
    # Beyond the capacity, too: headroom does not stop there.
    row = st.tuples(*(st.integers(0, 50) for _ in ladders))
    rows = data.draw(st.lists(row, min_size=1, max_size=3))
    wanted = [
        [
            min((size for size in ladder if size >= n), default=ladder[-1])
            for n, ladder in zip(row, ladders.values())
        ]
        for row in rows
    ]
    assert grid.fit(np.array(rows[0], int)).tolist() == wanted[0]
    assert grid.fit(np.array(rows, int)).tolist() == wanted


@few
@hp.given(st.tuples(*(st.integers(1, n) for n in CAPACITY)))
def test_the_plan_that_fits_is_the_smallest_that_covers(active):
    grid = ladder_grid()
    plan = grid.plan(grid.fit(np.array(active)))
    assert isinstance(plan, dn.Plan) and list(plan) == list("abk")
    covering = [
        sizes
        for sizes in it.product(*LADDERS.values())
        if all(n <= size for n, size in zip(active, sizes))
    ]
    sizes = tuple(plan.values())
    assert sizes in covering
    # On every axis, not only in all.
    assert all(a <= b for other in covering for a, b in zip(sizes, other))


def test_a_plan_is_made_of_sizes_and_the_other_way_round():
    grid = ladder_grid()
    plan = grid.plan(np.array([12, 2, 5]))
    assert plan == dn.Plan({"k": 5, "a": 12, "b": 2})
    assert plan.sizes.tolist() == [12, 2, 5] and plan.sizes.dtype == int
    # Not only of numbers in the ladders, and of any kind of integers.
    assert grid.plan(np.array([7, 1, 9], np.int32)) == dn.Plan({"a": 7, "b": 1, "k": 9})


def test_partial_plans_are_completed():
    complete = ladder_grid().complete
    assert complete(dn.Plan({"b": 2})) == dn.Plan({"a": 16, "b": 2, "k": 9})
    assert complete({}).sizes.tolist() == list(CAPACITY)
    whole = dn.Plan({"a": 4, "b": 2, "k": 3})
    assert complete(whole) == whole


def test_an_axis_without_a_ladder_is_at_its_capacity():
    grid = rt.Grid(ladder_masks(LADDERS), {"b": (1, 2, 3)})
    assert grid.fit(np.array([1, 1, 1])).tolist() == [16, 1, 9]


def test_axes_are_in_the_order_of_their_names():
    grid = ladder_grid({"z": (1, 2), "a": (5,)})
    assert grid.axes == ("a", "z")
    assert grid.fit(np.array([3, 2])).tolist() == [5, 2]
    assert grid.plan(np.array([5, 2])) == dn.Plan({"a": 5, "z": 2})


def test_a_grid_without_axes():
    grid, nothing = rt.Grid({}, {}), np.zeros(0, int)
    assert grid.axes == () and grid.capacity.shape == grid.fit(nothing).shape == (0,)
    assert grid.plan(nothing) == grid.complete({}) == dn.Plan()


@pytest.mark.parametrize(
    "ladders, message",
    (
        ({"a": (4, 8)}, "axis 'a' must be increasing, and the last must be its capacity 16"),
        ({"a": (4, 32)}, "axis 'a' must be increasing, and the last must be its capacity 16"),
        ({"b": (2, 1, 3)}, "axis 'b' must be increasing"),
        ({"b": (1, 1, 3)}, "axis 'b' must be increasing"),
        ({"b": (0, 3)}, "axis 'b' must be increasing"),
        ({"b": ()}, "axis 'b' must be increasing"),
        ({"k": (4, 9)}, "axis 'k', a Gaussian's, must be odd"),
        ({"a": (16,), "c": (1,)}, r"`buckets` names axes without a mask: \['c'\]"),
    ),
)
def test_bad_ladders(ladders, message):
    with pytest.raises(ValueError, match=message):
        rt.Grid(ladder_masks(LADDERS), ladders)


#
# What plans cost.
#


def test_timing_by_hand():
    timing = rt.Timing(total, 7.0, scale=0.5, overhead=2.0)
    plan = dn.Plan({"a": 4, "b": 1, "k": 3})
    assert timing.units(plan) == timing.units(np.array([4, 1, 3])) == 8
    assert timing.step(plan) == timing.step(np.array([4, 1, 3])) == 2 + 0.5 * 8
    # Exact sizes need not be buckets, nor integers.
    assert timing.step(np.array([4.5, 1.0, 3.0])) == 2 + 0.5 * 8.5
    assert rt.Timing(total, 7.0).step(plan) == 8


@pytest.mark.parametrize("name", ("compile", "scale", "overhead"))
@pytest.mark.parametrize("value", (-1.0, math.nan))
def test_timing_errors(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be at least 0, got {value}"):
        rt.Timing(**{"cost": total, "compile": 1.0, name: value})


@few
@hp.given(
    scale=st.floats(1e-12, 10),
    share=st.floats(0, 5),
    sizes=st.lists(st.integers(1, 100), min_size=2, max_size=5),
    of_plans=st.booleans(),
)
def test_calibrated_recovers_what_made_the_points(scale, share, sizes, of_plans):
    hp.assume(max(sizes) >= 2 * min(sizes))
    overhead = share * scale
    at = [dn.Plan({"x": n}) if of_plans else np.array([n]) for n in sizes]
    measured = [(x, overhead + scale * n) for x, n in zip(at, sizes)]
    found = rt.calibrated(rt.Timing(total, 3.0), measured)
    assert found.compile == 3.0 and found.cost is total
    assert found.scale == pytest.approx(scale, rel=1e-6)
    assert found.overhead == pytest.approx(overhead, rel=1e-6, abs=1e-6 * scale)


@pytest.mark.parametrize(
    "measured",
    (
        [(10, 20.0)],
        [(10, 20.0), (10, 22.0), (10, 18.0)],
        [(10, 21.0), (11, 21.0)],  # too near to each other for a line
        [(10, 14.0), (20, 46.0)],  # the line would have a negative overhead
        [(10, 46.0), (20, 14.0)],  # or a negative scale
    ),
)
def test_calibrated_in_proportion(measured):
    found = rt.calibrated(rt.Timing(total, 3.0), [(np.array([n]), s) for n, s in measured])
    assert found.overhead == 0
    assert found.scale == pytest.approx(
        sum(s for _, s in measured) / sum(n for n, _ in measured)
    )


def test_calibrated_where_nothing_costs():
    timing = rt.Timing(lambda _: 0.0, 3.0)
    found = rt.calibrated(timing, [(np.array([4]), 2.0), (np.array([8]), 4.0)])
    assert (found.scale, found.overhead) == (0.0, 3.0)


def test_calibrated_from_nothing():
    timing = rt.Timing(total, 3.0, scale=0.5, overhead=2.0)
    assert rt.calibrated(timing, []) is timing


def test_host_cost():
    asked = []

    def cost(sizes):
        asked.append(sorted(sizes))
        return jnp.asarray(sizes["a"]) * sizes["b"] + sizes["k"]

    on_host = rt.host_cost(cost, ladder_grid())
    for _ in range(2):
        assert on_host(np.array([8, 2, 5])) == 21.0
        assert on_host(np.array([4, 1, 3])) == 7.0
        assert on_host(np.array([4.5, 1.0, 3.0])) == 7.5
    assert asked == [["a", "b", "k"]]  # traced once
    assert type(on_host(np.array([8, 2, 5]))) is float


def test_host_cost_without_a_cost():
    shares = rt.host_cost(None, ladder_grid())
    assert shares(np.array([8, 3, 3])) == pytest.approx((1 / 2 + 1 + 1 / 3) / 3)
    assert rt.host_cost(None, rt.Grid({}, {}))(np.zeros(0, int)) == 1.0


#
# What is measured of a run.
#


def plan_of(n: int) -> dn.Plan:
    return dn.Plan({"x": n})


@few
@hp.given(st.lists(st.tuples(st.integers(1, 4), st.floats(0, 10)), max_size=30))
def test_samples_are_kept_by_plan(pairs):
    measured = rt.Measured()
    for n, seconds in pairs:
        measured = measured.sampled(plan_of(n), seconds)
    for n in range(1, 6):
        wanted = tuple(seconds for m, seconds in pairs if m == n)
        assert measured.taken(plan_of(n)) == wanted


def test_samples_are_bounded():
    """64 of a plan, of the 32 plans sampled last."""
    measured = rt.Measured()
    for i in range(100):
        measured = measured.sampled(plan_of(1), float(i))
    assert measured.taken(plan_of(1)) == tuple(map(float, range(36, 100)))
    for n in range(2, 50):
        measured = measured.sampled(plan_of(n), 1.0)
    assert {plan for plan, _ in measured.samples} == {plan_of(n) for n in range(18, 50)}


@few
@hp.given(st.lists(st.floats(0, 100), min_size=1, max_size=12))
def test_the_price_of_a_compilation_is_the_median_of_the_last_five(prices):
    measured = rt.Measured()
    for price in prices:
        measured = measured.compiled(price, 2 * price)
    assert measured.compile == statistics.median(prices[-5:])
    assert measured.seconds == 2 * prices[-1]


def test_the_fit_goes_by_medians():
    measured = rt.Measured()
    # 3 seconds and a half a position, but for one step that was disturbed.
    for n, seconds in ((10, 8.0), (10, 8.0), (10, 500.0), (20, 13.0), (40, 23.0)):
        measured = measured.sampled(plan_of(n), seconds)
    scale, overhead = measured.fitted(total)
    assert (scale, overhead) == pytest.approx((0.5, 3.0))


def test_the_timing_of_what_was_measured():
    measured = rt.Measured(compile=3.0, scale=0.5, overhead=2.0)
    timing = measured.timing(total)
    assert (timing.compile, timing.scale, timing.overhead) == (3.0, 0.5, 2.0)
    assert timing.step(plan_of(4)) == 4.0
    # Nothing is known of a run that has just begun.
    assert rt.Measured().timing(total).step(plan_of(4)) == 0
