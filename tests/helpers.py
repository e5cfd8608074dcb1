from collections.abc import Callable, Iterator, Mapping
from typing import Any

import dnarch_eqx as dn
import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np


def close(got: Any, wanted: Any, rtol: float | None = None, what: str = ""):
    """Asserts that two trees agree: every array to a tolerance relative to its largest
    entry, so that an array of zeros has to be met exactly. 1e-5, in float64 1e-9.
    """
    pairs, treedef = jtu.tree_flatten_with_path(wanted)
    assert jtu.tree_structure(got) == treedef
    for (path, b), a in zip(pairs, jtu.tree_leaves(got)):
        assert a.shape == b.shape and a.dtype == b.dtype, (what, jtu.keystr(path), a, b)
        a, b = np.asarray(a), np.asarray(b)
        tol = rtol if rtol is not None else 1e-9 if b.dtype == np.float64 else 1e-5
        assert np.all(np.isfinite(a)), (what, jtu.keystr(path))
        error, scale = np.max(np.abs(a - b), initial=0), np.max(np.abs(b), initial=0)
        assert error <= tol * scale, (what, jtu.keystr(path), error, scale)


def same(got: Any, wanted: Any) -> bool:
    """Whether two trees are bit-identical, static fields included."""
    return bool(eqx.tree_equal(got, wanted, typematch=True))


def alike(got: Any, wanted: Any):
    """Asserts that two modules differ at most in the values of their arrays: types, static
    fields, shapes and dtypes agree.
    """
    assert jtu.tree_structure(got) == jtu.tree_structure(wanted)
    for a, b in zip(jtu.tree_leaves(got), jtu.tree_leaves(wanted)):
        if eqx.is_array(b):
            assert a.shape == b.shape and a.dtype == b.dtype
        else:
            assert a is b or a == b


def values(mask: dn.AbstractMask) -> jax.Array:
    """The mask at all positions, written down again from Eq. 3 and 4."""
    x = jnp.linspace(-1.0, 1.0, mask.capacity)
    if isinstance(mask, dn.Sigmoid):
        temperature = lax.stop_gradient(mask.temperature)
        smooth = 1 / (1 + jnp.exp(-temperature * (mask.offset - x)))
    else:
        assert isinstance(mask, dn.Gaussian)
        smooth = jnp.exp(-(x**2) / (2 * mask.sigma**2))
    return jnp.where(smooth >= mask.threshold, smooth, 0.0)


def tight(masks: dn.Masks) -> dict[str, int]:
    """The smallest buckets that cover the masks, counted by hand."""
    return {axis: int(np.sum(np.asarray(values(mask)) > 0)) for axis, mask in masks.items()}


def halfway(masks: dn.Masks) -> dict[str, int]:
    """Buckets half-way between the tight ones and the capacities; odd stay odd."""
    return {
        axis: n + (masks[axis].capacity - n) // 4 * 2 for axis, n in tight(masks).items()
    }


def objective(call: Callable[[Any], jax.Array]):
    """Output and gradients of `call(build(model, masks))` in a fixed generic direction."""

    @eqx.filter_jit
    def run(build, model, masks):
        @eqx.filter_value_and_grad(has_aux=True)
        def total(params):
            out = call(build(*params))
            along = jnp.cos(1.0 + jnp.arange(out.size, dtype=out.dtype))
            return jnp.sum(out * along.reshape(out.shape)), out

        (_, out), grads = total((model, masks))
        return out, grads

    return run


def law(
    model: Any,
    axes: dict[str, dn.Axes],
    masks: dn.Masks,
    plan: Mapping[str, int],
    call: Callable[[Any], jax.Array],
    reference: Callable[[Any, dict[str, jax.Array]], jax.Array] | None = None,
    rtol: float | None = None,
):
    """Asserts contract 1: under `plan` the network has the outputs, and all gradients of
    weights and mask parameters, that it has at full capacity, and that `reference(model,
    values)` has if there is one: the masked network written by hand.
    """
    assert set(plan) == set(masks)
    assert all(n < masks[axis].capacity for axis, n in plan.items()), plan
    run = objective(call)
    under = lambda plan: lambda *params: dn.materialize(
        params[0], axes, params[1], plan, check_coverage=False
    )
    got = run(under(plan), model, masks)
    close(got, run(under({}), model, masks), rtol, f"full capacity, {plan}")
    if reference is not None:
        by_hand = lambda *params: lambda: reference(
            params[0], {axis: values(mask) for axis, mask in params[1].items()}
        )
        wanted = objective(lambda network: network())(by_hand, model, masks)
        close(got, wanted, rtol, f"by hand, {plan}")


def plans(masks: dn.Masks) -> Iterator[dict[str, int]]:
    """Covering plans, each smaller than the capacity on all axes."""
    yield tight(masks)
    yield halfway(masks)


def laws(*args, reference=None, rtol: float | None = None):
    """[`law`][] under all of `plans`: `laws(model, axes, masks, call)`."""
    model, axes, masks, call = args
    for plan in plans(masks):
        law(model, axes, masks, plan, call, reference, rtol)
        reference = None  # once is enough
