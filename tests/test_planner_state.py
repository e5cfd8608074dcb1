"""What a planner decides by, from step to step, and as text in between."""

import dataclasses
import json
import math

import hypothesis as hp
import hypothesis.strategies as st
import numpy as np
import pytest
from helpers import ladder_grid, total

import dnarch_eqx as dn
from dnarch_eqx import runtime as rt
from dnarch_eqx.runtime import PlannerState


few = hp.settings(max_examples=5, deadline=None, derandomize=True)
GRID = ladder_grid({"a": tuple(range(1, 25)), "k": tuple(range(1, 26, 2))})


def plan_of(*sizes: int) -> dn.Plan:
    return dn.Plan(dict(zip(GRID.axes, sizes)))


@dataclasses.dataclass(frozen=True)
class Averages:
    """A state with all that a policy's may have."""

    count: int = 0
    mean: tuple[float, ...] = ()
    last: dn.Plan | None = None
    sums: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(2, np.float32))
    note: str = ""
    told: bool = False


@dataclasses.dataclass(frozen=True)
class Average(rt.AbstractPolicy[Averages]):
    """The plan of what was active on average, if that covers."""

    def init(self):
        return Averages()

    def __call__(self, state, observation):
        sums = state.sums + observation.active.astype(np.float32) / 3
        count = state.count + 1
        mean = tuple((sums / np.float32(count)).tolist())
        counts = np.maximum(observation.expected, np.array(mean)).astype(int)
        plan = observation.grid.plan(observation.grid.fit(counts))
        told = plan == state.last
        return Averages(count, mean, plan, sums, f"{plan}", told), plan


POLICIES = (
    rt.EveryStep(),
    rt.Every(3),
    rt.Every(4, rt.BreakEven()),
    rt.Hysteresis(),
    rt.BreakEven(),
    rt.BreakEven(0.3, 0.5, steps=50),
    rt.Oracle(((0, plan_of(20, 21)), (20, plan_of(9, 25)), (40, plan_of(24, 7)))),
    Average(),
)
each_policy = pytest.mark.parametrize(
    "policy", POLICIES, ids=lambda policy: type(policy).__name__
)


def walk(seed: int, steps: int) -> np.ndarray:
    """Positions of two axes that drift, and go back and forth."""
    rng = np.random.default_rng(seed)
    drift = np.cumsum(rng.normal(size=(steps, 2)) * 0.4 + rng.normal(size=2) * 0.1, axis=0)
    # What a step reports is in single precision.
    return np.clip(12 + drift, 1, GRID.capacity).astype(np.float32)


def go_on(state: PlannerState, policy, positions: np.ndarray) -> PlannerState:
    """As a planner without steps in flight does it: decide, run, look."""
    timing = rt.Timing(total, 60.0)
    for position in positions:
        active = position.astype(int)
        rise = state.forecast.velocity.rise(4.0, -1.0)
        ahead = np.floor(active + rise + 1e-9).astype(int)
        compiled = frozenset(state.compiled)
        state, plan = state.decide(policy, GRID, timing, active, ahead, compiled=compiled)
        if plan != state.plan:
            state = state.compiled_too(plan, 3) if plan not in compiled else state
            state = state.switched(plan)
        state = state.saw(active, position)
        seconds = 0.1 / (1 + state.step)
        state = state.replace(measured=state.measured.sampled(plan, seconds))
    return state


def check_same(a, b) -> None:
    """Types, values to the last bit, dtypes and shapes."""
    assert type(a) is type(b), (a, b)
    if dataclasses.is_dataclass(a):
        for field in dataclasses.fields(a):
            check_same(getattr(a, field.name), getattr(b, field.name))
    elif isinstance(a, tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b):
            check_same(x, y)
    elif isinstance(a, np.ndarray):
        assert a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    else:
        assert a == b or (a != a and b != b)


def again(state: PlannerState, policy) -> PlannerState:
    return PlannerState.from_json(state.to_json(), policy)


#
# As text.
#


@each_policy
@few
@hp.given(seed=st.integers(0, 2**32), steps=st.integers(0, 40))
def test_text_is_exact(policy, seed, steps):
    state = go_on(PlannerState.start(policy, GRID), policy, walk(seed, steps))
    assert steps == 0 or state.switches
    check_same(again(state, policy), state)
    # It is text like any other.
    assert isinstance(json.loads(state.to_json()), dict)


