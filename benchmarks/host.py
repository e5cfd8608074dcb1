"""What the planner does on the host between two steps: it looks at the masks of the steps that
are done, foresees, asks its policy, and notes. 40 axes, or 200.

- `host/microseconds`: a step of the planner but for starting the step itself, the median.
- `host/starting`: starting the step, beside it: flattening the state, calling the program.
- `host/ahead`: how many steps a planner could start before the first of them was done, on a
  network whose steps take long: as many as may be in flight, if nothing waits for the device.
"""

import statistics
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Float

import dnarch_eqx as dn
from benchmarks._common import finish, Row


_STEPS, _IN_FLIGHT = 300, 8
# Axes: rows' suffix, microseconds aimed for.
_SIZES = {40: ("", 150), 200: ("/200", 600)}


class Layers(eqx.Module):
    """A residual network, the hidden width of each of whose layers is learned. `repeats` makes
    it slow.
    """

    up: list[Array]
    down: list[Array]
    repeats: int = eqx.field(static=True)

    def __init__(self, layers: int, width: int, capacity: int, repeats: int, key: Array):
        keys = jr.split(key, 2 * layers)
        self.up = [jr.normal(k, (capacity, width)) / width for k in keys[:layers]]
        self.down = [jr.normal(k, (width, capacity)) / capacity for k in keys[layers:]]
        self.repeats = repeats

    def __call__(self, x: Float[Array, "batch width"]) -> Float[Array, "batch width"]:
        def layers(_, x):
            for up, down in zip(self.up, self.down):
                x = x + jnp.tanh(x @ up.T) @ down.T
            return x

        return jax.lax.fori_loop(0, self.repeats, layers, x)


def run(path: Path | None) -> None:
    rows = []
    for axes, (suffix, most) in _SIZES.items():
        between, starting = _host(axes)
        rows += [
            Row(f"host/microseconds{suffix}", 1e6 * between, "us", f"<= {most}"),
            Row(f"host/starting{suffix}", 1e6 * starting, "us"),
        ]
    finish([*rows, Row("host/ahead", _ahead(), "steps", f"= {_IN_FLIGHT}")], path)


def _host(axes: int) -> tuple[float, float]:
    """Seconds of a step of the planner but for starting the step, and of that."""
    planner, state, batch = _setup(axes, width=8, repeats=1, batch=4)
    starting = [0.0]
    start_step = planner.learner.run

    def timed(program, state, signature, rest):
        start = time.perf_counter()
        out = start_step(program, state, signature, rest)
        starting.append(time.perf_counter() - start)
        return out

    planner.learner.run = timed
    between = []
    for _ in range(_STEPS):
        start = time.perf_counter()
        new, _ = planner.step(state, batch)
        between.append(time.perf_counter() - start - starting[-1])
        state = new  # which frees the old one: no business of the planner
        jax.block_until_ready(state)
    return statistics.median(between[20:]), statistics.median(starting[20:])


def _ahead() -> int:
    planner, state, batch = _setup(40, width=128, repeats=20, batch=512)
    for _ in range(3):
        state, _ = planner.step(state, batch)
        jax.block_until_ready(state)
    states = []
    while not states or not states[0].step.is_ready():
        state, _ = planner.step(state, batch)
        states.append(state)
    return len(states) - 1


def _setup(axes: int, width: int, repeats: int, batch: int):
    model = Layers(axes, width, 64, repeats, jr.key(0))
    names = [f"layers.{i:03d}" for i in range(axes)]
    masks = {name: dn.Sigmoid(64, size=40) for name in names}
    where = lambda m: (*m.up, *m.down)
    declared = dn.declare(
        model,
        where,
        [
            *(dn.Axes(name, None) for name in names),
            *(dn.Axes(None, dn.gated(name)) for name in names),
        ],
    )
    loss = lambda net, batch, key: jnp.mean(net(batch) ** 2)
    budget = dn.Budget(dn.parameter_cost(model, declared), {name: 32.0 for name in names})
    learner = dn.Learner(loss, optax.sgd(1e-6), declared, budget, strict=False)
    planner = dn.Planner(
        learner, masks, dn.buckets(masks), background=True, in_flight=_IN_FLIGHT
    )
    return planner, learner.init(model, masks), jnp.ones((batch, width))
