import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from ._axes import AxisMap
from ._budget import Budget
from ._budgets import Budgets, listed
from ._custom_types import Loss
from ._embed import embed_state
from ._hold import along, held as nearer
from ._masks import AbstractMask, Masks
from ._materialize import materialized
from ._misc import as_float, computed_once
from ._stacks import stacked, Stacks, with_learned, zeros_elsewhere
from ._state import State, StepInfo


# What becomes of a step whose loss, gradient or update is not finite: it is an error, it is
# left out, or it is taken like any other (masks never are: they stay where they were).
OnNonfinite: TypeAlias = Literal["raise", "skip", "ignore"]


# Folded into a step's key for masks that are random: the loss has the key as it is.
_OF_MASKS = 0x6D61736B

# From (state, batch, key, budget) under a plan to (state, info).
Step: TypeAlias = Callable[
    [State, PyTree, PRNGKeyArray | None, Budgets, Mapping[str, int]],
    tuple[State, StepInfo],
]


def make_step(
    loss: Loss,
    optim: optax.GradientTransformation,
    axes: AxisMap,
    *,
    has_aux: bool = False,
    on_nonfinite: OnNonfinite = "raise",
) -> Step:
    """The training step as one pure function: materialize, loss and budget, update, projection.

    **Arguments:**

    - `loss`: `loss(net, batch, key)`, an ordinary loss of an ordinary module: `net` is
        materialized. Where the state has a `model_state` it is `loss(net, model_state, batch,
        key)`, and returns the new one beside its value: `(value, model_state)`, or `(value,
        (model_state, metrics))`.
    - `optim`: an Optax transformation of the pair `(model, masks)`, see
        [`dnarch_eqx.adamw`][]. It is given the loss as `value=`.
    - `axes`: what lies on which axis.
    - `has_aux`: whether the loss returns `(value, metrics)`.
    - `on_nonfinite`: with `"raise"` and `"skip"` a step of which anything is not finite leaves
        the state as it was (to raise is left to who sees its flags). With `"ignore"` weights
        take the update, masks do not.

    **Returns:**

    `step(state, batch, key, budget, plan)`, which returns the new [`dnarch_eqx.State`][] and a
    [`dnarch_eqx.StepInfo`][]. `budget` is one, several or none. Only `plan` is static: the
    budget's target and weight can change without another compilation.

    !!! Example

        ```python
        step = eqx.filter_jit(dn.make_step(loss, optim, axes))
        state, info = step(state, batch, key, budget, plan)
        ```
    """
    _check_arguments(loss, optim, on_nonfinite)
    optim = optax.with_extra_args_support(optim)

    def step(state, batch, key, budget, plan):
        _check_state(state, optim)

        held = state.model_state
        budgets = [one.at(state.step) for one in listed(budget)]
        before = stacked(state.masks)

        def objective(params: tuple[PyTree, Stacks]) -> tuple[Float[Array, ""], Any]:
            model, masks = params
            drawn = _drawn(masks, key, state.settled)
            net = materialized(model, axes, state.masks, plan, drawn, held)
            if held is None:
                value, metrics = _evaluated(loss(net, batch, key), has_aux)
                after = None
            else:
                value, (after, metrics) = _stateful(loss(*net, batch, key), has_aux)
                after = embed_state(after, held, model, axes, state.masks, plan)
            penalties = [b(masks) for b in budgets if b.hold == "penalty"]
            total = sum((x.astype(value.dtype) for x in penalties), start=value)
            return total, (value, metrics, after)

        (_, (value, metrics, after)), grads = eqx.filter_value_and_grad(
            objective, has_aux=True
        )((state.model, before))
        complexity, deployed = _complexities(budget, budgets, before)
        # JAX's gradient of a complex number is the conjugate of the direction of ascent.
        grads = jtu.tree_map(lambda g: g.conj() if jnp.iscomplexobj(g) else g, grads)
        trades = along(grads[1], before, budgets)
        params = (state.model, state.masks)
        arrays = eqx.filter(params, eqx.is_inexact_array)
        given: Any = (grads[0], zeros_elsewhere(trades, state.masks))
        updates, opt_state = optim.update(given, state.opt_state, arrays, value=value)
        model, new_masks = eqx.apply_updates(params, updates)
        masks = stacked(new_masks)

        counts, covered = _counted(before, state.masks, plan)
        fine = [jnp.isfinite(value), jnp.all(jnp.isfinite(complexity))]
        if after is not None:
            arrays = jtu.tree_leaves(eqx.filter(after, eqx.is_inexact_array))
            fine.append(jnp.all(jnp.array([jnp.all(jnp.isfinite(x)) for x in arrays])))
        fine += _finite(grads[0], eqx.filter(model, eqx.is_inexact_array))
        sound = _sound(trades, masks)
        flags = jnp.concatenate([jnp.stack([covered, *fine]), sound])
        masks = with_learned(before, masks).map(lambda mask: mask.project())
        masks = nearer(masks, budgets)
        if on_nonfinite == "ignore":
            masks = masks.map(_kept, before, sound)
        # A step that cropped an active position is not accepted: nothing changes.
        finite = jnp.all(flags[1:])
        accepted = covered if on_nonfinite == "ignore" else covered & finite
        accepted = computed_once(accepted.astype(jnp.float32)) > 0.5
        masks = _where(accepted & ~state.settled, masks, before).apart(state.masks)
        rest = (model, opt_state, state.step + 1, after)
        old = (state.model, state.opt_state, state.step, held)
        model, opt_state, count, after = _where(accepted, rest, old)
        new = State(model, masks, opt_state, count, after, state.settled)
        first = jnp.stack([covered, finite]).astype(jnp.float32)[:, None]
        signals = jnp.concatenate([first, counts], axis=1)
        return new, StepInfo(value, complexity, deployed, metrics, flags, signals)

    return step


