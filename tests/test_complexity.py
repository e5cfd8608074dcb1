import json
import math
import pathlib

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import close, shaped

import dnarch_eqx as dn
from dnarch_eqx import nn


PARTS = ("in", "mid", "out")


def ccnn(shape, depth, width, *, hidden=1):
    # Appx. C counts FFTs, so no transform may be a product with a matrix.
    return shaped(
        lambda k: nn.CCNN(
            1, 1, shape, depth=depth, width=width, hidden=hidden, transform="fft", key=k
        )
    )


def by_hand(sizes, shape, depth, width):
    """Appx. C, block by block, in float64."""
    letters = [""] if len(shape) == 1 else [".y", ".x"]
    total = 0.0
    for i in range(depth):
        r = 1.0
        for letter, n in zip(letters, shape):
            r *= sizes.get(f"blocks.{i}.resolution{letter}", n)
        in_, mid, out = (sizes.get(f"blocks.{i}.{part}", width) for part in PARTS)
        block = r * in_ * mid + r * mid * out  # two pointwise linear maps
        block += in_ * r * math.log2(r)  # the Fourier convolution of every input channel
        block += 2 * r * mid + r * out  # GELU and dropout in the middle, GELU at the end
        total += block * min(max(sizes.get("depth", depth) - i, 0.0), 1.0)
    return total


def random_sizes(rng, shape, depth, width):
    letters = [""] if len(shape) == 1 else [".y", ".x"]
    sizes = {"depth": rng.uniform(1, depth)}
    for i in range(depth):
        for letter, n in zip(letters, shape):
            sizes[f"blocks.{i}.resolution{letter}"] = rng.uniform(2, n)
        for part in PARTS:
            sizes[f"blocks.{i}.{part}"] = rng.uniform(1, width)
    return sizes


@pytest.mark.parametrize("shape", ((24,), (6, 10)))
def test_against_a_hand_computation(shape, x64):
    depth, width = 3, 11
    cost = nn.complexity(ccnn(shape, depth, width))
    jitted = jax.jit(cost)
    rng = np.random.default_rng(0)
    for _ in range(4):
        sizes = random_sizes(rng, shape, depth, width)
        assert float(jitted(sizes)) == pytest.approx(by_hand(sizes, shape, depth, width))
    # An axis that is not named counts at its capacity, one that does not matter not at all.
    kernel = "blocks.0.kernel" + (".y" if len(shape) == 2 else "")
    part = {"depth": 1.75, "blocks.1.mid": 4, "stream": 3.0, kernel: 5.0}
    assert float(cost(part)) == pytest.approx(by_hand(part, shape, depth, width))
    assert float(cost({})) == pytest.approx(by_hand({}, shape, depth, width))
    with pytest.raises(ValueError, match="`sizes` names 'blocks.0.inn'; the axes are"):
        cost({"blocks.0.inn": 1.0})


@pytest.mark.parametrize("shape", ((24,), (6, 10)))
def test_gradient_by_finite_differences(shape, x64):
    depth, width = 3, 11
    cost = jax.jit(nn.complexity(ccnn(shape, depth, width)))
    sizes = random_sizes(np.random.default_rng(1), shape, depth, width) | {"depth": 2.4}
    grads = jax.grad(cost)({axis: jnp.asarray(size) for axis, size in sizes.items()})
    assert set(grads) == set(sizes)
    for axis, size in sizes.items():
        up, down = (
            by_hand(sizes | {axis: size + e}, shape, depth, width) for e in (1e-4, -1e-4)
        )
        wanted = (up - down) / 2e-4
        assert wanted > 0 and float(grads[axis]) == pytest.approx(wanted, rel=1e-6), axis


def test_depth_counts_by_its_fraction():
    """Linear between whole depths; equal blocks count equally; the end is the capacity."""
    cost = jax.jit(nn.complexity(ccnn((24,), 4, 6)))
    at = np.asarray([cost({"depth": d}) for d in (0.0, 1.0, 2.0, 2.25, 3.0, 4.0, 5.0)])
    close(at / at[1], np.asarray([0, 1, 2, 2.25, 3, 4, 4], np.float32))


def test_a_materialized_network_counts_the_same():
    """The complexity of the smaller network at its capacity is that of the plan."""
    model = ccnn((24,), 3, 10)
    masks = nn.resolution_masks(model) | nn.width_masks(model, 5) | nn.depth_masks(model, 2)
    plan = {"depth": 2, "blocks.0.in": 7, "blocks.0.mid": 3, "blocks.1.out": 9}
    plan |= {"blocks.0.resolution": 12, "blocks.1.resolution": 20}
    build = lambda m: dn.materialize(m, nn.axes(m), masks, plan, check_coverage=False)
    small = eqx.filter_eval_shape(build, model)
    assert float(nn.complexity(small)({})) == pytest.approx(float(nn.complexity(model)(plan)))


