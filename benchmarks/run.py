"""Whole training runs whose architecture changes, compilation included: handwritten digits
under noise, from the base's sizes down to a fraction of its operations, DNArch_{K,R,W,D}.

`sequences` reads the digits pixel by pixel, and its steps take as long as those of a small
real task do. `images` reads them as they are: its steps are so short that compilations cost as
much as hundreds of them. The rows of `sequences` have no prefix.

- `run/efficiency`: the time that the steps would take at exact sizes (resolutions rounded up to
  lengths that FFTs like) and with free compilations, over the wall time of the run. The former
  is what steps took in the run times what exact sizes save. What they took is the median of
  means over four times as many as are in flight, under a plan, over at most four times as long
  as the longest compilation: compilations do not show in it, but a machine whose speed drifts
  does. (To measure steps only afterwards gave from 0.70 to 0.94 on one. Single calls are no
  measure: of asynchronous steps some return at once, and others wait for eight.) What exact
  sizes save is measured right after the run, in turn: steps under its plans, and of exact sizes
  from six of its moments, with a line between these.
- `run/steady`: the same with the plans of the run in place of exact sizes: what compilations
  and uneven steps cost. The rest is what buckets cost.
- `run/compilations`, `run/crossings`, `run/waste`: programs compiled; changes of the smallest
  plan in the grid; operations in buckets over operations in exact sizes, mean over the steps.
- `host/overlapped`: how much of the time that compilations took training went on; and the same
  without the first, behind which there is nothing to go on with.

It writes the trajectories, for `python -m benchmarks policy`. It takes half an hour.
"""

import dataclasses
import math
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax

import dnarch_eqx as dn
from benchmarks import _trajectories
from benchmarks._common import finish, medians, paces, Row
from dnarch_eqx import nn
from recipes.quickstart import Digits


_STEPS, _NOISE, _IN_FLIGHT = 2000, 1.0, 8
_EXACT = {
    "*.kernel*": dn.ladders.odd(ratio=1),
    "*.resolution*": dn.ladders.smooth(ratio=1),
    "*": dn.ladders.every(),
}
# As fine as they can be: the policy sees to it that there are few compilations. The first
# pattern that fits an axis counts.
_FINE = {
    "*.kernel*": dn.ladders.odd(ratio=1),
    "*.resolution*": dn.ladders.smooth(ratio=1),
    "depth": dn.ladders.every(),
    "*": dn.ladders.multiples(4),
}


@dataclasses.dataclass(frozen=True)
class Setting:
    """A run. `target` is a share of the base's operations; all learn at `mask_rate` times the
    rate of the weights.
    """

    base: nn.Base
    shape: tuple[int, ...]
    batch: int
    target: float
    omega_0: float
    mask_rate: float

    @property
    def network(self) -> dict[str, Any]:
        """The arguments of [`dnarch_eqx.nn.dnarch`][]."""
        return dict(
            base=self.base,
            learn="KRWD",
            in_channels=1,
            out_channels=10,
            shape=self.shape,
            sigma=0.3,
            omega_0=self.omega_0,
            stream=True,
        )


SETTINGS = {
    "sequences": Setting(nn.Base(2, 96), (64,), 1024, 0.4, 30.0, 0.05),
    "images": Setting(nn.Base(2, 48), (8, 8), 64, 0.6, 10.0, 0.1),
}


def run(path: Path | None) -> None:
    rows = []
    for name, setting in SETTINGS.items():
        rows += _rows(name, setting)
    finish(rows, path)


