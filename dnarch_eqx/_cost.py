import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import equinox as eqx
from jaxtyping import Array, Float, PyTree

from ._axes import AxisMap
from ._custom_types import Cost, Sizes
from ._layout import capacities, Factor, layout
from ._masks import Masks
from ._misc import as_float, known
from ._nodes import is_shape, nodes
from ._sizes import present


def parameter_cost(model: PyTree, axes: AxisMap, masks: Masks | None = None) -> Cost:
    """The number of parameters as a differentiable function of the sizes: a cost for
    [`dnarch_eqx.Budget`][] that needs to know nothing of the model but its axes.

    **Arguments:**

    - `model`, `axes`: the model at its capacity, and what lies on which axis.
    - `masks`: only where fused dimensions do not tell the capacities of their parts.

    **Returns:**

    A function of a dictionary from axis to size. An axis that it lacks counts at its
    capacity.
    """
    resolved = layout(model, axes, masks)
    sequences = {
        path: resolved[path][0][0]
        for path, node in nodes(model)
        if path in axes and isinstance(node, (list, tuple)) and not is_shape(node)
    }
    terms: list[tuple[tuple[Factor, ...], tuple[tuple[Factor, int], ...]]] = []
    for path, node in nodes(model):
        if eqx.is_inexact_array(node):
            dims = resolved.get(path, tuple((Factor(None, n),) for n in node.shape))
            above = tuple(
                (part, int(path[len(prefix) + 1 : path.index("]", len(prefix))]))
                for prefix, part in sequences.items()
                if path.startswith(prefix + "[")
            )
            terms.append((tuple(part for dim in dims for part in dim), above))
    return _ParameterCost(tuple(terms), tuple(capacities(model, axes, masks).items()))


@dataclasses.dataclass(frozen=True)
class _ParameterCost:
    """Of arrays of these factors, in elements of sequences. Comparable, as programs depend on
    it: one that is made again is the same.
    """

    terms: tuple[tuple[tuple[Factor, ...], tuple[tuple[Factor, int], ...]], ...]
    capacities: tuple[tuple[str, int], ...]

    def __call__(self, sizes: Sizes) -> Float[Array, ""]:
        check_sizes(sizes, dict(self.capacities))

        def size(part: Factor) -> Float[Array, ""]:
            if part.parts:
                return as_float(sum(math.prod(map(size, inner)) for inner in part.parts))
            return as_float(
                part.capacity if part.axis is None else sizes.get(part.axis, part.capacity)
            )

        total = as_float(0.0)
        for parts, above in self.terms:
            count = math.prod((size(part) for part in parts), start=as_float(1.0))
            for part, index in above:
                count = count * present(size(part), part.capacity)[index]
            total = total + count
        return total


def check_sizes(sizes: Any, capacities: Mapping[str, int]) -> None:
    """Raises `ValueError` for sizes of other axes, and for those, if they are known, that no
    axis of this capacity can have.
    """
    if not isinstance(sizes, Mapping):
        raise ValueError(f"`sizes` must be a dictionary from axis to size, got {sizes!r}.")
    for axis, size in sizes.items():
        if axis not in capacities:
            raise ValueError(f"`sizes` names {axis!r}; the axes are {sorted(capacities)}.")
        x = known(f"sizes[{axis!r}]", size)
        if x is not None and not 0 <= x <= capacities[axis]:
            raise ValueError(
                f"`sizes` has {size} for axis {axis!r}; sizes lie between 0 and the capacity, "
                f"here {capacities[axis]}."
            )
