import equinox as eqx
from jaxtyping import PyTree

from ._axes import AxisMap
from ._count import add, Count, factor, number, Terms, times
from ._layout import capacities, Factor, layout
from ._masks import Masks
from ._nodes import is_shape, nodes


def parameter_cost(model: PyTree, axes: AxisMap, masks: Masks | None = None) -> Count:
    """The number of parameters as a differentiable function of the sizes: a cost for
    [`dnarch_eqx.Budget`][] that needs to know nothing of the model but its axes.

    **Arguments:**

    - `model`, `axes`: the model at its capacity, and what lies on which axis.
    - `masks`: only where fused dimensions do not tell the capacities of their parts.

    **Returns:**

    A function of a dictionary from axis to size. An axis that it lacks counts at its
    capacity.
    """
    return Count.of(
        "parameters", parameter_terms(model, axes, masks), capacities(model, axes, masks)
    )


def parameter_terms(
    model: PyTree, axes: AxisMap, masks: Masks | None, *, bytes: bool = False
) -> Terms:
    """The same as terms, or the bytes of them."""
    resolved = layout(model, axes, masks)
    sequences = {
        path: resolved[path][0][0]
        for path, node in nodes(model)
        if path in axes and isinstance(node, (list, tuple)) and not is_shape(node)
    }

    def size(part: Factor) -> Terms:
        if part.parts:
            return add(*(times(*map(size, inner)) for inner in part.parts))
        return number(part.capacity) if part.axis is None else factor(part.axis)

    total: Terms = {}
    for path, node in nodes(model):
        if not eqx.is_inexact_array(node):
            continue
        dims = resolved.get(path, tuple((Factor(None, n),) for n in node.shape))
        above = [
            factor(str(part.axis), int(path[len(prefix) + 1 : path.index("]", len(prefix))]))
            for prefix, part in sequences.items()
            if path.startswith(prefix + "[")
        ]
        each = number(node.dtype.itemsize if bytes else 1)
        here = times(each, *(size(part) for dim in dims for part in dim), *above)
        for factors, n in here.items():
            total[factors] = total.get(factors, 0.0) + n
    return total
