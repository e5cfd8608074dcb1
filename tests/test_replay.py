"""What a policy would have cost on a recorded run, and the least that any could."""

import functools as ft
import itertools as it

import hypothesis as hp
import hypothesis.strategies as st
import numpy as np
import pytest
from helpers import (
    best_of,
    ladder_masks,
    LADDERS,
    Ladders,
    ONE,
    paid,
    replayed,
    total,
    trace_of,
    volume,
)

import dnarch_eqx as dn
from dnarch_eqx import runtime as rt


few = hp.settings(max_examples=30, deadline=None, derandomize=True)


def x(size: int) -> dn.Plan:
    return dn.Plan({"x": size})


def taken(outcome: rt.Outcome) -> list[tuple[int, int]]:
    return [(step, plan["x"]) for step, plan in outcome.plans]


#
# Replays.
#


def test_replay_by_hand():
    # 10 seconds a compilation; 1 + size / 2 a step.
    timing = rt.Timing(total, 10.0, scale=0.5, overhead=1.0)
    trace = trace_of(16, 5, 5, 4, 13)
    outcome = replayed(trace, rt.EveryStep(), timing)
    assert outcome.plans == ((0, x(16)), (1, x(8)), (3, x(4)), (4, x(16)))
    assert outcome.compilations == 4 and outcome.compiling == 40
    assert outcome.stepping == 9 + 2 * 5 + 3 + 9
    assert outcome.exact == 9 + 2 * 3.5 + 3 + 7.5
    assert outcome.waste == pytest.approx((1 + 2 * 8 / 5 + 1 + 16 / 13) / 5)
    assert outcome.seconds == 40 + 31
    assert outcome.efficiency == 26.5 / 71

    full = replayed(trace, rt.Oracle(((0, x(16)),)), timing)
    assert full.plans == ((0, x(16)),)
    assert full.compilations == 1 and full.compiling == 10
    assert full.stepping == 5 * 9 and full.exact == 26.5
    assert full.waste == pytest.approx((1 + 2 * 16 / 5 + 4 + 16 / 13) / 5)


def test_kept_plans_are_free():
    timing = rt.Timing(total, 10.0)
    trace = trace_of(16, 8, 16, 4, 16, 8)
    # Of two the one that was left longer ago goes, not the one that was made first.
    for keep, wanted in ((1, 6), (2, 4), (3, 3), (100, 3)):
        outcome = replayed(trace, rt.EveryStep(), timing, keep=keep)
        assert outcome.compilations == wanted and outcome.compiling == 10 * wanted
        assert len(outcome.plans) == 6 and outcome.stepping == 68


def test_what_is_compiled_before_is_free():
    timing, trace = rt.Timing(total, 10.0), trace_of(16, 8, 4, 16)
    outcome = replayed(trace, rt.EveryStep(), timing, compiled=(x(16), x(8)))
    assert outcome.compilations == 1 and outcome.compiling == 10
    assert len(outcome.plans) == 4
    # An axis that a plan does not name is at its capacity.
    assert replayed(trace, rt.EveryStep(), timing, compiled=[dn.Plan()]).compilations == 2


def test_compilations_that_cost_nothing_count():
    outcome = replayed(trace_of(16, 8, 16), rt.EveryStep(), rt.Timing(total, 0.0))
    assert outcome.compilations == 3 and outcome.compiling == 0


def test_policies_see_what_is_compiled():
    # Half of the size is not needed for long enough to be compiled again; kept, it is taken.
    trace = trace_of(8, *[16] * 2, *[8] * 2, *[16] * 2, *[8] * 2)
    timing = rt.Timing(total, 40.0)
    alone, two = (replayed(trace, rt.BreakEven(), timing, keep=keep) for keep in (1, 2))
    assert taken(alone) == [(0, 8), (1, 16)]
    assert taken(two) == [(0, 8), (1, 16), (3, 8), (5, 16), (7, 8)]
    assert two.compilations == 2
    # As if it had been compiled before.
    before = replayed(trace, rt.BreakEven(), timing, compiled=(x(8), x(16)))
    assert before.plans == two.plans and before.compilations == 0


