"""Predictions of networks that normalise by the statistics of their batch."""

import gc
import weakref

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import same

import dnarch_eqx as dn
from dnarch_eqx import runtime as rt


class Batch(eqx.Module):
    """Returns what it was given, and for each example which ones are in its batch: example i
    as bit i of a number, and how many there are.
    """

    scale: jax.Array

    def __call__(self, x):
        bits = jnp.left_shift(1, x["index"])
        n = len(bits)
        return {"index": x["index"], "row": x["row"], "bits": jnp.repeat(bits.sum(), n), "n": n}


def examples(n: int):
    return {"index": jnp.arange(n), "row": jnp.arange(2.0 * n).reshape(n, 2)}


def batches(n: int, batch_size: int, key) -> list[list[int]]:
    """Which examples are in the batch that the i-th one's output is of."""
    net = lambda x: Batch(jnp.ones(()))(x) | {"n": jnp.full(len(x["index"]), len(x["index"]))}
    y = dn.predict(net, examples(n), batch_size=batch_size, key=key)
    assert y["n"].tolist() == [batch_size] * n, "all have the training's size"
    order = {name: y[name] for name in ("index", "row")}
    assert same(order, examples(n)), "in the order of `x`"
    return [[i for i in range(n) if bits >> i & 1] for bits in y["bits"].tolist()]


@pytest.mark.parametrize("n, batch_size", [(12, 4), (10, 4), (5, 5)])
def test_predict(n, batch_size, getkey):
    found = batches(n, batch_size, getkey())
    # Whole batches, of different examples, each with the one that it is for.
    assert all(len(batch) == batch_size and i in batch for i, batch in enumerate(found))
    distinct = sorted({tuple(batch) for batch in found})
    assert len(distinct) == -(-n // batch_size)
    # Every example is in one, but for those that fill the last one up.
    counts = np.bincount(np.concatenate(distinct), minlength=n)
    assert counts.min() == 1 and counts.sum() == len(distinct) * batch_size
    assert counts.max() <= 2


def test_predict_mixes_by_its_key(getkey):
    key = getkey()
    assert batches(12, 3, key) == batches(12, 3, key)
    blocks = [[3 * (i // 3) + j for j in range(3)] for i in range(12)]
    others = [batches(12, 3, getkey()) for _ in range(4)]
    assert all(other != blocks for other in others), "neighbours are not kept together"
    assert len({str(other) for other in others}) > 1


class Mean(eqx.Module):
    scale: jax.Array

    def __call__(self, x):
        return self.scale * (x - x.mean(0))


def test_networks_that_are_alike_are_compiled_once(getkey):
    x, key = jnp.arange(12.0), getkey()
    dn.predict(Mean(jnp.float32(2)), x, batch_size=12, key=key)
    with rt.forbid_compilation():
        y = dn.predict(Mean(jnp.float32(3)), x, batch_size=12, key=key)
    np.testing.assert_allclose(y, 3 * (np.arange(12) - 5.5), rtol=1e-6)


class Add:
    """No module: another network each time."""

    def __init__(self, number):
        self.number = number

    def __call__(self, x):
        return x + self.number


def test_networks_are_not_kept_for_ever(getkey):
    x, key = jnp.arange(4.0), getkey()

    def used(i: int) -> weakref.ref:
        net = Add(i)
        y = dn.predict(net, x, batch_size=2, key=key)
        assert y.tolist() == [i, i + 1, i + 2, i + 3]
        return weakref.ref(net)

    nets = [used(i) for i in range(20)]
    gc.collect()
    assert sum(net() is not None for net in nets) <= 8


@pytest.mark.parametrize("batch_size", [0, 13, -1])
def test_predict_errors(batch_size, getkey):
    x = {"a": jnp.zeros(12), "b": jnp.zeros((12, 2))}
    net = lambda x: x["a"]
    message = f"`batch_size` must lie between 1 and the 12 examples, got {batch_size}"
    with pytest.raises(ValueError, match=message):
        dn.predict(net, x, batch_size=batch_size, key=getkey())
    with pytest.raises(ValueError, match=r"must agree in their leading axis, got \{.*\}"):
        dn.predict(net, x | {"b": jnp.zeros(3)}, batch_size=2, key=getkey())
