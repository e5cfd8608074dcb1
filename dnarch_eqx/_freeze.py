import abc
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax.tree_util as jtu
from jaxtyping import PyTree

from ._axes import AxisMap, Gate
from ._blocks import is_faded
from ._masks import Masks
from ._materialize import check_plan, checked, LEAF, Slicing, values_under
from ._misc import constant, replace
from ._order import active_first
from ._plan import check_covers, exact, Plan
from ._stateful import apart, together


class AbstractFreezable(eqx.Module):
    """A module that can compute something once and for all when it is deployed."""

    @abc.abstractmethod
    def freeze(self) -> eqx.Module:
        """The module to be deployed. Called after the modules inside have been frozen."""


def freeze(
    model: PyTree,
    axes: AxisMap,
    masks: Masks,
    plan: Mapping[str, int] | None = None,
    *,
    model_state: eqx.nn.State | None = None,
) -> Any:
    """The network to be deployed: [`dnarch_eqx.materialize`][] with exact sizes, and all
    that does not depend on the input computed once.

    **Arguments:**

    - `model`, `axes`, `masks`: as for [`dnarch_eqx.materialize`][]; not traced.
    - `plan`: buckets for axes that are not to be at their exact sizes. Give the
        resolutions that the network was trained at.
    - `model_state`: as for [`dnarch_eqx.materialize`][].

    **Returns:**

    The small network, with its state if there is one. Its floating-point arrays are its
    parameters: what does not train (the values of a [`dnarch_eqx.Gate`][], which positions of
    a norm are active) is kept as integers or booleans. Dropout is as it was: see
    [`equinox.nn.inference_mode`][].

    Raises `ValueError` as [`dnarch_eqx.materialize`][] does.
    """
    whole = model if model_state is None else together(model, model_state)
    whole, masks = active_first(whole, axes, masks)
    tight = exact(masks)
    sizes = tight | ({} if plan is None else Plan(plan))
    resolved = checked(whole, axes, masks)
    check_plan(sizes, masks)
    check_covers(sizes, masks)
    exactly = frozenset(axis for axis in tight if sizes[axis] == tight[axis])
    net = settled(Slicing(resolved, values_under(masks, sizes), exactly)(whole), freeze=True)
    return net if model_state is None else apart(net)


def settled(node: Any, *, freeze: bool = False) -> Any:
    """With what masks have multiplied into no array kept as no parameter.

    - `freeze`: and what does not depend on the input computed.
    """
    children, treedef = jtu.tree_flatten(node, is_leaf=lambda x: x is not node)
    if treedef == LEAF:
        return node
    if isinstance(node, Gate) and node.stored is not None:
        return replace(node, stored=constant(node.stored))
    node = treedef.unflatten([settled(child, freeze=freeze) for child in children])
    if is_faded(node):
        node = replace(node, weight_of_block=constant(node.weight_of_block))
    return node.freeze() if freeze and isinstance(node, AbstractFreezable) else node
