"""One run: training under a budget, checkpoints to go on from, and the deployed network.

A run by the policy "reproducible" follows from its settings and data alone, bit for bit on one
machine: see `recipes._planner`. One that was interrupted and gone on with is the same run: a
checkpoint has the state of the training and that of the planner, and all later steps and plans
follow from these.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
import optax
from tqdm import tqdm

import dnarch_eqx as dn
from recipes import _decided, _folder, _network, _planner, _pruning, _rivals
from recipes._decided import Decided
from recipes._folder import Checkpoint, Trajectory
from recipes._network import Built, Network
from recipes._settings import Settings
from recipes._task import held, Task
from recipes.data import Arrays, batches


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A run that is done.

    - `built`, `masks`, `plan`: the architecture.
    - `deployed`: the small network.
    - `valid`, `test`: its metrics.
    - `error`: by how much its outputs differ from those of the network that was trained, over
        the largest of these.
    - `trajectory`: how the architecture came about.
    - `rows`, `compilations`: what `metrics.jsonl` and `compilations.jsonl` have.
    """

    task: Task
    settings: Settings
    built: Built
    masks: dn.Masks
    plan: dn.Plan
    deployed: Any
    valid: Mapping[str, float]
    test: Mapping[str, float]
    error: float
    trajectory: Trajectory
    rows: list[dict[str, Any]]
    compilations: list[dict[str, Any]]


def train(
    task: Task,
    settings: Settings,
    folder: Path,
    *,
    watch: Callable[[int], None] = lambda step: None,
    workers: int = 0,
) -> Run:
    """Trains, or goes on with the run that the folder has.

    - `watch`: is told of every step at which metrics are written down.
    - `workers`: how many processes make batches. What they make is the same.

    Raises a `ValueError` as [`open_run`][] does, or if the folder has a damaged checkpoint.
    """
    open_run(task, settings, folder)
    built = build(task.network, settings)
    learner = _learner(task, settings, built)
    start = learner.init(built.model, built.masks)
    later = lambda masks, plan: _decided.like(start, masks, built.axes, plan, _optim(settings))
    now = Checkpoint.load(folder, start, _planner.policy(settings), later)
    for name in ("metrics.jsonl", "compilations.jsonl"):
        # What was written after the checkpoint will be written again.
        rows = [row for row in _folder.read_lines(folder / name) if row["step"] <= now.step]
        _folder.write_lines(folder / name, rows)
    part = _part(task, settings, built, learner, now)
    data = batches(
        task.splits.train,
        settings.batch_size,
        seed=settings.seed,
        transform=task.transform,
        start=now.step,
        workers=workers,
    )
    shown: Any = {"total": settings.steps, "initial": now.step, "mininterval": 1}
    with tqdm(data, task.name, **shown, disable=None) as bar:
        batch = iter(bar)
        while now.step < settings.steps:
            if now.step == settings.settle and settings.hold == "exact" and not now.decided:
                now = _decide(settings, part, now)
                part = _part(task, settings, built, learner, now)
            now = _segment(settings, folder, part, now, batch, watch)
            _evaluate(task, settings, folder, part, now)
            now.save(folder)
    return _deploy(task, settings, folder, built, part, now)


@dataclasses.dataclass(frozen=True, eq=False)
class _Part:
    """What a part of a run is trained with: until its architecture is decided, and after."""

    built: Built
    planner: dn.Planner


def _part(
    task: Task, settings: Settings, built: Built, learner: dn.Learner, now: Checkpoint
) -> _Part:
    """- `learner`: of a run that has not decided."""
    step = 0
    if now.decided is not None:
        step, held_to = now.decided.trace.length, float(built.cost(built.target))
        built = _decided.rest(built, now.decided.masks, now.state)
        learner = _learner(task, settings, built, held_to=held_to)
    planner = _planner.make(learner, settings, now.state.masks, now.planner, step)
    return _Part(built, planner)


def open_run(task: Task, settings: Settings, folder: Path) -> None:
    """Makes the folder of a run, or finds the same run there.

    Raises a `ValueError` if a setting is out of its range, the folder has a run of other
    settings or data, or there are several processes.
    """
    if (count := jax.process_count()) > 1:
        raise ValueError(
            f"Recipes train on one process, got {count}: each would train a network of its own."
        )
    _optim(settings)
    eqx.filter_eval_shape(lambda: build(task.network, settings).model)
    config = dataclasses.asdict(settings) | {
        "network": dataclasses.asdict(task.network),
        "about": task.about,
        "examples": [len(s) for s in (task.splits.train, task.splits.valid, task.splits.test)],
    }
    _folder.open_run(folder, config)


