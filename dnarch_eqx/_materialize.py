import math
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, PyTree

from . import _stock as _stock  # what layers of `eqx.nn` become
from ._axes import AxisMap, Gate
from ._blocks import faded
from ._counterpart import refit
from ._fit import Fit
from ._layout import Dims, Factor, flat, Layout, resolve
from ._masks import Masks
from ._misc import replace
from ._nodes import is_number, is_shape, static_numbers
from ._plan import check_covers, counts, Plan
from ._shared import ties
from ._sizes import covered
from ._stacks import Stacks
from ._stateful import apart, together


def checked(model: PyTree, axes: AxisMap, masks: Masks) -> Layout:
    """Checks that model, axes and masks fit together, and gives what lies on each dimension
    of every declared path.

    Raises `ValueError` for all that [`dnarch_eqx.declare`][] cannot see: a mask that no
    array lies on, or that is multiplied in nowhere; a capacity on which arrays and masks
    disagree; a mask on integers; a layer that cannot be sliced as declared; a mask that is not
    finite, or holds the parameters of one that was made otherwise.
    """
    resolved = fits(model, axes, masks)
    if not _traced(masks):
        counts(masks)
    return resolved


def fits(model: PyTree, axes: AxisMap, masks: Masks) -> Layout:
    """The same, without a look at the values of masks."""
    resolved = resolve(model, axes, masks)
    # The layers say themselves what they refuse, which does not depend on the plan.
    eqx.filter_eval_shape(
        lambda model, masks: Slicing(resolved, values_under(masks, {}))(model), model, masks
    )
    return resolved


def materialize(
    model: PyTree,
    axes: AxisMap,
    masks: Masks,
    plan: Mapping[str, int],
    *,
    model_state: eqx.nn.State | None = None,
    check_coverage: bool = True,
) -> Any:
    """The user's own module, with smaller arrays: the only door between an architecture
    and a network that runs.

    Every declared dimension is sliced to its bucket; where it is gated its mask is
    multiplied in, which masks activations at the cost of the parameters, since
    `m * (W x + b) = (m * W) x + m * b`. Gradients reach weights and mask parameters
    through this function. Under every plan that covers the masks the network computes the
    same function, up to rounding (resolutions excepted, see
    [`dnarch_eqx.nn.CCNN`][]; and every learned axis must be gated somewhere).

    **Arguments:**

    - `model`: the model at its capacity: any PyTree of arrays and modules.
    - `axes`: what lies on which axis, from [`dnarch_eqx.declare`][].
    - `masks`: the learned axes. An axis without a mask is not learned.
    - `plan`: the buckets. An axis without a bucket is at its capacity.
    - `model_state`: of a model with an [`equinox.nn.State`][]: that.
    - `check_coverage`: whether to raise if an active position would be cropped. Inside jit
        that is an [`equinox.error_if`][], hence a host callback, and keeps the program
        out of JAX's persistent cache; turn it off where `plan.covers(masks)` is looked at
        otherwise.

    **Returns:**

    The model with the same structure. It holds no masks, and the static sizes of `eqx.nn`
    layers agree with its arrays. With a state the pair of both.

    Raises `ValueError` for all that [`dnarch_eqx.check`][] refuses, for buckets of axes
    without a mask, and for a plan that does not cover.
    """
    plan = plan if isinstance(plan, Plan) else Plan(plan)
    whole, resolved = _fitted(model, axes, masks, plan, model_state)
    if not _traced(masks):
        counts(masks)
    if check_coverage:
        if _traced(masks):
            masks = eqx.error_if(
                masks,
                jnp.logical_not(covered(plan, masks)),
                f"`plan` does not cover the masks: {plan} crops active positions.",
            )
        else:
            check_covers(plan, masks)
    net = Slicing(resolved, values_under(masks, plan))(whole)
    return net if model_state is None else apart(net)


def materialized(
    model: PyTree,
    axes: AxisMap,
    masks: Masks,
    plan: Mapping[str, int],
    stacks: Stacks,
    model_state: eqx.nn.State | None,
) -> Any:
    """The same for a step: with values from stacked masks, and no look at coverage."""
    whole, resolved = _fitted(model, axes, masks, plan, model_state)
    values = {}
    for axis, every in stacks.each(lambda mask: mask(mask.capacity)).items():
        kept = masks[axis].window(plan.get(axis, masks[axis].capacity))
        values[axis] = (kept.start, every[kept])
    net = Slicing(resolved, values)(whole)
    return net if model_state is None else apart(net)


def _fitted(
    model: PyTree,
    axes: AxisMap,
    masks: Masks,
    plan: Mapping[str, int],
    model_state: eqx.nn.State | None,
) -> tuple[PyTree, Layout]:
    whole = model if model_state is None else together(model, model_state)
    resolved = resolve(whole, axes, masks)
    check_plan(plan, masks)
    return whole, resolved


def check_plan(plan: Mapping[str, int], masks: Masks) -> None:
    if unknown := sorted(set(plan) - set(masks)):
        raise ValueError(
            f"`plan` has a bucket for {unknown[0]!r}, which has no mask. These have: "
            f"{sorted(masks)}."
        )
    for axis, bucket in plan.items():
        if not 0 < bucket <= masks[axis].capacity:
            raise ValueError(
                f"`plan` has bucket {bucket} for axis {axis!r}, whose capacity is "
                f"{masks[axis].capacity}."
            )


def values_under(masks: Masks, plan: Mapping[str, int]) -> dict[str, tuple[int, Array]]:
    """Where the window of each axis starts, and its mask's values there."""
    values = {}
    for axis, mask in masks.items():
        bucket = plan.get(axis, mask.capacity)
        traced = any(isinstance(x, Tracer) for x in jtu.tree_leaves(mask))
        # Traced once for all masks that are alike: there may be hundreds.
        value = _evaluated(mask, bucket) if traced else mask(bucket)
        values[axis] = (mask.window(bucket).start, value)
    return values