@few
@hp.given(
    prices=st.lists(st.floats(), max_size=5),
    overhead=st.floats(),
    failed=st.lists(st.tuples(st.integers(1, 24), st.integers(1, 25)), max_size=3),
    position=st.tuples(st.floats(width=32), st.floats(width=32)),
)
def test_any_number_is_exact(prices, overhead, failed, position):
    """The smallest and the largest, -0.0, infinities and NaN."""
    measured = rt.Measured(compilations=tuple(prices), overhead=overhead)
    state = PlannerState.start(rt.EveryStep(), GRID).saw(
        np.array([3, 5]), np.array(position, np.float32)
    )
    state = state.replace(measured=measured, failed=tuple(plan_of(*sizes) for sizes in failed))
    found = again(state, rt.EveryStep())
    check_same(found, state)
    signs = lambda m: [math.copysign(1, x) for x in (*m.compilations, m.overhead) if x == x]
    assert signs(found.measured) == signs(measured)


def test_a_state_without_axes():
    state = PlannerState.start(rt.BreakEven(), ladder_grid({}))
    nothing = np.zeros(0, int)
    state = state.switched(dn.Plan()).saw(nothing, np.zeros(0, np.float32))
    check_same(again(state, rt.BreakEven()), state)


def test_a_long_recording():
    """More than is kept apart."""
    policy = rt.EveryStep()
    state = PlannerState.start(policy, GRID)
    for n in range(300):
        state = state.saw(np.array([1 + n % 24, 3]), np.array([1.0 + n % 24, 3.5]))
    found = again(state, policy)
    check_same(found, state)
    wanted = [[1 + n % 24, 3] for n in range(300)]
    assert found.recording.trace(GRID.axes).every_step().tolist() == wanted


#
# Runs that are stopped.
#


@each_policy
@few
@hp.given(seed=st.integers(0, 2**32), stops=st.sets(st.integers(1, 49), max_size=3))
def test_a_run_that_was_stopped_decides_as_one_that_was_not(policy, seed, stops):
    positions = walk(seed, 50)
    whole = go_on(PlannerState.start(policy, GRID), policy, positions)
    state, start = PlannerState.start(policy, GRID), 0
    for stop in (*sorted(stops), 50):
        state = again(go_on(state, policy, positions[start:stop]), policy)
        start = stop
    assert state.switches == whole.switches and state.step == whole.step == 50
    check_same(state, whole)


def test_runs_of_these_tests_switch_and_return():
    """Or nothing would have been told apart."""
    policy = rt.BreakEven()
    switches = [
        go_on(PlannerState.start(policy, GRID), policy, walk(seed, 50)).switches
        for seed in range(5)
    ]
    assert all(len(plans) > 2 for plans in switches)
    assert any(len({plan for _, plan in plans}) < len(plans) for plans in switches)


#
# What is no state.
#


def text_of(policy) -> str:
    return go_on(PlannerState.start(policy, GRID), policy, walk(0, 10)).to_json()


GOOD = json.loads(text_of(rt.BreakEven()))


def changed(**fields) -> str:
    return json.dumps({**GOOD, "fields": {**GOOD["fields"], **fields}})


@pytest.mark.parametrize(
    "text",
    (
        "",
        "{",
        "null",
        "3",
        "[]",
        "{}",
        '"state"',
        '{"plan": {"a": 3}}',
        '{"plan": {"a": -1}}',
        '{"plan": 3}',
        '{"array": [1, 2], "dtype": "int64", "shape": [3]}',
        '{"array": [1, 2], "dtype": "nothing", "shape": [2]}',
        '{"array": [1, 2]}',
        '{"type": "PlannerState"}',
        '{"type": "PlannerState", "fields": {}}',
        '{"type": "PlannerState", "fields": 3}',
        '{"type": "Popen", "fields": {"args": "ls"}}',
        json.dumps({**GOOD, "type": "Forecast"}),
        json.dumps(GOOD["fields"]["measured"]),
        changed(one_more=1),
        json.dumps(GOOD)[:-20],
    ),
)
def test_other_text_is_refused(text):
    with pytest.raises(ValueError):
        PlannerState.from_json(text, rt.BreakEven())


@pytest.mark.parametrize("of", POLICIES, ids=repr)
@pytest.mark.parametrize("given", POLICIES, ids=repr)
def test_the_state_of_another_policy_is_refused(of, given):
    """Where it can be told: of the same kind are states that look the same."""
    kind = type(of.init())
    if type(given.init()) is kind:
        assert type(PlannerState.from_json(text_of(of), given).policy) is kind
        return
    with pytest.raises(ValueError, match="state"):
        PlannerState.from_json(text_of(of), given)


