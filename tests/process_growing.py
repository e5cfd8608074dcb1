"""What test_growth.py runs, kills and runs again: a folder. Trains, grows twice, keeps a
checkpoint every few steps, and writes down a digest of what it came to.
"""

import hashlib
import json
import os
import pathlib
import sys
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np

import dnarch_eqx as dn


folder = pathlib.Path(sys.argv[1])
STEPS, EVERY, GROWTHS = 30, 3, {9: 12, 18: 18}
optim = dn.adamw(1e-2, steps=STEPS, mask_rate=3.0)


def made(width: int):
    net = eqx.nn.MLP(4, 2, width, 2, key=jr.key(width))
    axes, masks = dn.find_axes(net, jnp.ones(4)).learn()
    return net, axes, masks


def learner(axes) -> dn.Learner:
    loss = lambda net, x, key: jnp.mean((jax.vmap(net)(x) - 1) ** 2)
    return dn.Learner(loss, optim, axes, verify=False)


def save(width: int, state) -> None:
    beside = folder / ".checkpoint"
    with beside.open("wb") as file:
        file.write(json.dumps({"width": width}).encode() + b"\n")
        eqx.tree_serialise_leaves(file, state)
    os.replace(beside, folder / "checkpoint")


width, path = 8, folder / "checkpoint"
net, axes, masks = made(width)
state = learner(axes).init(net, masks)
if path.exists():
    with path.open("rb") as file:
        width = json.loads(file.readline())["width"]
        net, axes, masks = made(width)
        state = eqx.tree_deserialise_leaves(file, learner(axes).init(net, masks))
trains = learner(axes)
for step in range(int(state.step), STEPS):
    if step in GROWTHS:
        width = GROWTHS[step]
        net, axes, _ = made(width)
        state, trains = dn.grow(state, axes, net, optim), learner(axes)
    x = np.random.default_rng(step).normal(size=(8, 4)).astype(np.float32)
    state, _ = trains.step(state, x, {})
    if (step + 1) % EVERY == 0:
        save(width, state)
        (folder / "log").open("a").write(f"{step + 1} {width}\n")
        time.sleep(0.3)
arrays = jtu.tree_leaves(eqx.filter(state, eqx.is_array))
digest = hashlib.sha256(b"".join(np.asarray(x).tobytes() for x in arrays))
(folder / "done").write_text(digest.hexdigest())