def _drawn(masks: Stacks, key: PRNGKeyArray | None, still: Bool[Array, ""]) -> Stacks:
    """The masks that this step uses."""
    if all(type(group).drawn is AbstractMask.drawn for group in masks.groups):
        return masks
    if key is None:
        return masks.map(lambda mask: mask.drawn(None, still))
    keys = jr.split(jr.fold_in(key, _OF_MASKS), sum(map(len, masks.names)))
    return masks.map(lambda mask, key: mask.drawn(key, still), keys)


def _complexities(
    given: Budgets, budgets: Sequence[Budget], masks: Stacks
) -> tuple[Float[Array, "*budgets"], Float[Array, "*budgets"]]:
    """Counted, and of whole positions; 1 without a budget, of several a vector."""
    if not budgets:
        return as_float(1.0), as_float(1.0)
    both = [(budget.complexity(masks), budget.deployed(masks)) for budget in budgets]
    counted, deployed = zip(*both)
    if isinstance(given, Budget):
        return counted[0], deployed[0]
    return jnp.stack(counted), jnp.stack(deployed)


def _finite(grads: PyTree, new: PyTree) -> list[Bool[Array, ""]]:
    """Leaf by leaf, whether gradient and new value are finite."""
    pairs = zip(jtu.tree_leaves(grads), jtu.tree_leaves(new))
    return [jnp.all(jnp.isfinite(a) & jnp.isfinite(b)) for a, b in pairs]


def _sound(grads: Stacks, new: Stacks) -> Bool[Array, " axes"]:
    """Axis by axis, whether the mask's gradients and new values are finite: by their sums."""
    total = lambda *pair: sum(
        (jnp.sum(x).astype(jnp.float32) for x in jtu.tree_leaves(pair)), start=jnp.float32(0)
    )
    return jnp.isfinite(grads.vector(total, new))


def _kept(new: AbstractMask, old: AbstractMask, which: Bool[Array, ""]) -> AbstractMask:
    return jtu.tree_map(lambda a, b: jnp.where(which, a, b), new, old)


def _where(which: Bool[Array, ""], new: PyTree, old: PyTree) -> PyTree:
    return jtu.tree_map(
        lambda a, b: lax.select(which, a, jnp.asarray(b)) if eqx.is_array(a) else a, new, old
    )


