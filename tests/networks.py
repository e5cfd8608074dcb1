"""Networks as people write them in Equinox, none of which knows of this library."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from equinox.nn import Conv1d, Conv2d, Embedding, GroupNorm, LayerNorm, Linear, RMSNorm
from jaxtyping import Array


class Example(NamedTuple):
    """A network, inputs, how it is called, and what of it is found to be learnable."""

    model: Any
    inputs: tuple[Any, ...]
    call: Callable
    learned: set[str]


def call(model, *inputs):
    return model(*inputs)


def mapped(model, x):
    return jax.vmap(model)(x)


class Residual(eqx.Module):
    first: Conv2d
    second: Conv2d
    skip: Conv2d
    head: Linear

    def __init__(self, key):
        a, b, c, d = jr.split(key, 4)
        self.first = Conv2d(1, 8, 3, padding=1, key=a)
        self.second = Conv2d(8, 6, 3, padding=1, key=b)
        self.skip = Conv2d(1, 6, 1, key=c)
        self.head = Linear(6, 2, key=d)

    def __call__(self, x):
        h = self.second(jax.nn.relu(self.first(x))) + self.skip(x)
        return self.head(jax.nn.relu(h).mean((1, 2)))


class UNet(eqx.Module):
    down: Conv1d
    inner: Conv1d
    norm: GroupNorm
    up: Conv1d

    def __init__(self, key):
        a, b, c = jr.split(key, 3)
        self.down = Conv1d(2, 6, 3, padding=1, key=a)
        self.inner = Conv1d(6, 8, 3, padding=1, key=b)
        self.norm = GroupNorm(4, 8)
        self.up = Conv1d(14, 2, 1, key=c)

    def __call__(self, x):
        h = jax.nn.relu(self.down(x))
        return self.up(jnp.concatenate([jax.nn.gelu(self.norm(self.inner(h))), h]))


class Depthwise(eqx.Module):
    spread: Conv1d
    depthwise: Conv1d
    gather: Conv1d

    def __init__(self, key):
        a, b, c = jr.split(key, 3)
        self.spread = Conv1d(2, 8, 1, key=a)
        self.depthwise = Conv1d(8, 8, 3, padding=1, groups=8, key=b)
        self.gather = Conv1d(8, 2, 1, key=c)

    def __call__(self, x):
        return x + self.gather(jax.nn.silu(self.depthwise(jax.nn.silu(self.spread(x)))))


class Recurrent(eqx.Module):
    cell: Any  # a GRU's or an LSTM's
    head: Linear

    def __call__(self, x):
        zeros = jnp.zeros(self.cell.hidden_size)
        start = zeros if isinstance(self.cell, eqx.nn.GRUCell) else (zeros, zeros)
        end, _ = jax.lax.scan(lambda h, x: (self.cell(x, h), None), start, x)
        return self.head(end if isinstance(self.cell, eqx.nn.GRUCell) else end[0])


class Experts(eqx.Module):
    router: Linear
    up: Array
    down: Array

    def __init__(self, key):
        a, b, c = jr.split(key, 3)
        self.router = Linear(6, 4, key=a)
        self.up, self.down = jr.normal(b, (4, 10, 6)), jr.normal(c, (4, 6, 10))

    def __call__(self, x):
        weights = jax.nn.softmax(self.router(x))
        h = jax.nn.gelu(jnp.einsum("ehd,d->eh", self.up, x))
        return jnp.einsum("edh,eh,e->d", self.down, h, weights)


class Stack(eqx.Module):
    """Layers in one array, scanned."""

    up: Array
    down: Array
    head: Linear

    def __init__(self, key):
        a, b, c = jr.split(key, 3)
        self.up, self.down = jr.normal(a, (5, 12, 6)), jr.normal(b, (5, 6, 12))
        self.head = Linear(6, 2, key=c)

    def __call__(self, x):
        layer = lambda x, w: (x + w[1] @ jnp.tanh(w[0] @ x), None)
        return self.head(jax.lax.scan(jax.checkpoint(layer), x, (self.up, self.down))[0])


class Language(eqx.Module):
    embedding: Embedding
    norm: RMSNorm
    up: Linear
    down: Linear
    head: Linear

    def __init__(self, key):
        a, b, c, d = jr.split(key, 4)
        self.embedding = Embedding(11, 8, key=a)
        self.norm = RMSNorm(8)
        self.up, self.down = Linear(8, 16, key=b), Linear(16, 8, key=c)
        self.head = Linear(8, 11, key=d)

    def __call__(self, tokens):
        x = jax.vmap(self.embedding)(tokens)
        h = jax.nn.silu(jax.vmap(self.up)(jax.vmap(self.norm)(x)))
        return jax.vmap(self.head)(x + jax.vmap(self.down)(h))


class SwiGLU(eqx.Module):
    gate: Linear
    up: Linear
    down: Linear

    def __init__(self, key):
        a, b, c = jr.split(key, 3)
        self.gate, self.up = Linear(4, 12, key=a), Linear(4, 12, key=b)
        self.down = Linear(12, 4, key=c)

    def __call__(self, x):
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))


class Block(eqx.Module):
    norm1: LayerNorm
    attention: eqx.nn.MultiheadAttention
    norm2: LayerNorm
    up: Linear
    down: Linear

    def __init__(self, width, heads, key):
        a, b, c = jr.split(key, 3)
        self.norm1, self.norm2 = LayerNorm(width), LayerNorm(width)
        self.attention = eqx.nn.MultiheadAttention(heads, width, key=a)
        self.up, self.down = Linear(width, 4 * width, key=b), Linear(4 * width, width, key=c)

    def __call__(self, x):
        h = jax.vmap(self.norm1)(x)
        x = x + self.attention(h, h, h)
        h = jax.nn.gelu(jax.vmap(self.up)(jax.vmap(self.norm2)(x)))
        return x + jax.vmap(self.down)(h)


class ViT(eqx.Module):
    patches: Conv2d
    position: Array
    token: Array
    blocks: list[Block]
    norm: LayerNorm
    head: Linear

    def __init__(self, width, heads, depth, key):
        a, b, c, d, *keys = jr.split(key, 4 + depth)
        self.patches = Conv2d(1, width, 2, 2, key=a)
        self.position = jr.normal(b, (17, width))
        self.token = jr.normal(c, (1, width))
        self.blocks = [Block(width, heads, key) for key in keys]
        self.norm = LayerNorm(width)
        self.head = Linear(width, 10, key=d)

    def __call__(self, x):
        x = self.patches(x)
        x = x.reshape(x.shape[0], -1).T
        x = jnp.concatenate([self.token, x]) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[0]))


class OwnNorm(eqx.Module):
    weight: Array

    def __init__(self, width):
        self.weight = jnp.ones(width)

    def __call__(self, x):
        return x * jax.lax.rsqrt(jnp.mean(x**2) + 1e-6) * self.weight


class OwnAttention(eqx.Module):
    """Reshapes by a number of heads that it keeps."""

    qkv: Linear
    out: Linear
    heads: int = eqx.field(static=True)

    def __init__(self, width, heads, key):
        a, b = jr.split(key)
        self.qkv, self.out = Linear(width, 3 * width, key=a), Linear(width, width, key=b)
        self.heads = heads

    def __call__(self, x):
        parts = jnp.split(jax.vmap(self.qkv)(x), 3, axis=-1)
        q, k, v = (y.reshape(len(x), self.heads, -1) for y in parts)
        scores = jnp.einsum("thd,shd->hts", q, k) / math.sqrt(q.shape[-1])
        mixed = jnp.einsum("hts,shd->thd", jax.nn.softmax(scores, -1), v)
        return jax.vmap(self.out)(mixed.reshape(len(x), -1))


def examples() -> dict[str, Example]:
    """By name."""
    keys = iter(jr.split(jr.key(0), 40))
    one = lambda *shape: (jr.normal(next(keys), shape),)
    mlp = eqx.nn.MLP(4, 3, 16, 2, key=next(keys))
    attention = eqx.nn.MultiheadAttention(4, 12, qk_size=5, vo_size=7, key=next(keys))
    blocks = {
        f"blocks.{i}.{name}"
        for i in range(1)
        for name in (
            "attention.query_proj.heads",
            "attention.query_proj.width",
            "attention.value_proj.width",
            "up.hidden",
        )
    }
    hidden = {"layers.0.hidden", "layers.1.hidden"}
    gru = Recurrent(eqx.nn.GRUCell(3, 10, key=next(keys)), Linear(10, 2, key=next(keys)))
    lstm = Recurrent(eqx.nn.LSTMCell(3, 10, key=next(keys)), Linear(10, 2, key=next(keys)))
    return {
        "mlp": Example(mlp, one(4), call, hidden),
        "mlp, mapped": Example(mlp, one(5, 4), mapped, hidden),
        "attention": Example(
            attention,
            one(6, 12),
            lambda model, x: model(x, x, x),
            {"query_proj.heads", "query_proj.width", "value_proj.width"},
        ),
        "residual": Example(
            Residual(next(keys)), one(1, 8, 8), call, {"first.channels", "second.channels"}
        ),
        "u-net": Example(
            UNet(next(keys)), one(2, 9), call, {"down.channels", "inner.channels"}
        ),
        "depthwise": Example(Depthwise(next(keys)), one(2, 9), call, {"spread.channels"}),
        "gru": Example(gru, one(5, 3), call, {"cell.hidden"}),
        "lstm": Example(lstm, one(5, 3), call, {"cell.hidden"}),
        "experts": Example(Experts(next(keys)), one(6), call, {"hidden"}),
        "stack": Example(Stack(next(keys)), one(6), call, {"hidden"}),
        "language": Example(
            Language(next(keys)), (jnp.arange(5),), call, {"norm.embedding", "up.hidden"}
        ),
        "swiglu": Example(SwiGLU(next(keys)), one(4), call, {"gate.hidden"}),
        "vit": Example(
            ViT(16, 4, 1, next(keys)), one(1, 8, 8), call, {"patches.channels", *blocks}
        ),
    }
