"""A whole training run whose architecture changes: handwritten digits, DNArch_{K,R,W,D}, 2,000
steps, compilation included.

- `run/efficiency`: the time that the steps would take at exact sizes (resolutions rounded up to
  lengths that FFTs like) and with free compilations, over the wall time of the run. The former
  is a line through measurements of such steps at six moments of the run, made right after it.
- `run/compilations`, `run/crossings`, `run/waste`: programs compiled; changes of the smallest
  plan in the grid; operations in buckets over operations in exact sizes, mean over the steps.
- `host/hidden`: how much of the time that compilations took training went on.

It writes the trajectory, for `python -m benchmarks policy`.
"""

import time
from pathlib import Path

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax

import dnarch_eqx as dn
from benchmarks._common import finish, medians, Row
from dnarch_eqx import nn
from recipes.quickstart import Digits


_BASE, _BATCH, _STEPS = nn.Base(2, 32), 128, 150
_EXACT = {
    "*.kernel*": dn.odd(ratio=1.0),
    "*.resolution*": dn.smooth(ratio=1.0),
    "*": dn.every(),
}


def run(path: Path | None) -> None:
    key = jr.key(0)
    digits = Digits.load(0)
    model, masks = nn.dnarch(
        _BASE, "KRWD", 1, 10, (8, 8), sigma=0.3, omega_0=10.0, stream=True, key=key
    )
    budget = dn.Budget(nn.complexity(model), nn.base_sizes(model, _BASE), 1.0)
    optim = dn.adamw(0.01, steps=_STEPS, warmup=_STEPS // 20, weight_decay=0.01)
    learner = dn.Learner(_loss, optim, nn.axes(model), budget, strict=False)
    state = learner.init(model, masks)
    buckets = nn.buckets(masks, multiple=4)
    planner = dn.Planner(learner, masks, buckets)
    batches = digits.batches(_BATCH, 0)
    history = []

    start = time.perf_counter()
    for step in range(_STEPS):
        state, aux = planner.step(state, next(batches))
        if step % 50 == 0:
            history.append(state)
    state = planner.finish(state)
    jax.block_until_ready(state)
    wall = time.perf_counter() - start

    print(planner.report())
    trace = planner.trace
    grid = dn.Grid(masks, buckets)
    fits = [tuple(grid.fit(active).tolist()) for active in trace.active]
    exact = dn.Grid(masks, dn.buckets(masks, _EXACT))
    moments = np.linspace(0, _STEPS - 1, 6).astype(int)
    sizes = [exact.fit(active) for active in trace.every_step()[moments]]
    plans = [exact.plan(s) for s in sizes]
    # Any state that the plan covers: the one of the moment, or the nearest before.
    states = [_covered(history, plan) for plan in plans]
    batch = next(batches)
    probe = dn.Learner(_loss, optim, nn.axes(model), budget, strict=False, keep=len(plans))
    seconds = medians(
        {
            str(i): lambda state=state, plan=plan: probe.step(state, batch, plan)
            for i, (state, plan) in enumerate(zip(states, plans))
        },
        9,
    )
    cost = planner.timing.cost
    costs = np.array([cost(s) for s in sizes])
    times = np.array(list(seconds.values()))
    print(costs, times)
    slope, intercept = np.polyfit(costs, times, 1)
    ideal = sum(
        n * (intercept + slope * cost(exact.fit(active)))
        for n, active in zip(trace.lengths(), trace.active)
    )
    total = sum(c.seconds for c in learner.compilations)
    outcome = planner.outcome()
    finish(
        [
            Row("run/efficiency", ideal / wall, "", ">= 0.90"),
            Row("run/compilations", len(learner.compilations), "", "<= 20"),
            Row("run/waste", outcome.waste, "x", "<= 1.10"),
            Row("run/crossings", sum(a != b for a, b in zip(fits, fits[1:])), "", ">= 30"),
            Row("run/regret", planner.regret(), "x"),
            Row("run/seconds", wall, "s"),
            Row("run/milliseconds", 1e3 * wall / _STEPS, "ms"),
            Row(
                "host/hidden",
                sum(c.hidden for c in learner.compilations) / total,
                "",
                ">= 0.90",
            ),
            Row("host/compiling", total, "s"),
            Row("run/accuracy", 100 * _accuracy(learner, state, planner.plan, digits), "%"),
        ],
        path,
    )


def _covered(history, plan):
    return next(s for s in history if bool(plan.covers(s.masks)))


def _accuracy(learner, state, plan, digits) -> float:
    net = learner.network(state, plan)
    call = lambda x: jax.vmap(net, axis_name="batch")(x)
    logits = dn.predict(call, jnp.asarray(digits.x_test), batch_size=_BATCH, key=jr.key(1))
    return float((logits.argmax(-1) == digits.y_test).mean())


def _loss(net, batch, key):
    del key
    x, y = batch
    logits = jax.vmap(net, axis_name="batch")(x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