def _counted(
    stacks: Stacks, masks: Masks, plan: Mapping[str, int]
) -> tuple[Float[Array, "2 axes"], Bool[Array, ""]]:
    """The active counts, before rounding too, and whether the plan holds them."""
    active = stacks.vector(lambda mask: mask.active()).astype(jnp.int32)
    position = stacks.vector(lambda mask: mask.position()).astype(jnp.float32)
    buckets = [plan.get(axis, masks[axis].capacity) for axis in sorted(masks)]
    covered = jnp.all(active <= np.array(buckets, np.int32))
    # Counts are exact in float32.
    return jnp.stack([active.astype(jnp.float32), position]), covered


#
# What users get wrong, said before anything is computed.
#


def _check_arguments(loss: Any, optim: Any, on_nonfinite: str) -> None:
    if not all(callable(getattr(optim, name, None)) for name in ("init", "update")):
        raise ValueError(
            f"`optim` must be an Optax transformation, as `dn.adamw(...)` gives, not {optim!r}."
        )
    if on_nonfinite not in ("raise", "skip", "ignore"):
        raise ValueError(
            f"`on_nonfinite` must be 'raise', 'skip' or 'ignore', got {on_nonfinite!r}."
        )
    if not callable(loss):
        raise ValueError(f"`loss` must be a function of (net, batch, key), got {loss!r}.")
    try:
        signature = inspect.signature(loss)
    except ValueError:  # one that cannot be looked at
        return
    if not any(_takes(signature, count) for count in (3, 4)):
        raise ValueError(
            "`loss` must take three arguments, (net, batch, key), or with a state of the model "
            f"four, (net, model_state, batch, key); it takes {signature}."
        )


def _takes(signature: inspect.Signature, count: int) -> bool:
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    return True


def _check_state(state: Any, optim: optax.GradientTransformation) -> None:
    """While the step is traced."""
    for axis, mask in state.masks.items():
        for x in jtu.tree_leaves(eqx.filter(mask, eqx.is_inexact_array)):
            if jnp.finfo(x.dtype).bits < 32:
                raise ValueError(
                    f"The mask of axis {axis!r} is in {x.dtype}, too coarse for it to move: "
                    "keep masks in float32, as `Learner.init` gives them."
                )
    arrays = eqx.filter((state.model, state.masks), eqx.is_inexact_array)
    wanted, given = jax.eval_shape(optim.init, arrays), state.opt_state
    shapes = lambda tree: [getattr(x, "shape", ()) for x in jtu.tree_leaves(tree)]
    same = jtu.tree_structure(wanted) == jtu.tree_structure(given)
    if not same or shapes(wanted) != shapes(given):
        raise ValueError(
            "`state.opt_state` is not that of this learner's optimizer and model; "
            f"`Learner.init` makes it. Wanted\n{wanted}\nand got\n{given}."
        )


def _stateful(
    result: Any, has_aux: bool
) -> tuple[Float[Array, ""], tuple[eqx.nn.State, PyTree]]:
    """The value of a loss, the state that it returns, and its metrics."""
    value, other = _evaluated(result, True)
    pair = isinstance(other, tuple) and len(other) == 2
    after, metrics = (other if pair else (None, None)) if has_aux else (other, None)
    if not isinstance(after, eqx.nn.State):
        wanted = "(value, (model_state, metrics))" if has_aux else "(value, model_state)"
        raise ValueError(
            f"The loss of a model with a state returns {wanted}; got {_kind(other)} beside the "
            "value."
        )
    return value, (after, metrics)


def _evaluated(result: Any, has_aux: bool) -> tuple[Float[Array, ""], PyTree]:
    """The value of a loss and its metrics."""
    metrics = None
    if has_aux:
        if not (isinstance(result, tuple) and len(result) == 2):
            raise ValueError(
                f"With `has_aux=True` a loss returns (value, metrics); got {_kind(result)}."
            )
        result, metrics = result
    elif isinstance(result, tuple):
        raise ValueError("`loss` returns a tuple: give `has_aux=True`.")
    value = result
    if not (
        eqx.is_array(value) and value.shape == () and jnp.issubdtype(value.dtype, jnp.floating)
    ):
        raise ValueError(f"`loss` must return a real number, as an array; got {_kind(value)}.")
    return value, metrics


def _kind(x: Any) -> str:
    return f"{x.dtype} of shape {x.shape}" if eqx.is_array(x) else repr(x)
