"""What a compilation costs: a training step of DNArch_{K,R,W,D}, base of 4 blocks of 64
channels, L = 512, batch 16.

- `compile/seconds` and its parts, tracing (on the main thread) and XLA (on any);
  `compile/persistent`, the same with JAX's persistent cache, in a new folder, over it.
- `compile/break_even`: after how many steps a compilation has paid for itself, where the step
  before was that at full capacity.
- `compile/overlap`: steps a second while another thread compiles, over those while none does.
"""

import tempfile
import threading
import time
from pathlib import Path

import jax
import jax.random as jr
import optax

import dnarch_eqx as dn
from benchmarks._common import finish, medians, Row
from dnarch_eqx import nn


_BASE, _LENGTH, _BATCH = nn.Base(4, 64), 512, 16


def run(path: Path | None) -> None:
    learner, state, plan, batch = _setup()
    for p in (plan, dn.Plan()):
        learner.compile(state, batch, p)
    cold, full = learner.compilations
    seconds = medians(
        {
            "step": lambda: learner.step(state, batch, plan),
            "full": lambda: learner.step(state, batch, dn.Plan()),
        },
        5,
    )
    rows = [
        Row("compile/seconds", cold.seconds, "s"),
        Row("compile/tracing", cold.tracing, "s"),
        Row("compile/xla", cold.compiling, "s"),
        Row("compile/seconds/full", full.seconds, "s"),
        Row("compile/break_even", cold.seconds / (seconds["full"] - seconds["step"]), "steps"),
        Row("compile/overlap", _overlap(learner, state, batch, plan), "x"),
        Row("compile/persistent", _persistent() / cold.seconds, "x"),
    ]
    finish(rows, path)


def _overlap(learner, state, batch, plan) -> float:
    program = learner.trace(state, (batch, None, learner.budget), dn.Plan())
    worker = threading.Thread(target=program.compile)

    def rate(going) -> float:
        start, steps = time.perf_counter(), 0
        while going(steps):
            jax.block_until_ready(learner.step(state, batch, plan))
            steps += 1
        return steps / (time.perf_counter() - start)

    alone = rate(lambda steps: steps < 20)
    worker.start()
    return rate(lambda _: worker.is_alive()) / alone


def _persistent() -> float:
    """Seconds of a compilation that the cache has."""
    with tempfile.TemporaryDirectory() as folder:
        dn.runtime.persistent_cache(folder)
        learner, state, plan, batch = _setup()
        learner.compile(state, batch, plan)
        learner, state, plan, batch = _setup()
        learner.compile(state, batch, plan)
        jax.config.update("jax_compilation_cache_dir", None)
    (hit,) = learner.compilations
    if not hit.cached:
        raise RuntimeError("The persistent cache did not have what was just compiled.")
    return hit.seconds


def _setup():
    key = jr.key(0)
    batch = jr.normal(key, (_BATCH, 1, _LENGTH)), jr.randint(key, (_BATCH,), 0, 10)
    model, masks = nn.dnarch(_BASE, "KRWD", 1, 10, (_LENGTH,), omega_0=1000.0, key=key)
    budget = dn.Budget(nn.complexity(model), nn.base_sizes(model, _BASE))
    optim = dn.adamw(1e-3, steps=1000)
    learner = dn.Learner(_loss, optim, nn.axes(model), budget, strict=False)
    return learner, learner.init(model, masks), dn.plan(masks, nn.buckets(masks)), batch


def _loss(net, batch, key):
    del key
    x, y = batch
    logits = jax.vmap(net, axis_name="batch")(x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
