"""Every batch given to a planner is trained on exactly once, in order, whatever happens: random
schedules of steps, edits, failures and interrupts, beside a plain loop at full capacity.
"""

import itertools as it
import sys
import time
import warnings
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
import optax
import pytest
from helpers import close, filled

import dnarch_eqx as dn
from dnarch_eqx import runtime
from dnarch_eqx.runtime._program import Program


CAPACITY, STEPS = 12, 10
LADDERS = {"h": (4, 8, 12), "k": (6, 12)}


class Net(eqx.Module):
    layers: list[eqx.nn.Linear]

    def __init__(self, key):
        sizes = [2, CAPACITY, CAPACITY, 1]
        self.layers = [
            eqx.nn.Linear(*pair, key=k) for pair, k in zip(it.pairwise(sizes), jr.split(key, 3))
        ]

    def __call__(self, x):
        for layer in self.layers[:-1]:
            x = jnp.tanh(layer(x))
        return self.layers[-1](x)


AXES = {
    ".layers[0].weight": dn.Axes("h", None),
    ".layers[0].bias": dn.Axes("h"),
    ".layers[1].weight": dn.Axes("k", dn.gated("h")),
    ".layers[1].bias": dn.Axes("k"),
    ".layers[2].weight": dn.Axes(None, dn.gated("k")),
}


def masks_of(h: float = 6.0, k: float = 6.0):
    make = lambda size: dn.Sigmoid(CAPACITY, size=size, temperature=16.0)
    return {"h": make(h), "k": make(k)}


def loss(net, batch, key):
    x, y = batch
    noise = 1 + 0.1 * jr.uniform(key, dtype=y.dtype)
    value = noise * jnp.mean((jax.vmap(net)(x) - y) ** 2)
    return value, {"value": value}


