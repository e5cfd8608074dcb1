import functools as ft
from collections.abc import Callable

import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
from jaxtyping import PRNGKeyArray, PyTree

from .._plan import Plan
from ._program import Program
from ._signature import Key, Signature
from ._store import Store


def predict(
    net: Callable,
    x: PyTree,
    *,
    batch_size: int,
    key: PRNGKeyArray,
) -> PyTree:
    """The outputs of a network that normalises by the statistics of its batch, which hence
    depend on the batch: the examples are mixed, and every batch has the training's size.

    **Arguments:**

    - `net`: from a batch of inputs to a batch of outputs.
    - `x`: a PyTree of arrays whose leading axis is the example.
    - `batch_size`: that of training. The last batch is filled up with other examples, whose
        outputs are dropped.
    - `key`: mixes the examples.

    **Returns:**

    The outputs, in the order of `x`.
    """
    sizes = {leaf.shape[0] for leaf in jtu.tree_leaves(x)}
    if len(sizes) != 1:
        raise ValueError(f"The arrays of `x` must agree in their leading axis, got {sizes}.")
    (n,) = sizes
    if not 0 < batch_size <= n:
        raise ValueError(
            f"`batch_size` must lie between 1 and the {n} examples, got {batch_size}."
        )
    order = jr.permutation(key, n)
    batches = -(-n // batch_size)
    filled = jnp.concatenate([order, order[: batches * batch_size - n]])
    outputs = [
        _call(net, jtu.tree_map(lambda leaf: leaf[index], x))
        for index in jnp.split(filled, batches)
    ]
    back = jnp.argsort(order)
    return jtu.tree_map(lambda *ys: jnp.concatenate(ys)[:n][back], *outputs)


@ft.cache
def _networks() -> Store:
    return Store(keep=8)


def _call(net: Callable, x: PyTree) -> PyTree:
    key = Key(Signature("net", net), Signature("x", x))
    program = _networks().get(Plan(), key)
    if program is None:
        run = lambda net, x: net(x)
        program = Program(run, (net, x), name="a network to predict with").compile()
        _networks().put(Plan(), key, program, call=0)
    return program(net, x)
