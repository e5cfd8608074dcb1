import functools as ft
import itertools as it

import hypothesis as hp
import hypothesis.strategies as st
import numpy as np
import pytest
from test_policy import LADDERS, masks_of, segments, total, volume

import dnarch_eqx as dn


few = hp.settings(max_examples=30, deadline=None, derandomize=True)

ONE = {"x": (4, 8, 12, 16)}


def of(*counts: int) -> dn.Trace:
    """A trace of one axis."""
    return dn.Trace.of(("x",), np.array(counts)[:, None])


def replayed(
    trace: dn.Trace, policy: dn.AbstractPolicy, timing: dn.Timing, ladders=ONE, **kwargs
) -> dn.Outcome:
    return dn.replay(trace, policy, masks_of(ladders), ladders, timing, **kwargs)


def best(trace: dn.Trace, timing: dn.Timing, ladders=ONE) -> dn.Oracle:
    return dn.optimum(trace, masks_of(ladders), ladders, timing)


#
# Traces.
#


# Few different values, so that counts stay for a while.
tables = st.integers(0, 3).flatmap(
    lambda axes: st.lists(st.tuples(*[st.integers(0, 2)] * axes), min_size=1, max_size=12).map(
        lambda rows: np.array(rows, int).reshape(len(rows), axes)
    )
)


def names(axes: int) -> tuple[str, ...]:
    return tuple(f"blocks.{i}.in" for i in range(axes))


@few
@hp.given(tables)
def test_every_step(active):
    trace = dn.Trace.of(names(active.shape[1]), active)
    assert trace.length == len(active)
    assert np.array_equal(trace.every_step(), active)
    assert trace.every_step().dtype == int
    # The changes and no more.
    assert trace.steps[0] == 0 and np.all(np.diff(trace.steps) > 0)
    assert np.all(np.any(trace.active[1:] != trace.active[:-1], axis=1))
    assert sum(trace.lengths()) == len(active)


def test_changes_by_hand():
    trace = dn.Trace.of(("a", "b"), np.array([[5, 1], [5, 1], [5, 2], [5, 2], [4, 2]]))
    assert trace.axes == ("a", "b") and trace.length == 5
    assert trace.steps.tolist() == [0, 2, 4]
    assert trace.active.tolist() == [[5, 1], [5, 2], [4, 2]]
    assert trace.lengths().tolist() == [2, 2, 1]


@few
@hp.given(active=tables)
def test_files(tmp_path_factory, active):
    path = tmp_path_factory.mktemp("traces") / "run.npz"
    trace = dn.Trace.of(names(active.shape[1]), active)
    trace.save(path)
    again = dn.Trace.load(path)
    assert again.axes == trace.axes and again.length == trace.length
    assert type(again.length) is int and all(type(axis) is str for axis in again.axes)
    for name in ("steps", "active"):
        a, b = getattr(again, name), getattr(trace, name)
        assert np.array_equal(a, b) and a.dtype == b.dtype


@pytest.mark.parametrize("name", ("run", "run.trace", "run.npz"))
def test_a_file_is_where_it_was_put(tmp_path, name):
    of(3, 2).save(tmp_path / name)
    assert [file.name for file in tmp_path.iterdir()] == [name]
    assert dn.Trace.load(tmp_path / name).every_step().tolist() == [[3], [2]]


def test_no_pickle_is_loaded(tmp_path):
    class Trap:
        def __reduce__(self):
            return pytest.fail, ("It was called.",)

    for name in ("axes", "steps", "active", "length"):
        good = {"axes": ["x"], "steps": [0], "active": [[1]], "length": 1}
        trap = np.array([Trap()], object)
        np.savez_compressed(tmp_path / "run.npz", **{**good, name: trap})
        with pytest.raises(ValueError, match="pickle"):
            dn.Trace.load(tmp_path / "run.npz")
    (tmp_path / "no.npz").write_bytes(b"\x80\x04N.")
    with pytest.raises(ValueError, match="pickle"):
        dn.Trace.load(tmp_path / "no.npz")


