import copy
import dataclasses
import functools as ft
import itertools as it
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import hypothesis as hp
import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest

import dnarch_eqx as dn
from dnarch_eqx._timing import calibrated, host_cost


few = hp.settings(max_examples=25, deadline=None, derandomize=True)

Ladders = dict[str, tuple[int, ...]]


_sigmoid, _gaussian = ft.cache(dn.Sigmoid), ft.cache(dn.Gaussian)


def masks_of(ladders: Ladders) -> dict[str, dn.AbstractMask]:
    """Masks of these capacities: Gaussians on the axes whose names start with k."""
    return {
        axis: (_gaussian if axis.startswith("k") else _sigmoid)(ladder[-1])
        for axis, ladder in ladders.items()
    }


def grid_of(ladders: Ladders) -> dn.Grid:
    return dn.Grid(masks_of(ladders), ladders)


def total(sizes) -> float:
    return float(np.sum(sizes))


def volume(sizes) -> float:
    return float(np.prod(sizes, dtype=float))


LADDERS: Ladders = {"a": (4, 8, 12, 16), "b": (1, 2, 3), "k": (3, 5, 9)}
CAPACITY = tuple(ladder[-1] for ladder in LADDERS.values())
GRID = grid_of(LADDERS)

counts = st.tuples(*(st.integers(1, n) for n in CAPACITY))


def seen(
    active: Sequence[int],
    plan: np.ndarray | None = None,
    *,
    step: int = 0,
    more: Sequence[int] | int = 0,
    velocity: Sequence[float] | float = 0.0,
    part: Sequence[float] | float = 0.0,
    grid: dn.Grid = GRID,
    timing: dn.Timing | None = None,
) -> dn.Observation:
    """An observation; `more` positions than the active ones are foreseen."""
    active_ = np.array(active, int)
    return dn.Observation(
        step,
        active_,
        np.minimum(active_ + more, grid.capacity),
        steady(np.zeros(len(active_)) + velocity, np.array(part)),
        plan,
        grid,
        dn.Timing(total, 100.0) if timing is None else timing,
    )


def steady(velocity: np.ndarray, part: np.ndarray) -> dn.Velocity:
    """Of axes that have always moved by so many positions a step, up to these."""
    none = dn.Velocity.none(len(velocity))
    return none.update(part - velocity).update(part + 0 * velocity)


def decisions(policy: dn.AbstractPolicy, rows, **kwargs) -> list[tuple[int, ...]]:
    """The plan at each step of a run."""
    state, plan, taken = policy.init(), None, []
    for step, row in enumerate(rows):
        state, plan = policy(state, seen(row, plan, step=step, **kwargs))
        taken.append(tuple(plan.tolist()))
    return taken


