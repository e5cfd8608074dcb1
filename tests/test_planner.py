import dataclasses
import itertools as it
import threading

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from helpers import close, filled, noise

import dnarch_eqx as dn
from dnarch_eqx import runtime
from dnarch_eqx.runtime import _engine
from dnarch_eqx.runtime._program import Program


IN_FLIGHT = 8
LADDERS = {"h": tuple(range(2, 25, 2)), "k": tuple(range(2, 25, 2))}


@pytest.fixture(autouse=True)
def standard():
    """Optax relies on JAX's standard promotion."""
    with jax.numpy_dtype_promotion("standard"):
        yield


class Net(eqx.Module):
    layers: list[eqx.nn.Linear]

    def __init__(self, key):
        sizes = [2, 24, 24, 1]
        self.layers = [
            eqx.nn.Linear(*pair, key=k) for pair, k in zip(it.pairwise(sizes), jr.split(key, 3))
        ]

    def __call__(self, x):
        for layer in self.layers[:-1]:
            x = jnp.tanh(layer(x))
        return self.layers[-1](x)


def axes_of(net):
    declared = {
        lambda m: m.layers[0].weight: dn.Axes("h", None),
        lambda m: m.layers[0].bias: dn.Axes("h"),
        lambda m: m.layers[1].weight: dn.Axes("k", dn.gated("h")),
        lambda m: m.layers[1].bias: dn.Axes("k"),
        lambda m: m.layers[2].weight: dn.Axes(None, dn.gated("k")),
    }
    return dn.declare(net, lambda m: [node(m) for node in declared], list(declared.values()))


def masks_of(h: float = 14.0, k: float = 11.0):
    return {
        "h": dn.Sigmoid(24, size=h, temperature=16.0),
        "k": dn.Sigmoid(24, size=k, temperature=16.0),
    }


def both(size: int) -> dn.Plan:
    return dn.Plan({"h": size, "k": size})


def squares(net, batch, key):
    del key
    x, y = batch
    return jnp.mean((jax.vmap(net)(x) - y) ** 2)


def batches(key, steps: int):
    for k in jr.split(key, steps):
        x = noise(k, 8, 2)
        yield x, jnp.sin(2 * x[:, :1]) * x[:, 1:]


