"""Masks of a kind in one: what they are one by one."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import optax
import pytest

import dnarch_eqx as dn
from dnarch_eqx._stacks import each, rows, stacked, zeros_elsewhere


MASKS: dict[str, Any] = {
    "c": dn.Sigmoid(16, size=7.0),
    "k": dn.Gaussian(9, size=5.0),
    "a": dn.Sigmoid(16, size=12.0),
    "d": dn.Sigmoid(8, size=3.0),
    "b": dn.Sigmoid(16, size=9.0, learn=("offset", "temperature")),
    "l": dn.HardConcrete(5),
    "e": dn.Sigmoid(16, size=4.0, temperature=40.0),
}


def test_there_and_back():
    some = stacked(MASKS)
    # By capacity, class and what is learned; temperatures are values.
    assert sorted(map(sorted, some.names)) == [["a", "c", "e"], ["b"], ["d"], ["k"], ["l"]]
    back = some.apart(MASKS)
    assert list(back) == list(MASKS) and eqx.tree_equal(back, MASKS)
    assert stacked(some) is some


def test_vectors_are_in_the_order_of_names():
    some = stacked(MASKS)
    for f in (lambda m: m.size(), lambda m: m.active(), lambda m: jnp.sum(m())):
        wanted = [float(f(MASKS[axis])) for axis in sorted(MASKS)]
        np.testing.assert_allclose(some.vector(f), wanted, rtol=1e-6)
        np.testing.assert_allclose(
            [float(some.each(f)[axis]) for axis in sorted(MASKS)], wanted, rtol=1e-6
        )
        assert each(MASKS, f).keys() == MASKS.keys()
    factors = jnp.arange(1.0, 8.0)
    new = some.map(lambda m, by: m.resized(by), factors).apart(MASKS)
    for by, axis in zip(factors, sorted(MASKS)):
        wanted = MASKS[axis].resized(by)
        close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5)
        jtu.tree_map(close, new[axis], wanted)
    assert stacked({}).vector(lambda m: m.size()).shape == (0,)


def test_gradients_are_those_of_each():
    some = stacked(MASKS)
    total = lambda masks: sum(
        float(i + 1) * jnp.sum(x**2)
        for i, (_, x) in enumerate(sorted(each(masks, lambda m: m()).items()))
    )
    grads = zeros_elsewhere(eqx.filter_grad(total)(some), MASKS)
    wanted = eqx.filter_grad(total)(MASKS)
    for axis, mask in MASKS.items():
        for name in ("offset", "temperature", "sigma", "mean", "log_alpha", "made"):
            if not hasattr(mask, name):
                continue
            given = getattr(grads[axis], name)
            if name in mask.learn:
                np.testing.assert_allclose(given, getattr(wanted[axis], name), rtol=1e-5)
                assert np.any(given != 0)
            else:
                assert not np.any(given)


class Counting(dn.Sigmoid):
    """A user's own, with an array of whole numbers."""

    seen: jax.Array

    def __init__(self, capacity, **kwargs):
        super().__init__(capacity, **kwargs)
        self.seen = jnp.arange(3)


def test_masks_with_whole_numbers_train():
    net = eqx.nn.MLP(2, 2, 8, 1, key=jax.random.key(0))
    axes, masks = dn.find_axes(net, jnp.ones(2)).learn()
    masks = {axis: Counting(mask.capacity, size=5.0) for axis, mask in masks.items()}
    loss = lambda net, x, key: jnp.mean(jax.vmap(net)(x) ** 2)
    with jax.numpy_dtype_promotion("standard"):
        learner = dn.Learner(loss, optax.chain(optax.clip(1.0), optax.adam(1e-2)), axes)
        state = learner.init(net, masks)
        new, info = learner.step(state, jnp.ones((4, 2)), {})
    assert info.finite
    for axis, mask in masks.items():
        trained: Any = new.masks[axis]
        assert trained.offset != mask.offset
        assert np.array_equal(trained.seen, [0, 1, 2])


def test_few_operations():
    """A hundred masks of a kind take hardly more of them than one."""
    masks = {f"h{i}": dn.Sigmoid(16, size=3.0 + i % 9) for i in range(100)}
    count = lambda some: str(
        jax.make_jaxpr(lambda m: stacked(m).vector(lambda x: x.size()))(some)
    ).count("\n")
    one = {"h": dn.Sigmoid(16, size=3.0)}
    # To stack them, an operation for each of its arrays.
    assert count(masks) - count(one) < 3.2 * 100


@pytest.mark.parametrize("n", [1, 4])
def test_rows(n):
    x = jnp.arange(3.0 * n).reshape(n, 3)
    assert [np.asarray(row).tolist() for row in rows(x)] == np.asarray(x).tolist()
