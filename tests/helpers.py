import functools as ft
import itertools as it
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.lax as lax
import jax.nn as jnn
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np

import dnarch_eqx as dn
from dnarch_eqx import Axes, fused, gated, runtime as rt


def close(got: Any, wanted: Any, rtol: float | None = None, what: str = ""):
    """Asserts that two trees agree: every array to a tolerance, 1e-5 or in float64 1e-9,
    relative to its largest entry. Where that is small beside those of the other arrays, as
    of sums that cancel, a hundredth of the latter counts.
    """
    got, wanted = eqx.filter((got, wanted), eqx.is_array)
    pairs, treedef = jtu.tree_flatten_with_path(wanted)
    assert pairs, "nothing to compare"
    assert jtu.tree_structure(got) == treedef
    largest = max(np.max(np.abs(b), initial=0) for _, b in pairs)
    for (path, b), a in zip(pairs, jtu.tree_leaves(got)):
        assert a.shape == b.shape and a.dtype == b.dtype, (what, jtu.keystr(path), a, b)
        a, b = np.asarray(a), np.asarray(b)
        tol = rtol if rtol is not None else 1e-9 if b.dtype == np.float64 else 1e-5
        assert np.all(np.isfinite(a)), (what, jtu.keystr(path))
        error = np.max(np.abs(a - b), initial=0)
        scale = max(np.max(np.abs(b), initial=0), 0.01 * largest)
        assert error <= tol * scale, (what, jtu.keystr(path), error, scale)


def noise(key: jax.Array, *shape: int) -> jax.Array:
    """Normal numbers, made without compiling anything: most of the time of these tests."""
    rng = np.random.default_rng(np.asarray(jr.key_data(key)))
    return jnp.asarray(rng.normal(size=shape))


def shaped(make: Callable[[jax.Array], Any]) -> Any:
    """What `make(key)` gives, with shapes in place of arrays."""
    return eqx.filter_eval_shape(make, jr.key(0))


def filled(make: Callable[[jax.Array], Any], key: jax.Array) -> Any:
    """What `make(key)` gives, with noise in all arrays: no weights of ones, no biases of
    zeros.
    """
    leaves, treedef = jtu.tree_flatten(shaped(make))
    arrays = [
        0.4 * noise(jr.fold_in(key, i), *x.shape) if isinstance(x, _Shape) else x
        for i, x in enumerate(leaves)
    ]
    return treedef.unflatten(arrays)


_Shape = jax.ShapeDtypeStruct


def same(got: Any, wanted: Any) -> bool:
    """Whether two trees are bit-identical, static fields included."""
    return bool(eqx.tree_equal(got, wanted, typematch=True))


def alike(got: Any, wanted: Any):
    """Asserts that two modules differ at most in the values of their arrays: types, static
    fields, shapes and dtypes agree.
    """
    assert jtu.tree_structure(got) == jtu.tree_structure(wanted)
    for a, b in zip(jtu.tree_leaves(got), jtu.tree_leaves(wanted)):
        if eqx.is_array(b) or isinstance(b, _Shape):
            assert a.shape == b.shape and a.dtype == b.dtype
        else:
            assert a is b or a == b


def values(mask: dn.AbstractMask) -> jax.Array:
    """The mask at all positions, written down again from Eq. 3 and 4."""
    n = mask.capacity
    x = jnp.linspace(-1.0, 1.0, n)
    if isinstance(mask, dn.Sigmoid):
        # Where their sizes begin, but for a thousandth of a position.
        x = jnp.array([-1.0] + [-1 + 2 * (i + 1e-3) / n for i in range(1, n)])
        temperature = lax.stop_gradient(mask.temperature)
        smooth = 1 / (1 + jnp.exp(-temperature * (mask.offset - x)))
    else:
        assert isinstance(mask, dn.Gaussian)
        smooth = jnp.exp(-(x**2) / (2 * mask.sigma**2))
    return jnp.where(smooth >= mask.threshold, smooth, 0.0)


def tight(masks: dn.Masks) -> dict[str, int]:
    """The smallest buckets that cover the masks, counted by hand."""
    return {axis: int(np.sum(np.asarray(values(mask)) > 0)) for axis, mask in masks.items()}


