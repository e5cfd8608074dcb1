"""How a module of your own becomes learnable, in four steps.

    python -m recipes.own_module

The module is ordinary Equinox, written without a thought of this library but for one `Gate`:
a stack of residual blocks with normalisation and attention over the rows of an image. We
learn the width of every block's hidden layer, the heads of the attention, and how many blocks
there are, under a budget of parameters.
"""

import dataclasses

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
    blocks: int = 4
    hidden: int = 64
    heads: int = 8
    steps: int = 300
    batch_size: int = 64
    learning_rate: float = 1e-2
    seed: int = 0


# 1. An ordinary module. Only the depth needs a word: a mask on the blocks has no array that
#    it could be multiplied into, so it enters by a gate, where the branch is added.


class Block(eqx.Module):
    norm: eqx.nn.LayerNorm
    attention: eqx.nn.MultiheadAttention
    up: eqx.nn.Linear
    down: eqx.nn.Linear

    def __init__(self, size: int, heads: int, hidden: int, key: Array):
        akey, ukey, dkey = jr.split(key, 3)
        self.norm = eqx.nn.LayerNorm(size)
        self.attention = eqx.nn.MultiheadAttention(heads, size, qk_size=8, vo_size=8, key=akey)
        self.up = eqx.nn.Linear(size, hidden, key=ukey)
        self.down = eqx.nn.Linear(hidden, size, key=dkey)

    def __call__(self, x: Float[Array, "rows size"]) -> Float[Array, "rows size"]:
        h = jax.vmap(self.norm)(x)
        h = h + self.attention(h, h, h)
        return jax.vmap(lambda row: self.down(jax.nn.gelu(self.up(row))))(h)


class Network(eqx.Module):
    encoder: eqx.nn.Linear
    blocks: list[Block]
    depth: dn.Gate
    decoder: eqx.nn.Linear

    def __init__(self, config: Config, key: Array, size: int = 32):
        ekey, dkey, *keys = jr.split(key, 2 + config.blocks)
        self.encoder = eqx.nn.Linear(8, size, key=ekey)
        self.blocks = [Block(size, config.heads, config.hidden, key) for key in keys]
        self.depth = dn.Gate("depth", config.blocks)
        self.decoder = eqx.nn.Linear(size, 10, key=dkey)

    def __call__(self, image: Float[Array, "8 8"]) -> Float[Array, " 10"]:
        x = jax.vmap(self.encoder)(image)
        # After `materialize` there are as many blocks as the plan says, and as many values.
        for block, m in zip(self.blocks, self.depth()):
            x = x + m * block(x)
        return self.decoder(jnp.mean(x, axis=0))


# 2. What lies on which axis: slice wherever the name stands, multiply the mask in where it is
#    gated. The rows of the attention's projections are heads x 8: never guessed, declared.


def axes(model: Network) -> dn.AxisMap:
    declared = dn.declare(model, lambda m: m.blocks, dn.Axes("depth"))
    for i in range(len(model.blocks)):
        heads, hidden = f"blocks.{i}.heads", f"blocks.{i}.hidden"
        declared |= dn.declare(
            model,
            lambda m, i=i: (
                m.blocks[i].attention.query_proj.weight,
                m.blocks[i].attention.key_proj.weight,
                m.blocks[i].attention.value_proj.weight,
                m.blocks[i].attention.output_proj.weight,
                m.blocks[i].up.weight,
                m.blocks[i].up.bias,
                m.blocks[i].down.weight,
            ),
            (
                dn.Axes(dn.fused(heads, 8), None),
                dn.Axes(dn.fused(heads, 8), None),
                dn.Axes(dn.fused(heads, 8), None),
                dn.Axes(None, dn.fused(dn.gated(heads), 8)),  # the consumer: masks heads
                dn.Axes(hidden, None),
                dn.Axes(hidden),
                dn.Axes(None, dn.gated(hidden)),
            ),
        )
    return declared


# 3. One mask for each axis that is to be learned. One without a mask is not.


def masks(config: Config) -> dict[str, dn.AbstractMask]:
    made: dict[str, dn.AbstractMask] = {
        "depth": dn.Sigmoid(config.blocks, size=config.blocks * 0.75, temperature=8.0)
    }
    for i in range(config.blocks):
        made[f"blocks.{i}.heads"] = dn.Sigmoid(
            config.heads, size=config.heads / 2, temperature=16.0
        )
        made[f"blocks.{i}.hidden"] = dn.Sigmoid(config.hidden, size=config.hidden / 2)
    return made


# 4. Train: an ordinary loss, and a planner, which sees to it that there is a compiled step that
#    fits the sizes.


def loss(net: Network, batch: tuple[Array, Array], key: Array | None) -> Float[Array, ""]:
    del key
    x, y = batch
    logits = jax.vmap(net)(x[:, 0])
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def main(config: Config) -> None:
    model = Network(config, jr.key(config.seed))
    learned = masks(config)
    where = axes(model)
    cost = dn.parameter_cost(model, where)
    budget = dn.Budget(cost, target=dn.sizes(learned))
    optim = dn.adamw(config.learning_rate, steps=config.steps, warmup=config.steps // 10)
    learner = dn.Learner(loss, optim, where, budget)
    state = learner.init(model, learned)

    ladders = dn.ladders
    buckets = dn.buckets(learned, {"*.hidden": ladders.geometric(1.5), "*": ladders.every()})
    policy = dn.runtime.BreakEven(steps=config.steps)
    planner = dn.Planner(learner, learned, buckets, policy, headroom=0.1)
    print(dn.describe(model, where, learned, dn.plan(learned, buckets, headroom=0.1)), "\n")
    digits = Digits.load(config.seed)
    for i, batch in zip(range(config.steps), digits.batches(config.batch_size, config.seed)):
        if i == 3 * config.steps // 4:
            state = planner.settle(state)  # at whole sizes that meet the budget
        state, info = planner.step(state, batch)
        if i % 50 == 0 or i == config.steps - 1:
            compiled = f"compilations {len(learner.compilations)}"
            print(f"{i:4d}  loss {info.loss:.3f}  complexity {info.deployed:.3f}  {compiled}")
    small = planner.deploy(state)
    x, y = jnp.asarray(digits.x_test[:, 0]), jnp.asarray(digits.y_test)
    accuracy = jnp.mean(jax.vmap(small)(x).argmax(-1) == y)
    print(f"\n{planner.report()}\n\nTest accuracy: {accuracy:.3f}\n")
    networks = {"at full capacity": model, "deployed": small}
    print(dn.report({n: eqx.filter_vmap(net) for n, net in networks.items()}, x[:64]))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
