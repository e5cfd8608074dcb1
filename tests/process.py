"""What each of the processes of test_processes.py runs: port, rank, background."""

import json
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

import dnarch_eqx as dn


port, rank, background = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "True"
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=rank)
mesh = Mesh(np.array(jax.devices()), ("batch",))


class Net(eqx.Module):
    weight: jax.Array
    out: jax.Array

    def __call__(self, x):
        return self.out @ jnp.tanh(self.weight @ x)


net = Net(jr.normal(jr.key(0), (24, 3)), jr.normal(jr.key(1), (2, 24)))
axes = dn.declare(
    net,
    lambda m: (m.weight, m.out),
    (dn.Axes("h", None), dn.Axes(None, dn.gated("h"))),
)
loss = lambda net, x, key: jnp.mean(jax.vmap(net)(x) ** 2)
budget = dn.Budget(dn.parameter_cost(net, axes), {"h": 6.0}, 1.0)
masks = {"h": dn.Sigmoid(24, size=20.0)}
learner = dn.Learner(loss, dn.adamw(0.02, steps=60), axes, budget, strict=False)


def placed(x, *spec):
    """The same on all processes, but only the process's part on its device."""
    x = np.asarray(x)
    return jax.make_array_from_callback(
        x.shape, NamedSharding(mesh, P(*spec)), lambda index: x[index]
    )


state = learner.init(net, masks)
state = jtu.tree_map(lambda x: placed(x) if eqx.is_array(x) else x, state)
# The step of a shrink is left to the times measured, which differ between the processes.
planner = dn.Planner(
    learner,
    masks,
    {"h": tuple(range(2, 25, 2))},
    dn.BreakEven(patience=1e-3),
    background=background,
)
plans, losses = [], []
rng = np.random.default_rng(0)
while len(plans) < 60 or (len(set(plans)) == 1 and len(plans) < 3000):
    x = rng.normal(size=(8, 3)).astype(np.float32)
    state, aux = planner.step(state, placed(x, "batch"))
    assert planner.plan is not None
    plans.append(planner.plan["h"])
    losses.append(float(aux.loss))
state = planner.finish(state)
timing = planner.timing
result = [plans, losses, int(state.step), timing.scale, timing.compile]
print("RESULT", json.dumps(result))
