"""Learns the architecture of a CNN for handwritten digits, and really shrinks it.

    python -m recipes.quickstart

trains three networks on the 1,797 digits of scikit-learn: a base CCNN, the same with learned
kernels, resolutions, widths and depth at the base's complexity, and that one once more at
full capacity, masked but not shrunk, as the paper trains on JAX. It prints a table and writes
pictures and the network to be deployed.
"""

import dataclasses
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import tyro
from jaxtyping import Array, Float, Int
from sklearn.datasets import load_digits
from tqdm import tqdm

import dnarch_eqx as dn
from dnarch_eqx import nn


@dataclasses.dataclass(frozen=True)
class Config:
    """What there is to choose. The defaults take a few minutes on two cores."""

    depth: int = 4
    """Blocks of the base network; twice as many can be learned."""
    width: int = 16
    """Channels of the base network; twice as many can be learned."""
    omega_0: float = 10.0
    """The prior on the kernels' frequencies."""
    sigma: float = 0.3
    """What the kernels' masks start at, in units of half the image."""
    steps: int = 250
    batch_size: int = 64
    learning_rate: float = 0.02
    mask_rate: float = 1.0
    """The learning rate of the masks over that of the weights."""
    weight_decay: float = 0.01
    headroom: float = 0.25
    """How much room a plan leaves for growth. Compiling takes longer here than the steps."""
    seed: int = 0
    out: Path = Path("out/quickstart")
    """Where pictures and the deployed network are written."""

    @property
    def base(self) -> nn.Base:
        return nn.Base(self.depth, self.width)


