"""Learning the kernel sizes of four blocks among 3, 5, ..., 19, in one and in two dimensions:
a training step with learned masks, under the plan of the middle candidate, over that of a
network that mixes candidates as DARTS does: the outputs of all are added up, weighted by the
softmax of architecture parameters, and weights and architecture parameters are updated in one
step. All else is the same: the norms, pointwise maps and channels of a CCNN's blocks.

- `darts/step`, `darts/memory`: a candidate is what it is in DARTS, a depthwise convolution, a
    pointwise map and a norm. The first pointwise map of a block is then among the candidates.
- `darts/depthwise`: a candidate is a depthwise convolution alone.
- `darts/merged`: such candidates could be mixed before they are applied, since they are linear:
    one convolution by the mixed kernel. No longer DARTS, but its best.

Candidates are convolved by FFTs, with one transform of the input for all of them, or each as
ours is, by [`dnarch_eqx.nn.fourier_convolution`][]; whichever is faster counts, and for the
memory whichever is smaller. On CPUs other ways are slower: sums of shifted products 4 to 9
times, XLA's depthwise convolution 15 times.
"""

import functools as ft
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.nn as jnn
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Float

import dnarch_eqx as dn
from benchmarks._common import finish, medians, Row
from benchmarks._hand_written import period
from dnarch_eqx import nn


