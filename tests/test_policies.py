"""What holds of every policy, and what the simple ones decide. The other one: BreakEven."""

import copy
import functools as ft
import math

import hypothesis as hp
import hypothesis.strategies as st
import numpy as np
import pytest
from helpers import decisions, each_once, ladder_grid, LADDERS, seen, total, volume

import dnarch_eqx as dn
from dnarch_eqx import runtime as rt


few = hp.settings(max_examples=25, deadline=None, derandomize=True)


def plan_of(*sizes: int) -> dn.Plan:
    return dn.Plan(dict(zip("abk", sizes)))


POLICIES = (
    rt.EveryStep(),
    rt.EveryStep(0.3),
    rt.EveryStep(1e300),
    rt.Every(1),
    rt.Every(3),
    rt.Every(4, rt.BreakEven()),
    rt.Hysteresis(),
    rt.Hysteresis(0.0, 0.0),
    rt.BreakEven(),
    rt.BreakEven(0.0),
    rt.BreakEven(2.5, 1.0),
    rt.BreakEven(steps=10),
    rt.Oracle(()),
    rt.Oracle(((0, plan_of(4, 2, 5)), (2, plan_of(16, 3, 9)), (5, plan_of(8, 1, 3)))),
)

counts = st.tuples(*(st.integers(1, ladder[-1]) for ladder in LADDERS.values()))
walks = st.lists(
    st.tuples(
        counts,
        st.tuples(*[st.integers(0, 3)] * 3),
        st.tuples(*[st.floats(-2, 2)] * 3),
    ),
    min_size=1,
    max_size=8,
)
grids = st.tuples(*map(st.sampled_from, LADDERS.values()))


#
# All policies.
#


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
@few
@hp.given(
    walk=walks,
    compile=st.sampled_from([0.0, 1.0, 30.0, 1e6]),
    cost=st.sampled_from([total, volume]),
    compiled=st.sets(grids, max_size=3),
)
def test_policies_cover_and_are_pure(policy, walk, compile, cost, compiled):
    timing = rt.Timing(cost, compile)
    state, plan = policy.init(), None
    for step, (active, more, velocity) in enumerate(walk):
        observation = seen(
            active,
            plan,
            step=step,
            more=more,
            velocity=velocity,
            timing=timing,
            compiled=compiled,
        )
        given = copy.deepcopy((state, observation))
        new, plan = policy(state, observation)
        # It has changed nothing that it was given, and says the same twice.
        assert (new, plan) == policy(*given)
        assert state == given[0]
        assert observation.plan == given[1].plan
        assert observation.compiled == given[1].compiled
        for name in ("active", "expected"):
            np.testing.assert_array_equal(getattr(observation, name), getattr(given[1], name))
        np.testing.assert_array_equal(observation.velocity.peak, given[1].velocity.peak)
        state = new
        assert isinstance(plan, dn.Plan) and tuple(plan) == tuple(LADDERS)
        # Whoever knows the run beforehand needs no foresight.
        held = observation.active if isinstance(policy, rt.Oracle) else observation.expected
        assert np.all(plan.sizes >= held)
        assert all(plan[axis] in ladder for axis, ladder in LADDERS.items())


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_policies_are_values(policy):
    assert policy == copy.deepcopy(policy) and hash(policy) == hash(copy.deepcopy(policy))
    assert [other == policy for other in POLICIES].count(True) == 1
    with pytest.raises(AttributeError):
        policy.headroom = 1.0


@pytest.mark.parametrize(
    "policy, name, value, bound",
    (
        *((rt.EveryStep, "headroom", value, 0) for value in (-0.1, math.nan)),
        *((rt.Hysteresis, "slack", value, 0) for value in (-0.1, math.nan)),
        *((rt.Hysteresis, "headroom", value, 0) for value in (-0.1, math.nan)),
        *((rt.BreakEven, "patience", value, 0) for value in (-0.1, math.nan)),
        *((rt.BreakEven, "headroom", value, 0) for value in (-0.1, math.nan)),
        (rt.BreakEven, "steps", 0, 1),
        *((rt.Every, "steps", value, 1) for value in (-1, 0)),
    ),
)
def test_arguments_out_of_range(policy, name, value, bound):
    with pytest.raises(ValueError, match=f"`{name}` must be at least {bound}, got {value}"):
        policy(**{name: value})


@pytest.mark.parametrize(
    "policy",
    (rt.EveryStep(), rt.Every(2), rt.Hysteresis(), rt.BreakEven(), rt.Oracle(())),
    ids=repr,
)
def test_without_axes_there_is_one_plan(policy):
    assert decisions(policy, [()] * 3, grid=ladder_grid({})) == [()] * 3


#
# What a policy sees.
#


@pytest.mark.parametrize(
    "active, more, plan, grow, covered",
    (
        ((1, 1, 1), 0, None, True, False),
        ((8, 2, 5), 0, (8, 2, 5), False, True),
        ((8, 3, 5), 0, (8, 2, 5), True, False),
        # Only what is foreseen is too much for it.
        ((8, 2, 4), (0, 0, 2), (8, 2, 5), True, True),
    ),
)
def test_observations_by_hand(active, more, plan, grow, covered):
    observation = seen(active, plan, more=more)
    assert observation.must_grow is grow
    assert observation.covered(observation.plan) is covered


@few
@hp.given(counts, st.floats(0, 3))
def test_headroom_is_a_share_rounded_down(active, headroom):
    plan = seen(active).roomy(headroom)
    wanted = [math.floor(n * (1 + headroom)) for n in active]
    assert plan == plan_of(
        *(
            min((size for size in ladder if size >= n), default=ladder[-1])
            for n, ladder in zip(wanted, LADDERS.values())
        )
    )


