"""What a training step of the materialized CCNN_{4,140} costs (L = 1024, batch 16, capacity
twice the base), beside

- a CCNN of the same sizes written by hand;
- the masked network at full capacity: the same functions under the full plan;
- the paper's own way in JAX: full capacity, written by hand, masks on the activations.

All of KRWD are learned, and the width of the stream with them. The plan is the one at
initialisation, in multiples of 4: 4 blocks of 140 channels.
"""

from pathlib import Path
from typing import Any

import jax
import jax.random as jr
import optax

import dnarch_eqx as dn
from benchmarks import _hand_written
from benchmarks._common import finish, medians, Row
from dnarch_eqx import nn


_LENGTH, _BATCH, _CLASSES, _OMEGA = 1024, 16, 10, 10_000.0
_REPEATS = 7


def run(path: Path | None) -> None:
    key = jr.key(0)
    batch = (
        jr.normal(key, (_BATCH, 1, _LENGTH)),
        jr.randint(key, (_BATCH,), 0, _CLASSES),
    )
    model, masks = nn.dnarch(
        nn.CCNN_4_140, "KRWD", 1, _CLASSES, (_LENGTH,), omega_0=_OMEGA, stream=True, key=key
    )
    rules = {
        "*.kernel*": dn.odd(),
        "*.resolution*": dn.smooth(),
        "depth": dn.every(),
        "*": dn.multiples(4),
    }
    plan = dn.plan(masks, dn.buckets(masks, rules))
    budget = dn.Budget(nn.complexity(model), nn.base_sizes(model, nn.CCNN_4_140))
    optim = dn.adamw(1e-3, steps=1000, warmup=10, weight_decay=0.01)
    learner = dn.Learner(_loss, optim, nn.axes(model), budget, strict=False)
    state = learner.init(model, masks)
    sizes = dict(length=_LENGTH, channels=1, classes=_CLASSES)
    depth, width = plan["depth"], plan["blocks.0.in"]
    hand, *by_hand = _by_hand(
        _hand_written.init(key, depth=depth, width=width, stream=width, **sizes)
    )
    masked, *by_mask = _by_hand(_hand_written.masked_init(key, depth=4, width=140, **sizes))

    programs = {
        "hand_written": hand.lower(*by_hand, batch).compile(),
        "step": learner.lower(state, batch, plan).compile(),
        "full_capacity": learner.lower(state, batch, dn.Plan()).compile(),
        "papers_masks": masked.lower(*by_mask, batch).compile(),
    }
    seconds = medians(
        {
            "hand_written": lambda: programs["hand_written"](*by_hand, batch),
            "step": lambda: learner.step(state, batch, plan),
            "full_capacity": lambda: learner.step(state, batch, dn.Plan()),
            "papers_masks": lambda: programs["papers_masks"](*by_mask, batch),
        },
        _REPEATS,
    )
    ratio = lambda a, b: seconds[a] / seconds[b]
    rows = [
        Row("step/hand_written", ratio("step", "hand_written"), "x", "<= 1.10"),
        Row("full_capacity/step", ratio("full_capacity", "step"), "x", ">= 6.0"),
        Row("papers_masks/step", ratio("papers_masks", "step"), "x"),
    ]
    for name, value in seconds.items():
        rows.append(Row(f"{name}/milliseconds", 1e3 * value, "ms"))
    for name, program in programs.items():
        temporary = program.memory_analysis().temp_size_in_bytes
        rows.append(Row(f"{name}/temporary", temporary / 2**20, "MiB"))
    finish(rows, path)


def _loss(net, batch, key):
    del key
    x, y = batch
    logits = jax.vmap(net, axis_name="batch")(x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def _by_hand(params: Any) -> tuple[Any, Any, Any]:
    """The step of a network without the library, its parameters, its optimizer's state."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, 1e-3, 10, decay_steps=1000)
    optim = optax.adamw(schedule, weight_decay=0.01)

    @jax.jit
    def step(params, opt_state, batch):
        def loss(params):
            x, y = batch
            logits = _hand_written.forward(params, x, _OMEGA)
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

        value, grads = jax.value_and_grad(loss)(params)
        updates, opt_state = optim.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    return step, params, optim.init(params)