def jumping() -> optax.GradientTransformation:
    """Gradient descent, but every third update each mask lies somewhere else in its range: as
    fast as an optimizer can be.
    """

    def init(params):
        return jnp.zeros((), jnp.int32)

    def update(updates, state, params=None):
        assert params is not None and isinstance(updates, tuple)
        _, masks = params
        to = jr.uniform(jr.fold_in(jr.key(7), state // 3), (2,), minval=-0.7, maxval=1.1)
        jumps = state % 3 == 2
        moved = {axis: jtu.tree_map(jnp.zeros_like, mask) for axis, mask in updates[1].items()}
        moved = {
            axis: eqx.tree_at(
                lambda m: m.offset,
                moved[axis],
                jnp.where(jumps, x - masks[axis].offset, -0.05 * updates[1][axis].offset),
            )
            for axis, x in zip(sorted(masks), to)
        }
        return (jtu.tree_map(lambda g: -0.05 * g, updates[0]), moved), state + 1

    return optax.GradientTransformation(init, update)


class Traces:
    """Programs are compiled once for all schedules, and handed out as if anew: each can be told
    to fail, or to take its time.
    """

    def __init__(self):
        self.known = {}
        self.failures = 0
        self.seconds = 0.0

    def learner(self, budget, **kwargs):
        learner = dn.Learner(loss, jumping(), AXES, budget, has_aux=True, **kwargs)
        real = learner.trace

        def trace(state, rest, plan):
            ignores = learner.on_nonfinite == "ignore"
            key = (plan, ignores, learner.key(learner.signature(state), rest))
            if key not in self.known:
                self.known[key] = real(state, rest, plan).compile()
            return Handed(self, self.known[key])

        learner.trace = trace
        return learner


class Handed(Program):
    tracing, compiling, cached = 0.01, 0.01, False

    def __init__(self, traces, program):
        self.traces, self.program = traces, program
        self.after = None

    def compile(self):
        time.sleep(self.traces.seconds)
        if self.traces.failures:
            self.traces.failures -= 1
            raise RuntimeError("RESOURCE_EXHAUSTED")
        return self

    def __call__(self, *args):
        return self.program(*args)


class Interrupt:
    """Raises `KeyboardInterrupt` at so many lines of this library from now."""

    def __init__(self, lines):
        self.lines = lines

    def __enter__(self):
        sys.settrace(self.trace)

    def __exit__(self, *_):
        sys.settrace(None)

    def trace(self, frame, event, _):
        if "dnarch_eqx" not in frame.f_code.co_filename:
            return None
        if event == "line":
            self.lines -= 1
            if self.lines == 0:
                raise KeyboardInterrupt
        return self.trace


def edited(state, how):
    """What users do to a state between two steps."""
    if how == "clipped":
        clip = lambda x: jnp.clip(x, -0.5, 0.5)
        return eqx.tree_at(lambda s: s.model, state, jtu.tree_map(clip, state.model))
    if how == "masks":
        moved = {
            axis: eqx.tree_at(lambda m: m.offset, m, -m.offset).project()
            for axis, m in state.masks.items()
        }
        return eqx.tree_at(lambda s: s.masks, state, moved)
    if how == "moved":
        put = lambda x: jax.device_put(x, jax.devices()[0]) if eqx.is_array(x) else x
        return jtu.tree_map(put, state)
    assert how == "rebuilt"
    return jtu.tree_map(lambda x: x, state)


def patiently(do, happened):
    """The call is made again, as its errors say."""
    while True:
        try:
            return do()
        except KeyboardInterrupt:
            happened["interrupted"] += 1
        except FloatingPointError:
            happened["not finite"] += 1
        except RuntimeError as error:
            assert "RESOURCE_EXHAUSTED" in str(error)
            happened["failed"] += 1


@pytest.fixture(scope="module")
def traces():
    return Traces()


def budget_of(weight):
    cost = dn.parameter_cost(filled(Net, jr.key(0)), AXES)
    return dn.Budget(cost, {"h": 8.0, "k": 8.0}, weight)


BUDGETS = {}


def run_schedule(traces, seed):
    """One schedule, by a planner and by the plain loop; gives how often what happened."""
    rng = np.random.default_rng(seed)
    chance = lambda p: rng.random() < p
    mode = str(rng.choice(["skip", "ignore"])) if chance(0.3) else "raise"
    budgets = BUDGETS.setdefault("made", [budget_of(w) for w in (0.0, 1.0)])
    learner = traces.learner(budgets[1], on_nonfinite=mode, keep=int(rng.choice([1, 3, 20])))
    plain = traces.learner(budgets[1], on_nonfinite=mode, strict=False)
    policy = [runtime.EveryStep(), runtime.BreakEven(), runtime.Hysteresis(), runtime.Every(2)][
        rng.integers(4)
    ]
    options: dict[str, Any] = dict(
        background=bool(chance(0.5)),
        in_flight=int(rng.integers(1, 6)),
        headroom=float(rng.choice([0.0, 0.3])),
    )
    masks, net = masks_of(*rng.uniform(3, 11, 2)), filled(Net, jr.key(seed))
    planner = dn.Planner(learner, masks, LADDERS, policy, **options)
    state, ref = learner.init(net, masks), plain.init(net, masks)
    saved, infos, wanted = (state, ref), [], []
    kinds = ("refused", "failed", "interrupted", "not finite")
    happened: dict[str, int] = dict.fromkeys(kinds, 0)
    finish = lambda: patiently(lambda: planner.finish(state), happened)
    traces.seconds = float(rng.choice([0.0, 0.002]))
    for step in range(STEPS):
        x = rng.normal(size=(8, 2))
        batch = (x, np.sin(2 * x[:, :1]) * x[:, 1:])
        if chance(0.05):
            batch[0][0, 0] = np.nan
        key = jr.key(step)
        learner.budget = plain.budget = budgets[int(chance(0.5))]

        # Before the step: the user touches the state, or a run is stopped and goes on.
        how, event = None, str(rng.choice(["edited", "saved", "restored", "resumed", *"....."]))
        if event == "edited":
            how = str(rng.choice(["clipped", "masks", "moved", "rebuilt"]))
            state = finish() if chance(0.5) else state
            state, ref = edited(state, how), edited(ref, how)
        elif event == "saved":
            state = finish()
            saved = state, ref
        elif event == "restored":
            finish()
            state, ref = saved
        elif event == "resumed":
            state = finish()
            text = planner.state.to_json()
            back = runtime.PlannerState.from_json(text, policy)
            planner = dn.Planner(learner, masks, LADDERS, policy, state=back, **options)
        happened[event] = happened.get(event, 0) + 1

        traces.failures = int(chance(0.2))
        hit = Interrupt(int(rng.integers(1, 400)) if chance(0.3) else 0)

        def call():
            with hit:
                return planner.step(state, batch, key=key)

        try:
            state, info = patiently(call, happened)
        except ValueError as error:
            # An edit came between a step and its being done again: as the error says.
            assert "planner.finish()" in str(error) and how is not None
            happened["refused"] += 1
            state = edited(patiently(planner.finish, happened), how)
            state, info = patiently(call, happened)
        infos.append(info)
        ref, plain_info = (
            plain.step(ref, batch, dn.Plan(), key=key)
            if mode != "raise"
            else (plain_step(plain, ref, batch, key))
        )
        wanted.append(plain_info)
        if chance(0.2):  # looks at what it was told, at once
            patiently(lambda: infos[int(rng.integers(len(infos)))].active, happened)
    state = finish()
    traces.failures = 0
    assert int(state.step) == int(ref.step), seed
    if mode != "ignore" or all(i.finite for i in wanted):
        close((state.model, state.masks), (ref.model, ref.masks), rtol=1e-8, what=str(seed))
    for i, (got, info) in enumerate(zip(infos, wanted)):
        assert got.covered and got.finite == info.finite, (seed, i)
        np.testing.assert_allclose(got.loss, info.loss, rtol=1e-8, err_msg=f"{seed} {i}")
        np.testing.assert_array_equal(got.metrics["value"], got.loss)
        np.testing.assert_array_equal(got.active, info.active, err_msg=f"{seed} {i}")
    assert planner.plan is not None and planner.plan.covers(state.masks)
    return happened


def plain_step(plain, state, batch, key):
    """Without a word on what is not finite: the loop of make_step."""
    try:
        return plain.step(state, batch, dn.Plan(), key=key)
    except FloatingPointError:
        return plain.step(state, batch, dn.Plan(), key=key)


@pytest.mark.parametrize(
    "part", [0, *(pytest.param(part, marks=pytest.mark.slow) for part in range(1, 10))]
)
def test_random_schedules(part, traces, x64):
    """300 of them, 30 at a time, of which 240 are slow tests."""
    total: dict[str, int] = {}
    with warnings.catch_warnings(), jax.numpy_dtype_promotion("standard"):
        warnings.simplefilter("ignore")  # compilations that fail, steps that are left out
        for seed in range(30 * part, 30 * (part + 1)):
            for what, often in run_schedule(traces, seed).items():
                total[what] = total.get(what, 0) + often
    for what in ("edited", "failed", "interrupted", "resumed", "restored"):
        assert total[what] > 0, f"nothing was {what}"