def build(network: Network, settings: Settings) -> Built:
    """The network of a run, its masks and its budget, at the start."""
    if settings.rival:
        key = jr.key(settings.seed)
        return _rivals.build(
            settings.variant, network, settings.base, dropout=settings.dropout, key=key
        )
    given: dict[str, Any] = {
        "sigma": settings.sigma,
        "temperatures": settings.temperatures,
        "omega_0": settings.omega_0,
        "dropout": settings.dropout,
        "start": settings.start,
        "stream": settings.stream,
        "below": 0.2 if settings.hold == "exact" else 0.0,
        "key": jr.key(settings.seed),
    }
    if settings.variant in _pruning.NAMES:
        return _pruning.build(settings.variant, network, settings.base, **given)
    return _network.build(network, settings.base, settings.learn, **given)


def predict(task: Task, settings: Settings, net: Any, examples: Arrays) -> np.ndarray:
    """The outputs for examples in memory: in mixed batches of the training's size, by whose
    statistics the network normalises, always the same ones.
    """
    x = jtu.tree_map(jnp.asarray, examples.x)
    size = min(settings.batch_size, len(examples))
    key = jr.key(settings.seed)
    return np.asarray(dn.predict(eqx.Partial(task, net), x, batch_size=size, key=key))


def save_deployed(
    path: Path, network: Network, settings: Settings, masks: dn.Masks, plan: dn.Plan, net: Any
) -> None:
    """All that [`load_deployed`][] needs, in one file."""
    header = {
        "network": dataclasses.asdict(network),
        "settings": dataclasses.asdict(settings),
        "plan": dict(plan),
    }
    _folder.save(path, header, masks, net)


def load_deployed(path: Path) -> Any:
    """The deployed network of a run, from its `deployed.eqx`. It is called on batches by
    [`recipes._network.apply`][].
    """

    def start(header: dict[str, Any]) -> Built:
        network = _from_json(Network, header["network"])
        return build(network, _from_json(Settings, header["settings"]))

    def small(header: dict[str, Any], masks: dn.Masks) -> Any:
        built = start(header)
        return _network.deploy(built, built.model, masks, header["plan"])

    masks = lambda header: eqx.filter_eval_shape(lambda: start(header).masks)
    return _folder.load(path, masks, small)[2]


def _from_json(kind: Callable, fields: Mapping[str, Any]) -> Any:
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})


def _optim(settings: Settings) -> optax.GradientTransformation:
    return dn.adamw(
        settings.learning_rate,
        steps=settings.steps,
        warmup=settings.warmup,
        weight_decay=settings.weight_decay,
        mask_rate=settings.mask_rate,
    )