_CANDIDATES = range(3, 20, 2)
_MIDDLE = _CANDIDATES[len(_CANDIDATES) // 2]
_DEPTH, _CLASSES = 4, 10
# Spatial shape, channels, examples.
_SIZES = {"1d": ((512,), 64, 16), "2d": ((28, 28), 32, 16)}
_REPEATS = 9


class Mixture(eqx.Module):
    """All candidates, in place of a convolution."""

    kernels: tuple[Float[Array, "channels *window"], ...]
    pointwise: tuple[nn.PointwiseLinear, ...]
    norms: tuple[nn.BatchNorm, ...]
    architecture: Float[Array, " candidates"]
    way: str = eqx.field(static=True)

    def __init__(self, channels: int, dim: int, way: str, *, separable: bool, key: Array):
        keys = jr.split(key, 2 * len(_CANDIDATES))
        self.kernels = tuple(
            jr.normal(key, (channels, *(size,) * dim)) / math.sqrt(size**dim)
            for size, key in zip(_CANDIDATES, keys)
        )
        others = keys[len(_CANDIDATES) :] if separable else ()
        self.pointwise = tuple(nn.PointwiseLinear(channels, channels, key=k) for k in others)
        self.norms = tuple(nn.BatchNorm(channels) for _ in others)
        self.architecture = jnp.zeros(len(_CANDIDATES))
        self.way = way

    def __call__(
        self, x: Float[Array, "channels *space"], features: None
    ) -> Float[Array, "channels *space"]:
        weights = jnn.softmax(self.architecture)
        if self.way == "merged":
            half = max(_CANDIDATES) // 2
            margins = lambda k: [(0, 0), *((half - n // 2,) * 2 for n in k.shape[1:])]
            padded = [jnp.pad(kernel, margins(kernel)) for kernel in self.kernels]
            return _convolve(x, _weighted(weights, padded))
        if self.way == "each":
            outputs = [_convolve(x, kernel) for kernel in self.kernels]
        else:
            outputs = _convolve_all(x, self.kernels)
        if self.pointwise:
            both = zip(self.norms, self.pointwise, outputs)
            outputs = [norm(linear(y)) for norm, linear, y in both]
        return _weighted(weights, outputs)


def _weighted(weights: Float[Array, " n"], values: Sequence[Array]) -> Array:
    weighted = (weight * value for weight, value in zip(weights, values))
    return ft.reduce(jnp.add, weighted)


def _convolve(
    x: Float[Array, "channels *space"], kernel: Float[Array, "channels *window"]
) -> Float[Array, "channels *space"]:
    return nn.fourier_convolution(x, kernel, [None] * (x.ndim - 1))


def _convolve_all(
    x: Float[Array, "channels *space"], kernels: Sequence[Float[Array, "channels *_"]]
) -> list[Array]:
    space, axes = x.shape[1:], tuple(range(1, x.ndim))
    periods = [period(n, n, max(_CANDIDATES)) for n in space]
    spectrum = jnp.fft.rfftn(x, periods, axes)
    outputs = []
    for kernel in kernels:
        k = kernel.shape[1]
        padded = jnp.pad(kernel, [(0, 0), *((0, p - k) for p in periods)])
        centred = jnp.roll(padded, [-(k // 2)] * len(axes), axes)
        y = jnp.fft.irfftn(spectrum * jnp.fft.rfftn(centred, axes=axes), periods, axes)
        outputs.append(y[(slice(None), *(slice(0, n) for n in space))])
    return outputs


class Network(eqx.Module):
    """A CCNN whose convolutions are masked ones (`way="masked"`) or mixtures."""

    encoder: nn.PointwiseLinear
    generator: nn.KernelGenerator | None
    norms: tuple[nn.BatchNorm, ...]
    convs: tuple[nn.ContinuousConv | Mixture, ...]
    linear1: tuple[nn.PointwiseLinear | None, ...]
    linear2: tuple[nn.PointwiseLinear, ...]
    decoder: nn.PointwiseLinear

    def __init__(self, shape: tuple[int, ...], channels: int, way: str, *, separable: bool):
        key, *keys = jr.split(jr.key(0), 3 * _DEPTH + 1)
        ekey, gkey, dkey = jr.split(key, 3)
        linear = lambda key: nn.PointwiseLinear(channels, channels, key=key)
        grid = (max(_CANDIDATES),) * len(shape)

        def conv(i: int, key: Array) -> nn.ContinuousConv | Mixture:
            if way != "masked":
                return Mixture(channels, len(shape), way, separable=separable, key=key)
            kernel = [dn.Gate(f"{i}.{axis}", n) for axis, n in enumerate(grid)]
            resolution = [dn.Gate("resolution", n) for n in shape]
            return nn.ContinuousConv(channels, kernel, resolution, key=key)

        self.encoder = nn.PointwiseLinear(1, channels, key=ekey)
        self.generator = None
        if way == "masked":
            self.generator = nn.KernelGenerator(grid, omega_0=10.0, key=gkey)
        self.norms = tuple(nn.BatchNorm(channels) for _ in range(_DEPTH))
        self.convs = tuple(conv(i, key) for i, key in enumerate(keys[:_DEPTH]))
        first = keys[_DEPTH : 2 * _DEPTH]
        self.linear1 = tuple(None if separable else linear(key) for key in first)
        self.linear2 = tuple(map(linear, keys[2 * _DEPTH :]))
        self.decoder = nn.PointwiseLinear(channels, _CLASSES, key=dkey)

    def __call__(self, x: Float[Array, "1 *space"]) -> Float[Array, " classes"]:
        h = self.encoder(x)
        features = None
        if self.generator is not None:
            features = self.generator([_MIDDLE] * (x.ndim - 1))
        blocks = zip(self.norms, self.convs, self.linear1, self.linear2)
        for norm, conv, first, second in blocks:
            y = conv(norm(h), features)  # pyright: ignore[reportArgumentType]
            y = jnn.gelu(y if first is None else first(y))
            h = h + jnn.gelu(second(y))
        return self.decoder(jnp.mean(h, range(1, h.ndim)))


def run(path: Path | None) -> None:
    rows = []
    for name, (shape, channels, examples) in _SIZES.items():
        x = jr.normal(jr.key(0), (examples, 1, *shape))
        batch = x, jr.randint(jr.key(1), (examples,), 0, _CLASSES)
        rows += _rows(name, batch, shape, channels)
    worst = max(row.value for row in rows if row.name.startswith("darts/step/"))
    finish([Row("darts/step", worst, "x", "<= 0.20"), *rows], path)


def _rows(name: str, batch: Any, shape: tuple[int, ...], channels: int) -> list[Row]:
    runs, memory = {}, {}
    for key, way in {
        "masked": "masked",
        "fourier": "fourier",
        "each": "each",
        "depthwise/fourier": "fourier",
        "depthwise/each": "each",
        "merged": "merged",
    }.items():
        network = Network(shape, channels, way, separable=key in ("fourier", "each"))
        masks = {
            gate.axis: dn.Gaussian(gate.size, size=_MIDDLE)
            for conv in network.convs
            if isinstance(conv, nn.ContinuousConv)
            for gate in conv.kernel
        }
        plan = dn.Plan({axis: _MIDDLE for axis in masks})
        learner = dn.Learner(_loss, dn.adamw(1e-3, steps=1000), {}, strict=False)
        args = learner.init(network, masks), batch, plan
        runs[key] = lambda learner=learner, args=args: learner.step(*args)
        analysis: Any = learner.lower(*args).compile().memory_analysis()
        memory[key] = analysis.temp_size_in_bytes
    seconds = medians(runs, _REPEATS)

    def ratio(costs: Mapping[str, float], prefix: str = "") -> float:
        return costs["masked"] / min(costs[f"{prefix}fourier"], costs[f"{prefix}each"])

    return [
        Row(f"darts/step/{name}", ratio(seconds), "x"),
        Row(f"darts/memory/{name}", ratio(memory), "x"),
        Row(f"darts/depthwise/step/{name}", ratio(seconds, "depthwise/"), "x"),
        Row(f"darts/depthwise/memory/{name}", ratio(memory, "depthwise/"), "x"),
        Row(f"darts/merged/{name}", seconds["masked"] / seconds["merged"], "x"),
        *(Row(f"{key}/{name}/milliseconds", 1e3 * s, "ms") for key, s in seconds.items()),
        *(Row(f"{key}/{name}/temporary", m / 2**20, "MiB") for key, m in memory.items()),
    ]


def _loss(net, batch, key):
    del key
    x, y = batch
    logits = jax.vmap(net, axis_name="batch")(x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
