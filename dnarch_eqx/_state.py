from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import optax
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, PyTree

from ._axes import AxisMap
from ._masks import AbstractMask, as_single, check_masks, Masks
from ._materialize import checked as fit
from ._stateful import together


class State(eqx.Module):
    """All that training changes. Everything keeps its full shape whatever the plan.

    - `model_state`: what layers like [`equinox.nn.BatchNorm`][] keep outside of the model.
    - `settled`: whether masks stay as they are from now on.
    """

    model: PyTree
    masks: dict[str, AbstractMask]
    opt_state: PyTree
    step: Int[Array, ""]
    model_state: eqx.nn.State | None
    settled: Bool[Array, ""]


class StepInfo(eqx.Module):
    """What a step reports, beside the new state.

    - `loss`: the task's loss, without the budget.
    - `complexity`: that over its target, before the update, of the continuous sizes; 1 without
        a budget, with several one each.
    - `deployed`: the same of whole positions, as the network would be deployed.
    - `metrics`: what the loss returned beside its value, if it did.
    - `flags`: whether the plan covered the masks, and whether each of
        [`dnarch_eqx.checked`][] is finite.
    - `signals`: what a planner fetches at every step, as one array. The first column: whether
        the plan covered the masks, and whether everything is finite. The others: the active
        counts before the update, in the order of the axes' names, and the same before rounding.

    The properties below give their parts, on the host where they are not traced.
    """

    loss: Float[Array, ""]
    complexity: Float[Array, "*budgets"]
    deployed: Float[Array, "*budgets"]
    metrics: PyTree
    flags: Bool[Array, " flags"]
    signals: Float[Array, "2 signals"]

    @property
    def covered(self) -> Any:
        """Whether the plan covered the masks. Where not, the state did not change."""
        return _on_host(self.signals)[..., 0, 0] > 0

    @property
    def finite(self) -> Any:
        """Whether everything is. Where not, the state did not change, unless that was to be
        ignored.
        """
        return _on_host(self.signals)[..., 1, 0] > 0

    @property
    def active(self) -> Any:
        """The active counts, of shape `(axes,)`."""
        return _on_host(self.signals)[..., 0, 1:].astype(np.int32)

    @property
    def position(self) -> Any:
        """The active counts before rounding, of shape `(axes,)`."""
        return _on_host(self.signals)[..., 1, 1:]


def init(
    model: PyTree,
    masks: Masks,
    axes: AxisMap,
    optim: optax.GradientTransformation,
    model_state: eqx.nn.State | None = None,
) -> State:
    """The state that training starts from.

    **Arguments:**

    - `model`: at its capacity.
    - `masks`: the learned axes; kept in single precision at least.
    - `axes`: what lies on which axis.
    - `optim`: an Optax transformation of the pair `(model, masks)`.
    - `model_state`: of a model from [`equinox.nn.make_with_state`][]: its state.

    Raises `ValueError` if model, axes and masks do not fit together, if weights are not finite
    or in float16, whose range is too small for gradients and for Adam's epsilon.
    """
    check_masks(masks)
    if model_state is not None:
        # A copy, as one that was used is invalid; of arrays that training does not share.
        model_state = jtu.tree_map(jnp.asarray, model_state)
        fit(together(model, jtu.tree_map(lambda x: x, model_state)), axes, masks)
    fit(model, axes, masks)
    for path, x in jtu.tree_leaves_with_path(eqx.filter(model, eqx.is_inexact_array)):
        if x.dtype == jnp.float16:
            raise ValueError(
                f"`model{jtu.keystr(path)}` is in float16, too coarse for gradients and for "
                "Adam's epsilon: use bfloat16 or float32."
            )
        known = not isinstance(x, Tracer) and getattr(x, "is_fully_addressable", True)
        if known and not np.all(np.isfinite(np.asarray(x).astype(np.complex64))):
            raise ValueError(f"`model{jtu.keystr(path)}` is not finite.")
    masks = as_single(masks)
    opt_state = optim.init(eqx.filter((model, masks), eqx.is_inexact_array))
    step, settled = jnp.zeros((), jnp.int32), jnp.zeros((), bool)
    return State(model, dict(masks), opt_state, step, model_state, settled)


def checked(state: State) -> tuple[str, ...]:
    """What the flags of [`dnarch_eqx.StepInfo`][] after the first are about, in their order:
    the loss, the complexity, the model's state if it has one, gradient and update of every
    weight, and of every mask.
    """
    arrays = eqx.filter(state.model, eqx.is_inexact_array)
    weights = [jtu.keystr(path) for path, _ in jtu.tree_leaves_with_path(arrays)]
    return (
        "the loss",
        "the complexity",
        *([] if state.model_state is None else ["the model's state"]),
        *(f"the gradient or update of `model{path}`" for path in weights),
        *(
            f"the gradient or update of the mask of axis {axis!r}"
            for axis in sorted(state.masks)
        ),
    )


def _on_host(x: Any) -> Any:
    return x if isinstance(x, Tracer) else np.asarray(x)