def test_what_cannot_be_saved_is_named():
    state = PlannerState.start(rt.EveryStep(), GRID).replace(policy=[1, 2])
    with pytest.raises(TypeError, match=r"cannot hold \[1, 2\]: see `AbstractPolicy`"):
        state.to_json()


#
# Step by step.
#


def test_steps_by_hand():
    policy, timing = rt.EveryStep(), rt.Timing(total, 1.0)
    state = PlannerState.start(policy, GRID)
    assert (state.step, state.plan, state.switches) == (0, None, ())
    decide = lambda state, active, expected, ahead=0: state.decide(
        policy,
        GRID,
        timing,
        np.array(active),
        np.array(expected),
        compiled=frozenset(),
        ahead=ahead,
    )
    before = state
    state, plan = decide(state, (5, 3), (6, 3))
    # It was asked, and no more.
    assert plan == plan_of(6, 3) and state.plan is None and state.step == 0
    state = state.switched(plan).saw(np.array([5, 3]), np.array([5.5, 3.0]))
    assert (state.step, state.plan, state.switches) == (1, plan, ((0, plan),))
    # No less than what is active, no more than there is.
    assert decide(state, (5, 3), (2, 1))[1] == plan_of(5, 3)
    assert decide(state, (5, 3), (99, 99))[1] == plan_of(24, 25)
    assert before.step == 0 and before.switches == ()


def test_the_policy_is_told_of_steps_ahead():
    asked = []

    class Asked(rt.AbstractPolicy[None]):
        def init(self):
            return None

        def __call__(self, state, observation):
            asked.append(observation)
            return state, observation.roomy(0.0)

    one = np.array([1, 1])
    state = PlannerState.start(Asked(), GRID).switched(plan_of(4, 5)).saw(one, one + 0.5)
    compiled = frozenset({plan_of(4, 5)})
    state.decide(Asked(), GRID, rt.Timing(total, 1.0), one, one, compiled=compiled, ahead=3)
    (observation,) = asked
    assert observation.step == 4 and observation.plan == plan_of(4, 5)
    assert observation.compiled == compiled and observation.grid is GRID


@pytest.mark.parametrize(
    "plan, message",
    (
        (plan_of(4, 3), r"which does not cover the active counts \{'a': 5, 'k': 3\}"),
        (dn.Plan({"a": 24}), "must give a `Plan` of all axes, not Plan"),
        (np.array([24, 25]), "must give a `Plan` of all axes, not array"),
        (None, "must give a `Plan` of all axes, not None"),
    ),
    ids=repr,
)
def test_what_a_policy_must_not_give(plan, message):
    class Wrong(rt.AbstractPolicy[None]):
        def init(self):
            return None

        def __call__(self, state, observation):
            return state, plan

    state, active = PlannerState.start(Wrong(), GRID), np.array([5, 3])
    with pytest.raises(ValueError, match=message):
        state.decide(Wrong(), GRID, rt.Timing(total, 1.0), active, active, compiled=frozenset())


def test_of_plans_taken_before_the_same_step_the_last_one_counts():
    one, two, three = plan_of(1, 1), plan_of(2, 3), plan_of(3, 3)
    state = PlannerState.start(rt.EveryStep(), GRID).switched(one).switched(two)
    assert state.switches == ((0, two),) and state.plan == two
    state = state.saw(np.array([1, 1]), np.array([1.0, 1.0]))
    state = state.switched(three).switched(one).switched(two).switched(one)
    assert state.switches == ((0, two), (1, one)) and state.plan == one
    # What an oracle takes, hence.
    assert rt.Oracle(state.switches).switches == state.switches


def test_switches_are_bounded():
    state = PlannerState.start(rt.EveryStep(), GRID)
    one = np.array([1, 1])
    for step in range(4200):
        state = dataclasses.replace(state.switched(plan_of(1 + step % 2, 1)), step=step + 1)
    assert len(state.switches) == 4096
    assert state.switches[-1] == (4199, plan_of(2, 1))
    assert state.saw(one, one + 0.0).switches == state.switches


def test_plans_that_are_compiled_in_the_order_of_their_use():
    one, two, three = plan_of(1, 1), plan_of(2, 3), plan_of(3, 3)
    state = PlannerState.start(rt.EveryStep(), GRID)
    for plan in (one, two):
        state = state.compiled_too(plan, 2)
    assert state.compiled == (one, two)
    # A plan that is used again is not the next to go.
    state = state.switched(one)
    assert state.compiled == (two, one)
    assert state.compiled_too(three, 2).compiled == (one, three)
    # Nor is what was never compiled taken to be.
    assert state.switched(three).compiled == (two, one)