@pytest.mark.parametrize(
    "axes, shape, message",
    (
        (("b", "a"), (3, 2), r"`axes` must be in the order of their names, got \('b', 'a'\)"),
        (("a",), (3, 2), r"`active` must have a row a step and 1 columns.*\(3, 2\)"),
        (("a", "b"), (0, 2), r"`active` must have a row a step and 2 columns.*\(0, 2\)"),
    ),
)
def test_trace_errors(axes, shape, message):
    with pytest.raises(ValueError, match=message):
        dn.Trace.of(axes, np.ones(shape, int))


#
# How fast.
#


#
# Replays.
#


def test_replay_by_hand():
    # 10 seconds a compilation; 1 + size / 2 a step.
    timing = dn.Timing(total, 10.0, scale=0.5, overhead=1.0)
    trace = of(16, 5, 5, 4, 13)
    outcome = replayed(trace, dn.EveryStep(), timing)
    assert outcome.plans == tuple(
        (step, dn.Plan({"x": n})) for step, n in ((0, 16), (1, 8), (3, 4), (4, 16))
    )
    assert outcome.compilations == 4 and outcome.compiling == 40
    assert outcome.stepping == 9 + 2 * 5 + 3 + 9
    assert outcome.exact == 9 + 2 * 3.5 + 3 + 7.5
    assert outcome.waste == pytest.approx((1 + 2 * 8 / 5 + 1 + 16 / 13) / 5)
    assert outcome.seconds == 40 + 31
    assert outcome.efficiency == 26.5 / 71

    full = replayed(trace, dn.Oracle(((0, (16,)),)), timing)
    assert full.plans == ((0, dn.Plan({"x": 16})),)
    assert full.compilations == 1 and full.compiling == 10
    assert full.stepping == 5 * 9 and full.exact == 26.5
    assert full.waste == pytest.approx((1 + 2 * 16 / 5 + 4 + 16 / 13) / 5)


def test_kept_plans_are_free():
    timing = dn.Timing(total, 10.0)
    trace = of(16, 8, 16, 4, 16, 8)
    compilations = lambda keep: replayed(trace, dn.EveryStep(), timing, keep=keep)
    # Of two the one that was left longer ago goes, not the one that was made first.
    for keep, wanted in ((1, 6), (2, 4), (3, 3), (100, 3)):
        outcome = compilations(keep)
        assert outcome.compilations == wanted and outcome.compiling == 10 * wanted
        assert len(outcome.plans) == 6 and outcome.stepping == 68


def test_what_is_compiled_before_is_free():
    held = frozenset(np.array([n]).tobytes() for n in (16, 8))
    timing = dn.Timing(total, 10.0, held=held)
    outcome = replayed(of(16, 8, 4, 16), dn.EveryStep(), timing)
    assert outcome.compilations == 1 and outcome.compiling == 10
    assert len(outcome.plans) == 4


def test_compilations_that_cost_nothing_count():
    outcome = replayed(of(16, 8, 16), dn.EveryStep(), dn.Timing(total, 0.0))
    assert outcome.compilations == 3 and outcome.compiling == 0


def test_policies_see_what_is_kept():
    # Half of the size is not needed for long enough to be compiled again; kept, it is taken.
    trace = of(8, *[16] * 2, *[8] * 2, *[16] * 2, *[8] * 2)
    timing = dn.Timing(total, 40.0)
    alone, two = (replayed(trace, dn.BreakEven(), timing, keep=keep) for keep in (1, 2))
    assert [plan["x"] for _, plan in alone.plans] == [8, 16]
    assert [plan["x"] for _, plan in two.plans] == [8, 16, 8, 16, 8]
    assert two.compilations == 2


def test_foresight():
    # One more a step, from the first step on.
    trace = of(*range(1, 17))
    timing = dn.Timing(total, 10.0)
    sizes = lambda outcome: [(step, plan["x"]) for step, plan in outcome.plans]
    assert sizes(replayed(trace, dn.EveryStep(), timing)) == [(0, 4), (4, 8), (8, 12), (12, 16)]
    ahead = replayed(trace, dn.EveryStep(), timing, foresight=4)
    assert sizes(ahead) == [(0, 4), (1, 8), (4, 12), (8, 16)]
    # Nothing is foreseen to shrink.
    back = of(*range(16, 0, -1))
    assert replayed(back, dn.EveryStep(), timing, foresight=4) == replayed(
        back, dn.EveryStep(), timing
    )