def test_headroom_by_hand():
    # 9.6 of 8, 2.4 of 2, 3.6 of 3; and 13.5 of 9, beyond the capacity
    assert decisions(rt.EveryStep(0.2), [(8, 2, 3)]) == [(12, 2, 3)]
    assert decisions(rt.EveryStep(0.5), [(8, 2, 9)]) == [(12, 3, 9)]


#
# One by one.
#


@few
@hp.given(walks)
def test_every_step_takes_what_fits(walk):
    rows = [row for row, _, _ in walk]
    fit = lambda row: tuple(
        min((size for size in ladder if size >= n), default=ladder[-1])
        for n, ladder in zip(row, LADDERS.values())
    )
    assert decisions(rt.EveryStep(), rows) == list(map(fit, rows))
    # What is foreseen counts as well.
    more = [tuple(n + 1 for n in row) for row in rows]
    assert decisions(rt.EveryStep(), rows, more=1) == list(map(fit, more))


def test_every_asks_only_when_it_is_time():
    asked = []

    class Asked(rt.AbstractPolicy[int]):
        def init(self):
            return 0

        def __call__(self, state, observation):
            asked.append((state, observation.step))
            return state + 1, observation.roomy(0.0)

    rows = [(16, 1, 3), (4, 1, 3), (4, 1, 3), (4, 1, 3), (8, 1, 3), (2, 1, 3), (2, 1, 3)]
    plans = decisions(rt.Every(3, Asked()), rows)
    # At 4 it has to grow; its state counts only the times that it was asked.
    assert asked == [(0, 0), (1, 3), (2, 4), (3, 6)]
    assert [plan[0] for plan in plans] == [16, 16, 16, 4, 8, 8, 4]
    assert [plan[0] for plan in decisions(rt.Every(3), rows)] == [16, 16, 16, 4, 8, 8, 4]
    # What is foreseen counts as well.
    asked.clear()
    rt.Every(100, Asked())(0, seen((4, 1, 3), (4, 1, 3), step=1, more=1))
    assert asked == [(0, 1)]


def test_waste_between_two_looks_counts():
    # 8 seconds a step from the second step on: 200 of them at the 26th.
    rows = [(16, 1, 3), *[(8, 1, 3)] * 99]
    timing = rt.Timing(total, 200.0)
    plans = decisions(rt.Every(10, rt.BreakEven()), rows, timing=timing)
    assert plans.index((8, 1, 3)) == 30


def test_hysteresis_by_hand():
    plans = ft.partial(decisions, grid=ladder_grid({"a": (4, 8, 12, 16)}))
    column = lambda *ns: [(n,) for n in ns]
    # 16 is a third more than 12, and twice 8.
    rows = column(16, 12, 8, 4)
    assert plans(rt.Hysteresis(0.3, 0.0), rows) == column(16, 12, 8, 4)
    assert plans(rt.Hysteresis(0.34, 0.0), rows) == column(16, 16, 8, 4)
    assert plans(rt.Hysteresis(1.0, 0.0), rows) == column(16, 16, 16, 4)
    assert plans(rt.Hysteresis(3.0, 0.0), rows) == column(16, 16, 16, 16)
    # Seconds count, not sizes.
    timing = rt.Timing(total, 1.0, overhead=100.0)
    assert plans(rt.Hysteresis(0.3, 0.0), rows, timing=timing) == column(16, 16, 16, 16)
    # New plans have room, and those that have no more than that are kept.
    assert plans(rt.Hysteresis(0.0, 0.5), column(8, 12, 13, 8)) == column(12, 12, 16, 12)
    assert plans(rt.Hysteresis(0.0, 0.0), column(4, 9, 8)) == column(4, 12, 8)


@few
@hp.given(walk=walks, slack=st.sampled_from([0.0, 0.2, 1.0]))
def test_hysteresis_wastes_at_most_its_slack(walk, slack):
    rows = [row for row, _, _ in walk]
    tight = decisions(rt.EveryStep(), rows)
    plans = decisions(rt.Hysteresis(slack, 0.0), rows)
    for plan, least in zip(plans, tight):
        assert total(plan) <= (1 + slack) * total(least) * (1 + 1e-12)
    # And it switches for no less.
    for before, after, least in zip(plans, plans[1:], tight[1:]):
        covers = all(a >= b for a, b in zip(before, least))
        cheap = total(before) <= (1 + slack) * total(least) * (1 - 1e-12)
        assert after == before if covers and cheap else True


def test_oracle_follows_its_switches():
    oracle = rt.Oracle(((0, plan_of(8, 3, 5)), (2, plan_of(4, 3, 9)), (4, plan_of(4, 1, 3))))
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
    assert oracle(0, seen((2, 1, 3), step=3))[1] == plan_of(4, 3, 9)


def test_an_oracle_may_leave_axes_out():
    oracle = rt.Oracle(((0, dn.Plan({"b": 2})),))
    assert decisions(oracle, [(2, 1, 3)]) == [(16, 2, 9)]


def test_an_oracle_that_knows_nothing_switches_only_when_it_must():
    rows = [(8, 1, 3), (2, 1, 3), (9, 1, 3), (2, 2, 3)]
    assert each_once(decisions(rt.Oracle(()), rows)) == [(8, 1, 3), (12, 1, 3), (4, 2, 3)]


@pytest.mark.parametrize("steps", ((1, 0), (2, 2)))
def test_oracle_in_order(steps):
    with pytest.raises(ValueError, match="`switches` must be in the order of their steps"):
        rt.Oracle(tuple((step, plan_of(4)) for step in steps))
