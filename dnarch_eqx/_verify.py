# The law by numbers: for what a look at the program cannot decide.

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Float, PyTree

from ._axes import AxisMap
from ._custom_types import Loss
from ._freeze import freeze
from ._gaussian import Gaussian
from ._law import check_law, LawError
from ._masks import AbstractMask, Masks
from ._materialize import materialize
from ._plan import exact
from ._state import State
from ._stateful import state_of, with_state


def verify(
    model: PyTree,
    axes: AxisMap,
    masks: Masks,
    *inputs: PyTree,
    call: Callable[..., PyTree] | None = None,
    plans: int = 2,
    gradients: bool = True,
    rtol: float | None = None,
    seed: int = 0,
) -> float:
    """Compares outputs, and gradients for weights and masks, of a network under its full plan,
    random plans that cover, the exact one, and frozen. Compiles and runs each. Gives the
    largest difference, relative to the largest entry of its array.

    **Arguments:**

    - `model`, `axes`, `masks`: as for [`dnarch_eqx.materialize`][]; not traced.
    - `inputs`: arrays.
    - `call`: `call(net, *inputs)`; by default `net(*inputs)`. Without randomness, or with a
        key among the inputs.
    - `plans`: how many random ones.
    - `gradients`: whether to compare those, of a sum of sines of the outputs.
    - `rtol`: by default the square root of the precision.
    - `seed`: of the random plans.

    Raises [`dnarch_eqx.LawError`][] where they differ by more, that names the axes and says by
    how much.
    """
    call = call or (lambda net, *inputs: net(*inputs))
    state, tight = state_of(inputs), exact(masks)

    def outputs(net: Any) -> list[Array]:
        given = inputs
        if state is not None:
            net, small = net
            given = with_state(inputs, small)
        # A state is of the plan's sizes: its outputs are what counts.
        nodes = jtu.tree_leaves(call(net, *given), is_leaf=_is_state)
        return [jnp.asarray(x) for x in nodes if eqx.is_array_like(x)]

    @eqx.filter_jit
    def run(params: tuple[PyTree, Masks], plan: Mapping[str, int]) -> list[Array]:
        def total(params: tuple[PyTree, Masks]) -> tuple[Float[Array, ""], list[Array]]:
            net = materialize(
                params[0], axes, params[1], plan, model_state=state, check_coverage=False
            )
            out = outputs(net)
            sums = [jnp.sum(jnp.sin(1 + jnp.real(x))) for x in out if eqx.is_inexact_array(x)]
            return sum(sums, start=jnp.zeros(())), out

        if not gradients:
            return total(params)[1]
        grads, out = eqx.filter_grad(total, has_aux=True)(params)
        return [*out, *jtu.tree_leaves(grads)]

    params = (model, dict(masks))
    full = run(params, {})
    tolerance = _tolerance(full) if rtol is None else rtol
    error = lambda plan: _difference(run(params, plan), full)
    rng, worst = np.random.default_rng(seed), 0.0
    between = lambda: {
        axis: mask.capacity if rng.random() < 0.3 else _between(rng, tight[axis], mask)
        for axis, mask in masks.items()
    }
    for plan in (tight, *(between() for _ in range(plans))):
        found = error(plan)
        worst = max(worst, found)
        if not found <= tolerance:
            blamed = _blamed(error, plan, masks, tolerance)
            raise LawError(
                f"The network is another one under another plan: with {blamed} outputs or "
                f"gradients differ by {error(blamed):.2g} of their largest entry, more than "
                f"{tolerance:.2g}. `dn.check` may say where."
            )
    deployed = lambda model: outputs(freeze(model, axes, masks, model_state=state))
    frozen = eqx.filter_jit(deployed)(model)
    found = _difference(frozen, full[: len(frozen)])
    if not found <= tolerance:
        raise LawError(
            f"The frozen network is another one: its outputs differ by {found:.2g} of their "
            f"largest entry, more than {tolerance:.2g}."
        )
    return max(worst, found)


def check_loss(loss: Loss, state: State, axes: AxisMap, *inputs: PyTree) -> None:
    """Checks that a loss is the same under every plan: by its program, and by numbers for the
    axes of which that does not tell, where numbers are there and on one process.

    Raises [`dnarch_eqx.LawError`][].
    """
    model, masks = state.model, state.masks
    untold = check_law(model, axes, masks, loss, *inputs)
    leaves = jtu.tree_leaves((state, inputs))
    shapes = any(isinstance(x, jax.ShapeDtypeStruct) for x in leaves)
    if untold and not shapes and jax.process_count() == 1:
        # In inference mode, as other plans may draw other bits.
        call = lambda net, *xs: loss(eqx.nn.inference_mode(net), *xs)
        verify(model, axes, masks, *inputs, call=call, plans=0, gradients=False)


def _is_state(x: Any) -> bool:
    return isinstance(x, eqx.nn.State)


def _between(rng: np.random.Generator, low: int, mask: AbstractMask) -> int:
    """A bucket of a mask that holds this many."""
    return int(
        rng.choice(range(low, mask.capacity + 1, 2 if isinstance(mask, Gaussian) else 1))
    )


def _tolerance(arrays: list[Array]) -> float:
    floats = [jnp.finfo(x.dtype).eps for x in arrays if eqx.is_inexact_array(x)]
    return float(max(floats, default=0.0)) ** 0.5


def _difference(given: list[Array], wanted: list[Array]) -> float:
    """The largest, relative to the largest entry of its array."""
    worst = 0.0
    for a, b in zip(given, wanted, strict=True):
        if a.shape != b.shape:
            return float("inf")
        if a.size and jnp.issubdtype(a.dtype, jnp.number):
            one, two = (np.asarray(x).astype(np.complex128) for x in (a, b))
            scale = float(np.max(np.abs(two)))
            worst = max(worst, float(np.max(np.abs(one - two))) / max(scale, 1e-6))
    return worst


def _blamed(
    error: Callable[[Mapping[str, int]], float],
    plan: Mapping[str, int],
    masks: Masks,
    tolerance: float,
) -> dict[str, int]:
    """By halves, few axes of which the plan makes the difference."""
    small = {a: n for a, n in plan.items() if n < masks[a].capacity}
    while len(small) > 1:
        names = sorted(small)
        halves = names[: len(names) // 2], names[len(names) // 2 :]
        for half in halves:
            some = {axis: small[axis] for axis in half}
            if not error(some) <= tolerance:
                small = some
                break
        else:
            break
    return small
