"""Networks that are built by their sizes, states of them, and larger ones."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
import optax
from equinox.nn import BatchNorm, Conv1d, Conv2d, Embedding, LayerNorm, Linear
from helpers import attention, FAST, mlp_axes

import dnarch_eqx as dn
from dnarch_eqx import Axes, concatenated, fused, gated
from dnarch_eqx._growth import grow
from dnarch_eqx._state import init
from dnarch_eqx._stateful import together
from tests.networks_vision import batched


def mlp(sizes, key):
    a, b, c = jr.split(key, 3)
    h0, h1 = sizes["h0"], sizes["h1"]
    layers = [Linear(4, h0, key=a), Linear(h0, h1, key=b), Linear(h1, 3, key=c)]
    return eqx.nn.Sequential([*layers[:2], eqx.nn.Lambda(jnp.tanh), layers[2]])


class Attend(eqx.Module):
    """Heads and their widths are parts of one dimension; a norm over the stream."""

    embed: Embedding
    norm: LayerNorm
    attention: eqx.nn.MultiheadAttention
    head: Linear

    def __init__(self, sizes, key):
        a, b, c = jr.split(key, 3)
        self.embed = Embedding(7, sizes["stream"], key=a)
        self.norm = LayerNorm(sizes["stream"])
        self.attention = attention(sizes["heads"], sizes["stream"], sizes["qk"], 5, key=b)
        self.head = Linear(sizes["stream"], 2, key=c)

    def __call__(self, tokens):
        x = jax.vmap(self.embed)(tokens)
        y = jax.vmap(self.norm)(x)
        return jax.vmap(self.head)(x + self.attention(y, y, y))


def attend_axes(net):
    qk, rows = fused("heads", gated("qk")), fused("heads", 5)
    consumer = gated("stream")
    declared: Any = {
        lambda m: m.embed.weight: Axes(None, "stream"),
        lambda m: m.norm.weight: Axes("stream"),
        lambda m: m.norm.bias: Axes("stream"),
        lambda m: m.attention.query_proj.weight: Axes(qk, consumer),
        lambda m: m.attention.query_proj.bias: Axes(qk),
        lambda m: m.attention.key_proj.weight: Axes(fused("heads", "qk"), consumer),
        lambda m: m.attention.key_proj.bias: Axes(fused("heads", "qk")),
        lambda m: m.attention.value_proj.weight: Axes(rows, consumer),
        lambda m: m.attention.value_proj.bias: Axes(rows),
        lambda m: m.attention.output_proj.weight: Axes("stream", fused(gated("heads"), 5)),
        lambda m: m.attention.output_proj.bias: Axes("stream"),
        lambda m: m.head.weight: Axes(None, consumer),
    }
    return dn.declare(net, lambda m: [node(m) for node in declared], list(declared.values()))


class Normed(eqx.Module):
    first: Conv2d
    norm: BatchNorm
    second: Conv2d

    def __init__(self, channels, key):
        a, b = jr.split(key)
        self.first = Conv2d(1, channels, 3, padding=1, key=a)
        self.norm = BatchNorm(channels, "batch", mode="ema")
        self.second = Conv2d(2 * channels, 2, 3, padding=1, key=b)

    def __call__(self, x, state):
        h = self.first(x)
        y, state = self.norm(h, state)
        return self.second(jnp.concatenate([y, h])).mean((1, 2)), state


def normed_axes(pair):
    net, state = pair
    inside = {
        jtu.keystr(path): Axes("c")
        for path, x in jtu.tree_leaves_with_path(together(net, state))
        if "init" in jtu.keystr(path) and eqx.is_array(x) and x.ndim == 1
    }
    assert len(inside) == 2, "mean and variance"
    return inside | {
        ".first.weight": Axes("c", None, None, None),
        ".first.bias": Axes("c", None, None),
        ".norm.weight": Axes("c"),
        ".norm.bias": Axes("c"),
        ".second.weight": Axes(None, concatenated(gated("c"), gated("c")), None, None),
    }


class Block(eqx.Module):
    up: Linear
    down: Linear

    def __init__(self, hidden, key):
        a, b = jr.split(key)
        self.up, self.down = Linear(5, hidden, key=a), Linear(hidden, 5, key=b)

    def __call__(self, x):
        return x + self.down(jnp.tanh(self.up(x)))


class Gates(eqx.Module):
    """Blocks that a gate fades, or that are left out from outside."""

    blocks: list[Block]
    depth: dn.Gate | None

    def __init__(self, sizes, key, by_gate):
        n = sizes["depth"]
        sizes = [sizes.get(f"h{i}", 6) for i in range(n)]
        self.blocks = [Block(size, jr.fold_in(key, i)) for i, size in enumerate(sizes)]
        self.depth = dn.Gate("depth", n) if by_gate else None

    def __call__(self, x):
        values = None if self.depth is None else self.depth()
        for i, block in enumerate(self.blocks):
            x = block(x) if values is None else x + values[i] * block(x)
        return x


def gates_axes(net):
    axes: Any = {".blocks": Axes("depth" if net.depth is not None else gated("depth"))}
    for i in range(len(net.blocks)):
        axes[f".blocks[{i}].up.weight"] = Axes(f"h{i}", None)
        axes[f".blocks[{i}].up.bias"] = Axes(f"h{i}")
        axes[f".blocks[{i}].down.weight"] = Axes(None, gated(f"h{i}"))
    return axes


class Kernels(eqx.Module):
    conv: Conv1d

    def __init__(self, sizes, key):
        self.conv = Conv1d(2, 3, sizes["k"], padding=sizes["k"] // 2, key=key)

    def __call__(self, x):
        return self.conv(x)


class Stack(eqx.Module):
    up: jax.Array
    down: jax.Array

    def __init__(self, sizes, key):
        a, b = jr.split(key)
        self.up = jr.normal(a, (sizes["depth"], sizes["h"], 5))
        self.down = jr.normal(b, (sizes["depth"], 5, sizes["h"]))

    def __call__(self, x):
        layer = lambda x, w: (x + w[1] @ jnp.tanh(w[0] @ x), None)
        return jax.lax.scan(layer, x, (self.up, self.down))[0]


class Tied(eqx.Module):
    shared: eqx.nn.Shared

    def __init__(self, sizes, key):
        a, b = jr.split(key)
        pair = Embedding(9, sizes["h"], key=a), Linear(sizes["h"], 9, use_bias=False, key=b)
        self.shared = eqx.nn.Shared(pair, lambda p: p[1].weight, lambda p: p[0].weight)

    def __call__(self, tokens):
        embedding, head = self.shared()
        return jax.vmap(lambda token: head(jnp.tanh(embedding(token))))(tokens)


_STACK = {".up": Axes("depth", "h", None), ".down": Axes(gated("depth"), None, gated("h"))}
_TIED = {".shared.pytree[0].weight": Axes(None, gated("h"))}
_DEPTH, _DEEPER = {"depth": 3, "h0": 6, "h1": 6, "h2": 6}, {"depth": 5, "h1": 9, "h4": 8}
# Name -> constructor, axes, capacities before and after, input.
CASES: dict[str, Any] = {
    "mlp": (mlp, None, {"h0": 16, "h1": 12}, {"h0": 24, "h1": 40}, jnp.ones(4)),
    "attention": (
        Attend,
        attend_axes,
        {"heads": 4, "qk": 6, "stream": 12},
        {"heads": 6, "qk": 8, "stream": 16},
        jnp.arange(6) % 4,
    ),
    "batch norm": (
        lambda sizes, key: eqx.nn.make_with_state(Normed)(sizes["c"], key),
        normed_axes,
        {"c": 8},
        {"c": 12},
        jnp.arange(72.0).reshape(2, 1, 6, 6) / 36,
    ),
    "gate": (lambda s, k: Gates(s, k, True), gates_axes, _DEPTH, _DEEPER, jnp.ones(5)),
    "outside": (lambda s, k: Gates(s, k, False), gates_axes, _DEPTH, _DEEPER, jnp.ones(5)),
    "kernel": (
        Kernels,
        lambda net: {".conv.weight": Axes(None, None, gated("k"))},
        {"k": 5},
        {"k": 9},
        jnp.arange(22.0).reshape(2, 11) / 11,
    ),
    "scanned": (
        Stack,
        lambda net: _STACK,
        {"depth": 4, "h": 6},
        {"depth": 6, "h": 8},
        jnp.ones(5),
    ),
    "tied": (Tied, lambda net: _TIED, {"h": 8}, {"h": 16}, jnp.arange(5)),
}


def axes_of(name, model):
    if name == "mlp":
        names = ("h0", "h1")
        axes = mlp_axes(eqx.nn.Sequential(list(model)[:2] + list(model)[3:]), names)
        return {path.replace("[2]", "[3]"): spec for path, spec in axes.items()}
    return CASES[name][1](model)


def mask_of(axis, capacity, share):
    size = None if share == 1 else share * capacity
    if axis == "k":
        return dn.Gaussian(capacity, size=size, sigma=1.7 if share == 1 else None)
    return dn.Sigmoid(capacity, size=size, temperature=12.0)


def made(name, sizes, seed):
    """With noise for weights, which takes no time to compile."""
    shapes = eqx.filter_eval_shape(lambda key: CASES[name][0](sizes, key), jr.key(0))

    def fill(x):
        if not isinstance(x, jax.ShapeDtypeStruct):
            return x
        noise = np.random.default_rng(seed + x.size).normal(size=x.shape) / 2
        # Running variances are positive.
        return jnp.asarray(noise if len(x.shape) != 1 else abs(noise), x.dtype)

    return jtu.tree_map(fill, shapes)


def trained(name, share, optim: Any = None) -> tuple[Any, Any, Any]:
    """A state with a little behind it, and its axes."""
    small = CASES[name][2]
    model = made(name, small, 0)
    axes, model_state = axes_of(name, model), None
    if isinstance(model, tuple) and name == "batch norm":
        model, model_state = model
    masks = {axis: mask_of(axis, n, share) for axis, n in small.items()}
    optim = optax.adam(1e-2) if optim is None else optim
    state = init(model, masks, axes, optim, model_state)
    params = eqx.filter((state.model, state.masks), eqx.is_inexact_array)
    update = jax.jit(optim.update, compiler_options=FAST)
    opt_state = update(filled(params, params, 7), state.opt_state, params)[1]
    return eqx.tree_at(lambda s: s.opt_state, state, opt_state), axes, optim


def _batched(pair, x):
    net, state = pair
    return batched(net, state, x)[0]


def output(name, state, axes, plan):
    x = CASES[name][-1]
    x = x if jnp.issubdtype(x.dtype, jnp.integer) else x.astype(float)
    arrays, static = eqx.partition(state, eqx.is_array)

    def run(arrays):
        state = eqx.combine(arrays, static)
        held = state.model_state
        net = dn.materialize(
            state.model, axes, state.masks, plan, model_state=held, check_coverage=False
        )
        return net(x) if held is None else _batched(eqx.nn.inference_mode(net), x)

    return np.asarray(jax.jit(run, compiler_options=FAST)(arrays))


def grown(name, state, optim, **kwargs) -> tuple[Any, Any, Any]:
    _, _, small, large, _ = CASES[name]
    sizes = small | large
    fresh = made(name, sizes, 9)
    axes = axes_of(name, fresh)
    if name == "attention":
        kwargs = {"capacities": sizes} | kwargs
    known = state[1] if isinstance(state, tuple) else state.masks
    masks = {a: mask_of(a, n, 0.6) for a, n in sizes.items() if a not in known}
    return grow(state, axes, fresh, optim, masks=masks, **kwargs), axes, fresh


def filled(tree, like, seed):
    """Gradients: those of `like` in front, zero elsewhere."""

    def one(path, x):
        small = dict(jtu.tree_leaves_with_path(like))[path]
        values = np.random.default_rng(seed + small.size).normal(size=small.shape)
        whole = np.zeros(x.shape)
        whole[tuple(map(slice, small.shape))] = values
        return jnp.asarray(whole, x.dtype)

    return jtu.tree_map_with_path(one, tree)