def test_foresight_of_nothing():
    # Once an axis has come to rest its velocity fades, but 16 positions remain 16.
    ladders = {"x": (8, 16, 24)}
    trace = of(*[8] * 5, *[16] * 400)
    outcome = replayed(trace, dn.EveryStep(), dn.Timing(total, 1.0), ladders, foresight=1)
    after = [plan["x"] for step, plan in outcome.plans if step > 100]
    assert after == [], outcome.plans


def test_a_policy_that_does_not_cover():
    class Least(dn.AbstractPolicy[None]):
        def init(self):
            return None

        def __call__(self, state, observation):
            return state, np.array([4])

    timing = dn.Timing(total, 10.0)
    assert replayed(of(1, 4), Least(), timing).compilations == 1
    with pytest.raises(ValueError, match="took a plan that does not cover, at step 2"):
        replayed(of(1, 4, 5), Least(), timing)


@pytest.mark.parametrize("arguments", ({"keep": 0}, {"foresight": -1}))
def test_replay_errors(arguments):
    with pytest.raises(ValueError, match="`keep` must be at least 1 and `foresight` 0"):
        replayed(of(1), dn.EveryStep(), dn.Timing(total, 1.0), **arguments)


@pytest.mark.parametrize("ask", (replayed, lambda trace, _, *args: best(trace, *args)))
def test_a_trace_of_other_masks(ask):
    timing = dn.Timing(total, 1.0)
    with pytest.raises(ValueError, match=r"trace has the axes \['x'\], the masks \['y'\]"):
        ask(of(1), dn.EveryStep(), timing, {"y": (16,)})
    # Nor can any plan hold more than there is.
    with pytest.raises(ValueError, match="capacit"):
        ask(of(3, 17), dn.EveryStep(), timing)


def test_a_dead_axis():
    # Nothing is smaller than one position.
    dead, alive = (replayed(of(n, 8), dn.EveryStep(), dn.Timing(total, 1.0)) for n in (0, 1))
    assert dead == alive


@pytest.mark.parametrize("length", (1, 3))
def test_no_axes(length):
    trace = dn.Trace.of((), np.zeros((length, 0), int))
    timing = dn.Timing(lambda sizes: 2.0, 5.0)
    for policy in (dn.EveryStep(), dn.BreakEven(), dn.AtMost(1), best(trace, timing, {})):
        outcome = replayed(trace, policy, timing, {})
        assert outcome.plans == ((0, dn.Plan()),)
        assert outcome.seconds == 5 + 2 * length and outcome.waste == 1


def test_one_step():
    timing = dn.Timing(total, 5.0)
    assert best(of(5), timing) == dn.Oracle(((0, (8,)),))
    for policy in (dn.EveryStep(), dn.Every(3), dn.Hysteresis(), dn.BreakEven(), dn.AtMost(1)):
        assert replayed(of(5), policy, timing).seconds == 13
        assert dn.regret(of(5), policy, masks_of(ONE), ONE, timing) == 1


#
# The optimum.
#


def exhausted(trace: dn.Trace, timing: dn.Timing, ladders) -> float:
    """The least that any sequence of plans pays: all are tried."""
    rows = trace.every_step().tolist()
    plans = list(it.product(*ladders.values()))
    covering = [
        [plan for plan in plans if all(n <= m for n, m in zip(row, plan))] for row in rows
    ]
    seconds = {plan: timing.step(np.array(plan, int)) for plan in plans}
    pays = lambda run: (
        sum(timing.compile for a, b in it.pairwise((None, *run)) if a != b)
        + sum(seconds[plan] for plan in run)
    )
    return min(map(pays, it.product(*covering)))


def counts(ladders, most: int):
    row = st.tuples(*(st.integers(1, ladder[-1]) for ladder in ladders.values()))
    return st.lists(row, min_size=1, max_size=most)


# Cost, seconds a compilation, overhead.
timings = st.tuples(
    st.sampled_from([total, volume]),
    st.sampled_from([0.0, 0.5, 2.0, 7.0, 30.0, 1e4]),
    st.sampled_from([0.0, 3.0]),
)