def _rows(name: str, setting: Setting) -> list[Row]:
    digits = Digits.load(0)
    model, masks = nn.dnarch(**setting.network, key=jr.key(0))
    cost = nn.complexity(model)
    target = setting.target * cost(nn.base_sizes(model, setting.base))
    optim = dn.adamw(
        0.01,
        steps=_STEPS,
        warmup=_STEPS // 20,
        weight_decay=0.01,
        mask_rate=setting.mask_rate,
    )
    learner = dn.Learner(
        _loss, optim, nn.axes(model), dn.Budget(cost, target, 1.0), strict=False
    )
    state = learner.init(model, masks)
    buckets = dn.buckets(masks, _FINE)
    planner = dn.Planner(learner, masks, buckets, in_flight=_IN_FLIGHT)
    batches = _noisy(digits, setting)
    batch = next(batches)

    times = [time.perf_counter()]
    for _ in range(_STEPS):
        state, _ = planner.step(state, next(batches))
        times.append(time.perf_counter())
    state = planner.finish(state)
    jax.block_until_ready(state)
    wall = time.perf_counter() - times[0]

    print(f"{name}\n\n{planner.report()}\n")
    trace, grid = planner.trace, dn.runtime.Grid(masks, buckets)
    file = _trajectories.FOLDER / f"{name}.npz"
    _trajectories.write(file, trace, setting.network, buckets, planner.timing)
    fits = np.stack([grid.fit(active) for active in trace.active])
    crossings = int(np.sum(np.any(fits[1:] != fits[:-1], axis=1)))
    compiled, outcome = learner.compilations, planner.outcome()
    # Of none it is all.
    overlapped = lambda some: (
        sum(c.overlapped for c in some) / sum(c.seconds for c in some) if some else 1
    )
    total = sum(c.seconds for c in compiled)
    steady, ideal = _ideal(setting, state, batch, planner, optim, list(np.diff(times)))
    prefix = "" if name == "sequences" else f"/{name}"
    targets = (
        ["", "", "", "", ""] if prefix else [">= 0.90", "<= 20", "<= 1.10", ">= 30", ">= 0.90"]
    )
    return [
        Row(f"run{prefix}/efficiency", ideal / wall, "", targets[0]),
        Row(f"run{prefix}/steady", steady / wall, ""),
        Row(f"run{prefix}/compilations", len(compiled), "", targets[1]),
        Row(f"run{prefix}/waste", outcome.waste, "x", targets[2]),
        Row(f"run{prefix}/crossings", crossings, "", targets[3]),
        Row(f"run{prefix}/regret", planner.regret(), "x"),
        Row(f"run{prefix}/seconds", wall, "s"),
        Row(f"run{prefix}/milliseconds", 1e3 * wall / _STEPS, "ms"),
        Row(f"run{prefix}/accuracy", _accuracy(learner, state, planner, digits, setting), "%"),
        Row(f"host{prefix}/overlapped", overlapped(compiled), "", targets[4]),
        Row(f"host{prefix}/overlapped_but_first", overlapped(compiled[1:]), ""),
        Row(f"host{prefix}/compiling", total, "s"),
    ]


def _ideal(
    setting: Setting,
    state: dn.State,
    batch: Any,
    planner: dn.Planner,
    optim,
    seconds: list[float],
) -> tuple[float, float]:
    """Seconds of all steps under the plans of the run, and at exact sizes: see the docstring of
    this module.

    - `seconds`: what each step took.
    """
    trace, units, of = planner.trace, planner.timing.units, planner.learner
    exact = dn.runtime.Grid(state.masks, dn.buckets(state.masks, _EXACT))
    moments = np.linspace(0, trace.length - 1, 6).astype(int)
    sizes = np.unique([exact.fit(row) for row in trace.every_step()[moments]], axis=0)
    starts, plans = zip(*planner.outcome().plans)
    every = [*dict.fromkeys([*plans, *map(exact.plan, sizes)])]
    # A step whose plan does not cover the state takes as long as any.
    probe = dn.Learner(_loss, optim, of.axes, of.budget, strict=False, keep=len(every))
    found = medians(
        {str(plan): lambda plan=plan: probe.step(state, batch, plan) for plan in every}, 15
    )
    slope, intercept = np.polyfit(
        [units(row) for row in sizes], [found[str(exact.plan(row))] for row in sizes], 1
    )
    fits = [intercept + slope * units(exact.fit(row)) for row in trace.every_step()]
    longest = max(c.seconds for c in of.compilations)
    most = math.ceil(4 * longest / statistics.median(seconds))
    pace = paces(np.array(seconds), 4 * _IN_FLIGHT)
    steady, ideal = 0.0, 0.0
    for plan, start, end in zip(plans, starts, [*starts[1:], trace.length]):
        for part in np.array_split(np.arange(start, end), math.ceil((end - start) / most)):
            typical = float(np.median(pace[part]))
            steady += typical * len(part)
            ideal += typical / found[str(plan)] * sum(fits[i] for i in part)
    return steady, ideal


def _noisy(digits: Digits, setting: Setting) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(1)
    for x, y in digits.batches(setting.batch, 0):
        x = x.reshape(-1, 1, *setting.shape)
        yield x + _NOISE * rng.standard_normal(x.shape, np.float32), y


def _accuracy(
    learner: dn.Learner, state: dn.State, planner: dn.Planner, digits: Digits, setting: Setting
) -> float:
    """Of digits without noise, in percent."""
    assert planner.plan is not None
    net = learner.network(state, planner.plan)
    call = lambda x: jax.vmap(net, axis_name="batch")(x)
    x = jnp.asarray(digits.x_test).reshape(-1, 1, *setting.shape)
    logits = dn.predict(call, x, batch_size=128, key=jr.key(1))
    return 100 * float((logits.argmax(-1) == digits.y_test).mean())


def _loss(net, batch, key):
    del key
    x, y = batch
    logits = jax.vmap(net, axis_name="batch")(x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
