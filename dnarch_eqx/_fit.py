import dataclasses
import math
from collections.abc import Callable, Mapping

import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ._layout import Dims, Factor, flat
from ._masks import product


@dataclasses.dataclass(frozen=True)
class Fit:
    """What a layer is fitted to: the dimensions of its own arrays, by field name; the mask
    values of every learned axis at its bucket, and where the bucket starts; the axes whose
    bucket is their exact size.
    """

    path: str
    dims: Callable[[str], Dims | None]
    values: Mapping[str, Float[Array, " _"]]
    starts: Mapping[str, int]
    exact: frozenset[str]

    def within(self, stacked: int) -> "Fit":
        """Without the leading dimensions of layers that are stacked, to be scanned."""

        def dims(field: str) -> Dims | None:
            whole = self.dims(field)
            return None if whole is None else whole[stacked:]

        return dataclasses.replace(self, dims=dims)

    def learned(self, field: str, dim: int) -> tuple[Factor, ...]:
        """The learned parts of a dimension."""
        dims = self.dims(field)
        parts = () if dims is None else dims[dim]
        return tuple(part for part in flat(parts) if part.axis in self.values)

    def size(self, *parts: Factor) -> int:
        """How many positions are left of the product of these parts."""

        def one(part: Factor) -> int:
            if part.parts:
                return sum(self.size(*inner) for inner in part.parts)
            mask = self.mask(part)
            return part.capacity if mask is None else mask.shape[0]

        return math.prod(map(one, parts))

    def mask(self, part: Factor) -> Float[Array, " _"] | None:
        """The mask's values there; `None` where nothing is learned."""
        if part.parts and any(inner.axis in self.values for inner in flat((part,))):
            return jnp.concatenate([self._product(*inner).ravel() for inner in part.parts])
        return None if part.axis is None else self.values.get(part.axis)

    def _product(self, *parts: Factor) -> Float[Array, "..."]:
        masks = [(part, self.mask(part)) for part in parts]
        return product(*(jnp.ones(p.capacity) if mask is None else mask for p, mask in masks))

    def active(self, field: str) -> Bool[Array, "*shape"]:
        """Which positions of an array, or of a shape that the layer keeps, are active."""
        dims = self.dims(field)
        if dims is None:
            raise self.refuse(f"its `{field}` is not declared on any axis.")
        values = self._product(*(part for dim in dims for part in dim))
        return lax.stop_gradient(values).reshape([self.size(*dim) for dim in dims]) > 0

    def agree(self, one: str, dim: int, other: str, other_dim: int) -> None:
        """Refuses a layer two of whose dimensions, which are one, lie on different axes."""
        a, b = self._shown(one, dim), self._shown(other, other_dim)
        if a != b:
            raise self.refuse(
                f"dimension {dim} of its `{one}` lies on {a}, dimension {other_dim} of its "
                f"`{other}` on {b}, and they are the same: declare both on the same axes."
            )

    def _shown(self, field: str, dim: int) -> str:
        """The learned axes of a dimension, and how it is made up of them."""
        if not self.learned(field, dim):
            return "no learned axis"
        shown: list[str | int] = []
        for part in (self.dims(field) or ())[dim]:
            if part.axis in self.values:
                shown.append(repr(part.axis))
            elif part.parts and self.mask(part) is not None:
                inner = [[p.axis or p.capacity for p in flat(piece)] for piece in part.parts]
                shown.append(f"concatenated({', '.join(map(str, inner))})")
            elif shown and isinstance(shown[-1], int):
                shown[-1] *= part.capacity
            elif part.capacity > 1:
                shown.append(part.capacity)
        return f"fused({', '.join(map(str, shown))})" if len(shown) > 1 else str(shown[0])

    def refuse(self, why: str) -> ValueError:
        """The error, to be raised, that a layer cannot be sliced as declared."""
        return ValueError(f"{self.path or 'the model'!r}: {why}")
