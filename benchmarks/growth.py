"""A network that starts at its base's capacity and grows past it, beside one that has the large
capacity from the start. Both are held to twice the base's operations; an MLP on digits.

- `growth/times`: how often capacities grew.
- `growth/outputs`: the largest change of an output at the moment of a growth, over the largest
  output.
- `growth/memory`: the bytes of the training state over those of a state at the sizes in use,
  once capacities have grown for the first time; the largest of the run.
- `growth/sizes`, `growth/loss`: the largest deviation of sizes, relative, and of losses in
  means over 50 steps, from the run that had the large capacity.
- `growth/resumed`: the largest difference of weights between the run and one that was saved in
  its middle, after a growth, and gone on with.
"""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Float

import dnarch_eqx as dn
from benchmarks._budgeted import batches, mapped
from benchmarks._common import finish, Row
from recipes.prune import loss
from recipes.quickstart import Digits


STEPS, WAY, EVERY, BASE, LARGE = 400, 200, 10, 64, 128


class Net(eqx.Module):
    """An MLP built by its widths."""

    layers: list[eqx.nn.Linear]

    def __init__(self, widths: Mapping[str, int], key: Array):
        sizes = [64, widths["first"], widths["second"], 10]
        pairs = zip(sizes, sizes[1:], jr.split(key, 3))
        self.layers = [eqx.nn.Linear(a, b, key=k) for a, b, k in pairs]

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, " 10"]:
        x = x.ravel()
        for layer in self.layers[:-1]:
            x = jax.nn.relu(layer(x))
        return self.layers[-1](x)


class Training:
    """What a run is made of, at its present capacities."""

    def __init__(self, widths: Mapping[str, int], masks: Any = None, state: Any = None):
        self.widths = dict(widths)
        net = Net(self.widths, jr.key(0))
        x = jax.ShapeDtypeStruct((64, 1, 8, 8), jnp.float32)
        found = dn.find_axes(net, x, call=mapped)
        found = found.rename(dict(zip(found.axes, self.widths)))
        self.axes, _ = found.learn()
        self.optim = dn.adamw(3e-3, steps=STEPS, warmup=20)
        # Twice the operations of the base, counted for a network of any size.
        target = float(found.costs.operations({axis: BASE for axis in widths})) * 2
        budget = dn.Budget(found.costs.operations, target, steps=WAY)
        self.learner = dn.Learner(loss, self.optim, self.axes, verify=state is None)
        self.state = self.learner.init(net, masks) if state is None else state
        # After `init`, as it is out of reach until capacities have grown.
        self.learner.budget = budget

    def step(self, batch: Any) -> float:
        self.state, info = self.learner.step(self.state, batch, {})
        return float(info.loss)


def run(path: Path | None) -> None:
    digits = Digits.load(0)
    data = list(batches(digits, STEPS, 0))
    small = {axis: dn.Sigmoid(BASE, size=0.9 * BASE) for axis in ("first", "second")}
    large = {axis: dn.extended(mask, LARGE) for axis, mask in small.items()}
    grown, memory, outputs, resumed = _growing(small, data)
    fixed = Training(dict.fromkeys(large, LARGE), large)
    fixed_sizes, fixed_losses = _record(fixed, data)
    sizes, losses = grown
    means = lambda x: np.convolve(x, np.ones(50) / 50, "valid")
    rows = [
        Row("growth/times", len(outputs), "", ">= 2"),
        Row("growth/outputs", max(outputs), "", "<= 1e-6"),
        Row("growth/memory", memory, "", "<= 1.3"),
        Row("growth/sizes", float(np.abs(sizes / fixed_sizes - 1).max()), "", "<= 0.1"),
        Row("growth/loss", float(np.abs(means(losses) - means(fixed_losses)).max()), "nats"),
        Row("growth/resumed", resumed, "", "0"),
    ]
    finish(rows, path)


def _growing(masks: Any, data: list[Any]) -> tuple[Any, float, list[float], float]:
    training = Training(dict.fromkeys(masks, BASE), masks)
    sizes, losses, outputs, memory, saved = [], [], [], 0.0, None
    x = jnp.asarray(data[0][0])
    for i, batch in enumerate(data):
        sizes.append([float(m.size()) for m in training.state.masks.values()])
        losses.append(training.step(batch))
        if i % EVERY == 0:
            before = _outputs(training, x)
            if (after := _regrown(training)) is not None:
                training = after
                change = jnp.max(jnp.abs(_outputs(training, x) - before))
                outputs.append(float(change / jnp.max(jnp.abs(before))))
        if outputs:
            memory = max(memory, _memory(training))
        if i == STEPS // 2:
            file = io.BytesIO()
            eqx.tree_serialise_leaves(file, training.state)
            saved = i + 1, dict(training.widths), file
    assert saved is not None
    resumed = _resumed(saved, data, training.state)
    return (np.array(sizes), np.array(losses)), memory, outputs, resumed


def _regrown(training: Training) -> Training | None:
    """At larger capacities, if masks press."""
    rule = dn.ladders.geometric(1.1, 8)
    larger = dn.pressing(training.state.masks, share=1.0, rules=rule)
    if not larger:
        return None
    widths = training.widths | larger
    fresh = Net(widths, jr.key(sum(widths.values())))
    state = dn.grow(training.state, training.axes, fresh, training.optim)
    return Training(widths, state=state)


def _resumed(saved: Any, data: list[Any], wanted: dn.State) -> float:
    """From the file of a process that ended."""
    start, widths, file = saved
    file.seek(0)
    masks = {a: dn.extended(dn.Sigmoid(BASE, size=0.9 * BASE), n) for a, n in widths.items()}
    like = Training(widths, masks).state
    training = Training(widths, state=eqx.tree_deserialise_leaves(file, like))
    for i, batch in enumerate(data[start:], start):
        training.step(batch)
        if i % EVERY == 0:
            training = _regrown(training) or training
    pairs = zip(jtu.tree_leaves(training.state.model), jtu.tree_leaves(wanted.model))
    return max(float(jnp.max(jnp.abs(a - b))) for a, b in pairs)


def _record(training: Training, data: list[Any]) -> tuple[Any, Any]:
    sizes, losses = [], []
    for batch in data:
        sizes.append([float(m.size()) for m in training.state.masks.values()])
        losses.append(training.step(batch))
    return np.array(sizes), np.array(losses)


def _outputs(training: Training, x: Array) -> Array:
    net = training.learner.network(training.state, {})
    return jax.vmap(net)(x)


def _memory(training: Training) -> float:
    """Of the state, over that of one whose capacities are the active counts."""
    counts = dn.exact(training.state.masks)
    tight = dn.compact(training.state, training.axes, training.optim, counts)
    size = lambda state: sum(x.nbytes for x in jtu.tree_leaves(state) if eqx.is_array(x))
    return size(training.state) / size(tight)