def _learner(
    task: Task, settings: Settings, built: Built, *, held_to: float | None = None
) -> dn.Learner:
    """- `held_to`: of an architecture that is decided, what it was held to. There is nothing
    left to hold, and the loss was looked at before.
    """
    decided = held_to is not None
    if decided:
        budget = dn.Budget(built.cost, held_to, 0.0)
    elif settings.hold == "exact":
        pace = max(min(settings.steps // 4, settings.settle // 2), 1)
        budget = dn.Budget(built.cost, built.target, steps=pace)
    else:
        budget = dn.Budget(built.cost, built.target, settings.budget_weight)
    return dn.Learner(task.loss, _optim(settings), built.axes, budget, verify=not decided)


#
# The parts of a run.
#


def _segment(
    settings: Settings,
    folder: Path,
    part: _Part,
    now: Checkpoint,
    batch: Iterator[Any],
    watch: Callable[[int], None],
) -> Checkpoint:
    """The steps until the next checkpoint."""
    planner, state = part.planner, now.state
    infos, start = [], time.perf_counter()
    for step in range(now.step + 1, (end := _next(settings, now.step)) + 1):
        known = len(planner.learner.compilations)
        key = jr.fold_in(jr.key(settings.seed), step - 1)
        if not now.decided and _pruning.due(settings.variant, step - 1, settings.steps):
            state = _pruned(settings, part.built, planner.finish(state))
        state, info = planner.step(state, next(batch), key=key)
        infos.append(info)
        if step == end or step % settings.log == 0:
            state = planner.finish(state)
            now = now.after(step, state, planner)
            row = {"step": step, **_means(infos), "seconds": time.perf_counter() - start}
            _folder.append(folder / "metrics.jsonl", row)
            watch(step)
            infos, start = [], time.perf_counter()
        for compilation in planner.learner.compilations[known:]:
            _folder.append(folder / "compilations.jsonl", _described(step, compilation))
    return now


def _next(settings: Settings, step: int) -> int:
    """The step of the next checkpoint: after every segment, and where the architecture is
    decided.
    """
    ends = {step - step % settings.segment + settings.segment, settings.steps}
    if settings.hold == "exact" and step < settings.settle:
        ends.add(settings.settle)
    return min(ends)


def _decide(settings: Settings, part: _Part, now: Checkpoint) -> Checkpoint:
    """Settles on whole sizes at which the budget is met: what is left is a network of these."""
    axes, optim = part.built.axes, _optim(settings)
    state = part.planner.learner.settle(now.state)
    plan = _planner.grids(state.masks)
    new = _decided.smaller(state, axes, plan, optim)
    kept = {axis: mask for axis, mask in state.masks.items() if axis not in new.masks}
    assert now.trajectory.trace is not None
    decided = Decided(kept, dict(plan), now.trajectory.trace)
    return dataclasses.replace(now, state=new, planner=None, decided=decided)


def _pruned(settings: Settings, built: Built, state: dn.State) -> dn.State:
    return _pruning.pruned(settings.variant, state, built, _optim(settings), settings.steps)


def _means(infos: list[dn.runtime.AcceptedInfo]) -> dict[str, float]:
    """The mean loss of some steps, and the last complexity, counted and as deployed."""
    losses = jax.device_get([info.loss for info in infos])
    loss = float(np.mean(losses, dtype=np.float64))
    last = infos[-1]
    complexity = {"complexity": float(last.complexity), "deployed": float(last.deployed)}
    return {"loss": loss, **complexity}


def _described(step: int, compilation: dn.runtime.Compilation) -> dict[str, Any]:
    return {
        "step": step,
        "seconds": compilation.seconds,
        "overlapped": compilation.overlapped,
        "cached": compilation.cached,
        "changes": {axis: list(change) for axis, change in compilation.changes.items()},
    }


def _evaluate(
    task: Task, settings: Settings, folder: Path, part: _Part, now: Checkpoint
) -> None:
    """Writes down metrics on what is to choose by."""
    valid = held(task.splits.valid)
    outputs = predict(task, settings, _trained(part, now), valid)
    measured = {f"valid {k}": v for k, v in task.measure(outputs, valid.y).items()}
    _folder.append(folder / "metrics.jsonl", {"step": now.step} | measured)
    tqdm.write(f"step {now.step}: " + ", ".join(f"{k} {v:.4g}" for k, v in measured.items()))


def _trained(part: _Part, now: Checkpoint) -> Any:
    """The network as it trains."""
    assert part.planner.plan is not None
    return part.planner.learner.network(now.state, part.planner.plan)


def _deploy(
    task: Task,
    settings: Settings,
    folder: Path,
    built: Built,
    part: _Part,
    now: Checkpoint,
) -> Run:
    """Writes the small network, and measures it."""
    plan, masks = now.plan, now.masks
    left = {axis: n for axis, n in plan.items() if axis in now.state.masks}
    deployed = _network.deploy(part.built, now.state.model, now.state.masks, left)
    save_deployed(folder / "deployed.eqx", task.network, settings, masks, plan, deployed)
    valid, test = held(task.splits.valid), held(task.splits.test)
    outputs = predict(task, settings, deployed, valid)
    trained = predict(task, settings, _trained(part, now), valid)
    return Run(
        task,
        settings,
        built,
        masks,
        plan,
        deployed,
        task.measure(outputs, valid.y),
        task.measure(predict(task, settings, deployed, test), test.y),
        float(np.abs(outputs - trained).max() / np.abs(trained).max()),
        now.trajectory,
        _folder.read_lines(folder / "metrics.jsonl"),
        _folder.read_lines(folder / "compilations.jsonl"),
    )