@dataclasses.dataclass(frozen=True)
class Digits:
    """1,347 images to train on and 450 to test, `(1, 8, 8)` each, in the range of a normal
    variable.
    """

    x: Float[np.ndarray, "train 1 8 8"]
    y: Int[np.ndarray, " train"]
    x_test: Float[np.ndarray, "test 1 8 8"]
    y_test: Int[np.ndarray, " test"]

    @staticmethod
    def load(seed: int) -> "Digits":
        images, labels = load_digits(return_X_y=True)
        order = np.random.default_rng(seed).permutation(len(labels))
        x = images.reshape(-1, 1, 8, 8).astype(np.float32)[order]
        y = labels.astype(np.int32)[order]
        x = (x - x[:1347].mean()) / x[:1347].std()
        return Digits(x[:1347], y[:1347], x[1347:], y[1347:])

    def batches(self, size: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Shuffled anew every epoch, without end. The last, smaller batch is dropped."""
        rng = np.random.default_rng(seed)
        while True:
            order = rng.permutation(len(self.y))
            for i in range(0, len(order) - size + 1, size):
                index = order[i : i + size]
                yield self.x[index], self.y[index]


@dataclasses.dataclass(frozen=True)
class Run:
    """One trained network and how its training went.

    - `before`: the masks that it started from.
    - `complexity`: over its target, as deployed, a step each.
    """

    name: str
    learner: dn.Learner
    before: dn.Masks
    state: dn.State
    plan: dn.Plan
    accuracy: float
    seconds_a_step: float
    complexity: Float[np.ndarray, " steps"]


def build(config: Config, learn: str) -> tuple[nn.CCNN, dn.Masks]:
    """The network at its capacities, and its masks."""
    return nn.dnarch(
        config.base,
        learn,
        in_channels=1,
        out_channels=10,
        shape=(8, 8),
        sigma=config.sigma,
        omega_0=config.omega_0,
        stream=True,
        key=jr.key(config.seed),
    )


def loss(net: nn.CCNN, batch: tuple[Array, Array], key: Array | None) -> Float[Array, ""]:
    """An ordinary loss of an ordinary module."""
    del key  # no dropout
    x, y = batch
    return optax.softmax_cross_entropy_with_integer_labels(logits(net, x), y).mean()


def logits(net: nn.CCNN, x: Float[Array, "batch 1 8 8"]) -> Float[Array, "batch 10"]:
    return jax.vmap(net, axis_name="batch")(x)


def predict(config: Config, net: nn.CCNN, x: Float[np.ndarray, "n 1 8 8"]) -> Array:
    """In mixed batches of the training's size, by whose statistics the network normalises."""
    call = eqx.Partial(logits, net)
    return dn.predict(call, jnp.asarray(x), batch_size=config.batch_size, key=jr.key(1))


def train(config: Config, digits: Digits, name: str, learn: str, shrink: bool = True) -> Run:
    """Trains one network. All there is to a loop of one's own."""
    model, masks = build(config, learn)
    optim = dn.adamw(
        config.learning_rate,
        steps=config.steps,
        warmup=config.steps // 20,
        weight_decay=config.weight_decay,
        mask_rate=config.mask_rate,
    )
    base = nn.base_sizes(model, config.base)
    budget = dn.Budget(nn.complexity(model), base, steps=config.steps // 4)
    learner = dn.Learner(loss, optim, nn.axes(model), budget)
    state = learner.init(model, masks)

    rule = nn.buckets(masks, multiple=4) if shrink else dn.ladders.full()
    policy = dn.runtime.BreakEven(steps=config.steps)
    planner = dn.Planner(learner, masks, rule, policy, headroom=config.headroom)
    infos = []
    bar = tqdm(
        zip(range(config.steps), digits.batches(config.batch_size, config.seed)),
        name,
        total=config.steps,
        mininterval=1.0,
    )
    for i, batch in bar:
        if i == config.steps // 2:
            state = planner.settle(state)  # whole blocks and channels, for what is left
        state, info = planner.step(state, batch)  # returns before it is done
        infos.append(info)
        if i % 20 == 0:  # to look at a step is to wait for it
            bar.set_postfix(
                loss=f"{info.loss:.3f}",
                complexity=f"{info.complexity:.2f}",
                compiled=len(learner.compilations),
            )
    state = planner.finish(state)
    plan = planner.plan
    assert plan is not None

    predicted = predict(config, learner.network(state, plan), digits.x_test).argmax(-1)
    return Run(
        name,
        learner,
        masks,
        state,
        plan,
        float((predicted == digits.y_test).mean()),
        statistics.median(s for _, some in planner.state.measured.samples for s in some),
        np.array([info.deployed for info in infos]),
    )


def deploy(run: Run) -> nn.CCNN:
    """The small network."""
    return nn.deploy(run.state.model, run.state.masks, run.plan)


def check(config: Config, digits: Digits, run: Run, net: nn.CCNN) -> None:
    """Whether a deployed network gives the outputs of the one that was trained."""
    trained = predict(config, run.learner.network(run.state, run.plan), digits.x_test)
    error = float(jnp.max(jnp.abs(predict(config, net, digits.x_test) - trained)))
    scale = float(jnp.max(jnp.abs(trained)))
    if not error <= 1e-4 * scale:
        raise RuntimeError(f"Deployed and trained outputs differ by {error} of {scale}.")
    print(f"{run.name}: deployed and trained outputs differ by {error / scale:.1e} at most.")


def save(config: Config, run: Run, net: nn.CCNN) -> None:
    """Everything that [`load`][] needs: a few numbers as text, masks and arrays."""
    config.out.mkdir(parents=True, exist_ok=True)
    settings = {**dataclasses.asdict(config), "out": str(config.out)}
    text = json.dumps({"config": settings, "plan": dict(run.plan)}, indent=1)
    (config.out / "deployed.json").write_text(text + "\n")
    eqx.tree_serialise_leaves(config.out / "masks.eqx", run.state.masks)
    eqx.tree_serialise_leaves(config.out / "deployed.eqx", net)


def load(folder: Path) -> nn.CCNN:
    """The deployed network of an earlier run."""
    settings = json.loads((folder / "deployed.json").read_text())
    config = Config(**settings["config"] | {"out": folder})
    model, masks = build(config, "KRWD")
    masks = eqx.tree_deserialise_leaves(folder / "masks.eqx", masks)
    like = nn.deploy(model, masks, dn.Plan(settings["plan"]))
    return eqx.tree_deserialise_leaves(folder / "deployed.eqx", like)


def summary(runs: dict[str, tuple[Run, nn.CCNN]]) -> str:
    header = (
        "network",
        "accuracy",
        "complexity",
        "parameters",
        "ms a step",
        "compilations",
        "s",
    )
    rows = [
        (
            run.name,
            f"{100 * run.accuracy:.1f} %",
            f"{run.complexity[-1]:.2f}",
            f"{dn.parameters(net):,}",
            f"{1e3 * run.seconds_a_step:.1f}",
            f"{len(run.learner.compilations)}",
            f"{sum(c.seconds for c in run.learner.compilations):.0f}",
        )
        for run, net in runs.values()
    ]
    return dn.table([header, *rows])


def main(config: Config) -> None:
    start = time.perf_counter()
    dn.runtime.keep_memory()
    digits = Digits.load(config.seed)
    base = train(config, digits, "base CCNN", "")
    learned = train(config, digits, "DNArch_KRWD", "KRWD")
    masked = train(config, digits, "the same, masked only", "KRWD", shrink=False)
    runs = {run.name: (run, deploy(run)) for run in (base, learned, masked)}
    _, net = runs[learned.name]
    check(config, digits, learned, net)
    save(config, learned, net)
    if not eqx.tree_equal(load(config.out), net):
        raise RuntimeError(f"What was written to {config.out} is not what was deployed.")

    from recipes import _pictures  # matplotlib takes a second to import

    _pictures.draw(config.out, learned.before, learned.state.masks, learned.complexity)
    print(f"\n{summary(runs)}\n")
    x = jnp.asarray(digits.x_test[: config.batch_size])
    before = dn.materialize(learned.state.model, learned.learner.axes, learned.state.masks, {})
    networks = {"at full capacity": before, "deployed": net}
    print(dn.report({name: eqx.Partial(logits, net) for name, net in networks.items()}, x))
    print(f"\nWritten to {config.out}, after {time.perf_counter() - start:.0f} s.")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
