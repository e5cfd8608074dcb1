"""What each of the processes of test_processes.py runs: port, rank, how many, scenarios. Each
scenario prints what came of it, beside a plain loop at full capacity on this process alone.
"""

import json
import sys
import time
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

import dnarch_eqx as dn
from dnarch_eqx import runtime
from dnarch_eqx.runtime._program import Program


port, rank, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=count, process_id=rank)
mesh = Mesh(np.array(jax.devices()), ("batch",))
CAPACITY, STEPS = 24, 90


class Net(eqx.Module):
    weight: jax.Array
    out: jax.Array

    def __call__(self, x):
        return self.out @ jnp.tanh(self.weight @ x)


net = Net(jr.normal(jr.key(0), (CAPACITY, 3)), jr.normal(jr.key(1), (2, CAPACITY)))
axes = dn.declare(
    net, lambda m: (m.weight, m.out), (dn.Axes("h", None), dn.Axes(None, dn.gated("h")))
)
loss = lambda net, x, key: jnp.mean(jax.vmap(net)(x) ** 2)


def placed(x, *spec):
    """The same on all processes, but only the process's part on its device."""
    x = np.asarray(x)
    return jax.make_array_from_callback(
        x.shape, NamedSharding(mesh, P(*spec)), lambda index: x[index]
    )


def batches():
    rng = np.random.default_rng(0)
    while True:
        yield rng.normal(size=(8, 3)).astype(np.float32)


def alone(optim, budget, masks, steps):
    """The state of a plain loop at full capacity."""
    step = eqx.filter_jit(dn.make_step(loss, optim, axes))
    state = dn.Learner(loss, optim, axes, budget).init(net, masks)
    for _, x in zip(range(steps), batches()):
        state, _ = step(state, x, None, budget, dn.Plan())
    return state


def run(size, target, *, background, policy=None, each=None, distinct=2):
    """One run of a planner on all processes."""
    masks = {"h": dn.Sigmoid(CAPACITY, size=size)}
    budget = dn.Budget(dn.parameter_cost(net, axes), {"h": target}, 3.0)
    optim = dn.adamw(0.01, steps=10 * STEPS)
    learner = dn.Learner(loss, optim, axes, budget)
    state = jtu.tree_map(
        lambda x: placed(x) if eqx.is_array(x) else x, learner.init(net, masks)
    )
    policy = runtime.EveryStep() if policy is None else policy
    ladders = {"h": tuple(range(2, CAPACITY + 1, 2))}
    planner = dn.Planner(learner, masks, ladders, policy, background=background)
    plans, infos = [], []
    for x in batches():
        state, info = planner.step(state, placed(x, "batch"))
        plans.append(dict(planner.plan or {})["h"])
        infos.append(info)
        if each is not None:
            each(info)
        if len(plans) >= STEPS and (len(set(plans)) >= distinct or len(plans) > 2000):
            break
    state = planner.finish(state)
    wanted = alone(optim, budget, masks, len(plans))
    error = max(
        float(np.max(np.abs(np.asarray(a) - np.asarray(b))))
        for a, b in zip(
            jtu.tree_leaves((state.model, state.masks)),
            jtu.tree_leaves((wanted.model, wanted.masks)),
        )
    )
    timing = planner.timing
    same = [
        plans,
        [float(i.loss) for i in infos],
        int(state.step),
        timing.scale,
        timing.compile,
    ]
    return {"same": same, "error": error, "plans": plans, "steps": int(state.step)}


def compiling(change):
    """Has `change(n)` called before the n-th compilation."""
    real, made = Program.compile, [0]

    def compile(self):
        made[0] += 1
        change(made[0])
        return real(self)

    Program.compile = compile
    return real


def failing(n):
    if n == 2 and rank == count - 1:
        raise RuntimeError("RESOURCE_EXHAUSTED")


def slow(n):
    if n > 1 and rank == count - 1:
        time.sleep(1.0)


def with_compile(change, do):
    real = compiling(change)
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            result = do()
    finally:
        Program.compile = real
    return result | {"said": [str(w.message) for w in said if "failed" in str(w.message)]}


def first_fails():
    """Nothing covers: the error is everybody's."""

    def fail(n):
        if rank == count - 1:
            raise RuntimeError("RESOURCE_EXHAUSTED")

    real = compiling(fail)
    try:
        run(20.0, 6.0, background=False)
    except RuntimeError as error:
        return {"error": str(error)}
    finally:
        Program.compile = real
    raise AssertionError("it did compile")


def local():
    learner = dn.Learner(loss, dn.adamw(0.01, steps=9), axes)
    masks = {"h": dn.Sigmoid(CAPACITY, size=6.0)}
    planner = dn.Planner(learner, masks, background=False)
    try:
        planner.step(learner.init(net, masks), np.ones((8, 3), np.float32))
    except ValueError as error:
        return {"error": str(error)}
    raise AssertionError("it was not refused")


SCENARIOS = {
    "shrinks": lambda: run(20.0, 6.0, background=False),
    # A shrink is left to the times measured, which differ between the processes; and only the
    # first process looks at what it is told.
    "shrinks in the background": lambda: run(
        20.0,
        6.0,
        background=True,
        policy=runtime.BreakEven(patience=1e-3),
        each=lambda info: rank == 0 and float(info.loss),
    ),
    "grows in the background": lambda: run(6.0, 22.0, background=True, distinct=3),
    "fails": lambda: with_compile(failing, lambda: run(20.0, 6.0, background=False)),
    "fails in the background": lambda: with_compile(
        failing, lambda: run(20.0, 6.0, background=True)
    ),
    "slow": lambda: with_compile(slow, lambda: run(6.0, 22.0, background=True, distinct=3)),
    "first fails": first_fails,
    "local": local,
}
for name in sys.argv[4:]:
    print("RESULT", json.dumps({"scenario": name} | SCENARIOS[name]()), flush=True)