def instance(ladders, rows, numbers) -> tuple[dn.Trace, dn.Timing]:
    cost, compile, overhead = numbers
    trace = dn.Trace.of(tuple(ladders), np.array(rows))
    return trace, dn.Timing(cost, compile, overhead=overhead)


@pytest.mark.parametrize(
    "ladders, most",
    (({"x": (1, 3, 4)}, 6), ({"x": (2, 5), "y": (1, 6)}, 5), ({"kx": (3, 5, 9)}, 6)),
)
@few
@hp.given(data=st.data(), numbers=timings)
def test_optimum_against_all_sequences(ladders, most, data, numbers):
    trace, timing = instance(ladders, data.draw(counts(ladders, most)), numbers)
    oracle = best(trace, timing, ladders)
    wanted = exhausted(trace, timing, ladders)
    assert segments(trace, oracle, timing) == pytest.approx(wanted, rel=1e-12)
    # And a replay follows it.
    outcome = replayed(trace, oracle, timing, ladders)
    assert outcome.seconds == pytest.approx(wanted, rel=1e-12)
    assert tuple((step, tuple(plan.values())) for step, plan in outcome.plans) == (
        oracle.switches
    )


@pytest.mark.parametrize(
    "compile, switches",
    (
        (3.0, ((0, (16,)), (1, (4,)), (4, (8,)), (6, (4,)))),
        (5.0, ((0, (16,)), (1, (4,)), (4, (8,)))),
        (13.0, ((0, (16,)), (1, (8,)))),
        (60.0, ((0, (16,)),)),
    ),
)
def test_optimum_by_hand(compile, switches):
    # 4 seconds a step are saved at 16 for 8 and 8 for 4.
    trace = of(16, 3, 3, 3, 7, 7, 2)
    timing = dn.Timing(total, compile)
    assert best(trace, timing) == dn.Oracle(switches)


def test_the_optimum_of_another_run_covers():
    oracle = best(of(16, 3, 3, 3, 7, 7, 2), dn.Timing(total, 3.0))
    outcome = replayed(of(3, 3, 9, 9, 16, 1, 1), oracle, dn.Timing(total, 3.0))
    assert [(step, plan["x"]) for step, plan in outcome.plans] == [
        *((0, 16), (1, 4), (2, 12), (4, 16), (6, 4))
    ]


#
# Regret.
#


@pytest.mark.parametrize(
    "policy",
    (dn.EveryStep(), dn.Every(3), dn.Hysteresis(), dn.BreakEven(), dn.AtMost(2)),
    ids=repr,
)
@few
@hp.given(rows=counts(LADDERS, 12), numbers=timings)
def test_nobody_beats_the_optimum(policy, rows, numbers):
    trace, timing = instance(LADDERS, rows, numbers)
    regret = ft.partial(dn.regret, masks=masks_of(LADDERS), buckets=LADDERS, timing=timing)
    assert regret(trace, policy) >= 1 - 1e-9
    assert regret(trace, best(trace, timing, LADDERS)) == pytest.approx(1, rel=1e-12)


def test_regret_by_hand():
    # 10 + 16 and 10 + 4 * 3 seconds; never to shrink would be 10 + 4 * 16.
    trace, timing = of(16, 4, 4, 4), dn.Timing(total, 10.0)
    regret = ft.partial(dn.regret, trace, masks=masks_of(ONE), buckets=ONE, timing=timing)
    assert regret(policy=dn.EveryStep()) == 1
    assert regret(policy=dn.Hysteresis(3.0)) == 74 / 48
    # It wastes 12 seconds at the second step, at once more than a compilation.
    assert regret(policy=dn.BreakEven()) == 1
    assert regret(policy=dn.BreakEven(1.2)) == 60 / 48


def test_regret_where_plans_are_compiled_before():
    held = frozenset(np.array([n]).tobytes() for n in (16, 8))
    timing = dn.Timing(total, 10.0, held=held)
    trace = of(16, 8, 16, 8)
    assert dn.regret(trace, dn.EveryStep(), masks_of(ONE), ONE, timing) >= 1