_evaluated = jax.jit(lambda mask, bucket: mask(bucket), static_argnums=1)


def _traced(masks: Masks) -> bool:
    return any(isinstance(x, Tracer) for x in jtu.tree_leaves(masks))


def multiplied(model: Any, resolved: Layout, factors: Mapping[str, Float[Array, " _"]]) -> Any:
    """A model at its capacity with these factors where masks are multiplied in. Its layers stay
    what they are.
    """
    return Slicing(resolved, {a: (0, x) for a, x in factors.items()}, fits=False)(model)


class Slicing:
    """One pass over a model: slices, gates, and brings static fields in line."""

    def __init__(
        self,
        layout: Layout,
        values: dict[str, tuple[int, Float[Array, " _"]]],
        exact: frozenset[str] = frozenset(),
        *,
        fits: bool = True,
    ):
        self.layout = layout
        # Whether layers become their counterparts.
        self.fits = fits
        self.starts = {axis: start for axis, (start, _) in values.items()}
        self.values = {axis: values for axis, (_, values) in values.items()}
        self.exact = exact

    def __call__(self, node: Any, path: str = "") -> Any:
        if isinstance(node, Gate):
            if node.axis not in self.values:
                return node
            values = self.values[node.axis]
            if node.values is not None:  # of a mask that the network was frozen with
                start = self.starts[node.axis]
                values = values * node.values[start : start + values.shape[0]]
            return replace(node, stored=values, size=values.shape[0])
        if isinstance(node, eqx.nn.Shared):
            return self.shared(node, path)
        dims = self.layout.get(path)
        if dims is None:
            return self.children(node, path)
        if is_number(node):
            return Fit(path, self.layout.get, self.values, self.starts, self.exact).size(
                *dims[0]
            )
        if not isinstance(node, (list, tuple)):
            return self.array(node, dims)
        ((part,),) = dims
        if part.axis not in self.values:
            return self.children(node, path)
        start, values = self.starts[part.axis], self.values[part.axis]
        kept = range(start, start + values.shape[0])
        blocks = [self(node[i], f"{path}[{i}]") for i in kept]
        if part.gated:
            blocks = [
                faded(block, m, str(part.axis), i) for i, block, m in zip(kept, blocks, values)
            ]
        return type(node)(blocks)

    def children(self, node: Any, path: str) -> Any:
        pairs, treedef = jtu.tree_flatten_with_path(node, is_leaf=lambda x: x is not node)
        if treedef == LEAF:
            return node
        node = treedef.unflatten([self(child, path + jtu.keystr(key)) for key, child in pairs])
        if not isinstance(node, eqx.Module):
            return node
        dims = lambda field: self.layout.get(f"{path}.{field}")
        fit = Fit(path, dims, self.values, self.starts, self.exact)
        numbers = {
            name: tuple(fit.size(*x) for x in lies) if is_shape(old) else fit.size(*lies[0])
            for name, old in static_numbers(node)
            if (lies := dims(name)) is not None
        }
        node = replace(node, **numbers) if numbers else node
        return refit(node, fit) if self.fits else node

    def shared(self, node: eqx.nn.Shared, path: str) -> eqx.nn.Shared:
        """With what is tied in its place, so that layers are fitted to it, and out again."""
        inside = [at for at in self.layout if at.startswith(path + ".pytree")]
        learned = any(
            part.axis in self.values for at in inside for part in flat(*self.layout[at])
        )
        for target, source, _ in ties(node):
            if source is None and learned:
                raise ValueError(
                    f"{path + target!r} is computed from what `eqx.nn.Shared` ties it to, and "
                    "learned axes lie there: only an array itself, or transposed, can be tied."
                )
        whole = self(node(), path + ".pytree")
        away = node.where(node.pytree)
        return replace(node, pytree=eqx.tree_at(node.where, whole, away))

    def array(self, x: Array, dims: Dims) -> Array:
        if not any(part.axis in self.values for part in flat(*dims)):
            return x
        # Every part gets a dimension of its own, so that fused ones are sliced like others.
        x = _shaped(x, [part.capacity for dim in dims for part in dim])
        for i, part in enumerate(part for dim in dims for part in dim):
            if part.parts:
                ends = np.cumsum([math.prod(p.capacity for p in inner) for inner in part.parts])
                pieces = jnp.split(x, ends[:-1].tolist(), axis=i)
                whole = [(Factor(None, n),) for n in x.shape]
                pieces = [
                    self.array(piece, (*whole[:i], inner, *whole[i + 1 :]))
                    for piece, inner in zip(pieces, part.parts)
                ]
                x = jnp.concatenate(pieces, axis=i)
            elif part.axis in self.values:
                start, values = self.starts[part.axis], self.values[part.axis]
                if values.shape[0] < x.shape[i]:
                    x = lax.slice_in_dim(x, start, start + values.shape[0], axis=i)
                if part.gated:
                    values = lax.convert_element_type(values, x.dtype)
                    x = lax.mul(x, lax.broadcast_in_dim(values, x.shape, (i,)))
        sizes = iter(x.shape)
        return _shaped(x, [math.prod(next(sizes) for _ in dim) for dim in dims])


def _shaped(x: Array, shape: list[int]) -> Array:
    """Not a reshape where nothing changes: they are quick, but there are hundreds."""
    return x if list(x.shape) == shape else jnp.reshape(x, shape)


LEAF = jtu.tree_structure(0)
