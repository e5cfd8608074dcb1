# Networks for handwritten digits, to be held to budgets.

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Float

import dnarch_eqx as dn
from dnarch_eqx import nn
from recipes import own_module, prune
from recipes.quickstart import Digits
from tests.networks import ViT


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """A network at its capacity with what is learned of it, and a cost; how it is called with a
    batch of images; how it is deployed.
    """

    model: Any
    axes: dn.AxisMap
    masks: dn.Masks
    cost: dn.Cost
    call: Callable
    learning_rate: float = 3e-3
    deploy: Callable | None = None

    def loss(self, net: Any, batch: Any, key: Any) -> Float[Array, ""]:
        x, y = batch
        logits = self.call(net, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    def accuracy(self, net: Any, digits: Digits) -> float:
        # In batches of the training's size, by whose statistics a CCNN normalises.
        x = jnp.asarray(digits.x_test)
        logits = dn.predict(eqx.Partial(self.call, net), x, batch_size=64, key=jr.key(1))
        return float(jnp.mean(logits.argmax(-1) == digits.y_test))


class Residual(eqx.Module):
    """A block of a ResNet, which projects where channels change."""

    conv1: eqx.nn.Conv2d
    conv2: eqx.nn.Conv2d
    project: eqx.nn.Conv2d | None

    def __init__(self, before: int, after: int, stride: int, key: Array):
        a, b, c = jr.split(key, 3)
        self.conv1 = eqx.nn.Conv2d(before, after, 3, stride, padding=1, key=a)
        self.conv2 = eqx.nn.Conv2d(after, after, 3, padding=1, key=b)
        same = before == after and stride == 1
        self.project = None if same else eqx.nn.Conv2d(before, after, 1, stride, key=c)

    def __call__(self, x: Float[Array, "channels y x"]) -> Float[Array, "out _ _"]:
        h = self.conv2(jax.nn.relu(self.conv1(x)))
        x = x if self.project is None else self.project(x)
        return jax.nn.relu(x + h)


class ResNet(eqx.Module):
    stem: eqx.nn.Conv2d
    blocks: list[Residual]
    head: eqx.nn.Linear

    def __init__(self, key: Array):
        a, b, c, d, e = jr.split(key, 5)
        self.stem = eqx.nn.Conv2d(1, 16, 3, padding=1, key=a)
        self.blocks = [Residual(16, 16, 1, b), Residual(16, 32, 2, c), Residual(32, 32, 1, d)]
        self.head = eqx.nn.Linear(32, 10, key=e)

    def __call__(self, x: Float[Array, "1 8 8"]) -> Float[Array, " 10"]:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(jnp.mean(x, (1, 2)))


class Scanned(eqx.Module):
    """Layers in one array each, scanned."""

    encoder: eqx.nn.Linear
    up: Float[Array, "layers hidden size"]
    down: Float[Array, "layers size hidden"]
    head: eqx.nn.Linear

    def __init__(self, key: Array, layers: int = 6, hidden: int = 64, size: int = 32):
        a, b, c, d = jr.split(key, 4)
        self.encoder = eqx.nn.Linear(64, size, key=a)
        self.up = jr.normal(b, (layers, hidden, size)) / size**0.5
        self.down = jr.normal(c, (layers, size, hidden)) / hidden**0.5
        self.head = eqx.nn.Linear(size, 10, key=d)

    def __call__(self, x: Float[Array, "1 8 8"]) -> Float[Array, " 10"]:
        layer = lambda x, w: (x + w[1] @ jax.nn.gelu(w[0] @ x), None)
        x = self.encoder(x.ravel())
        return self.head(jax.lax.scan(layer, x, (self.up, self.down))[0])


def mapped(net: Any, x: Float[Array, "batch 1 8 8"]) -> Float[Array, "batch 10"]:
    return jax.vmap(net)(x)


def _found(net: Any, call: Callable = mapped, **settings: Any) -> Task:
    x = jax.ShapeDtypeStruct((64, 1, 8, 8), jnp.float32)
    axes, masks = dn.find_axes(net, x, call=call).learn()
    cost = dn.costs(net, axes, masks, x, call=call).operations
    return Task(net, axes, masks, cost, call, **settings)


def flat(net: Any, x: Float[Array, "batch 1 8 8"]) -> Float[Array, "batch 10"]:
    return jax.vmap(lambda x: net(x.ravel()))(x)


def pretrained(digits: Digits) -> Task:
    """An MLP that was trained, under a budget of parameters."""
    config = prune.Config(steps=400)
    net = eqx.nn.MLP(64, 10, 64, 3, key=jr.key(0))
    net = prune.train(net, prune.batches(digits, config, 0, config.steps), config)
    found = dn.find_axes(net, jax.ShapeDtypeStruct((64,), jnp.float32))
    axes, masks = found.learn()
    net = found.ordered(net, dn.importance(net, axes, masks))
    cost = dn.parameter_cost(net, axes, masks)
    return Task(dn.pretrained(net, axes, masks), axes, masks, cost, flat, 1e-3)


def own(digits: Digits) -> Task:
    """The tutorial's module, as it declares it."""
    config = own_module.Config()
    net = own_module.Network(config, jr.key(0))
    axes, masks = own_module.axes(net), own_module.masks(config)
    call = lambda net, x: jax.vmap(net)(x[:, 0])
    cost = dn.costs(net, axes, masks, jnp.zeros((64, 1, 8, 8)), call=call).operations
    return Task(net, axes, masks, cost, call, 1e-2)


def ccnn(digits: Digits) -> Task:
    """The paper's network, under its cost."""
    base = nn.Base(3, 12)
    net, masks = nn.dnarch(base, "KRWD", 1, 10, (8, 8), omega_0=10.0, sigma=0.3, key=jr.key(0))
    call = lambda net, x: jax.vmap(net, axis_name="batch")(x)
    deploy = lambda state, plan: nn.deploy(state.model, state.masks, plan)
    return Task(net, nn.axes(net), masks, nn.complexity(net), call, 1e-2, deploy)


TASKS: dict[str, Callable[[Digits], Task]] = {
    "pretrained MLP": pretrained,
    "ViT": lambda digits: _found(ViT(32, 4, 4, jr.key(0))),
    "ResNet": lambda digits: _found(ResNet(jr.key(0))),
    "own module": own,
    "CCNN_KRWD": ccnn,
    "scanned stack": lambda digits: _found(Scanned(jr.key(0))),
}


def batches(digits: Digits, steps: int, seed: int) -> Iterator[Any]:
    return (batch for _, batch in zip(range(steps), digits.batches(64, seed)))
