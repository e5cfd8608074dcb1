# Arrays that `eqx.nn.Shared` ties: they are in a model once, and read in several places.

from collections.abc import Iterator
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.tree_util as jtu


class Tie(NamedTuple):
    """An array that is another one's: paths below `eqx.nn.Shared`, and which dimension of the
    other each of its own is. Where it is computed from others, `source` is `None`.
    """

    target: str
    source: str | None
    order: tuple[int, ...]


def ties(shared: eqx.nn.Shared) -> Iterator[Tie]:
    """What is tied to what. A transposition is followed, other computations are not."""
    paths, treedef = jtu.tree_flatten_with_path(shared())
    marked = treedef.unflatten([".pytree" + jtu.keystr(path) for path, _ in paths])
    targets = jtu.tree_leaves(shared.where(marked))
    leaves, treedef = jtu.tree_flatten_with_path(shared.pytree)
    arrays = [i for i, (_, x) in enumerate(leaves) if eqx.is_array_like(x)]
    tied: list[str] = []

    def get(values: list[Any]) -> list[Any]:
        filled = [x for _, x in leaves]
        for i, x in zip(arrays, values):
            filled[i] = x
        out = jtu.tree_leaves(shared.get(treedef.unflatten(filled)))
        kept = [i for i, x in enumerate(out) if eqx.is_array_like(x)]
        tied.extend(targets[i] for i in kept)
        return [out[i] for i in kept]

    with jax.disable_jit():
        jaxpr = jax.make_jaxpr(get)([leaves[i][1] for i in arrays]).jaxpr
    made = {var: eqn for eqn in jaxpr.eqns for var in eqn.outvars}
    for target, var in zip(tied, jaxpr.outvars):
        order = tuple(range(len(var.aval.shape)))  # pyright: ignore
        while var in made and made[var].primitive is jax.lax.transpose_p:
            order = tuple(made[var].params["permutation"][i] for i in order)
            (var,) = made[var].invars
        at = jaxpr.invars.index(var) if var in jaxpr.invars else None  # pyright: ignore
        source = None if at is None else ".pytree" + jtu.keystr(leaves[arrays[at]][0])
        yield Tie(target, source, order)
