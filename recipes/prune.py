"""Prunes a trained network while it goes on training, and compares with magnitude pruning.

    python -m recipes.prune

trains an MLP on the 1,797 digits of scikit-learn, finds what can be learned of it, and learns
sizes and weights under a budget of parameters: with positions in the order that training left
them in, by the norms of their weights, and by what the loss loses without them. Beside them
networks of the same sizes, and of equal widths, cut out by norms and fine-tuned for as many
steps.
"""

import dataclasses
import statistics
import time
from collections.abc import Iterator

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
import tyro
from jaxtyping import Array, Float

import dnarch_eqx as dn
from recipes.quickstart import Digits


@dataclasses.dataclass(frozen=True)
class Config:
    width: int = 128
    depth: int = 3
    share: float = 0.3
    """What is to be left of the parameters."""
    steps: int = 1000
    """Of training, and of what comes after."""
    batch_size: int = 64
    learning_rate: float = 1e-3
    mask_rate: float = 10.0
    """The learning rate of masks over that of weights."""
    seeds: int = 3


def loss(net: eqx.Module, batch: tuple[Array, Array], key: Array | None) -> Float[Array, ""]:
    x, y = batch
    return optax.softmax_cross_entropy_with_integer_labels(jax.vmap(net)(x), y).mean()  # pyright: ignore


def batches(digits: Digits, config: Config, seed: int, steps: int) -> Iterator:
    for _, (x, y) in zip(range(steps), digits.batches(config.batch_size, seed)):
        yield x.reshape(len(x), -1), y


def train(net: eqx.nn.MLP, data: Iterator, config: Config) -> eqx.nn.MLP:
    """An ordinary loop."""
    optim = optax.adam(optax.cosine_decay_schedule(config.learning_rate, config.steps))
    state = optim.init(eqx.filter(net, eqx.is_array))

    @eqx.filter_jit
    def step(net, state, batch):
        updates, state = optim.update(eqx.filter_grad(loss)(net, batch, None), state)
        return eqx.apply_updates(net, updates), state

    for batch in data:
        net, state = step(net, state, batch)
    return net


def prune(net: eqx.nn.MLP, found: dn.Found, data: Iterator, config: Config, scores) -> tuple:
    """The small network, and its sizes."""
    axes, masks = found.learn()
    net = dn.pretrained(found.ordered(net, scores), axes, masks)
    budget = dn.Budget(found.costs.parameters, f"{config.share:%}", steps=config.steps // 2)
    optim = dn.adamw(config.learning_rate, steps=config.steps, mask_rate=config.mask_rate)
    learner = dn.Learner(loss, optim, axes, budget)
    state, planner = learner.init(net, masks), dn.Planner(learner, masks)
    for i, batch in enumerate(data):
        if i == 3 * config.steps // 4:
            state = planner.settle(state)
        state, _ = planner.step(state, batch)
    return planner.deploy(state), dn.exact(planner.finish().masks)


def cut(net: eqx.nn.MLP, found: dn.Found, sizes: dn.Plan | dict[str, int]) -> eqx.nn.MLP:
    """What is left of a network at these sizes, the largest norms kept."""
    axes, masks = found.learn()
    ordered = found.ordered(net, dn.importance(net, axes, masks))
    hard = {
        axis: dn.Sigmoid(masks[axis].capacity, size=float(n), temperature=1e6)
        for axis, n in sizes.items()
    }
    return dn.freeze(ordered, axes, hard)


def size(net: eqx.nn.MLP) -> int:
    return dn.parameters(net)


def accuracy(net: eqx.nn.MLP, digits: Digits) -> float:
    x = digits.x_test.reshape(len(digits.x_test), -1)
    return float(jnp.mean(jax.vmap(net)(jnp.asarray(x)).argmax(-1) == digits.y_test))


def milliseconds(net: eqx.nn.MLP, x: Float[Array, "batch pixels"]) -> float:
    """Of a batch, the median."""
    run = eqx.filter_jit(lambda net, x: jax.vmap(net)(x))
    seconds = []
    for _ in range(50):
        start = time.perf_counter()
        jax.block_until_ready(run(net, x))
        seconds.append(time.perf_counter() - start)
    return 1e3 * statistics.median(seconds)


def main(config: Config) -> None:
    dn.runtime.keep_memory()
    results: dict[str, list[tuple[float, int, float]]] = {}
    for seed in range(config.seeds):
        digits = Digits.load(seed)
        x = jnp.tile(jnp.asarray(digits.x.reshape(len(digits.x), -1)), (3, 1))

        def note(name, net, digits=digits, x=x):
            row = (accuracy(net, digits), size(net), milliseconds(net, x))
            results.setdefault(name, []).append(row)

        data = lambda seed=seed, digits=digits: batches(digits, config, seed, config.steps)
        net = eqx.nn.MLP(64, 10, config.width, config.depth, key=jr.key(seed))
        net = train(net, data(), config)
        note("as trained", net)
        found = dn.find_axes(net, x[0])
        axes, masks = found.learn()
        some = list(batches(digits, config, seed, 20))
        orders = {
            "learned, as they are": {},
            "learned, norms first": dn.importance(net, axes, masks),
            "learned, first order": dn.importance(net, axes, masks, loss, some),
        }
        sizes: dn.Plan = dn.exact(masks)
        for name, scores in orders.items():
            small, sizes = prune(net, found, data(), config, scores)
            note(name, small)
        same = cut(net, found, sizes)
        note("magnitude, same sizes, before", same)
        note("magnitude, same sizes", train(same, data(), config))
        wide = _uniform(config.share * size(net), config)
        equal = cut(net, found, dict.fromkeys(masks, wide))
        note("magnitude, equal widths", train(equal, data(), config))
    rows = [("network", "accuracy", "parameters", "ms a batch")]
    for name, of in results.items():
        means = [statistics.mean(column) for column in zip(*of)]
        rows.append((name, f"{means[0]:.2%}", f"{means[1]:,.0f}", f"{means[2]:.2f}"))
    print(dn.table(rows))


def _uniform(most: float, config: Config) -> int:
    """The largest width of an MLP with at most so many parameters."""
    count = lambda n: 65 * n + (config.depth - 1) * (n + 1) * n + 10 * (n + 1)
    return max(n for n in range(1, config.width + 1) if count(n) <= most)


if __name__ == "__main__":
    main(tyro.cli(Config))