def test_foresight():
    # One more a step, from the first step on.
    trace = trace_of(*range(1, 17))
    timing = rt.Timing(total, 10.0)
    assert taken(replayed(trace, rt.EveryStep(), timing)) == [(0, 4), (4, 8), (8, 12), (12, 16)]
    ahead = replayed(trace, rt.EveryStep(), timing, foresight=4)
    assert taken(ahead) == [(0, 4), (1, 8), (4, 12), (8, 16)]
    # Nothing is foreseen to shrink.
    back = trace_of(*range(16, 0, -1))
    assert replayed(back, rt.EveryStep(), timing, foresight=4) == replayed(
        back, rt.EveryStep(), timing
    )


def test_foresight_of_nothing():
    # Once an axis has come to rest its velocity fades, but 16 positions remain 16.
    ladders = {"x": (8, 16, 24)}
    trace = trace_of(*[8] * 5, *[16] * 200)
    outcome = replayed(trace, rt.EveryStep(), rt.Timing(total, 1.0), ladders, foresight=1)
    assert outcome.plans[-1][1] == x(16)
    assert not [step for step, _ in outcome.plans if step > 100], outcome.plans


class Always(rt.AbstractPolicy[None]):
    """Whatever it sees."""

    def __init__(self, plan):
        self.plan = plan

    def init(self):
        return None

    def __call__(self, state, observation):
        return state, self.plan


def test_a_policy_that_does_not_cover_is_refused():
    timing = rt.Timing(total, 10.0)
    assert replayed(trace_of(1, 4), Always(x(4)), timing).compilations == 1
    message = r"gave Plan\(\{'x': 4\}\), which does not cover the active counts \{'x': 5\}"
    with pytest.raises(ValueError, match=message):
        replayed(trace_of(1, 4, 5), Always(x(4)), timing)


@pytest.mark.parametrize("plan", (dn.Plan(), None, {"x": 4}), ids=repr)
def test_a_policy_that_gives_no_whole_plan_is_refused(plan):
    with pytest.raises(ValueError, match=r"must give a `Plan` of all axes, not"):
        replayed(trace_of(1, 4), Always(plan), rt.Timing(total, 10.0))


@pytest.mark.parametrize(
    "arguments, message",
    (
        ({"keep": 0}, "`keep` must be at least 1, got 0"),
        ({"foresight": -1}, "`foresight` must be at least 0, got -1"),
    ),
)
def test_replay_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        replayed(trace_of(1), rt.EveryStep(), rt.Timing(total, 1.0), **arguments)


@pytest.mark.parametrize("ask", (replayed, lambda trace, _, *args: best_of(trace, *args)))
def test_a_trace_of_other_masks(ask):
    timing = rt.Timing(total, 1.0)
    with pytest.raises(ValueError, match=r"trace has the axes \['x'\], the masks \['y'\]"):
        ask(trace_of(1), rt.EveryStep(), timing, {"y": (16,)})
    # Nor can any plan hold more than there is.
    message = "has 17 active positions on axis 'x', whose capacity is 16"
    with pytest.raises(ValueError, match=message):
        ask(trace_of(3, 17), rt.EveryStep(), timing)


def test_a_dead_axis():
    # Nothing is smaller than one position.
    dead, alive = (
        replayed(trace_of(n, 8), rt.EveryStep(), rt.Timing(total, 1.0)) for n in (0, 1)
    )
    assert dead == alive and alive.exact == 1 + 8


POLICIES = (rt.EveryStep(), rt.Every(3), rt.Hysteresis(), rt.BreakEven())


@pytest.mark.parametrize("length", (1, 3))
def test_no_axes(length):
    trace = rt.Trace.of((), np.zeros((length, 0), int))
    timing = rt.Timing(lambda sizes: 2.0, 5.0)
    for policy in (*POLICIES, best_of(trace, timing, {})):
        outcome = replayed(trace, policy, timing, {})
        assert outcome.plans == ((0, dn.Plan()),)
        assert outcome.seconds == 5 + 2 * length and outcome.waste == 1


def test_one_step():
    timing = rt.Timing(total, 5.0)
    assert best_of(trace_of(5), timing) == rt.Oracle(((0, x(8)),))
    for policy in POLICIES:
        assert replayed(trace_of(5), policy, timing).seconds == 13
        assert rt.regret(trace_of(5), policy, ladder_masks(ONE), ONE, timing) == 1


#
# The optimum.
#


def exhausted(trace: rt.Trace, timing: rt.Timing, ladders: Ladders) -> float:
    """The least that any sequence of plans pays: all are tried."""
    rows = trace.every_step().tolist()
    plans = list(it.product(*ladders.values()))
    covering = [
        [plan for plan in plans if all(n <= m for n, m in zip(row, plan))] for row in rows
    ]
    seconds = {
        plan: timing.overhead + timing.scale * timing.cost(np.array(plan, int))
        for plan in plans
    }
    pays = lambda run: (
        sum(timing.compile for a, b in it.pairwise((None, *run)) if a != b)
        + sum(seconds[plan] for plan in run)
    )
    return min(map(pays, it.product(*covering)))


