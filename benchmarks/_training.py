# The run of a planner in the benchmark `accelerator`, on data that are made up.

import dataclasses
import math
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.random as jr
import numpy as np
import optax
from jaxtyping import Float, Int

import dnarch_eqx as dn
from benchmarks._common import paces, Row
from benchmarks._lab import Lab
from benchmarks._networks import CLASSES
from dnarch_eqx import nn


_IN_FLIGHT = 8
# As fine as they can be, as in the benchmark `run`: the policy sees to it that there are few
# compilations.
_RULES = {
    "*.kernel*": dn.ladders.odd(ratio=1),
    "*.resolution*": dn.ladders.smooth(ratio=1),
    "depth": dn.ladders.every(),
    "*": dn.ladders.multiples(4),
}


def training(lab: Lab) -> tuple[list[Row], dict[str, Any]]:
    run = lab.setting.run
    batch = _batch_size(lab) if run.batch is None else run.batch
    model, masks = nn.dnarch(
        run.base,
        "KRWD",
        1,
        CLASSES,
        (run.length,),
        sigma=0.3,
        omega_0=30.0,
        stream=True,
        key=jr.key(0),
    )
    cost = nn.complexity(model)
    budget = dn.Budget(cost, 0.4 * float(cost(nn.base_sizes(model, run.base))), 1.0)
    optim = dn.adamw(
        0.01,
        steps=run.steps,
        warmup=run.steps // 20,
        weight_decay=0.01,
        mask_rate=run.mask_rate,
    )
    learner = dn.Learner(_loss, optim, nn.axes(model), budget, strict=False)
    buckets = dn.buckets(masks, _RULES)
    planner = dn.Planner(learner, masks, buckets, in_flight=_IN_FLIGHT)
    state = learner.init(model, masks)
    batches = oscillations(np.random.default_rng(0), 16, batch, run.length)
    losses, times = [], [time.perf_counter()]
    for i in range(run.steps):
        state, info = planner.step(state, batches[i % len(batches)])
        losses.append(info)
        times.append(time.perf_counter())
    state = planner.finish(state)
    jax.block_until_ready(state)
    wall = time.perf_counter() - times[0]

    trace, outcome, compiled = planner.trace, planner.outcome(), learner.compilations
    grid = dn.runtime.Grid(masks, buckets)
    fits = np.stack([grid.fit(active) for active in trace.active])
    crossings = int(np.sum(np.any(fits[1:] != fits[:-1], axis=1)))
    pace = paces(_without_waits(np.diff(times), compiled), 4 * _IN_FLIGHT)
    starts = [at for at, _ in outcome.plans]
    steady = sum(
        float(np.median(pace[start:end])) * (end - start)
        for start, end in zip(starts, [*starts[1:], run.steps])
    )
    ideal = steady * outcome.exact / outcome.stepping if outcome.stepping > 0 else 0.0
    first = compiled[0].seconds
    overlapped = lambda some: (
        sum(c.overlapped for c in some) / sum(c.seconds for c in some) if some else 1.0
    )
    rows = [
        Row("run/efficiency", ideal / wall, "", ">= 0.90"),
        Row("run/efficiency/but_first", ideal / (wall - first), ""),
        Row("run/steady/but_first", steady / (wall - first), ""),
        Row("run/compilations", len(compiled), "", "<= 20"),
        Row("run/crossings", crossings, "", ">= 10"),
        Row("run/overlapped", overlapped(compiled), "", ">= 0.90"),
        Row("run/overlapped/but_first", overlapped(compiled[1:]), ""),
        Row("run/waste", outcome.waste, "x", "<= 1.10"),
        Row("run/seconds", wall, "s"),
        Row("run/compiling", sum(c.seconds for c in compiled), "s"),
        Row("run/milliseconds", 1e3 * steady / run.steps, "ms"),
    ]
    details = {
        "run": dataclasses.asdict(run) | {"batch": batch},
        "losses": [
            float(np.mean([float(i.loss) for i in x])) for x in (losses[:20], losses[-20:])
        ],
        "compilations": [
            {
                "step": c.call,
                "seconds": c.seconds,
                "tracing": c.tracing,
                "overlapped": c.overlapped,
                "changes": len(c.changes),
            }
            for c in compiled
        ],
        "report": planner.report(),
    }
    return rows, details


def _without_waits(
    seconds: Float[np.ndarray, " steps"], compiled: Sequence[dn.runtime.Compilation]
) -> Float[np.ndarray, " steps"]:
    """What steps took, but for the compilations that training waited for."""
    seconds = seconds.copy()
    for c in compiled:
        # Steps that were done again are calls, too: it may have been some steps earlier.
        first = max(c.call - 2 * _IN_FLIGHT, 0)
        at = first + int(np.argmax(seconds[first : c.call + 1]))
        seconds[at] = max(seconds[at] - (c.seconds - c.overlapped), 0.0)
    return seconds


def _batch_size(lab: Lab) -> int:
    """A power of 2, of at least 64, with which a run takes about as long as it is to, in half
    of the memory.
    """
    run, most = lab.setting.run, 1024.0
    if lab.example is not None:
        seconds, memory = lab.example
        limit = (jax.devices()[0].memory_stats() or {}).get("bytes_limit", math.inf)
        most = min(most, run.seconds / run.steps / seconds, limit / 2 / memory)
    return 2 ** int(math.log2(max(most, 64)))


def oscillations(
    rng: np.random.Generator, batches: int, size: int, length: int
) -> list[tuple[Float[np.ndarray, "size 1 length"], Int[np.ndarray, " size"]]]:
    """Batches of noisy oscillations, their frequencies the labels."""
    t = np.linspace(0, 1, length, endpoint=False, dtype=np.float32)
    found = []
    for _ in range(batches):
        y = rng.integers(0, CLASSES, size).astype(np.int32)
        phase = rng.random((size, 1), np.float32)
        turns = (1 + y[:, None]).astype(np.float32) * t + phase
        x = np.sin(2 * np.pi * turns) + rng.standard_normal((size, length), np.float32)
        found.append((x[:, None].astype(np.float32), y))
    return found


def _loss(net, batch, key):
    del key
    x, y = batch
    logits = jax.vmap(net, axis_name="batch")(x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