def taken(plans: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """The plans in a row, each once."""
    return [plan for plan, _ in it.groupby(plans)]


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
    grid = grid_of(ladders)
    assert grid.axes == tuple(ladders)
    assert grid.capacity.tolist() == [ladder[-1] for ladder in ladders.values()]
    # Beyond the capacity, too: headroom does not stop there.
    wanted = data.draw(st.tuples(*(st.integers(0, 50) for _ in ladders)))
    found = grid.fit(np.array(wanted, int))
    assert found.tolist() == [
        min((size for size in ladder if size >= n), default=ladder[-1])
        for n, ladder in zip(wanted, ladders.values())
    ]


@hp.given(counts)
def test_sizes_of_a_plan(active):
    sizes = GRID.fit(np.array(active))
    plan = GRID.plan(sizes)
    assert plan == dn.Plan(dict(zip("abk", sizes.tolist())))
    assert GRID.sizes(plan).tolist() == sizes.tolist()
    # The plan that holds these counts and no other, as the masks' own search finds it.
    assert all(n <= plan[axis] for axis, n in zip("abk", active))


def test_sizes_of_a_partial_plan():
    assert GRID.sizes(dn.Plan({"b": 2})).tolist() == [16, 2, 9]
    assert GRID.sizes({}).tolist() == list(CAPACITY)


def test_an_axis_without_a_ladder_is_at_its_capacity():
    grid = dn.Grid(masks_of(LADDERS), {"b": (1, 2, 3)})
    assert grid.fit(np.array([1, 1, 1])).tolist() == [16, 1, 9]


def test_axes_are_in_the_order_of_their_names():
    ladders = {"z": (1, 2), "a": (5,)}
    assert grid_of(ladders).axes == ("a", "z")
    assert grid_of(ladders).fit(np.array([3, 2])).tolist() == [5, 2]


def test_no_axes():
    grid, nothing = dn.Grid({}, {}), np.zeros(0, int)
    assert grid.fit(nothing).shape == (0,)
    assert grid.plan(nothing) == dn.Plan() and grid.sizes(dn.Plan()).shape == (0,)
    for policy in (dn.EveryStep(), dn.Hysteresis(), dn.BreakEven(), dn.AtMost(1)):
        assert decisions(policy, [()] * 3, grid=grid) == [()] * 3


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
        dn.Grid(masks_of(LADDERS), ladders)


#
# What plans cost.
#


def test_timing():
    held = np.array([4, 1, 3])
    timing = dn.Timing(total, 7.0, scale=0.5, overhead=2.0, held=frozenset({held.tobytes()}))
    assert timing.step(held) == 2 + 0.5 * 8
    assert timing.switch(held) == 0 and timing.switch(held + 1) == 7


@pytest.mark.parametrize("name", ("compile", "scale", "overhead"))
@pytest.mark.parametrize("value", (-1.0, math.nan))
def test_timing_errors(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be at least 0, got {value}"):
        dn.Timing(**{"cost": total, "compile": 1.0, name: value})


def points(cost, timing: dn.Timing, sizes: Sequence[int]):
    at = [np.array([n]) for n in sizes]
    return [(n, timing.overhead + timing.scale * cost(n)) for n in at]


@few
@hp.given(
    scale=st.floats(1e-12, 10),
    share=st.floats(0, 5),
    sizes=st.lists(st.integers(1, 100), min_size=2, max_size=5),
)
def test_calibrated_recovers_what_made_the_points(scale, share, sizes):
    hp.assume(max(sizes) >= 2 * min(sizes))
    true = dn.Timing(total, 3.0, scale, share * scale)
    found = calibrated(dn.Timing(total, 3.0), points(total, true, sizes))
    assert found.compile == 3.0 and found.cost is total
    assert found.scale == pytest.approx(true.scale, rel=1e-6)
    assert found.overhead == pytest.approx(true.overhead, rel=1e-6, abs=1e-6 * scale)


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
    found = calibrated(dn.Timing(total, 3.0), [(np.array([n]), s) for n, s in measured])
    assert found.overhead == 0
    assert found.scale == pytest.approx(
        sum(s for _, s in measured) / sum(n for n, _ in measured)
    )


def test_calibrated_where_nothing_costs():
    timing = dn.Timing(lambda _: 0.0, 3.0)
    found = calibrated(timing, [(np.array([4]), 2.0), (np.array([8]), 4.0)])
    assert (found.scale, found.overhead) == (0.0, 3.0)


def test_calibrated_from_nothing():
    timing = dn.Timing(total, 3.0, scale=0.5, overhead=2.0)
    assert calibrated(timing, []) is timing


def test_host_cost():
    asked = []

    def cost(sizes):
        asked.append(sorted(sizes))
        return jnp.asarray(sizes["a"]) * sizes["b"] + sizes["k"]

    on_host = host_cost(cost, GRID)
    for _ in range(2):
        assert on_host(np.array([8, 2, 5])) == 21.0
        assert on_host(np.array([4, 1, 3])) == 7.0
        assert on_host(np.array([4.5, 1.0, 3.0])) == 7.5
    assert asked == [["a", "b", "k"]]  # traced once
    assert host_cost(None, GRID)(np.array([8, 3, 3])) == pytest.approx((1 / 2 + 1 + 1 / 3) / 3)
    assert host_cost(None, dn.Grid({}, {}))(np.zeros(0, int)) == 1.0


#
# All policies.
#


POLICIES = (
    dn.EveryStep(),
    dn.EveryStep(0.3),
    dn.EveryStep(1e300),
    dn.Every(1),
    dn.Every(3),
    dn.Every(4, dn.BreakEven()),
    dn.Hysteresis(),
    dn.Hysteresis(0.0, 0.0),
    dn.BreakEven(),
    dn.BreakEven(0.0),
    dn.BreakEven(2.5, 1.0),
    dn.BreakEven(steps=10),
    dn.AtMost(1),
    dn.AtMost(3),
    dn.AtMost(2, dn.EveryStep()),
    dn.Oracle(()),
    dn.Oracle(((0, (4, 2, 5)), (2, (16, 3, 9)), (5, (8, 1, 3)))),
)

walks = st.lists(
    st.tuples(
        counts,
        st.tuples(*[st.integers(0, 3)] * 3),
        st.tuples(*[st.floats(-2, 2)] * 3),
    ),
    min_size=1,
    max_size=8,
)


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
@few
@hp.given(
    walk=walks,
    compile=st.sampled_from([0.0, 1.0, 30.0, 1e6]),
    cost=st.sampled_from([total, volume]),
)
def test_policies_cover_and_are_pure(policy, walk, compile, cost):
    timing = dn.Timing(cost, compile)
    state, plan = policy.init(), None
    for step, (active, more, velocity) in enumerate(walk):
        observation = seen(active, plan, step=step, more=more, velocity=velocity, timing=timing)
        given = copy.deepcopy((state, observation))
        new, plan = policy(state, observation)
        # It has changed nothing that it was given, and says the same twice.
        again = policy(*given)
        assert new == again[0] and np.array_equal(plan, again[1])
        assert state == given[0]
        fields = [
            (o.active, o.expected, o.plan, o.velocity.peak) for o in (observation, given[1])
        ]
        for now, before in zip(*fields):
            assert now is before is None or np.array_equal(now, before)
        state = new
        # Whoever knows the run beforehand needs no foresight.
        held = observation.active if isinstance(policy, dn.Oracle) else observation.expected
        assert np.all(plan >= held)
        assert all(n in ladder for n, ladder in zip(plan.tolist(), LADDERS.values()))


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_policies_are_values(policy):
    assert policy == copy.deepcopy(policy) and hash(policy) == hash(copy.deepcopy(policy))
    with pytest.raises(AttributeError):
        policy.headroom = 1.0


@pytest.mark.parametrize(
    "policy, name, value, bound",
    (
        *((dn.EveryStep, "headroom", value, 0) for value in (-0.1, math.nan)),
        *((dn.Hysteresis, "slack", value, 0) for value in (-0.1, math.nan)),
        *((dn.Hysteresis, "headroom", value, 0) for value in (-0.1, math.nan)),
        *((dn.BreakEven, "patience", value, 0) for value in (-0.1, math.nan)),
        *((dn.BreakEven, "headroom", value, 0) for value in (-0.1, math.nan)),
        (dn.BreakEven, "steps", 0, 1),
        *((dn.Every, "steps", value, 1) for value in (-1, 0)),
        *((dn.AtMost, "plans", value, 1) for value in (-1, 0)),
    ),
)
def test_arguments_out_of_range(policy, name, value, bound):
    with pytest.raises(ValueError, match=f"`{name}` must be at least {bound}, got {value}"):
        policy(**{name: value})


def test_must_grow():
    plan = np.array([8, 2, 5])
    assert seen((1, 1, 1)).must_grow
    assert not seen((8, 2, 5), plan).must_grow
    assert seen((8, 3, 5), plan).must_grow
    assert seen((8, 2, 4), plan, more=(0, 0, 2)).must_grow


#
# The simple ones.
#


@few
@hp.given(walks)
def test_every_step_takes_what_fits(walk):
    rows = [row for row, _, _ in walk]
    assert decisions(dn.EveryStep(), rows) == [
        tuple(GRID.fit(np.array(row)).tolist()) for row in rows
    ]
    assert decisions(dn.EveryStep(), rows, more=1) == [
        tuple(GRID.fit(np.array(row) + 1).tolist()) for row in rows
    ]


def test_headroom_is_rounded_down():
    # 9.6 of 8, 2.4 of 2, 3.6 of 3; and 13.5 of 9, beyond the capacity
    assert decisions(dn.EveryStep(0.2), [(8, 2, 3)]) == [(12, 2, 3)]
    assert decisions(dn.EveryStep(0.5), [(8, 2, 9)]) == [(12, 3, 9)]


def test_every_asks_only_when_it_is_time():
    asked = []

    class Asked(dn.AbstractPolicy[int]):
        def init(self):
            return 0

        def __call__(self, state, observation):
            asked.append((state, observation.step))
            return state + 1, observation.grid.fit(observation.expected)

    rows = [(16, 1, 3), (4, 1, 3), (4, 1, 3), (4, 1, 3), (8, 1, 3), (2, 1, 3), (2, 1, 3)]
    plans = decisions(dn.Every(3, Asked()), rows)
    # At 4 it has to grow; its state counts only the times that it was asked.
    assert asked == [(0, 0), (1, 3), (2, 4), (3, 6)]
    assert [plan[0] for plan in plans] == [16, 16, 16, 4, 8, 8, 4]
    assert [plan[0] for plan in decisions(dn.Every(3), rows)] == [16, 16, 16, 4, 8, 8, 4]
    # What is foreseen counts as well.
    asked.clear()
    dn.Every(100, Asked())(0, seen((4, 1, 3), np.array([4, 1, 3]), step=1, more=1))
    assert asked == [(0, 1)]


def test_hysteresis():
    one = {"a": (4, 8, 12, 16)}
    plans = ft.partial(decisions, grid=grid_of(one))
    column = lambda *ns: [(n,) for n in ns]
    # 16 is a third more than 12, and twice 8.
    rows = column(16, 12, 8, 4)
    assert plans(dn.Hysteresis(0.3, 0.0), rows) == column(16, 12, 8, 4)
    assert plans(dn.Hysteresis(0.34, 0.0), rows) == column(16, 16, 8, 4)
    assert plans(dn.Hysteresis(1.0, 0.0), rows) == column(16, 16, 16, 4)
    assert plans(dn.Hysteresis(3.0, 0.0), rows) == column(16, 16, 16, 16)
    # Seconds count, not sizes.
    timing = dn.Timing(total, 1.0, overhead=100.0)
    assert plans(dn.Hysteresis(0.3, 0.0), rows, timing=timing) == column(16, 16, 16, 16)
    # New plans have room, and those that have no more than that are kept.
    assert plans(dn.Hysteresis(0.0, 0.5), column(8, 12, 13, 8)) == column(12, 12, 16, 12)
    assert plans(dn.Hysteresis(0.0, 0.0), column(4, 9, 8)) == column(4, 12, 8)


@few
@hp.given(walk=walks, slack=st.sampled_from([0.0, 0.2, 1.0]))
def test_hysteresis_wastes_at_most_its_slack(walk, slack):
    rows = [row for row, _, _ in walk]
    for row, plan in zip(rows, decisions(dn.Hysteresis(slack, 0.0), rows)):
        assert total(plan) <= (1 + slack) * total(GRID.fit(np.array(row))) * (1 + 1e-12)


@few
@hp.given(walk=walks, plans=st.integers(1, 4))
def test_at_most_bounds_the_plans_that_shrink(walk, plans):
    rows = [row for row, _, _ in walk] * 3
    run = taken(decisions(dn.AtMost(plans, dn.EveryStep()), rows))
    # It is the other policy for so many plans, and only grows from then on.
    wanted = taken(decisions(dn.EveryStep(), rows))
    assert run[:plans] == wanted[:plans]
    for before, after in it.pairwise(run[plans - 1 :]):
        assert all(a <= b for a, b in zip(before, after)) and before != after


def test_at_most_grows_by_half():
    one = {"a": tuple(range(1, 65))}
    rows = [(4,), (2,), (1,), (5,), (6,), (7,), (8,), *((n,) for n in range(9, 64))]
    run = taken(decisions(dn.AtMost(2, dn.EveryStep()), rows, grid=grid_of(one)))
    assert run == [(4,), (2,), (7,), (12,), (19,), (30,), (46,), (64,)]
    # An axis that need not grow does not shrink.
    state, plan = dn.AtMost(1)((1, None), seen((5, 3, 3), np.array([4, 3, 9])))
    assert plan.tolist() == [8, 3, 9] and state == (1, None)


def test_oracle_follows_its_switches():
    oracle = dn.Oracle(((0, (8, 3, 5)), (2, (4, 3, 9)), (4, (4, 1, 3))))
    rows = [(2, 1, 3)] * 6
    assert decisions(oracle, rows) == [
        *[(8, 3, 5)] * 2,
        *[(4, 3, 9)] * 2,
        *[(4, 1, 3)] * 2,
    ]
    # Where the run is another one it takes what fits, until its next switch.
    rows = [(2, 1, 3), (9, 1, 3), (9, 1, 3), (4, 1, 3), (1, 1, 3)]
    assert decisions(oracle, rows) == [
        (8, 3, 5),
        (12, 1, 3),
        (12, 1, 3),
        (12, 1, 3),
        (4, 1, 3),
    ]
    # A run that starts late starts with what is due.
    assert oracle(0, seen((2, 1, 3), step=3))[1].tolist() == [4, 3, 9]


@pytest.mark.parametrize("steps", ((1, 0), (2, 2)))
def test_oracle_in_order(steps):
    with pytest.raises(ValueError, match="`switches` must be in the order of their steps"):
        dn.Oracle(tuple((step, (4,)) for step in steps))


#
# Shrinking at the break-even point.
#


def segments(trace: dn.Trace, oracle: dn.Oracle, timing: dn.Timing) -> float:
    """What an oracle pays on its own trace, added up segment by segment."""
    steps = [step for step, _ in oracle.switches]
    lengths = np.diff([*steps, trace.length])
    sizes = [np.array(plan, int) for _, plan in oracle.switches]
    return sum(
        timing.switch(plan) + n * timing.step(plan) for plan, n in zip(sizes, lengths.tolist())
    )


def ratio(
    trace: dn.Trace,
    ladders: Ladders,
    timing: dn.Timing,
    policy: dn.AbstractPolicy = dn.BreakEven(),
) -> float:
    """Seconds over those of the optimum."""
    masks = masks_of(ladders)
    best = segments(trace, dn.optimum(trace, masks, ladders, timing), timing)
    return dn.replay(trace, policy, masks, ladders, timing).seconds / best


# Whether an axis shrinks at a step: the adversary knows whether a plan has just been taken, and
# whether the next one would be.
Adversary = Callable[[np.random.Generator, bool, bool], bool]

ADVERSARIES: Mapping[str, Adversary] = {
    "at random": lambda rng, bought, about_to: rng.random() < 0.2,
    "long plateaus": lambda rng, bought, about_to: rng.random() < 0.08,
    "after each purchase": lambda rng, bought, about_to: bought,
    "just before a purchase": lambda rng, bought, about_to: about_to or rng.random() < 0.1,
}


def rented(cost, compile: float, plan: np.ndarray, length: int, drop) -> Iterator[np.ndarray]:
    """The counts of a run against whoever rents until the rent is the price."""
    now, wasted, bought = plan.copy(), 0.0, True
    for _ in range(length):
        yield now.copy()
        now = drop(now, bought, wasted + cost(plan) - cost(now) > compile)
        wasted += cost(plan) - cost(now)
        bought = wasted > compile
        if bought:
            plan, wasted = now.copy(), 0.0


def shrunk(rng: np.random.Generator, now: np.ndarray) -> np.ndarray:
    """On one axis or on several, by one or by more."""
    which = rng.random(len(now)) < 0.5
    which[rng.integers(len(now))] = True
    by = 1 if rng.random() < 0.7 else rng.integers(1, 1 + now)
    return np.maximum(now - which * by, 1)


def instances(kind: str, number: int) -> Iterator[tuple[dn.Trace, Ladders, dn.Timing]]:
    rng = np.random.default_rng(sorted(ADVERSARIES).index(kind))
    for _ in range(number):
        capacity = rng.integers(2, 7, rng.integers(1, 4))
        # From axes that cost alike to one that costs nearly all; the sizes as they are or as
        # powers, so that each is a multiple of the one before.
        weights, base = rng.exponential(size=len(capacity)) ** 3, rng.choice([1.0, 2.0, 8.0])
        cost = lambda sizes: float(np.dot(weights, sizes if base == 1 else base**sizes))
        compile = cost(capacity) * 10 ** rng.uniform(-1, 1.5)
        drop = lambda now, bought, about_to: (
            shrunk(rng, now) if ADVERSARIES[kind](rng, bought, about_to) else now
        )
        rows = np.stack([*rented(cost, compile, capacity, int(rng.integers(1, 22)), drop)])
        ladders = {f"x{i}": dn.every()(n) for i, n in enumerate(capacity.tolist())}
        overhead = float(rng.choice([0.0, 0.1]) * cost(capacity))
        # The optimum starts with the same plan, so that its price is the same for both.
        held = frozenset({capacity.tobytes()} if rng.random() < 0.5 else ())
        timing = dn.Timing(cost, float(compile), overhead=overhead, held=held)
        yield dn.Trace.of(tuple(ladders), rows), ladders, timing


@pytest.mark.parametrize("kind", ADVERSARIES)
def test_break_even_pays_at_most_twice_the_optimum(kind):
    ratios = [ratio(*instance) for instance in instances(kind, 255)]
    assert min(ratios) >= 1 - 1e-9
    assert max(ratios) <= 2 + 1e-9


def one_drop(compile: int, waste: int, after: int = 0):
    """Half the size is needed after the first step, at next to no cost: a second a step is
    wasted. The first plan is compiled already.
    """
    cost = lambda sizes: 1.0 if sizes[0] == 2 else 1e-6
    rows = np.array([[2], *[[1]] * (waste + after)])
    held = frozenset({np.array([2]).tobytes()})
    return dn.Trace.of(("x",), rows), {"x": (1, 2)}, dn.Timing(cost, float(compile), held=held)


def test_no_smaller_bound_would_hold():
    # Waste up to the price of a compilation, and then the compilation; the best is one of
    # the two.
    assert 1.98 < ratio(*one_drop(200, 201)) <= 2
    assert 1.98 < ratio(*one_drop(200, 200, 200)) <= 2
    # No other point is as good.
    assert ratio(*one_drop(200, 200, 200), dn.BreakEven(1.1)) > 2.05
    assert ratio(*one_drop(200, 181), dn.BreakEven(0.9)) > 2.05


def test_break_even_shrinks_before_the_waste_exceeds_a_compilation():
    grid = grid_of({"a": (4, 8, 12, 16)})
    rows = [(16,), *[(8,)] * 8]
    plans = ft.partial(decisions, grid=grid)
    # 8 seconds a step are wasted, in the second step for the first time.
    for compile, kept in ((7.0, 1), (8.0, 2), (15.9, 2), (16.0, 3), (24.0, 4)):
        wanted = [(16,)] * kept + [(8,)] * (9 - kept)
        assert plans(dn.BreakEven(), rows, timing=dn.Timing(total, compile)) == wanted
    # With more patience, and without any.
    timing = dn.Timing(total, 8.0)
    assert plans(dn.BreakEven(2.0), rows, timing=timing)[:4] == [(16,)] * 3 + [(8,)]
    assert plans(dn.BreakEven(0.0), rows, timing=timing)[:2] == [(16,), (8,)]
    # What is compiled already costs nothing, but has to be faster.
    held = frozenset({np.array([8]).tobytes()})
    timing = dn.Timing(total, 8.0, held=held)
    assert plans(dn.BreakEven(), rows, timing=timing)[:2] == [(16,), (8,)]
    timing = dn.Timing(lambda sizes: 1.0, 8.0, held=held)
    assert plans(dn.BreakEven(), rows, timing=timing) == [(16,)] * 9


def test_break_even_compiles_nothing_that_would_not_pay_before_the_end():
    # 8 seconds a step can be saved, from the second step on, and a compilation costs 40: after
    # 5 steps that is wasted, and as long as more than 5 steps are left it is worth it.
    grid, timing = grid_of({"a": (8, 16)}), dn.Timing(total, 40.0)
    rows = [(16,), *[(8,)] * 11]
    plans = lambda steps: taken(
        decisions(dn.BreakEven(steps=steps), rows, grid=grid, timing=timing)
    )
    assert plans(12) == plans(None) == [(16,), (8,)]
    assert plans(11) == [(16,)]
    # What is compiled costs nothing.
    timing = dn.Timing(total, 40.0, held=frozenset({np.array([8]).tobytes()}))
    assert plans(11) == [(16,), (8,)]


def test_no_room_is_given_beyond_the_end():
    grid, timing = grid_of({"x": tuple(range(1, 65))}), dn.Timing(total, 200.0)
    look = seen((4,), np.array([3]), step=100, velocity=1.0, grid=grid, timing=timing)
    for steps, grown in ((None, 20), (200, 20), (108, 12), (105, 8), (101, 5), (99, 5)):
        policy = dn.BreakEven(steps=steps)
        # A plan that has paid for itself.
        state = dataclasses.replace(policy.init(), ran=math.inf)
        assert policy(state, look)[1].tolist() == [grown]


def test_break_even_shrinks_all_axes_at_once():
    # The waste of both axes adds up, and one compilation shrinks both.
    rows = [(16, 3, 3), *[(12, 3, 3)] * 3, *[(12, 1, 3)] * 4]
    timing = dn.Timing(lambda sizes: float(sizes[0] + 2 * sizes[1]), 20.0)
    # 4 seconds a step, then 8: 4, 8, 12, 20, 28. The third axis costs nothing.
    assert taken(decisions(dn.BreakEven(), rows, timing=timing)) == [(16, 3, 5), (12, 1, 5)]
    assert decisions(dn.BreakEven(), rows, timing=timing).index((12, 1, 5)) == 5


#
# Growing.
#


@few
@hp.given(
    start=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    velocity=st.tuples(st.floats(-1, 2), st.floats(-1, 2)),
    part=st.tuples(st.floats(0, 0.9), st.floats(0, 0.9)),
    compile=st.floats(0.1, 1e4),
    ladders=st.sampled_from([dn.every(), dn.geometric(1.5, 2), dn.multiples(16)]),
    cost=st.sampled_from([total, volume]),
    step=st.sampled_from([1, 5, 100, 2**20]),
)
def test_growth_is_the_economic_order_quantity(
    start, velocity, part, compile, ladders, cost, step
):
    grid = grid_of({"x": ladders(48), "y": ladders(48)})
    timing = dn.Timing(cost, compile)
    policy = dn.BreakEven(headroom=0.0)
    state, plan = policy(policy.init(), seen((1, 1), grid=grid, timing=timing))
    observation = seen(
        start, plan, step=step, velocity=velocity, part=part, grid=grid, timing=timing
    )
    hp.assume(observation.must_grow)
    _, grown = policy(state, observation)

    def held(steps):
        # A count is a position rounded down.
        ahead = (n + p + steps * max(v, 0.0) for n, p, v in zip(start, part, velocity))
        return grid.fit(np.array([math.floor(n + 1e-9) for n in ahead]))

    def price(steps):
        return compile / steps + (timing.step(held(steps)) - timing.step(held(0))) / 2

    if max(velocity) <= 0:
        assert grown.tolist() == held(0).tolist()
    else:
        # No longer than the run has lasted.
        horizons = [2**i for i in range(21) if 2**i <= step]
        assert grown.tolist() == held(min(horizons, key=price)).tolist()


def test_axes_that_are_not_computed_get_their_capacity():
    """Blocks of widths "0", "1" and "2", as many as "depth" says; kernels are not counted."""

    def cost(sizes):
        depth, _, *widths = sizes.tolist()
        return float(sum(widths[:depth]))

    widths = {name: (4, 8, 16, 32) for name in "012"}
    grid = grid_of({"_depth": (1, 2, 3), "_kernel": (3, 5, 9), **widths})
    order = [list(grid.axes).index(name) for name in ("_depth", "_kernel", "0", "1", "2")]
    timing = dn.Timing(lambda sizes: cost(sizes[order]), 10.0)
    at = lambda *counts: [n for _, n in sorted(zip(order, counts))]
    policy = dn.BreakEven()
    state, plan = policy(policy.init(), seen(at(2, 3, 4, 8, 4), grid=grid, timing=timing))
    assert plan[order].tolist() == [2, 5, 4, 8, 32]
    # Whatever the third block's width does, nothing is compiled.
    active = at(2, 3, 4, 8, 32)
    for step in range(1, 100):
        state, plan = policy(state, seen(active, plan, step=step, grid=grid, timing=timing))
        assert plan[order].tolist() == [2, 5, 4, 8, 32]
    # Its depth is reached: the width is of use, and as small as it can be.
    active = at(3, 3, 4, 8, 4)
    _, plan = policy(state, seen(active, plan, step=100, grid=grid, timing=timing))
    assert plan[order].tolist() == [3, 5, 4, 8, 4]


@pytest.mark.parametrize("part, depth", ((0.1, 2), (0.5, 2), (0.9, 3)))
def test_no_block_is_entered_by_a_small_rise(part, depth):
    """A width must grow; the depth rises by an eighth of a block meanwhile, and is computed in
    full once it is entered.
    """
    grid = grid_of({"depth": (1, 2, 3, 4), "width": tuple(range(1, 33))})
    timing = dn.Timing(volume, 1e4)
    policy = dn.BreakEven()
    state, plan = policy(policy.init(), seen((2, 8), grid=grid, timing=timing))
    velocity, part = (2e-3, 0.01), (part, 0.0)
    look = seen((2, 9), plan, step=100, velocity=velocity, part=part, grid=grid, timing=timing)
    assert policy(state, look)[1].tolist()[0] == depth


@pytest.mark.parametrize(
    "compile, velocity, step, grown",
    (
        # C / H + H / 2: for C = 8 that is 8.5, 5, 4, 5 seconds at H = 1, 2, 4, 8.
        (8.0, 1.0, 100, 8),
        (2.0, 1.0, 100, 6),  # 2.5, 2, 2.5
        (200.0, 1.0, 100, 20),  # 28.5, 20.25, 22.25 at 8, 16, 32
        # C / H + H / 4: for C = 8 that is 4.5, 3, 3, 4.5 at H = 2, 4, 8, 16.
        (9.0, 0.5, 100, 8),  # 5, 3.25, 3.125, 4.56
        (8.0, 0.0, 100, 4),
        (8.0, -1.0, 100, 4),
        # A run of 3 steps is not taken to go on like that for 4.
        (8.0, 1.0, 3, 6),
    ),
)
def test_growth_by_hand(compile, velocity, step, grown):
    grid, timing = grid_of({"x": tuple(range(1, 65))}), dn.Timing(total, compile)
    policy = dn.BreakEven()
    state, plan = policy(policy.init(), seen((3,), grid=grid, timing=timing))
    look = seen((4,), plan, step=step, velocity=velocity, grid=grid, timing=timing)
    assert policy(state, look)[1].tolist() == [grown]


def test_headroom_doubles_while_plans_do_not_pay():
    # A bucket more at each step, too fast for any velocity; compiling costs more than all.
    def compilations(n):
        grid = grid_of({"x": tuple(range(1, n + 1))})
        rows = [(i,) for i in range(1, n + 1)]
        timing = dn.Timing(total, 1e9)
        return len(taken(decisions(dn.BreakEven(), rows, grid=grid, timing=timing)))

    found = {n: compilations(n) for n in (16, 64, 256, 1024)}
    assert all(count <= 2 * math.log2(n) for n, count in found.items()), found
    # Not a constant number, either: nothing knows where the ramp ends.
    assert found[16] < found[1024]


@pytest.mark.parametrize("steps", (1, 10))
def test_headroom_does_not_double_once_plans_pay(steps):
    # A single step takes as long as a compilation.
    grid = grid_of({"x": tuple(range(1, 65))})
    rows = [(n,) for n in range(1, 65) for _ in range(steps)]
    timing = dn.Timing(total, 1.0)
    assert decisions(dn.BreakEven(), rows, grid=grid, timing=timing) == rows


@pytest.mark.parametrize("headroom", (0.0, 0.05))
@pytest.mark.parametrize("least", (0, 1))
def test_doubling_has_an_end(headroom, least):
    # Two axes that grow in turn, each when the other one shrinks; of 0 positions no headroom
    # is any.
    grid = grid_of({"x": (8, 16), "y": (8, 16)})
    rows = [(16, least), (least, 16)] * 600
    plans = decisions(
        dn.BreakEven(headroom=headroom), rows, grid=grid, timing=dn.Timing(total, 1e9)
    )
    assert all(a >= n for row, plan in zip(rows, plans) for n, a in zip(row, plan))


def test_growth_tightens_the_other_axes():
    timing = dn.Timing(total, 1e6)
    rows = [(16, 1, 3), (4, 1, 3), (4, 2, 3)]
    assert decisions(dn.BreakEven(), rows, timing=timing)[-1] == (4, 2, 3)


@pytest.mark.parametrize("steps, compile", ((1, 1e2), (1, 1e3), (5, 1e2), (5, 1e3), (5, 1e4)))
def test_what_grows_is_not_shrunk_in_between(steps, compile):
    # The room that a growing axis was given is no waste.
    ladders = {"x": dn.every()(64)}
    trace = dn.Trace.of(("x",), np.repeat(np.arange(1, 65), steps)[:, None])
    timing = dn.Timing(total, compile)
    run = dn.replay(trace, dn.BreakEven(), masks_of(ladders), ladders, timing).plans
    assert all(a["x"] < b["x"] for (_, a), (_, b) in it.pairwise(run)), run


def test_what_costs_nothing_has_a_bucket_more():
    """Growth by one bucket is not compiled for, by two it is; the other axis stays tight."""
    grid = grid_of({"free": (2, 4, 8), "paid": (2, 4, 8)})
    cost = lambda sizes: float(sizes[1])
    rows = [(2, 4), (3, 4), (8, 4), (8, 2)]
    wanted = [(4, 4), (4, 4), (8, 4), (8, 4)]
    assert decisions(dn.BreakEven(), rows, grid=grid, timing=dn.Timing(cost, 1e3)) == wanted
    # One that is compiled and as cheap is taken as it is, and costs nothing to go back to.
    for tight, kept in (((2, 4), (2, 4)), ((2, 4), (8, 4)), ((2, 2), (8, 2))):
        held = frozenset({np.array(kept).tobytes()})
        timing = dn.Timing(cost, 1e3, held=held)
        assert decisions(dn.BreakEven(), [tight], grid=grid, timing=timing) == [kept]
    assert decisions(dn.BreakEven(), rows, grid=grid, timing=timing)[-1] == (8, 2)


def test_waste_between_two_looks_counts():
    # 8 seconds a step from the second step on: 200 of them at the 26th.
    rows = [(16, 1, 3), *[(8, 1, 3)] * 99]
    timing = dn.Timing(total, 200.0)
    plans = decisions(dn.Every(10, dn.BreakEven()), rows, timing=timing)
    assert plans.index((8, 1, 3)) == 30