#
# The architectures printed in Tables 6 to 8, and the complexities printed beside them.
#

TABLES = json.loads((pathlib.Path(__file__).parent / "data" / "tables.json").read_text())

# Read as floors of continuous sizes, hence with 1 added to every entry. An entry at its
# capacity is left there: sizes are clipped to it. The Fourier convolution is counted as the
# paper prints it, without channels. Then 12 of the 14 rows are met to 0.02; one is off by
# 0.022, and its printed rows are incomplete; one is off by 0.13: no reading fits it, a value
# must be misprinted.
_INCOMPLETE, _MISPRINTED = (8, "CIFAR10"), (7, "CIFAR100")


def relative(row) -> float:
    base = {140: nn.CCNN_4_140, 380: nn.CCNN_6_380}[row["width"]]
    shape = tuple(row["shape"])
    model = ccnn(shape, 2 * base.depth, 2 * base.width)
    letters = [""] if len(shape) == 1 else [".y", ".x"]
    sizes = {"depth": float(len(row["blocks"]))}
    for i, (resolution, widths) in enumerate(row["blocks"]):
        for letter, size, n in zip(letters, resolution, shape):
            sizes[f"blocks.{i}.resolution{letter}"] = min(size + 1.0, float(n))
        for part, size in zip(PARTS, widths):
            sizes[f"blocks.{i}.{part}"] = min(size + 1.0, 2.0 * base.width)
    cost = jax.jit(nn.complexity(model, per_channel=False))
    return float(cost(sizes) / cost(nn.base_sizes(model, base)))


@pytest.mark.parametrize("row", TABLES, ids=[f"{r['table']}-{r['task']}" for r in TABLES])
def test_printed_architectures_have_the_printed_complexity(row):
    name = row["table"], row["task"]
    off = abs(relative(row) - row["complexity"])
    if name == _MISPRINTED:
        assert off > 0.1
    else:
        assert off < (0.023 if name == _INCOMPLETE else 0.0205)


#
# What XLA counts (contract 7).
#


def random_plan(rng, masks, depth, width):
    plan = {"depth": int(rng.integers(1, depth + 1))}
    for axis, mask in masks.items():
        n = mask.capacity
        if "resolution" in axis:
            plan[axis] = int(rng.choice(np.arange(n // 4, n + 1, 2)))
        elif "kernel" in axis:
            plan[axis] = int(rng.choice(np.arange(3, n + 1, 2)))
        elif axis != "depth":
            plan[axis] = int(rng.integers(width // 4, width + 1))
    return plan


@pytest.mark.parametrize(
    "base", (nn.CCNN_4_140, pytest.param(nn.CCNN_6_380, marks=pytest.mark.slow))
)
def test_xla_counts_in_proportion(base):
    """At the paper's widths the pointwise linear maps are most of what runs."""
    depth, width = 2 * base.depth, 2 * base.width
    model = ccnn((64,), depth, width)
    masks = nn.kernel_masks(model) | nn.resolution_masks(model)
    masks |= nn.width_masks(model, width / 2) | nn.depth_masks(model, depth / 2)
    axes, cost = nn.axes(model), jax.jit(nn.complexity(model))
    rng = np.random.default_rng(0)

    def counted(plan) -> float:
        build = lambda m: dn.materialize(m, axes, masks, plan, check_coverage=False)
        arrays, static = eqx.partition(
            eqx.filter_eval_shape(build, model), lambda x: isinstance(x, jax.ShapeDtypeStruct)
        )
        forward = jax.jit(
            lambda arrays, x: jax.vmap(eqx.combine(arrays, static), axis_name="batch")(x)
        )
        lowered = forward.lower(arrays, jax.ShapeDtypeStruct((8, 1, 64), jnp.float32))
        analysis = lowered.cost_analysis()
        assert analysis is not None
        return float(analysis["flops"])

    plans = [random_plan(rng, masks, depth, width) for _ in range(8)]
    sizes = [{axis: float(n) for axis, n in plan.items()} for plan in plans]
    counts = [(float(cost(size)), counted(plan)) for size, plan in zip(sizes, plans)]
    (_, correlation), _ = np.corrcoef(np.asarray(counts).T)
    assert correlation > 0.99, counts
