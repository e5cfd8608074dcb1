"""What a compilation costs: a training step of DNArch_{K,R,W,D}, base of 4 blocks of 64
channels, L = 512, batch 16.

- `compile/seconds` and its parts, tracing (on the main thread) and XLA (on any); and from JAX's
  persistent cache, in a folder that is new: `compile/persistent`, over the former.
- `compile/steps`: so many steps at full capacity would cost as much. After as many as that, less
  what the smaller step costs, a compilation has paid for itself: `compile/break_even`.
- `compile/overlap`: steps a second while another thread compiles, over those while none does.
- `compile/scan`: a network of equal blocks, its runs of blocks scanned, over the same unrolled:
  compilation, and `compile/scan/step` a step.
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
    learner, state, plan, batch = _setup("KRWD")
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
        Row("compile/steps", cold.seconds / seconds["full"], "steps"),
        Row("compile/break_even", cold.seconds / (seconds["full"] - seconds["step"]), "steps"),
        Row("compile/overlap", _overlap(learner, state, batch, plan), "x"),
        Row("compile/persistent", _persistent() / cold.seconds, "x"),
        *_scanned(),
    ]
    finish(rows, path)


def _overlap(learner, state, batch, plan) -> float:
    program = learner._trace(state, batch, dn.Plan())
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
        dn.persistent_cache(folder)
        learner, state, plan, batch = _setup("KRWD")
        learner.compile(state, batch, plan)
        learner, state, plan, batch = _setup("KRWD")
        learner.compile(state, batch, plan)
        jax.config.update("jax_compilation_cache_dir", None)
    (hit,) = learner.compilations
    if not hit.cached:
        raise RuntimeError("The persistent cache did not have what was just compiled.")
    return hit.seconds


def _scanned() -> list[Row]:
    setups = {scan: _setup("", scan=scan) for scan in (False, True)}
    for learner, state, plan, batch in setups.values():
        learner.compile(state, batch, plan)
    seconds = medians(
        {
            str(scan): lambda learner=learner, state=state, plan=plan, batch=batch: (
                learner.step(state, batch, plan)
            )
            for scan, (learner, state, plan, batch) in setups.items()
        },
        5,
    )
    compiled = [learner.compilations[0].seconds for learner, *_ in setups.values()]
    return [
        Row("compile/scan", compiled[1] / compiled[0], "x"),
        Row("compile/scan/step", seconds["True"] / seconds["False"], "x"),
    ]


def _setup(learn: str, **options):
    key = jr.key(0)
    batch = jr.normal(key, (_BATCH, 1, _LENGTH)), jr.randint(key, (_BATCH,), 0, 10)
    model, masks = nn.dnarch(
        _BASE, learn, 1, 10, (_LENGTH,), omega_0=1000.0, key=key, **options
    )
    budget = dn.Budget(nn.complexity(model), nn.base_sizes(model, _BASE)) if masks else None
    optim = dn.adamw(1e-3, steps=1000)
    learner = dn.Learner(_loss, optim, nn.axes(model), budget, strict=False)
    return learner, learner.init(model, masks), dn.plan(masks, nn.buckets(masks)), batch


def _loss(net, batch, key):
    del key
    x, y = batch
    logits = jax.vmap(net, axis_name="batch")(x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
