"""One run: training under a budget, checkpoints to go on from, and the deployed network.

A run by the policy "reproducible" follows from its settings and data alone, bit for bit on one
machine, and one that was interrupted and gone on with is the same run: nothing that decides on
plans looks at the clock, steps are looked at one by one, and after every checkpoint a new
planner begins with the plan of the last, whether or not the process went on.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping
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
from dnarch_eqx import nn
from recipes import _folder, _network, _rivals
from recipes._folder import Trajectory
from recipes._network import Built, Network
from recipes._policies import Onward, Supposed
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
    valid = held(task.splits.valid)
    metrics, compilations = folder / "metrics.jsonl", folder / "compilations.jsonl"

    state = learner.init(built.model, built.masks)
    step, plan, trajectory = 0, None, Trajectory.empty(built.masks).at(0, built.masks)
    if (checkpoint := folder / "checkpoint.eqx").is_file():
        header, state = _folder.load(checkpoint, lambda _: state)
        step, plan = header["step"], dn.Plan(header["plan"])
        trajectory = Trajectory.load(folder / "trajectory.npz").until(step)
    for path in (metrics, compilations):
        # What was written after the checkpoint will be written again.
        _folder.write_lines(path, [r for r in _folder.read_lines(path) if r["step"] <= step])

    data = batches(
        task.splits.train,
        settings.batch_size,
        seed=settings.seed,
        transform=task.transform,
        start=step,
        workers=workers,
    )
    planner, before = None, None
    bar = tqdm(total=settings.steps, initial=step, desc=task.name, mininterval=1, disable=None)
    while step < settings.steps:
        if planner is None or settings.policy == "reproducible":
            planner = _planner(learner, settings, built, plan, settings.steps - step)
            before = trajectory.trace
        until = min(step - step % settings.segment + settings.segment, settings.steps)
        auxes, start = [], time.perf_counter()
        while step < until:
            known = len(learner.compilations)
            key = jr.fold_in(jr.key(settings.seed), step)
            state, aux = planner.step(state, next(data), key=key)
            auxes.append(aux)
            step += 1
            bar.update()
            if step == until or step % settings.log == 0:
                state = planner.finish(state)
                trajectory = trajectory.at(step, state.masks)
                row = {"step": step, **_means(auxes), "seconds": time.perf_counter() - start}
                _folder.append(metrics, row)
                watch(step)
                auxes, start = [], time.perf_counter()
            for compilation in learner.compilations[known:]:
                _folder.append(compilations, _described(step, compilation))
        plan = _covering(settings, planner.plan, state.masks)
        trajectory = dataclasses.replace(
            trajectory, trace=_folder.joined(before, planner.trace)
        )
        outputs = predict(task, settings, learner.network(state, plan), valid)
        measured = {f"valid {k}": v for k, v in task.measure(outputs, valid.y).items()}
        _folder.append(metrics, {"step": step} | measured)
        tqdm.write(f"step {step}: " + ", ".join(f"{k} {v:.4g}" for k, v in measured.items()))
        trajectory.save(folder / "trajectory.npz")
        header = {"step": step, "plan": dict(plan)}
        _folder.save(checkpoint, header, state)
    bar.close()

    assert plan is not None  # there is at least one step
    deployed = _network.deploy(built, state.model, state.masks, plan)
    save_deployed(folder / "deployed.eqx", task.network, settings, state.masks, plan, deployed)
    outputs = predict(task, settings, deployed, valid)
    trained = predict(task, settings, learner.network(state, plan), valid)
    test = held(task.splits.test)
    return Run(
        task,
        settings,
        built,
        state.masks,
        plan,
        deployed,
        task.measure(outputs, valid.y),
        task.measure(predict(task, settings, deployed, test), test.y),
        float(np.abs(outputs - trained).max() / np.abs(trained).max()),
        trajectory,
        _folder.read_lines(metrics),
        _folder.read_lines(compilations),
    )


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
    return _network.build(
        network,
        settings.base,
        settings.learn,
        sigma=settings.sigma,
        temperatures=settings.temperatures,
        omega_0=settings.omega_0,
        dropout=settings.dropout,
        start=settings.start,
        stream=settings.stream,
        key=jr.key(settings.seed),
    )


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
        "masks": {name: value.item() for name, value in _folder.parameters(masks)},
        "plan": dict(plan),
    }
    _folder.save(path, header, net)


def load_deployed(path: Path) -> Any:
    """The deployed network of a run, from its `deployed.eqx`. It is called on batches by
    [`recipes._network.apply`][].
    """

    def like(header: dict[str, Any]) -> Any:
        network = _from_json(Network, header["network"])
        built = build(network, _from_json(Settings, header["settings"]))
        masks = _folder.with_parameters(built.masks, header["masks"])
        return _network.deploy(built, built.model, masks, header["plan"])

    return _folder.load(path, like)[1]


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


def _learner(task: Task, settings: Settings, built: Built) -> dn.Learner:
    budget = dn.Budget(built.cost, built.target, settings.budget_weight)
    return dn.Learner(task.loss, _optim(settings), built.axes, budget)


def _planner(
    learner: dn.Learner, settings: Settings, built: Built, plan: dn.Plan | None, steps: int
) -> dn.Planner:
    """A planner for so many steps, that begins with a plan or with one of its own."""
    policy: dn.AbstractPolicy = dn.BreakEven(steps=steps)
    reproducible = settings.policy == "reproducible"
    if reproducible:
        assert learner.budget is not None
        policy = Supposed(settings.compile_steps * float(learner.budget.target), policy)
    if plan is not None:
        policy = Onward(tuple(plan[axis] for axis in sorted(built.masks)), policy)
    return dn.Planner(
        learner,
        built.masks,
        _buckets(settings, built.masks),
        policy,
        background=False if reproducible else None,
        headroom=settings.headroom,
        in_flight=1 if reproducible else 8,
    )


def _buckets(settings: Settings, masks: dn.Masks) -> dict[str, dn.Ladder]:
    # Fine ones: the policy sees to it that there are few compilations. But coarse ones for
    # kernels, which are rendered once for all examples, and in narrow networks for resolutions:
    # to bring features back costs there what a grid smaller by a quarter saves.
    narrow = settings.width < 64
    fine = nn.buckets(masks, ratio=1.06, multiple=2 if narrow else 8)
    coarse = nn.buckets(masks, ratio=1.5)
    parts = (".kernel", ".resolution") if narrow else (".kernel",)
    return {axis: (coarse if any(p in axis for p in parts) else fine)[axis] for axis in masks}


def _covering(settings: Settings, plan: dn.Plan | None, masks: dn.Masks) -> dn.Plan:
    """The plan, larger where the last step has grown beyond it."""
    assert plan is not None
    fit = dn.plan(masks, _buckets(settings, masks))
    return dn.Plan({axis: max(plan[axis], fit[axis]) for axis in plan})


def _means(auxes: list[dn.Aux]) -> dict[str, float | None]:
    """Of the steps that were accepted; those that were done again are not seen."""
    accepted = [aux for aux in jax.device_get(auxes) if aux.covered]
    if not accepted:
        return {"loss": None, "relative": None}
    loss = float(np.mean([aux.loss for aux in accepted], dtype=np.float64))
    return {"loss": loss, "relative": float(accepted[-1].relative)}


def _described(step: int, compilation: dn.Compilation) -> dict[str, Any]:
    return {
        "step": step,
        "seconds": compilation.seconds,
        "hidden": compilation.hidden,
        "cached": compilation.cached,
        "changes": {axis: list(change) for axis, change in compilation.changes.items()},
    }