def counts(ladders: Ladders, most: int):
    row = st.tuples(*(st.integers(1, ladder[-1]) for ladder in ladders.values()))
    return st.lists(row, min_size=1, max_size=most)


# Cost, seconds a compilation, overhead.
timings = st.tuples(
    st.sampled_from([total, volume]),
    st.sampled_from([0.0, 0.5, 2.0, 7.0, 30.0, 1e4]),
    st.sampled_from([0.0, 3.0]),
)


def instance(ladders, rows, numbers) -> tuple[rt.Trace, rt.Timing]:
    cost, compile, overhead = numbers
    trace = rt.Trace.of(tuple(ladders), np.array(rows))
    return trace, rt.Timing(cost, compile, overhead=overhead)


@pytest.mark.parametrize(
    "ladders, most",
    (({"x": (1, 3, 4)}, 6), ({"x": (2, 5), "y": (1, 6)}, 5), ({"kx": (3, 5, 9)}, 6)),
)
@few
@hp.given(data=st.data(), numbers=timings)
def test_optimum_against_all_sequences(ladders, most, data, numbers):
    trace, timing = instance(ladders, data.draw(counts(ladders, most)), numbers)
    oracle = best_of(trace, timing, ladders)
    wanted = exhausted(trace, timing, ladders)
    assert paid(trace, oracle, timing) == pytest.approx(wanted, rel=1e-12)
    # And a replay follows it.
    outcome = replayed(trace, oracle, timing, ladders)
    assert outcome.seconds == pytest.approx(wanted, rel=1e-12)
    assert outcome.plans == oracle.switches


@pytest.mark.parametrize(
    "compile, switches",
    (
        (3.0, ((0, 16), (1, 4), (4, 8), (6, 4))),
        (5.0, ((0, 16), (1, 4), (4, 8))),
        (13.0, ((0, 16), (1, 8))),
        (60.0, ((0, 16),)),
    ),
)
def test_optimum_by_hand(compile, switches):
    # 4 seconds a step are saved at 16 for 8 and 8 for 4.
    trace = trace_of(16, 3, 3, 3, 7, 7, 2)
    wanted = rt.Oracle(tuple((step, x(size)) for step, size in switches))
    assert best_of(trace, rt.Timing(total, compile)) == wanted


def test_the_optimum_of_another_run_covers():
    oracle = best_of(trace_of(16, 3, 3, 3, 7, 7, 2), rt.Timing(total, 3.0))
    outcome = replayed(trace_of(3, 3, 9, 9, 16, 1, 1), oracle, rt.Timing(total, 3.0))
    assert taken(outcome) == [(0, 16), (1, 4), (2, 12), (4, 16), (6, 4)]


#
# Regret.
#


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
@few
@hp.given(rows=counts(LADDERS, 12), numbers=timings)
def test_nobody_beats_the_optimum(policy, rows, numbers):
    trace, timing = instance(LADDERS, rows, numbers)
    regret = ft.partial(
        rt.regret, trace, masks=ladder_masks(LADDERS), buckets=LADDERS, timing=timing
    )
    assert regret(policy) >= 1 - 1e-9
    best = best_of(trace, timing, LADDERS)
    assert regret(best) == pytest.approx(1, rel=1e-12)
    # It is what is paid over what has to be.
    outcome = replayed(trace, policy, timing, LADDERS)
    assert regret(policy) == pytest.approx(outcome.seconds / paid(trace, best, timing))


def test_regret_by_hand():
    # 10 + 16 and 10 + 4 * 3 seconds; never to shrink would be 10 + 4 * 16.
    trace, timing = trace_of(16, 4, 4, 4), rt.Timing(total, 10.0)
    regret = ft.partial(rt.regret, trace, masks=ladder_masks(ONE), buckets=ONE, timing=timing)
    assert regret(policy=rt.EveryStep()) == 1
    assert regret(policy=rt.Hysteresis(3.0)) == 74 / 48
    # It wastes 12 seconds at the second step, at once more than a compilation.
    assert regret(policy=rt.BreakEven()) == 1
    assert regret(policy=rt.BreakEven(1.2)) == 60 / 48
