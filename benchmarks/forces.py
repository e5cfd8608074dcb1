"""What a task and a budget do to masks: their gradients, measured.

DNArch (KRWD) of the recipes' laptop preset, on scikit-learn's digits as sequences. At a few
steps of a run at constant cost, of 48 batches, by the kind of axis, medians over the axes:

- `forces/KIND/signal`: the mean of the task's gradient over its standard deviation, of one
  batch: how sure its direction is.
- `forces/KIND/noise`: the same for gradients in a random direction, 1 / sqrt(48) at most times.
- `forces/KIND/penalty/under`, `over`: the gradient of the paper's penalty, λ of 1, at 0.97 and
  at 1.03 of the target, over that standard deviation. Below 0 it makes the axis larger. What is
  beyond the signal decides.
- `forces/KIND/exact`: what is left of the mean gradient if masks trade at constant cost: its
  component along the budget's surface, over all of it.

Rows are of the last of the steps.
"""

import re
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float

import dnarch_eqx as dn
from benchmarks._common import finish, Row
from recipes import _planner, _report, _settings, _train, mnist
from recipes._hyperparameters import LAPTOP
from recipes.data import batches


_AT, _BATCHES = (50, 200, 1000), 48
_KINDS = {
    "kernel": r"\.kernel",
    "resolution": r"\.resolution",
    "width": r"\.(in|mid|out)$",
    "depth": r"^depth$",
    "stream": r"^stream$",
}

# Of every axis that is learned, a number: offsets, and the widths of kernels.
_ByAxis = dict[str, Float[Array, ""]]


def run(path: Path | None) -> None:
    task = mnist.task("sequential", None, LAPTOP["sequential"], 0)
    options = _settings.Options(variant="krwd")
    examples, side = len(task.splits.train), max(task.network.shape)
    settings = _settings.resolve("sequential", options, examples, side)
    built = _train.build(task.network, settings)
    learner = _train._learner(task, settings, built)
    state = learner.init(built.model, built.masks)
    planner = _planner.make(learner, settings, built.masks, None)
    data = iter(batches(task.splits.train, settings.batch_size, seed=0))
    rows: list[Row] = []
    for step in range(_AT[-1]):
        if step in _AT:
            _show(step, _forces(task, built, planner.finish(state), data))
        state, _ = planner.step(state, next(data), key=jr.key(step))
    found = _forces(task, built, planner.finish(state), data)
    _show(_AT[-1], found)
    for kind, values in found.items():
        rows += [Row(f"forces/{kind}/{name}", value, "") for name, value in values.items()]
    finish(rows, path)


def _forces(task: Any, built: Any, state: dn.State, data: Any) -> dict[str, dict[str, float]]:
    numbers = {axis: _number(mask) for axis, mask in state.masks.items()}

    def loss(numbers: _ByAxis, batch: Any, key: Any) -> Float[Array, ""]:
        masks = _with(state.masks, numbers)
        net = dn.materialize(state.model, built.axes, masks, {}, check_coverage=False)
        return task.loss(net, batch, key)

    target = float(built.cost(built.target))

    def cost(numbers: _ByAxis) -> Float[Array, ""]:
        sizes = {axis: mask.size() for axis, mask in _with(state.masks, numbers).items()}
        return built.cost(sizes) / target

    slope = jax.jit(jax.grad(loss))
    each = [slope(numbers, next(data), jr.key(i)) for i in range(_BATCHES)]
    every = {axis: np.array([float(grads[axis]) for grads in each]) for axis in numbers}
    normal = {axis: float(x) for axis, x in jax.jit(jax.grad(cost))(numbers).items()}
    mean = {axis: float(np.mean(x)) for axis, x in every.items()}
    length = sum(x**2 for x in normal.values())
    share = sum(mean[axis] * normal[axis] for axis in mean) / length
    random = np.random.default_rng(0)
    signs = {axis: random.choice([-1.0, 1.0], _BATCHES) for axis in every}

    def median(kind: str, of: Any) -> float:
        # Blocks that are not active have no gradients.
        axes = [a for a in every if re.search(_KINDS[kind], a) and np.any(every[a])]
        return statistics.median(map(of, axes))

    deviation = {axis: float(np.std(x)) + 1e-30 for axis, x in every.items()}
    push = lambda at: lambda axis: 2 * (at - 1) * normal[axis] / deviation[axis]
    left = lambda axis: (mean[axis] - share * normal[axis]) / (mean[axis] or 1.0)
    chance = lambda axis: abs(float(np.mean(signs[axis] * every[axis]))) / deviation[axis]
    return {
        kind: {
            "signal": median(kind, lambda axis: abs(mean[axis]) / deviation[axis]),
            "noise": median(kind, chance),
            "penalty/under": median(kind, push(0.97)),
            "penalty/over": median(kind, push(1.03)),
            "exact": median(kind, left),
        }
        for kind in _KINDS
    }


def _number(mask: Any) -> Float[Array, ""]:
    return getattr(mask, mask.learn[0])


def _with(masks: Mapping[str, Any], numbers: _ByAxis) -> dict[str, Any]:
    put = lambda mask, x: eqx.tree_at(lambda m: getattr(m, m.learn[0]), mask, jnp.asarray(x))
    return {axis: put(mask, numbers[axis]) for axis, mask in masks.items()}


def _show(step: int, found: Mapping[str, Mapping[str, float]]) -> None:
    names = list(next(iter(found.values())))
    body = [(kind, *(f"{x:.3g}" for x in values.values())) for kind, values in found.items()]
    print(f"step {step}\n\n{_report.table([('kind', *names), *body])}\n", flush=True)
