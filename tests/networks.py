"""Networks as people write them in Equinox, none of which knows of this library."""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from equinox.nn import Conv1d, Conv2d, Embedding, GroupNorm, LayerNorm, Linear, RMSNorm
from jaxtyping import Array

from tests.networks_sequence import (
    ActorCritic,
    Graph,
    Llama,
    LRU,
    Mamba,
    Mixer,
    MLPBlock as MLPBlock,
    ODE,
    Perceiver,
    Scanned,
    Tied,
)
from tests.networks_vision import (
    AutoEncoder,
    batched,
    BatchNormed,
    ConvNeXt,
    DenseNet,
    Discriminator,
    FiLM,
    FNO,
    ResNet,
    SqueezeExcite,
    VAE,
    WaveNet,
    WeightNormed,
)


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


class Heads(eqx.Module):
    up: Linear
    policy: Linear
    value: Linear

    def __init__(self):
        a, b, c = jr.split(jr.key(0), 3)
        self.up = Linear(3, 16, key=a)
        self.policy, self.value = Linear(16, 2, key=b), Linear(16, 1, key=c)

    def __call__(self, x):
        h = jnp.tanh(self.up(x))
        return self.policy(h), self.value(h)


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


_ATTENTION = {"query_proj.heads", "query_proj.width", "value_proj.width"}
_LLAMA = ("attention.wq.heads", "attention.wq.heads2", "w1.hidden")
_NORMED = {"first.channels", "second.channels"}


def _inside(path: str, names: Iterable[str]) -> set[str]:
    return {f"{path}.{name}" for name in names}


def _x(*shape: int) -> tuple[Array]:
    return (jr.normal(jr.key(1), shape),)


def _edges() -> tuple[Array, Array, Array]:
    return *_x(4, 3), jnp.array([0, 1, 2, 3, 3]), jnp.array([1, 2, 3, 0, 1])


def _recurrent(cell: Any, key: Array) -> Recurrent:
    return Recurrent(cell(3, 10, key=key), Linear(10, 2, key=key))


