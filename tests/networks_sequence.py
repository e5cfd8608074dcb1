"""Networks for sequences, graphs and functions, as people write them in Equinox."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from equinox.nn import Conv1d, Embedding, LayerNorm, Linear
from jaxtyping import Array


class LlamaNorm(eqx.Module):
    weight: Array
    eps: float = eqx.field(static=True)

    def __init__(self, dim, eps=1e-6):
        self.weight, self.eps = jnp.ones(dim), eps

    def __call__(self, x):
        return (
            x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + self.eps) * self.weight
        )


def rotated(x):
    """Rotary positions over the last dimension of (length, heads, width)."""
    half = x.shape[-1] // 2
    angles = jnp.arange(len(x))[:, None] * 10_000 ** (-jnp.arange(half) / half)
    cos, sin = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


class LlamaAttention(eqx.Module):
    """With fewer heads for keys and values than for queries."""

    wq: Linear
    wk: Linear
    wv: Linear
    wo: Linear
    n_heads: int = eqx.field(static=True)
    n_kv_heads: int = eqx.field(static=True)
    head_dim: int = eqx.field(static=True)

    def __init__(self, dim, n_heads, n_kv_heads, head_dim, key):
        a, b, c, d = jr.split(key, 4)
        self.n_heads, self.n_kv_heads, self.head_dim = n_heads, n_kv_heads, head_dim
        self.wq = Linear(dim, n_heads * head_dim, use_bias=False, key=a)
        self.wk = Linear(dim, n_kv_heads * head_dim, use_bias=False, key=b)
        self.wv = Linear(dim, n_kv_heads * head_dim, use_bias=False, key=c)
        self.wo = Linear(n_heads * head_dim, dim, use_bias=False, key=d)

    def __call__(self, x):
        q = jax.vmap(self.wq)(x).reshape(len(x), self.n_heads, self.head_dim)
        k = jax.vmap(self.wk)(x).reshape(len(x), self.n_kv_heads, self.head_dim)
        v = jax.vmap(self.wv)(x).reshape(len(x), self.n_kv_heads, self.head_dim)
        repeats = self.n_heads // self.n_kv_heads
        k, v = jnp.repeat(k, repeats, axis=1), jnp.repeat(v, repeats, axis=1)
        scores = jnp.einsum("thd,shd->hts", rotated(q), rotated(k)) / math.sqrt(self.head_dim)
        causal = jnp.tril(jnp.ones((len(x), len(x)), bool))
        weights = jax.nn.softmax(jnp.where(causal, scores, -jnp.inf), axis=-1)
        out = jnp.einsum("hts,shd->thd", weights, v)
        return jax.vmap(self.wo)(out.reshape(len(x), -1))


class LlamaBlock(eqx.Module):
    attention_norm: LlamaNorm
    attention: LlamaAttention
    ffn_norm: LlamaNorm
    w1: Linear
    w2: Linear
    w3: Linear

    def __init__(self, dim, hidden, key):
        a, b, c, d = jr.split(key, 4)
        self.attention_norm, self.ffn_norm = LlamaNorm(dim), LlamaNorm(dim)
        self.attention = LlamaAttention(dim, 6, 3, 4, a)
        self.w1 = Linear(dim, hidden, use_bias=False, key=b)
        self.w2 = Linear(hidden, dim, use_bias=False, key=c)
        self.w3 = Linear(dim, hidden, use_bias=False, key=d)

    def __call__(self, x):
        x = x + self.attention(self.attention_norm(x))
        mlp = lambda h: self.w2(jax.nn.silu(self.w1(h)) * self.w3(h))
        return x + jax.vmap(mlp)(self.ffn_norm(x))


class Llama(eqx.Module):
    embedding: Embedding
    blocks: list[LlamaBlock]
    norm: LlamaNorm
    output: Linear

    def __init__(self, key, dim=16, hidden=20, blocks=3):
        a, b, *keys = jr.split(key, 2 + blocks)
        self.embedding = Embedding(11, dim, key=a)
        self.blocks = [LlamaBlock(dim, hidden, key) for key in keys]
        self.norm, self.output = LlamaNorm(dim), Linear(dim, 11, use_bias=False, key=b)

    def __call__(self, tokens):
        x = jax.vmap(self.embedding)(tokens)
        for block in self.blocks:
            x = block(x)
        return jax.vmap(self.output)(self.norm(x))


class Mamba(eqx.Module):
    """A selective state space."""

    in_proj: Linear
    conv: Conv1d
    x_proj: Linear
    dt_proj: Linear
    a_log: Array
    skip: Array
    out_proj: Linear
    rank: int = eqx.field(static=True)
    states: int = eqx.field(static=True)

    def __init__(self, key, dim=6, inner=12, states=4, rank=3):
        a, b, c, d, e = jr.split(key, 5)
        self.in_proj = Linear(dim, 2 * inner, use_bias=False, key=a)
        self.conv = Conv1d(inner, inner, 3, padding=2, groups=inner, key=b)
        self.x_proj = Linear(inner, rank + 2 * states, use_bias=False, key=c)
        self.dt_proj = Linear(rank, inner, key=d)
        self.a_log = jnp.log(jnp.tile(jnp.arange(1.0, states + 1), (inner, 1)))
        self.skip = jnp.ones(inner)
        self.out_proj = Linear(inner, dim, use_bias=False, key=e)
        self.rank, self.states = rank, states

    def __call__(self, x):
        u, gate = jnp.split(jax.vmap(self.in_proj)(x), 2, axis=-1)
        u = jax.nn.silu(self.conv(u.T)[:, : len(x)].T)
        mixed = jax.vmap(self.x_proj)(u)
        dt, b, c = jnp.split(mixed, [self.rank, self.rank + self.states], axis=-1)
        dt = jax.nn.softplus(jax.vmap(self.dt_proj)(dt))
        decay = jnp.exp(-jnp.exp(self.a_log) * dt[:, :, None])
        drive = dt[:, :, None] * b[:, None, :] * u[:, :, None]

        def turn(h, now):
            decay, drive, c = now
            h = decay * h + drive
            return h, h @ c

        _, y = jax.lax.scan(turn, jnp.zeros(self.a_log.shape), (decay, drive, c))
        return jax.vmap(self.out_proj)((y + self.skip * u) * jax.nn.silu(gate))


class LRU(eqx.Module):
    """A linear recurrence with complex numbers, as an associative scan."""

    nu: Array
    theta: Array
    b: Array
    c: Array
    skip: Array

    def __init__(self, key, dim=5, states=8):
        a, b, c = jr.split(key, 3)
        self.nu, self.theta = jnp.linspace(-1, 1, states), jr.uniform(a, (states,))
        re, im = jr.split(b)
        self.b = jr.normal(re, (states, dim)) + 1j * jr.normal(im, (states, dim))
        self.c = (jr.normal(c, (dim, states)) + 0j) / states
        self.skip = jnp.ones(dim)

    def __call__(self, x):
        lam = jnp.exp(-jnp.exp(self.nu) + 1j * self.theta)
        drive = jax.vmap(lambda u: self.b @ u)(x.astype(self.b.dtype))
        decay = jnp.broadcast_to(lam, drive.shape)
        join = lambda a, b: (a[0] * b[0], b[0] * a[1] + b[1])
        _, h = jax.lax.associative_scan(join, (decay, drive))
        return jax.vmap(lambda h, u: (self.c @ h).real + self.skip * u)(h, x)


class Tied(eqx.Module):
    """A language model that reads out by its embedding."""

    shared: eqx.nn.Shared

    def __init__(self, key):
        a, b = jr.split(key)
        embedding = Embedding(9, 8, key=a)
        head = Linear(8, 9, use_bias=False, key=b)
        where, get = lambda pair: pair[1].weight, lambda pair: pair[0].weight
        self.shared = eqx.nn.Shared((embedding, head), where, get)

    def __call__(self, tokens):
        embedding, head = self.shared()
        return jax.vmap(lambda token: head(jnp.tanh(embedding(token))))(tokens)


class Graph(eqx.Module):
    """Messages along edges, summed at the nodes."""

    message: Linear
    update: Linear
    read: Linear

    def __init__(self, key):
        a, b, c = jr.split(key, 3)
        self.message, self.update = Linear(6, 10, key=a), Linear(13, 8, key=b)
        self.read = Linear(8, 2, key=c)

    def __call__(self, nodes, senders, receivers):
        pairs = jnp.concatenate([nodes[senders], nodes[receivers]], axis=-1)
        messages = jax.nn.relu(jax.vmap(self.message)(pairs))
        received = jax.ops.segment_sum(messages, receivers, len(nodes))
        h = jax.vmap(self.update)(jnp.concatenate([nodes, received], axis=-1))
        return self.read(jax.nn.gelu(h).mean(0))


class ODE(eqx.Module):
    """Steps of Runge and Kutta through a vector field."""

    up: Linear
    down: Linear

    def __init__(self, key):
        a, b = jr.split(key)
        self.up, self.down = Linear(3, 12, key=a), Linear(12, 3, key=b)

    def __call__(self, y):
        field = lambda y: self.down(jnp.tanh(self.up(y)))

        def turn(i, y):
            a = field(y)
            b = field(y + 0.05 * a)
            return y + 0.1 * b

        return jax.lax.fori_loop(0, 4, turn, y)


class Mixer(eqx.Module):
    tokens_up: Linear
    tokens_down: Linear
    channels_up: Linear
    channels_down: Linear
    norm: LayerNorm

    def __init__(self, key, length=6, dim=8):
        a, b, c, d = jr.split(key, 4)
        self.tokens_up, self.tokens_down = Linear(length, 10, key=a), Linear(10, length, key=b)
        self.channels_up, self.channels_down = Linear(dim, 12, key=c), Linear(12, dim, key=d)
        self.norm = LayerNorm(dim)

    def __call__(self, x):
        h = jax.vmap(self.norm)(x)
        mix = lambda row: self.tokens_down(jax.nn.gelu(self.tokens_up(row)))
        x = x + jax.vmap(mix, 1, 1)(h)
        mix = lambda row: self.channels_down(jax.nn.gelu(self.channels_up(row)))
        return x + jax.vmap(mix)(jax.vmap(self.norm)(x))


class Perceiver(eqx.Module):
    """Few latents look at a long input."""

    latents: Array
    attention: eqx.nn.MultiheadAttention
    mlp: eqx.nn.MLP
    head: Linear

    def __init__(self, key):
        a, b, c, d = jr.split(key, 4)
        self.latents = jr.normal(a, (3, 8))
        self.attention = eqx.nn.MultiheadAttention(
            2, 8, key_size=5, value_size=5, output_size=8, key=b
        )
        self.mlp = eqx.nn.MLP(8, 8, 16, 1, key=c)
        self.head = Linear(8, 2, key=d)

    def __call__(self, x):
        h = self.latents + self.attention(self.latents, x, x)
        return self.head((h + jax.vmap(self.mlp)(h)).mean(0))


class ActorCritic(eqx.Module):
    body: eqx.nn.Sequential
    actor: Linear
    critic: Linear

    def __init__(self, key):
        a, b, c, d = jr.split(key, 4)
        self.body = eqx.nn.Sequential(
            [
                Linear(4, 12, key=a),
                eqx.nn.Lambda(jnp.tanh),
                Linear(12, 10, key=b),
                eqx.nn.Lambda(jax.nn.relu),
            ]
        )
        self.actor, self.critic = Linear(10, 3, key=c), Linear(10, "scalar", key=d)

    def __call__(self, x):
        h = self.body(x)
        return jax.nn.log_softmax(self.actor(h)), self.critic(h)


class Scanned(eqx.Module):
    """Blocks of one class in one module of stacked arrays, as `filter_vmap` makes them."""

    blocks: Any
    head: Linear

    def __init__(self, key):
        a, b = jr.split(key)
        self.blocks = eqx.filter_vmap(lambda key: MLPBlock(6, 10, key))(jr.split(a, 4))
        self.head = Linear(6, 2, key=b)

    def __call__(self, x):
        arrays, static = eqx.partition(self.blocks, eqx.is_array)
        turn = lambda x, arrays: (eqx.combine(arrays, static)(x), None)
        return self.head(jax.lax.scan(turn, x, arrays)[0])


class MLPBlock(eqx.Module):
    norm: LayerNorm
    up: Linear
    down: Linear

    def __init__(self, dim, hidden, key):
        a, b = jr.split(key)
        self.norm = LayerNorm(dim)
        self.up, self.down = Linear(dim, hidden, key=a), Linear(hidden, dim, key=b)

    def __call__(self, x):
        return x + self.down(jax.nn.gelu(self.up(self.norm(x))))