def halfway(masks: dn.Masks) -> dict[str, int]:
    """Buckets half-way between the tight ones and the capacities; odd stay odd."""
    return {axis: n + (masks[axis].capacity - n) // 4 * 2 for axis, n in tight(masks).items()}


def _fast() -> dict[str, bool | int]:
    """Options with which XLA compiles several times faster, where it knows them."""
    options = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
    try:
        jax.jit(lambda: 0, compiler_options=options).lower().compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return options


FAST = _fast()


def outcome(network: Callable[[Any, dn.Masks], jax.Array], model: Any, masks: dn.Masks):
    """The output of `network(model, masks)` and its gradients, in a generic direction."""
    arrays, static = eqx.partition((model, masks), eqx.is_inexact_array)

    def total(arrays):
        out = network(*eqx.combine(arrays, static))
        along = jnp.cos(1.0 + jnp.arange(out.size, dtype=out.dtype))
        return jnp.sum(out * along.reshape(out.shape)), out

    run = jax.jit(jax.value_and_grad(total, has_aux=True), compiler_options=FAST)
    (_, out), grads = run(arrays)
    return out, grads


def law(
    model: Any,
    axes: dict[str, dn.Axes],
    masks: dn.Masks,
    plans: Sequence[Mapping[str, int]],
    call: Callable[[Any], jax.Array],
    reference: Callable[[Any, dict[str, jax.Array]], jax.Array] | None = None,
    rtol: float | None = None,
):
    """Asserts contract 1: under each of `plans` the network has the outputs, and all
    gradients of weights and mask parameters, that it has at full capacity; and that
    `reference(model, values)` has if there is one: the masked network written by hand.
    """

    def under(plan):
        build = lambda *params: dn.materialize(
            params[0], axes, params[1], plan, check_coverage=False
        )
        return outcome(lambda *params: call(build(*params)), model, masks)

    def by_hand(model, masks):
        assert reference is not None
        with jax.numpy_rank_promotion("allow"):
            return reference(model, {axis: values(mask) for axis, mask in masks.items()})

    full = under({})
    if reference is not None:
        close(full, outcome(by_hand, model, masks), rtol, "full capacity and by hand")
    for plan in plans:
        assert set(plan) == set(masks)
        assert all(n < masks[axis].capacity for axis, n in plan.items()), plan
        close(under(plan), full, rtol, f"{plan} and full capacity")


def entered(model: Any, axes: dict[str, dn.Axes], masks: dn.Masks) -> tuple[Any, Any]:
    """The model beside a gate of every axis, and its axes: for layers that are alone, whose
    masks would enter nowhere.
    """
    gates = {axis: dn.Gate(axis, mask.capacity) for axis, mask in masks.items()}
    return (model, gates), {f"[0]{path}": spec for path, spec in axes.items()}


def moved(mask: Any, name: str, value: Any) -> Any:
    """The mask with one parameter replaced, in its own dtype."""
    old = getattr(mask, name)
    return eqx.tree_at(lambda m: getattr(m, name), mask, jnp.asarray(value, old.dtype))


#
# Networks of which parts are learned.
#


def width(capacity: int, size: float) -> dn.Sigmoid:
    """A mask of this size, steep enough for a dozen positions."""
    return dn.Sigmoid(capacity, size=size, temperature=12.0)


def channels(values, ndim: int = 3):
    """The values of a mask, to be multiplied along the leading of `ndim` dimensions."""
    return values.reshape(-1, *[1] * (ndim - 1))


def mlp_axes(mlp, names):
    layers = lambda m: m.layers
    nodes, axes = [], []
    for i, (below, above) in enumerate(it.pairwise([None, *names, None])):
        nodes += [lambda m, i=i: layers(m)[i].weight, lambda m, i=i: layers(m)[i].bias]
        axes += [Axes(above, None if below is None else gated(below)), Axes(above)]
    return dn.declare(mlp, lambda m: [node(m) for node in nodes], axes)


class Layered(eqx.Module):
    """Two hidden layers of learned widths "h0" and "h1"; arrays alone, but for dropout."""

    layers: list[eqx.nn.Linear]
    dropout: eqx.nn.Dropout | None

    def __init__(self, key, p=0.0):
        pairs = zip(it.pairwise([2, 24, 24, 1]), jr.split(key, 3))
        self.layers = [eqx.nn.Linear(*pair, key=k) for pair, k in pairs]
        self.dropout = eqx.nn.Dropout(p) if p > 0 else None

    def __call__(self, x, *, key=None):
        for layer in self.layers[:-1]:
            x = jnp.tanh(layer(x))
        return self.layers[-1](x if self.dropout is None else self.dropout(x, key=key))


def layered_axes(net: Layered):
    return mlp_axes(net, ("h0", "h1"))


def layered_masks(size: float = 14.0) -> dict[str, Any]:
    return {
        "h0": dn.Sigmoid(24, size=size, temperature=10.0),
        "h1": dn.Sigmoid(24, size=size - 3, temperature=16.0),
    }


def layered_parameters(a: Any, b: Any) -> Any:
    """How many a `Layered` of these widths has, counted by hand."""
    return 2 * a + a + a * b + b + b + 1


def layered_by_hand(net: Layered, masks: dn.Masks, x: jax.Array) -> jax.Array:
    """At full capacity."""
    first, second, last = net.layers
    assert first.bias is not None and second.bias is not None and last.bias is not None
    h = jnp.tanh(first.weight @ x + first.bias)
    h = jnp.tanh(second.weight @ (values(masks["h0"]) * h) + second.bias)
    return last.weight @ (values(masks["h1"]) * h) + last.bias


def descended(net: Layered, masks: dn.Masks, batch, rate, target=1.0, weight=0.0):
    """One step of gradient descent by hand: on the mean square error, and on what the number of
    parameters is over `target`.
    """

    def size(mask: Any) -> jax.Array:
        tail = jnp.log(9.0) / lax.stop_gradient(mask.temperature)
        return (mask.offset + tail + 1) * mask.capacity / 2

    def total(params):
        net, masks = params
        x, y = batch
        error = jnp.mean((jax.vmap(lambda x: layered_by_hand(net, masks, x))(x) - y) ** 2)
        complexity = layered_parameters(size(masks["h0"]), size(masks["h1"])) / target
        return error + weight * (complexity - 1) ** 2

    grads = jax.jit(jax.grad(total), compiler_options=FAST)((net, masks))
    return jtu.tree_map(lambda x, g: x - rate * g, (net, masks), grads)


def halving(net: Layered, size: float) -> dn.Budget:
    """Holds the number of parameters to that of a network of this size."""
    cost = dn.parameter_cost(net, layered_axes(net))
    return dn.Budget(cost, {"h0": size, "h1": size}, weight=1.0)


def squares(net, batch, key):
    """The mean square error, with dropout if there is a key."""
    x, y = batch
    keys = None if key is None else jr.split(key, len(x))
    over = (0, None if keys is None else 0)
    out = jax.vmap(lambda x, key: net(x, key=key), in_axes=over)(x, keys)
    return jnp.mean((out - y) ** 2)


def examples(key: jax.Array, n: int = 16) -> tuple[jax.Array, jax.Array]:
    x = noise(key, n, 2)
    return x, jnp.sin(2 * x[:, :1]) * x[:, 1:]


class ConvNet(eqx.Module):
    """Convolution, norm, depthwise convolution; then pointwise, or flattened and linear."""

    first: eqx.nn.Conv2d
    norm: eqx.Module
    depthwise: eqx.nn.Conv2d
    last: eqx.Module

    def __init__(self, norm, flatten: bool = False, *, key, **conv):
        k = jr.split(key, 3)
        self.first = eqx.nn.Conv2d(2, 12, 5, key=k[0], **conv)
        self.norm = norm
        self.depthwise = eqx.nn.Conv2d(12, 12, 3, groups=12, padding=1, key=k[1])
        if flatten:
            self.last = eqx.nn.Linear(12 * 6 * 6, 3, key=k[2])
        else:
            self.last = eqx.nn.Conv2d(12, 3, 1, key=k[2])

    def __call__(self, x):
        h = self.depthwise(self.norm(jnn.gelu(self.first(x))))  # pyright: ignore
        if isinstance(self.last, eqx.nn.Linear):
            h = h.reshape(-1)
        return self.last(h)  # pyright: ignore


def conv_axes(net: ConvNet, per_group: tuple[int, ...] = ()):
    """Learned channels, or groups of them, and kernel extents."""
    rows = fused("c", *per_group)
    axes = dn.declare(
        net,
        lambda n: (n.first.weight, n.first.bias, n.depthwise.weight, n.depthwise.bias),
        (
            Axes(rows, None, gated("ky"), gated("kx")),
            Axes(rows, None, None),
            Axes(rows, None, None, None),
            Axes(rows, None, None),
        ),
    )
    if isinstance(net.last, eqx.nn.Linear):
        columns = Axes(None, fused(gated("c"), *per_group, 6 * 6))
    else:
        columns = Axes(None, fused(gated("c"), *per_group), None, None)
    axes |= dn.declare(net, lambda n: n.last.weight, columns)
    if not isinstance(net.norm, eqx.nn.Identity):
        spec = Axes(rows, *[None] * (net.norm.weight.ndim - 1))  # pyright: ignore
        axes |= dn.declare(net, lambda n: (n.norm.weight, n.norm.bias), (spec, spec))
    return axes


def conv_masks(groups: int = 12) -> dn.Masks:
    return {
        "c": dn.Sigmoid(groups, size=0.55 * groups, temperature=12.0),
        "ky": dn.Gaussian(5, size=3.1),
        "kx": dn.Gaussian(5, size=3.9),
    }


class Attention(eqx.Module):
    """Embedding, attention after a norm, residual, norm, readout."""

    embed: eqx.nn.Embedding
    norm: eqx.nn.LayerNorm
    attention: eqx.nn.MultiheadAttention
    readout: eqx.nn.Linear

    def __init__(self, key):
        k = jr.split(key, 5)
        self.embed = eqx.nn.Embedding(7, 12, key=k[0])
        self.norm = eqx.nn.LayerNorm(12)
        self.attention = attention(4, 12, 6, 5, key=k[2])
        self.readout = eqx.nn.Linear(12, 2, key=k[3])

    def __call__(self, tokens):
        x = jax.vmap(self.embed)(tokens)
        y = jax.vmap(self.norm)(x)
        x = x + self.attention(y, y, y)
        return jax.vmap(self.readout)(jax.vmap(self.norm)(x))


def attention(heads, size, qk, vo, *, key):
    return eqx.nn.MultiheadAttention(
        heads,
        size,
        qk_size=qk,
        vo_size=vo,
        use_query_bias=True,
        use_key_bias=True,
        use_value_bias=True,
        use_output_bias=True,
        key=key,
    )


def attention_axes(net: Attention, *learned: str):
    """Of the axes heads, qk, vo and stream, those in `learned`."""
    sizes: dict[str, Any] = {"heads": 4, "qk": 6, "vo": 5}

    def name(axis: str) -> Any:
        return axis if axis in learned else sizes.get(axis)

    def gate(axis: str) -> Any:
        return gated(axis) if axis in learned else sizes.get(axis)

    queries, keys = fused(name("heads"), gate("qk")), fused(name("heads"), name("qk"))
    rows, columns = fused(name("heads"), name("vo")), fused(gate("heads"), gate("vo"))
    stream, consumer = name("stream"), gate("stream")
    declared = {
        lambda m: m.embed.weight: Axes(None, stream),
        lambda m: m.norm.weight: Axes(stream),
        lambda m: m.norm.bias: Axes(stream),
        lambda m: m.attention.query_proj.weight: Axes(queries, consumer),
        lambda m: m.attention.query_proj.bias: Axes(queries),
        lambda m: m.attention.key_proj.weight: Axes(keys, consumer),
        lambda m: m.attention.key_proj.bias: Axes(keys),
        lambda m: m.attention.value_proj.weight: Axes(rows, consumer),
        lambda m: m.attention.value_proj.bias: Axes(rows),
        lambda m: m.attention.output_proj.weight: Axes(stream, columns),
        lambda m: m.attention.output_proj.bias: Axes(stream),
        lambda m: m.readout.weight: Axes(None, consumer),
    }
    return dn.declare(net, lambda m: [node(m) for node in declared], list(declared.values()))


def attention_masks(*learned: str) -> dn.Masks:
    masks: dn.Masks = {
        "heads": dn.Sigmoid(4, size=2.6, temperature=12.0),
        "qk": width(6, 3.3),
        "vo": width(5, 2.8),
        "stream": width(12, 7.2),
    }
    return {axis: masks[axis] for axis in learned}


class Residual(eqx.Module):
    """A list of blocks, or the same blocks stacked for a scan."""

    blocks: list[eqx.nn.Linear] | eqx.nn.Linear
    gate: dn.Gate

    def __call__(self, x):
        if isinstance(self.blocks, list):
            for block, m in zip(self.blocks, self.gate()):
                x = x + m * jnn.tanh(block(x))
            return x
        step = lambda x, each: (x + each[1] * jnn.tanh(each[0](x)), None)
        return lax.scan(step, x, (self.blocks, self.gate()))[0]


def residual(stacked: bool, depth: int, key) -> tuple[Residual, dict[str, dn.Axes]]:
    linear = lambda key: eqx.nn.Linear(4, 4, key=key)

    def make(key):
        keys = jr.split(key, depth)
        blocks = jax.vmap(linear)(keys) if stacked else [linear(key) for key in keys]
        return Residual(blocks, dn.Gate("depth", depth))

    net = filled(make, key)
    if not stacked:
        return net, dn.declare(net, lambda m: m.blocks, Axes("depth"))
    specs = (Axes("depth", None, None), Axes("depth", None))
    return net, dn.declare(net, lambda m: (m.blocks.weight, m.blocks.bias), specs)


#
# Plans and policies, on the host.
#

Ladders = dict[str, tuple[int, ...]]
# Of a plan: as it is, or its sizes in the order of the axes' names.
Sizes = dn.Plan | Sequence[int]

LADDERS: Ladders = {"a": (4, 8, 12, 16), "b": (1, 2, 3), "k": (3, 5, 9)}
ONE: Ladders = {"x": (4, 8, 12, 16)}

_sigmoid, _gaussian = ft.cache(dn.Sigmoid), ft.cache(dn.Gaussian)


def ladder_masks(ladders: Ladders) -> dict[str, dn.AbstractMask]:
    """Masks of these capacities: Gaussians on the axes whose names start with k."""
    return {
        axis: (_gaussian if axis.startswith("k") else _sigmoid)(ladder[-1])
        for axis, ladder in ladders.items()
    }


@ft.cache
def _grid(ladders: tuple[tuple[str, tuple[int, ...]], ...]) -> rt.Grid:
    return rt.Grid(ladder_masks(dict(ladders)), dict(ladders))


def ladder_grid(ladders: Ladders = LADDERS) -> rt.Grid:
    return _grid(tuple(ladders.items()))


def planned(sizes: Sizes, grid: rt.Grid) -> dn.Plan:
    """The plan of these sizes."""
    return sizes if isinstance(sizes, dn.Plan) else dn.Plan(dict(zip(grid.axes, sizes)))


def total(sizes) -> float:
    return float(np.sum(sizes))


def volume(sizes) -> float:
    return float(np.prod(sizes, dtype=float))


def steady(velocity: np.ndarray, fraction: np.ndarray) -> rt.Velocity:
    """Of axes that have always moved by so many positions a step, up to these."""
    none = rt.Velocity.none(len(velocity))
    return none.update(fraction - velocity).update(fraction + 0 * velocity)


def seen(
    active: Sequence[int],
    plan: Sizes | None = None,
    *,
    step: int = 0,
    more: Sequence[int] | int = 0,
    velocity: Sequence[float] | float = 0.0,
    fraction: Sequence[float] | float = 0.0,
    grid: rt.Grid | None = None,
    timing: rt.Timing | None = None,
    compiled: Iterable[Sizes] = (),
) -> rt.Observation:
    """What a policy sees; `more` positions than the active ones are foreseen."""
    grid = ladder_grid() if grid is None else grid
    active_ = np.array(active, int)
    return rt.Observation(
        step,
        active_,
        np.minimum(active_ + more, grid.capacity),
        steady(np.zeros(len(active_)) + velocity, np.array(fraction)),
        None if plan is None else planned(plan, grid),
        grid,
        rt.Timing(total, 100.0) if timing is None else timing,
        frozenset(planned(sizes, grid) for sizes in compiled),
    )


def decisions(policy: rt.AbstractPolicy, rows, **kwargs) -> list[tuple[int, ...]]:
    """The sizes of the plan at each step of a run."""
    state, plan, found = policy.init(), None, []
    for step, row in enumerate(rows):
        state, plan = policy(state, seen(row, plan, step=step, **kwargs))
        found.append(tuple(plan.sizes.tolist()))
    return found


def each_once(plans: Iterable[Any]) -> list[Any]:
    """Those in a row that are equal, once."""
    return [plan for plan, _ in it.groupby(plans)]


def trace_of(*counts: int) -> rt.Trace:
    """A trace of one axis."""
    return rt.Trace.of(("x",), np.array(counts)[:, None])


def replayed(
    trace: rt.Trace, policy: rt.AbstractPolicy, timing: rt.Timing, ladders=ONE, **kwargs
) -> rt.Outcome:
    return rt.replay(trace, policy, ladder_masks(ladders), ladders, timing, **kwargs)


def best_of(trace: rt.Trace, timing: rt.Timing, ladders=ONE) -> rt.Oracle:
    return rt.optimum(trace, ladder_masks(ladders), ladders, timing)


def paid(trace: rt.Trace, oracle: rt.Oracle, timing: rt.Timing) -> float:
    """What an oracle pays on its own trace, added up plan by plan: all are compiled."""
    steps = [step for step, _ in oracle.switches]
    lengths = np.diff([*steps, trace.length]).tolist()
    return sum(
        timing.compile + n * timing.step(plan) for (_, plan), n in zip(oracle.switches, lengths)
    )


#
# References for convolutions and resizing.
#

# Both references are matrices, one an axis, written down from the definitions in float64:
# no transform, and no library, has a part in them.


def convolution(k, n, values=None):
    """The matrices, of shape (taps, outputs, inputs), of the linear convolution with a
    kernel of `k` taps; with `values`, then low-passed to as many samples.

    A filter of M of N frequencies works on a period of 1.5 N (M and N even) or 2 N: its
    factors are given at multiples of 1 / 2N, are linear in between, and vanish from M on.
    """
    centre = k // 2
    if values is None:
        taps, out, in_ = np.ogrid[:k, :n, :n]
        return np.asarray(out == in_ + taps - centre, float)
    m = len(values)
    p = 3 * n // 2 if m % 2 == n % 2 == 0 else 2 * n
    taps, out, in_ = np.ogrid[:k, :p, :n]
    full = np.asarray(out == (in_ + taps - centre) % p, float)
    below = np.arange(p)[np.arange(p) / p < m / (2 * n)]  # half the new sampling rate
    # The factors as a matrix on `values`: hat functions.
    hats = np.clip(1 - np.abs(below[:, None] * 2 * n / p - np.arange(m)), 0, 1)
    turns = below * (np.arange(m)[:, None, None] * n / m - np.arange(p)[:, None]) / p
    waves = np.cos(2 * np.pi * turns) * np.where(below == 0, 1, 2) / p
    low_pass = np.einsum("ipq,qv->ipv", waves, hats)
    return jnp.einsum("ipv,v,kpn->kin", low_pass, values, full)


def interpolation(m, n):
    """The matrix of the trigonometric polynomial through `m` samples, read at `n` points."""
    if m == n:
        return np.eye(n)
    q = np.arange(1, (m + 1) // 2)
    turns = np.arange(n)[:, None, None] / n - np.arange(m)[:, None] / m
    return (1 + 2 * np.cos(2 * np.pi * turns * q).sum(-1)) / m


def joint(matrices, letters):
    """Matrices of several axes as one, of all positions."""
    out = matrices[0]
    for other in matrices[1:]:
        out = jnp.einsum(f"{letters},{letters.upper()}->{_mixed(letters)}", out, other)
        out = out.reshape([math.prod(out.shape[i : i + 2]) for i in range(0, out.ndim, 2)])
    return out


def _mixed(letters):
    return "".join(a + a.upper() for a in letters)