def jumping(rate: float = 0.01) -> optax.GradientTransformation:
    """As fast as an optimizer can be: after every second update every mask lies somewhere
    else in its range.
    """

    def init(params):
        del params
        return jnp.zeros((), jnp.int32)

    def update(updates, state, params=None):
        assert params is not None and isinstance(updates, tuple)
        step, (_, masks) = state, params
        offsets = jr.uniform(jr.fold_in(jr.key(7), step // 2), (2,), minval=-1.0, maxval=1.1)
        moved = {
            axis: eqx.tree_at(lambda m: m.offset, mask, to - mask.offset)
            for (axis, mask), to in zip(sorted(masks.items()), offsets)
        }
        moved = {
            axis: eqx.tree_at(lambda m: m.temperature, mask, jnp.zeros_like(mask.temperature))
            for axis, mask in moved.items()
        }
        scaled = jax.tree_util.tree_map(lambda g: -rate * g, updates[0])
        return (scaled, moved), step + 1

    return optax.GradientTransformation(init, update)


def learner_of(net, optim=None, size: float = 6.0, **kwargs):
    cost = dn.parameter_cost(net, axes_of(net))
    budget = dn.Budget(cost, {"h": size, "k": size}, weight=1.0)
    optim = dn.adamw(0.02, steps=100, warmup=5) if optim is None else optim
    return dn.Learner(squares, optim, axes_of(net), budget, **kwargs)


@pytest.fixture
def net(getkey):
    return filled(Net, getkey())


def train(planner, state, data):
    infos = []
    for batch in data:
        state, info = planner.step(state, batch)
        infos.append(info)
    return planner.finish(state), infos


def full_run(net, masks, data, optim=None):
    learner = learner_of(net, optim, strict=False)
    state = learner.init(net, masks)
    active = []
    for batch in data:
        state, info = learner.step(state, batch, dn.Plan())
        active.append(np.asarray(info.active))
    return state, np.stack(active)


#
# The run is that of the full-capacity network, whatever decides.
#


POLICIES = [runtime.EveryStep(), runtime.Every(7), runtime.Hysteresis(), runtime.BreakEven()]


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: type(p).__name__)
def test_a_run_is_that_of_the_full_network(policy, background, x64, getkey):
    net, key, masks = filled(Net, getkey()), getkey(), masks_of()
    wanted, active = full_run(net, masks, batches(key, 40))
    planner = dn.Planner(learner_of(net), masks, LADDERS, policy, background=background)
    state = planner.learner.init(net, masks)
    state, infos = train(planner, state, batches(key, 40))
    assert int(state.step) == 40
    close((state.model, state.masks), (wanted.model, wanted.masks), rtol=1e-8)
    assert len(np.unique(active, axis=0)) > 5, "boundaries were crossed"
    np.testing.assert_array_equal(planner.trace.every_step(), active)
    assert all(info.covered for info in infos)
    np.testing.assert_array_equal([info.active for info in infos], active)
    if policy == runtime.EveryStep() and not background:
        # As tight as buckets of 2 are, but for the steps that were not yet looked at.
        fits = runtime.Grid(masks, LADDERS).fit
        cost = planner.timing.units
        tight = np.mean([cost(fits(row)) / cost(row) for row in active])
        assert tight <= planner.outcome().waste < 1.1 * tight


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("in_flight", [1, 6])
def test_masks_that_jump_are_covered(in_flight, background, x64, getkey):
    net, key, masks = filled(Net, getkey()), getkey(), masks_of()
    wanted, active = full_run(net, masks, batches(key, 14), jumping())
    learner = learner_of(net, jumping(), keep=30)
    planner = dn.Planner(
        learner,
        masks,
        {"h": (4, 8, 16, 24), "k": (4, 8, 16, 24)},
        runtime.EveryStep(),
        background=background,
        in_flight=in_flight,
    )
    state, infos = train(planner, learner.init(net, masks), batches(key, 14))
    # Accepted once each, in their order, whether at once or when they were done again.
    assert int(state.step) == 14
    np.testing.assert_array_equal(planner.trace.every_step(), active)
    close((state.model, state.masks), (wanted.model, wanted.masks), rtol=1e-8)
    assert np.abs(np.diff(active, axis=0)).max() > 8, "they did jump"
    # Nobody is told of the steps that were started too early.
    np.testing.assert_array_equal([info.active for info in infos], active)


def test_another_state_is_looked_at_anew(net, getkey):
    """A checkpoint of larger masks, say, restored in the middle of a run."""
    masks = masks_of()
    learner = learner_of(net)
    planner = dn.Planner(learner, masks, LADDERS, runtime.EveryStep(), background=False)
    small, large = learner.init(net, masks), learner.init(net, masks_of(23.0, 23.0))
    for state in (small, large, small):
        state, info = planner.step(state, next(batches(getkey(), 1)))
        assert info.covered
    # Two plans before the same step count as one.
    assert len({step for step, _ in planner.state.switches}) == len(planner.state.switches)
    assert "compilations" in planner.report()


def test_an_edit_before_a_step_is_done_again_is_refused(net, getkey):
    masks = masks_of()
    learner = learner_of(net, jumping())
    ladders = {"h": (4, 8, 12, 16, 20, 24), "k": (24,)}
    planner = dn.Planner(learner, masks, ladders, runtime.EveryStep(), background=False)
    state, edits, data = learner.init(net, masks), 0, [*batches(getkey(), 40)]
    for i, batch in enumerate(data):
        try:
            state, _ = planner.step(state, batch)
        except ValueError as error:
            assert "lacks" in str(error) and "`planner.finish()`" in str(error)
            state, edits = planner.finish(), edits + 1
            assert int(state.step) == i, "nothing was lost"
            state, _ = planner.step(state, batch)
        if i % 4 == 3:  # an edit, of which the planner is not told
            state = jax.tree_util.tree_map(jnp.copy, state)
    assert edits > 0, "an edit met a step that was to be done again"


@pytest.mark.parametrize("peak", [None, 2.0])
def test_masks_are_not_waited_for(peak, net, getkey, monkeypatch):
    # Neither far from a boundary nor, as they seem to be if they might move fast, close to it.
    masks = masks_of(10.5, 10.5)
    learner = learner_of(net, dn.adamw(1e-6, steps=100))
    planner = dn.Planner(learner, masks, {"h": (16, 24), "k": (16, 24)}, background=True)
    state, _ = planner.step(learner.init(net, masks), next(batches(getkey(), 1)))
    jax.block_until_ready(state)
    state, _ = planner.step(state, next(batches(getkey(), 1)))

    def refuse(masks):
        raise AssertionError("looked at the masks")

    with monkeypatch.context() as patch:
        patch.setattr(_engine, "counts", refuse)
        if peak is not None:
            patch.setattr(runtime.Velocity, "update", lambda velocity, _: velocity)
            forecast = planner._run.planner.forecast
            velocity = dataclasses.replace(forecast.velocity, peak=np.full(2, peak))
            forecast = dataclasses.replace(forecast, velocity=velocity)
            planner._run.planner = planner.state.replace(forecast=forecast)
        for batch in batches(getkey(), 20):
            state, _ = planner.step(state, batch)
            assert peak is None or len(planner._run.flight) <= 2
    assert int(planner.finish(state).step) == 22


def test_in_the_background_training_goes_on(net, getkey, monkeypatch):
    go = threading.Event()
    compile = Program.compile
    main = threading.get_ident()

    def slow(self):
        if threading.get_ident() != main:
            assert go.wait(60)
        return compile(self)

    monkeypatch.setattr(Program, "compile", slow)
    masks = masks_of()
    learner = learner_of(net)
    large, small = dn.Plan({"h": 24, "k": 24}), dn.Plan({"h": 16, "k": 16})
    policy = runtime.Oracle(((0, large), (3, small)))
    planner = dn.Planner(learner, masks, LADDERS, policy, background=True)
    state = learner.init(net, masks)
    data = it.cycle(batches(getkey(), 30))
    for batch in it.islice(data, 15):
        state, _ = planner.step(state, batch)
        assert planner.plan == large
    go.set()
    while planner.compiling:
        state, _ = planner.step(state, next(data))
    assert planner.plan == small
    first, second = learner.compilations
    assert (first.plan, first.overlapped, first.changes) == (large, 0.0, {})
    assert second.plan == small and second.overlapped > 0.9 * second.compiling > 0
    assert second.changes == {"h": (24, 16), "k": (24, 16)}
    report = planner.report()
    assert "2 compilations (in the background)" in report and "h 24->16, k 24->16" in report


#
# Failures.
#


class Full(Exception):
    pass


def failing(monkeypatch, sizes):
    """Compilations of networks of these widths fail."""
    compile = Program.compile

    def fail(self):
        if any(f"tensor<{h}x2x" in self.lowered.as_text() for h in sizes):
            raise Full("RESOURCE_EXHAUSTED")
        return compile(self)

    monkeypatch.setattr(Program, "compile", fail)


@pytest.mark.parametrize("background", [False, True])
def test_a_plan_that_cannot_be_compiled(background, net, getkey, monkeypatch):
    failing(monkeypatch, [16])
    masks = masks_of()
    learner = learner_of(net)
    policy = runtime.Oracle(((0, both(24)), (3, both(16)), (400, both(20))))
    planner = dn.Planner(learner, masks, LADDERS, policy, background=background)
    state = learner.init(net, masks)
    data = it.cycle(batches(getkey(), 10))
    with pytest.warns(
        UserWarning, match=r"Plan\(\{'h': 16, 'k': 16\}\) failed.*RESOURCE_EXHAUSTED"
    ):
        # Compiling waits for as many steps as may be under way, at most.
        for batch in it.islice(data, 4 + IN_FLIGHT):
            state, _ = planner.step(state, batch)
        while planner.compiling:
            state, _ = planner.step(state, next(data))
    assert planner.plan == dn.Plan({"h": 24, "k": 24})
    steps = 4 + IN_FLIGHT
    while planner.plan != dn.Plan({"h": 20, "k": 20}):
        state, _ = planner.step(state, next(data))
        steps += 1
        assert steps < 10_000
    assert planner.finish(state).step >= steps


def test_a_larger_plan_stands_in_for_one_that_fails(net, getkey, monkeypatch):
    masks = masks_of(14.0)
    learner = learner_of(net)
    ladders = {"h": (16, 20, 24), "k": (16, 20, 24)}
    planner = dn.Planner(learner, masks, ladders, runtime.EveryStep(), background=False)
    state = learner.init(net, masks_of(22.0, 22.0))
    state, _ = planner.step(state, next(batches(getkey(), 1)))
    state, _ = planner.step(learner.init(net, masks), next(batches(getkey(), 1)))
    assert planner.plan == dn.Plan({"h": 16, "k": 16})
    failing(monkeypatch, [20])
    with pytest.warns(UserWarning, match=r"Plan\(\{'h': 20, 'k': 16\}\) failed"):
        state, info = planner.step(
            learner.init(net, masks_of(18.0)), next(batches(getkey(), 1))
        )
    assert info.covered and planner.plan == dn.Plan({"h": 24, "k": 24})


@pytest.mark.parametrize("error", [Full("no memory"), KeyboardInterrupt()])
def test_where_nothing_covers_the_error_is_the_callers(error, net, getkey, monkeypatch):
    masks = masks_of()
    learner = learner_of(net)
    planner = dn.Planner(learner, masks, LADDERS, background=False)
    state = learner.init(net, masks)
    batch = next(batches(getkey(), 1))
    with monkeypatch.context() as patch:

        def fail(self):
            raise error

        patch.setattr(Program, "compile", fail)
        with pytest.raises(type(error)):
            planner.step(state, batch)
    new, info = planner.step(state, batch)
    assert info.covered and int(new.step) == 1, "nothing was lost"


def test_the_first_plan_has_room(net, getkey):
    # Actives of 14 and 11; 14.7, 17.5 and 28 positions are to be held, of 24 at most.
    masks, learner = masks_of(), learner_of(net)
    state, batch = learner.init(net, masks), next(batches(getkey(), 1))
    for headroom, wanted in {
        0.0: (14, 12),
        0.05: (14, 12),
        0.25: (18, 14),
        1.0: (24, 22),
    }.items():
        planner = dn.Planner(learner, masks, LADDERS, headroom=headroom, background=False)
        planner.step(state, batch)
        assert planner.plan is not None
        assert tuple(planner.plan.values()) == wanted


def test_bad_arguments(net):
    masks, learner = masks_of(), learner_of(net)
    with pytest.raises(ValueError, match="`in_flight` must be at least 1, got 0"):
        dn.Planner(learner, masks, LADDERS, in_flight=0)
    with pytest.raises(ValueError, match="`headroom` must be at least 0, got -0.1"):
        dn.Planner(learner, masks, LADDERS, headroom=-0.1)
    with pytest.raises(ValueError, match="axis 'h' must be increasing.*capacity 24"):
        dn.Planner(learner, masks, LADDERS | {"h": (8, 16)})
    with pytest.raises(ValueError, match="axis 'k' must be increasing"):
        dn.Planner(learner, masks, LADDERS | {"k": (8, 8, 24)})
    with pytest.raises(ValueError, match=r"without a mask: \['z'\]"):
        dn.Planner(learner, masks, LADDERS | {"z": (8,)})
    with pytest.raises(ValueError, match="No step was looked at"):
        dn.Planner(learner, masks, LADDERS).trace  # noqa: B018


def test_a_policy_that_does_not_cover(net, getkey):
    class Small(runtime.AbstractPolicy):
        def init(self):
            return None

        def __call__(self, state, observation):
            return state, both(2)

    masks, learner = masks_of(), learner_of(net)
    planner = dn.Planner(learner, masks, LADDERS, Small(), background=False)
    with pytest.raises(
        ValueError, match=r"gave Plan\(\{'h': 2, 'k': 2\}\), which does not cover"
    ):
        planner.step(learner.init(net, masks), next(batches(getkey(), 1)))


#
# Accounts.
#


def test_outcome_and_regret(net, getkey):
    masks, learner = masks_of(), learner_of(net)
    planner = dn.Planner(learner, masks, LADDERS, runtime.EveryStep(), background=False)
    train(planner, learner.init(net, masks), batches(getkey(), 40))
    ran = planner.outcome()
    assert ran.compilations == len(learner.compilations)
    assert [plan for _, plan in ran.plans] == [c.plan for c in learner.compilations]
    assert ran.compiling == pytest.approx(ran.compilations * planner.timing.compile)
    cost = dn.parameter_cost(net, axes_of(net))
    rows = [dict(zip("hk", map(float, row))) for row in planner.trace.every_step()]
    scale, overhead = planner.timing.scale, planner.timing.overhead
    exact = sum(overhead + scale * float(cost(row)) for row in rows)
    assert ran.exact == pytest.approx(exact, rel=1e-4) and ran.exact < ran.stepping
    best = runtime.optimum(planner.trace, masks, LADDERS, planner.timing)
    paid = runtime.replay(planner.trace, best, masks, LADDERS, planner.timing)
    assert planner.regret() == pytest.approx(ran.seconds / paid.seconds) and paid.seconds > 0
