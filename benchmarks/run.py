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
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax

import dnarch_eqx as dn
from benchmarks import _trajectories
from benchmarks._common import finish, medians, Row
from dnarch_eqx import nn
from recipes.quickstart import Digits


_BASE, _BATCH, _STEPS = nn.Base(2, 48), 128, 2000
_NETWORK: dict[str, Any] = dict(
    base=_BASE,
    learn="KRWD",
    in_channels=1,
    out_channels=10,
    shape=(8, 8),
    sigma=0.3,
    omega_0=10.0,
    stream=True,
)
_EXACT = {
    "*.kernel*": dn.odd(ratio=1.0),
    "*.resolution*": dn.smooth(ratio=1.0),
    "*": dn.every(),
}


def run(path: Path | None) -> None:
    digits = Digits.load(0)
    model, masks = nn.dnarch(**_NETWORK, key=jr.key(0))
    budget = dn.Budget(nn.complexity(model), nn.base_sizes(model, _BASE), 1.0)
    optim = dn.adamw(0.01, steps=_STEPS, warmup=_STEPS // 20, weight_decay=0.01, mask_rate=0.1)
    learner = dn.Learner(_loss, optim, nn.axes(model), budget, strict=False)
    state = learner.init(model, masks)
    buckets = nn.buckets(masks, multiple=4)
    planner = dn.Planner(learner, masks, buckets)
    batches = digits.batches(_BATCH, 0)

    start = time.perf_counter()
    for _ in range(_STEPS):
        state, _ = planner.step(state, next(batches))
    state = planner.finish(state)
    jax.block_until_ready(state)
    wall = time.perf_counter() - start

    print(planner.report())
    trace, cost = planner.trace, planner.timing.cost
    _trajectories.write(
        _trajectories.FOLDER / "digits.npz", trace, _NETWORK, buckets, planner.timing
    )
    exact = dn.Grid(masks, dn.buckets(masks, _EXACT))
    moments = np.linspace(0, _STEPS - 1, 6).astype(int)
    sizes = np.unique([exact.fit(row) for row in trace.every_step()[moments]], axis=0)
    batch = next(batches)
    # A step whose plan does not cover the state takes as long as any.
    probe = dn.Learner(_loss, optim, nn.axes(model), budget, strict=False, keep=len(sizes))
    seconds = medians(
        {
            str(i): lambda plan=exact.plan(row): probe.step(state, batch, plan)
            for i, row in enumerate(sizes)
        },
        15,
    )
    slope, intercept = np.polyfit([cost(row) for row in sizes], list(seconds.values()), 1)
    ideal = sum(
        n * (intercept + slope * cost(exact.fit(active)))
        for n, active in zip(trace.lengths(), trace.active)
    )
    fits = np.stack([dn.Grid(masks, buckets).fit(active) for active in trace.active])
    crossings = int(np.sum(np.any(fits[1:] != fits[:-1], axis=1)))
    total = sum(c.seconds for c in learner.compilations)
    outcome = planner.outcome()
    finish(
        [
            Row("run/efficiency", ideal / wall, "", ">= 0.90"),
            Row("run/compilations", len(learner.compilations), "", "<= 20"),
            Row("run/waste", outcome.waste, "x", "<= 1.10"),
            Row("run/crossings", crossings, "", ">= 30"),
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
