"""Declarations that are wrong, and networks that no plan can shrink exactly: each would be
another network under another plan.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from equinox.nn import Conv1d, GroupNorm, GRUCell, LayerNorm, Linear, RMSNorm
from jaxtyping import Array

import dnarch_eqx as dn
from dnarch_eqx import Axes, concatenated, fused, gated
from tests.networks import Heads, MLPBlock, OwnNorm


class Hazard(NamedTuple):
    model: Any
    axes: dict[str, Axes]
    masks: dict[str, Any]
    inputs: tuple[Any, ...]
    call: Callable


# Of the precision that JAX has when it is used.
X: Any = np.linspace(-1.0, 1.0, 3)
_ROWS: Any = (Axes("h", None), Axes("h"), Axes(None, gated("h")))
_GATED_ROWS: Any = (Axes(gated("h"), None), Axes(gated("h")), Axes(None, "h"))


def _net(middle: Any) -> tuple[Any, ...]:
    return Linear(3, 16, key=jr.key(0)), middle, Linear(16, 2, key=jr.key(1))


def _run(net: Any, x: Array) -> Array:
    return net[2](net[1](net[0](x)))


def _between(middle: Any, specs: Any = _ROWS, more: dict[str, Axes] | None = None) -> Hazard:
    net = _net(middle)
    axes = dn.declare(net, lambda m: (m[0].weight, m[0].bias, m[2].weight), specs)
    return Hazard(net, axes | (more or {}), {"h": dn.Sigmoid(16, size=6.0)}, (X,), _run)


class GemmaNorm(RMSNorm):
    def __call__(self, x, state=None, *, key=None):  # pyright: ignore
        scale: Any = self.weight
        return x * jax.lax.rsqrt(jnp.mean(x**2) + self.eps) * (1 + scale)


# Of the values of an axis: what no gate makes exact.
_OVER: dict[str, Any] = {
    "softmax": jax.nn.softmax,
    "log softmax": jax.nn.log_softmax,
    "logsumexp": lambda h: h - jax.nn.logsumexp(h),
    "norm": lambda h: h / jnp.linalg.norm(h),
    "sum of absolute values": lambda h: h / jnp.sum(jnp.abs(h)),
    "minus the mean": lambda h: h - jnp.mean(h),
    "times the mean": lambda h: h * jnp.mean(h),
    "variance": lambda h: h / jnp.sqrt(jnp.var(h) + 1.0),
    "standardized": jax.nn.standardize,
    "flip": jnp.flip,
    "roll": lambda h: jnp.roll(h, 1),
    "sort": jnp.sort,
    "median": lambda h: h - jnp.median(h),
    "ranks": lambda h: h * jnp.argsort(jnp.argsort(h)),
    "cumulative sum": jnp.cumsum,
    "cumulative product": jnp.cumprod,
    "cumulative maximum": jax.lax.cummax,
    "associative scan": lambda h: jax.lax.associative_scan(jnp.add, h),
    "scan": lambda h: jax.lax.scan(lambda c, x: (c + x, c * x), jnp.zeros(()), h)[1],
    "maximum": lambda h: h - jnp.max(h),
    "minimum": lambda h: h - jnp.min(h),
    "place of the maximum": lambda h: h * (jnp.argmax(h) + 1.0),
    "top k": lambda h: h * (h >= jax.lax.top_k(h, 3)[0][-1]),
    "shuffle": lambda h: h.reshape(2, -1).T.reshape(-1),
    "every second": lambda h: jnp.repeat(h[::2], 2),
    "the first": lambda h: h * h[0],
    "the last": lambda h: h * h[-1],
    "differences": lambda h: jnp.pad(jnp.diff(h), (0, 1)),
    "Fourier": lambda h: jnp.fft.fft(h).real,
    "smoothing": lambda h: jnp.convolve(h, jnp.ones(3), mode="same"),
    "pooling": lambda h: jnp.repeat(h.reshape(-1, 2).max(-1), 2),
    "positions": lambda h: h * jnp.arange(len(h)),
    "its length": lambda h: h * len(h),
    "over its length": lambda h: h / h.size,
    "root of its length": lambda h: h / jnp.sqrt(h.shape[0]),
    "group norm": GroupNorm(4, channelwise_affine=False),
    "layer norm without weight": LayerNorm(16, use_weight=False, use_bias=False),
    "RMS norm without weight": RMSNorm(16, use_weight=False, use_bias=False),
}
# Not 0 at 0.
_NOT_ZERO: dict[str, Any] = {
    "sigmoid": jax.nn.sigmoid,
    "softplus": jax.nn.softplus,
    "log sigmoid": jax.nn.log_sigmoid,
    "hard sigmoid": jax.nn.hard_sigmoid,
    "exp": jnp.exp,
    "cos": jnp.cos,
    "plus one": lambda h: jnp.tanh(h) + 1.0,
    "below one": lambda h: (h < 1.0) * 1.0,
    "clipped": lambda h: jnp.clip(h, 0.1, 1.0),
    "where": lambda h: jnp.where(h > 0, h, -1.0),
}


class Zipped(eqx.Module):
    """A scale for each block, outside of the blocks."""

    blocks: list[MLPBlock]
    scales: list[Array]

    def __call__(self, x):
        for block, scale in zip(self.blocks, self.scales):
            x = scale * block(x)
        return x


class Outside(eqx.Module):
    """Blocks of which something else is used than their values."""

    blocks: list[MLPBlock]
    kind: str = eqx.field(static=True)

    def __call__(self, x):
        out = []
        for block in self.blocks:
            if self.kind == "residual":
                x = x + block(x)
            elif self.kind == "parts":
                x = x + block.down(jax.nn.gelu(block.up(x)))
            else:
                x = block(x)
            out.append(x)
        if self.kind == "all":
            return jnp.concatenate(out)
        return x / len(self.blocks) if self.kind == "number" else x


class Turned(eqx.Module):
    up: Array
    down: Array

    def __call__(self, x):
        turn = lambda x, w: (x + w[1] @ jnp.tanh(w[0] @ x), None)
        return jax.lax.scan(turn, x, (self.up, self.down))[0]


class Choice(eqx.Module):
    """Goes another way where two sizes are equal."""

    up: Linear
    mix: Linear
    project: Linear
    down: Linear

    def __call__(self, x):
        h = jnp.tanh(self.up(x))
        g = jnp.tanh(self.mix(h))
        g = g + (h if h.shape == g.shape else self.project(h))
        return self.down(g)


def hazards() -> Iterator[tuple[str, Hazard]]:
    """By name."""
    for name, middle in _OVER.items():
        yield f"over it: {name}", _between(middle)
    for name, middle in _NOT_ZERO.items():
        yield f"gated before: {name}", _between(middle, _GATED_ROWS)
    gemma: Any = GemmaNorm(16, use_bias=False)  # pyright: ignore
    yield "a norm of one's own", _between(OwnNorm(16), more={"[1].weight": Axes("h")})
    yield (
        "a subclass of a norm",
        _between(gemma, more={"[1].weight": Axes("h")}),
    )
    yield "no gate", _between(jnp.tanh, (Axes("h", None), Axes("h"), Axes(None, "h")))
    yield (
        "a bias without a gate",
        _between(jnp.tanh, (Axes(gated("h"), None), Axes("h"), Axes(None, "h"))),
    )
    yield (
        "readers forgotten",
        _between(jnp.tanh, (Axes(gated("h"), None), Axes(gated("h")), Axes(None, None))),
    )
    yield (
        "makers forgotten",
        _between(jnp.tanh, (Axes(None, None), Axes(None), Axes(None, gated("h")))),
    )
    yield (
        "bias forgotten",
        _between(jnp.tanh, (Axes("h", None), Axes(None), Axes(None, gated("h")))),
    )
    yield (
        "an input",
        _between(jnp.tanh, (Axes("h", None), Axes("h"), Axes(gated("o"), gated("h"))))._replace(
            masks={"o": dn.Sigmoid(2, size=1.0, temperature=40.0)}
        ),
    )

    net: Any = Heads()
    where = lambda m: (m.up.weight, m.up.bias, m.policy.weight, m.value.weight)
    masks = {"h": dn.Sigmoid(16, size=6.0)}
    for i, columns in enumerate([(gated("h"), "h"), ("h", gated("h"))]):
        specs = (Axes("h", None), Axes("h"), *(Axes(None, c) for c in columns))
        axes = dn.declare(net, where, specs)
        yield f"reader {i} alone", Hazard(net, axes, masks, (X,), lambda m, x: m(x))

    pair = (
        Linear(3, 8, key=jr.key(0)),
        Linear(3, 8, key=jr.key(1)),
        Linear(16, 2, key=jr.key(2)),
    )
    joined = lambda m, x: m[2](jnp.concatenate([m[0](x), m[1](x)]))
    both = {name: dn.Sigmoid(8, size=size) for name, size in (("a", 3.0), ("b", 5.0))}
    parts = lambda m: (m[0].weight, m[0].bias, m[1].weight, m[1].bias, m[2].weight)
    rows = (Axes("a", None), Axes("a"), Axes("b", None), Axes("b"))
    for name, spec in {
        "parts in another order": concatenated(gated("b"), gated("a")),
        "one part twice": concatenated(gated("a"), gated("a")),
        "a part not gated": concatenated(gated("a"), "b"),
        "fused, not concatenated": fused(2, gated("a")),
    }.items():
        some = both if name != "fused, not concatenated" else {"a": both["a"]}
        yield (
            name,
            Hazard(
                pair, dn.declare(pair, parts, (*rows, Axes(None, spec))), some, (X,), joined
            ),
        )

    cell = (GRUCell(3, 8, key=jr.key(0)), Linear(8, 2, key=jr.key(1)))
    turned = lambda m, xs: m[1](
        jax.lax.scan(lambda h, x: (m[0](x, h), None), jnp.zeros(m[0].hidden_size), xs)[0]
    )
    inside = lambda m: (m[0].weight_ih, m[0].weight_hh, m[0].bias, m[0].bias_n, m[1].weight)
    rows = fused(3, "h")
    for name, specs in {
        "a recurrence not gated": (
            Axes(rows, None),
            Axes(rows, "h"),
            Axes(rows),
            Axes("h"),
            Axes(None, gated("h")),
        ),
        "gates in another order": (
            Axes(fused("h", 3), None),
            Axes(fused("h", 3), gated("h")),
            Axes(fused("h", 3)),
            Axes("h"),
            Axes(None, gated("h")),
        ),
        "a state read without a gate": (
            Axes(rows, None),
            Axes(rows, gated("h")),
            Axes(rows),
            Axes("h"),
            Axes(None, "h"),
        ),
    }.items():
        xs = jr.normal(jr.key(3), (4, 3))
        yield (
            name,
            Hazard(
                cell,
                dn.declare(cell, inside, specs),
                {"h": dn.Sigmoid(8, size=4.0)},
                (xs,),
                turned,
            ),
        )

    attention = eqx.nn.MultiheadAttention(4, 8, key=jr.key(0))
    at = lambda m: tuple(
        getattr(m, f"{x}_proj").weight for x in ("query", "key", "value", "output")
    )
    heads, none = fused("heads", 2), Axes(None, None)
    looked = jr.normal(jr.key(3), (5, 8))
    for name, specs in {
        "heads of queries and keys alone": (Axes(heads, None), Axes(heads, None), none, none),
        "heads without the output": (*(Axes(heads, None),) * 3, none),
        "heads not gated": (*(Axes(heads, None),) * 3, Axes(None, heads)),
        "heads within their width": (
            *(Axes(fused(4, "heads"), None),) * 3,
            Axes(None, fused(4, gated("heads"))),
        ),
    }.items():
        size = 2 if "width" in name else 4
        mask = {"heads": dn.Sigmoid(size, size=size / 2 + 0.2, temperature=40.0)}
        yield (
            name,
            Hazard(
                attention,
                dn.declare(attention, at, specs),
                mask,
                (looked,),
                lambda m, x: m(x, x, x),
            ),
        )

    conv = (
        Conv1d(1, 8, 3, padding=1, key=jr.key(0)),
        Conv1d(8, 8, 3, padding=1, groups=2, key=jr.key(1)),
        Conv1d(8, 1, 1, key=jr.key(2)),
    )
    chain = lambda m, x: m[2](jnp.tanh(m[1](jnp.tanh(m[0](x)))))
    channels = lambda m: (m[0].weight, m[0].bias, m[1].weight, m[1].bias, m[2].weight)
    c = Axes("c", None, None)
    grouped = (c, Axes("c", None), c, Axes("c", None), Axes(None, gated("c"), None))
    yield (
        "channels of groups",
        Hazard(
            conv,
            dn.declare(conv, channels, grouped),
            {"c": dn.Sigmoid(8, size=4.0)},
            (jr.normal(jr.key(3), (1, 9)),),
            chain,
        ),
    )

    blocks = [MLPBlock(3, 6, key) for key in jr.split(jr.key(0), 3)]
    depth = {"depth": dn.Sigmoid(3, size=2.0, temperature=16.0)}
    gone = {".blocks": Axes(gated("depth"))}
    itself = lambda m, x: m(x)
    scales = [jnp.full(3, s) for s in (0.5, 2.0, 3.0)]
    yield "blocks zipped with arrays", Hazard(Zipped(blocks, scales), gone, depth, (X,), itself)
    for kind in ("residual", "parts", "all", "number"):
        yield f"blocks: {kind}", Hazard(Outside(blocks, kind), gone, depth, (X,), itself)
    stack = Turned(jr.normal(jr.key(0), (4, 6, 3)), jr.normal(jr.key(1), (4, 3, 6)))
    turns = {"depth": dn.Sigmoid(4, size=2.0, temperature=16.0)}
    for name, specs in {
        "turns not gated": (Axes("depth", None, None), Axes("depth", None, None)),
        "turns of one array": (Axes(gated("depth"), None, None), none),
    }.items():
        lies = {".up": specs[0]} | ({".down": specs[1]} if specs[1] is not none else {})
        yield name, Hazard(stack, lies, turns, (X,), itself)

    a, b, d, e = jr.split(jr.key(0), 4)
    choice = Choice(
        Linear(3, 8, key=a), Linear(8, 6, key=b), Linear(8, 6, key=d), Linear(6, 2, key=e)
    )
    lies = dn.declare(
        choice,
        lambda m: (
            m.up.weight,
            m.up.bias,
            m.mix.weight,
            m.mix.bias,
            m.project.weight,
            m.project.bias,
            m.down.weight,
        ),
        (
            Axes("a", None),
            Axes("a"),
            Axes("b", gated("a")),
            Axes("b"),
            Axes("b", gated("a")),
            Axes("b"),
            Axes(None, gated("b")),
        ),
    )
    some = {"a": dn.Sigmoid(8, size=3.0), "b": dn.Sigmoid(6, size=3.0)}
    yield "another way where sizes agree", Hazard(choice, lies, some, (X,), itself)