# From a key to a network, inputs, and the axes that can be learned.
_NETWORKS: dict[str, Callable[[Array], tuple[Any, tuple[Any, ...], set[str]]]] = {
    "mlp": lambda key: (
        eqx.nn.MLP(4, 3, 16, 2, key=key),
        _x(4),
        {"layers.0.hidden", "layers.1.hidden"},
    ),
    "residual": lambda key: (Residual(key), _x(1, 8, 8), _NORMED),
    "u-net": lambda key: (UNet(key), _x(2, 9), {"down.channels", "inner.channels"}),
    "depthwise": lambda key: (Depthwise(key), _x(2, 9), {"spread.channels"}),
    "gru": lambda key: (_recurrent(eqx.nn.GRUCell, key), _x(5, 3), {"cell.hidden"}),
    "lstm": lambda key: (_recurrent(eqx.nn.LSTMCell, key), _x(5, 3), {"cell.hidden"}),
    "experts": lambda key: (Experts(key), _x(6), {"hidden"}),
    "stack": lambda key: (Stack(key), _x(6), {"depth", "hidden"}),
    "language": lambda key: (Language(key), (jnp.arange(5),), {"norm.embedding", "up.hidden"}),
    "swiglu": lambda key: (SwiGLU(key), _x(4), {"gate.hidden"}),
    "vit": lambda key: (
        ViT(16, 4, 1, key),
        _x(1, 8, 8),
        {
            "patches.channels",
            "blocks.0.up.hidden",
            *_inside("blocks.0.attention", _ATTENTION),
        },
    ),
    "own attention": lambda key: (OwnAttention(32, 8, key), _x(5, 32), {"qkv.heads"}),
    "llama": lambda key: (
        Llama(key, blocks=2),
        (jnp.arange(5),),
        {"blocks.depth", *_inside("blocks.0", _LLAMA), *_inside("blocks.1", _LLAMA)},
    ),
    "mamba": lambda key: (
        Mamba(key),
        _x(7, 6),
        {"in_proj.channels", "x_proj.hidden", "x_proj.width"},
    ),
    "linear recurrence": lambda key: (LRU(key), _x(7, 5), {"hidden"}),
    "tied": lambda key: (Tied(key), (jnp.arange(5),), {"shared.pytree.0.embedding"}),
    "graph": lambda key: (Graph(key), _edges(), {"update.hidden"}),
    "ode": lambda key: (ODE(key), _x(3), {"up.hidden"}),
    "mixer": lambda key: (Mixer(key), _x(6, 8), {"tokens_up.hidden", "channels_up.hidden"}),
    "perceiver": lambda key: (
        Perceiver(key),
        _x(9, 5),
        {
            "attention.output_proj.hidden",
            "mlp.layers.0.hidden",
            *_inside("attention", _ATTENTION),
        },
    ),
    "actor and critic": lambda key: (
        ActorCritic(key),
        _x(4),
        {"body.layers.0.hidden", "body.layers.2.hidden"},
    ),
    "scanned blocks": lambda key: (
        Scanned(key),
        _x(6),
        {"blocks.norm.depth", "blocks.up.hidden"},
    ),
    "weight norm": lambda key: (WeightNormed(key), _x(4), {"first.layer.width"}),
    "resnet": lambda key: (
        ResNet(key),
        _x(3, 6, 6),
        {
            # Not those of the last block, which projects where they differ from the stem's.
            "stem.channels",
            *(f"layers.{i}.conv1.channels" for i in range(3)),
        },
    ),
    "auto-encoder": lambda key: (
        AutoEncoder(key),
        _x(1, 6, 6),
        {"down.channels", "inner.channels"},
    ),
    "vae": lambda key: (VAE(key), (*_x(6), *_x(4)), {"encoder.hidden", "decoder.hidden"}),
    "squeeze": lambda key: (
        SqueezeExcite(key),
        _x(1, 6, 6),
        {"conv.channels", "squeeze.hidden"},
    ),
    "dense": lambda key: (
        DenseNet(key),
        _x(2, 6, 6),
        {f"layers.{i}.channels" for i in range(3)},
    ),
    "wavenet": lambda key: (WaveNet(key), _x(4, 9), {"filters.channels"}),
    "convnext": lambda key: (ConvNeXt(key), _x(6, 5, 5), {"up.hidden"}),
    "fno": lambda key: (FNO(key), _x(1, 16), {"lift.channels"}),
    "film": lambda key: (FiLM(key), (*_x(1, 6, 6), *_x(3)), {"conv.channels"}),
}
# The same, of networks with an `eqx.nn.State`.
_STATEFUL: dict[str, Callable[[Array], tuple[Any, Any, tuple[Any, ...], set[str]]]] = {
    "batch norm, running": lambda key: (
        *eqx.nn.make_with_state(BatchNormed)("ema", key),
        _x(4, 1, 6, 6),
        _NORMED,
    ),
    "batch norm, batch": lambda key: (
        *eqx.nn.make_with_state(BatchNormed)("batch", key),
        _x(4, 1, 6, 6),
        _NORMED,
    ),
    "spectral norm": lambda key: (
        *eqx.nn.make_with_state(Discriminator)(key),
        _x(5, 4),
        {"first.layer.hidden"},
    ),
}
# Called otherwise than by `net(*inputs)`.
_CALLED: dict[str, Callable[[Array], Example]] = {
    "mlp, mapped": lambda key: Example(
        eqx.nn.MLP(4, 3, 16, 2, key=key),
        _x(5, 4),
        mapped,
        {"layers.0.hidden", "layers.1.hidden"},
    ),
    "attention": lambda key: Example(
        eqx.nn.MultiheadAttention(4, 12, qk_size=5, vo_size=7, key=key),
        _x(6, 12),
        lambda model, x: model(x, x, x),
        _ATTENTION,
    ),
}
NAMES = (*_NETWORKS, *_STATEFUL, *_CALLED)


def example(name: str) -> Example:
    """With noise for weights, which takes no time to compile."""
    if name in _CALLED:
        return _filled(_CALLED[name])
    if name in _STATEFUL:
        net, state, x, learned = _filled(_STATEFUL[name])
        return Example(net, (state, *x), batched, learned)
    net, x, learned = _filled(_NETWORKS[name])
    return Example(net, x, call, learned)


def _filled(make: Callable[[Array], Any]) -> Any:
    rng = np.random.default_rng(0)

    def fill(path: Any, x: Any) -> Any:
        if not isinstance(x, jax.ShapeDtypeStruct):
            return x
        noise = rng.normal(size=x.shape) * (1.0 if len(x.shape) < 2 else x.shape[-1] ** -0.5)
        if jnp.issubdtype(x.dtype, jnp.complexfloating):
            noise = noise + 1j * rng.normal(size=x.shape)
        if not jnp.issubdtype(x.dtype, jnp.inexact):
            noise = np.arange(x.size).reshape(x.shape) % 4
        # Variances are positive, and so are scales.
        return jnp.asarray(np.abs(noise) if len(x.shape) < 2 else noise, x.dtype)

    shapes = eqx.filter_eval_shape(make, jr.key(0))
    return jax.tree_util.tree_map_with_path(fill, shapes)
