# Masks of a kind in one, so that a step has a few operations for all of them, and not hundreds
# for each: those take longer to compile than the network.

import itertools as it
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array

from ._made import arrays
from ._masks import AbstractMask, Masks
from ._misc import replace


class Stacks(eqx.Module):
    """Masks that differ in the values of their arrays alone are one, whose arrays have them in
    front.

    - `groups`: a mask a kind.
    - `names`: the axes of each.
    """

    groups: tuple[AbstractMask, ...]
    names: tuple[tuple[str, ...], ...] = eqx.field(static=True)

    def vector(self, f: Callable[..., Array], *others: "Stacks") -> Array:
        """A number of each mask: a vector along the axes, in the order of their names.

        - `others`: whose masks `f` takes, too.
        """
        if not self.groups:
            return jnp.zeros(0)
        among = zip(self.groups, *(other.groups for other in others))
        parts = [jnp.asarray(jax.vmap(f)(*groups)) for groups in among]
        names = list(it.chain(*self.names))
        order = np.array(sorted(range(len(names)), key=lambda i: names[i]))
        return parts[0] if len(parts) == 1 else jnp.concatenate(parts)[order]

    def each(self, f: Callable[[Any], Array]) -> dict[str, Array]:
        """An array of each mask."""
        found: dict[str, Array] = {}
        for group, names in zip(self.groups, self.names):
            found |= zip(names, rows(jax.vmap(f)(group)))
        return found

    def map(self, f: Callable[..., Any], *others: "Stacks | Array") -> "Stacks":
        """A mask of each, and of the masks of others, or the entries of vectors."""
        at = {name: i for i, name in enumerate(sorted(it.chain(*self.names)))}

        def part(x: Any, i: int) -> Any:
            if isinstance(x, Stacks):
                return x.groups[i]
            return x if len(at) == 1 else x[np.array([at[name] for name in self.names[i]])]

        new = [
            jax.vmap(f)(group, *(part(x, i) for x in others))
            for i, group in enumerate(self.groups)
        ]
        return Stacks(tuple(new), self.names)

    def apart(self, others: Masks) -> dict[str, AbstractMask]:
        """The masks one by one; what they do not learn is that of `others`."""
        found: dict[str, AbstractMask] = {}
        for group, names in zip(self.groups, self.names):
            learned = [jtu.tree_flatten(getattr(group, name)) for name in group.learn]
            split = [list(map(rows, leaves)) for leaves, _ in learned]
            for i, name in enumerate(names):
                fields = {
                    field: treedef.unflatten([x[i] for x in leaves])
                    for field, leaves, (_, treedef) in zip(group.learn, split, learned)
                }
                found[name] = replace(others[name], **fields)
        return {name: found[name] for name in others}


def each(masks: Masks | Stacks, f: Callable[[Any], Array]) -> dict[str, Array]:
    """An array of each mask."""
    if isinstance(masks, Stacks):
        return masks.each(f)
    return {axis: f(mask) for axis, mask in masks.items()}


def stacked(masks: Masks | Stacks) -> Stacks:
    """The masks of each kind in one."""
    if isinstance(masks, Stacks):
        return masks
    kinds: dict[Any, list[str]] = {}
    for name in sorted(masks):
        leaves, treedef = jtu.tree_flatten(masks[name])
        kind = treedef, tuple((jnp.shape(x), jnp.result_type(x)) for x in leaves)
        kinds.setdefault(kind, []).append(name)
    together = lambda names: jtu.tree_map(
        lambda *xs: jnp.stack(xs), *(masks[name] for name in names)
    )
    return Stacks(tuple(map(together, kinds.values())), tuple(map(tuple, kinds.values())))


def rows(x: Array) -> list[Array]:
    """Along the first dimension. (Not by indices, whose transposes are a sum each.)"""
    return [jnp.squeeze(row, 0) for row in lax.split(x, [1] * len(x))]


def with_learned(before: Stacks, after: Stacks) -> Stacks:
    """The masks `after`, but with what is not learned from `before`: what an optimizer's weight
    decay or noise did to that is undone.
    """
    groups = []
    for old, new in zip(before.groups, after.groups):
        fixed = [name for name in arrays(old) if name not in old.learn]
        groups.append(replace(new, **{name: getattr(old, name) for name in fixed}))
    return Stacks(tuple(groups), before.names)


def zeros_elsewhere(grads: Stacks, masks: Masks) -> dict[str, AbstractMask]:
    """Gradients one by one, zero for what is not learned."""
    floats = eqx.filter(dict(masks), eqx.is_inexact_array)
    return grads.apart(jtu.tree_map(jnp.zeros_like, floats))
