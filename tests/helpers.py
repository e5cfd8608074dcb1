from collections.abc import Callable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np

import dnarch_eqx as dn


def close(got: Any, wanted: Any, rtol: float | None = None, what: str = ""):
    """Asserts that two trees agree: every array to a tolerance, 1e-5 or in float64 1e-9,
    relative to its largest entry. Where that is small beside those of the other arrays, as
    of sums that cancel, a hundredth of the latter counts.
    """
    got, wanted = eqx.filter((got, wanted), eqx.is_array)
    pairs, treedef = jtu.tree_flatten_with_path(wanted)
    assert pairs, "nothing to compare"
    assert jtu.tree_structure(got) == treedef
    largest = max(np.max(np.abs(b), initial=0) for _, b in pairs)
    for (path, b), a in zip(pairs, jtu.tree_leaves(got)):
        assert a.shape == b.shape and a.dtype == b.dtype, (what, jtu.keystr(path), a, b)
        a, b = np.asarray(a), np.asarray(b)
        tol = rtol if rtol is not None else 1e-9 if b.dtype == np.float64 else 1e-5
        assert np.all(np.isfinite(a)), (what, jtu.keystr(path))
        error = np.max(np.abs(a - b), initial=0)
        scale = max(np.max(np.abs(b), initial=0), 0.01 * largest)
        assert error <= tol * scale, (what, jtu.keystr(path), error, scale)


def noise(key: jax.Array, *shape: int) -> jax.Array:
    """Normal numbers, made without compiling anything: most of the time of these tests."""
    rng = np.random.default_rng(np.asarray(jr.key_data(key)))
    return jnp.asarray(rng.normal(size=shape))


def shaped(make: Callable[[jax.Array], Any]) -> Any:
    """What `make(key)` gives, with shapes in place of arrays."""
    return eqx.filter_eval_shape(make, jr.key(0))


def filled(make: Callable[[jax.Array], Any], key: jax.Array) -> Any:
    """What `make(key)` gives, with noise in all arrays: no weights of ones, no biases of
    zeros.
    """
    leaves, treedef = jtu.tree_flatten(shaped(make))
    arrays = [
        0.4 * noise(jr.fold_in(key, i), *x.shape) if isinstance(x, _Shape) else x
        for i, x in enumerate(leaves)
    ]
    return treedef.unflatten(arrays)


_Shape = jax.ShapeDtypeStruct


def same(got: Any, wanted: Any) -> bool:
    """Whether two trees are bit-identical, static fields included."""
    return bool(eqx.tree_equal(got, wanted, typematch=True))


def alike(got: Any, wanted: Any):
    """Asserts that two modules differ at most in the values of their arrays: types, static
    fields, shapes and dtypes agree.
    """
    assert jtu.tree_structure(got) == jtu.tree_structure(wanted)
    for a, b in zip(jtu.tree_leaves(got), jtu.tree_leaves(wanted)):
        if eqx.is_array(b) or isinstance(b, _Shape):
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
    return {axis: n + (masks[axis].capacity - n) // 4 * 2 for axis, n in tight(masks).items()}


def _fast() -> dict[str, bool | int]:
    """Options with which XLA compiles several times faster, where it knows them."""
    options = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
    try:
        jax.jit(lambda: 0, compiler_options=options).lower().compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return options


_FAST = _fast()


def outcome(network: Callable[[Any, dn.Masks], jax.Array], model: Any, masks: dn.Masks):
    """The output of `network(model, masks)` and its gradients, in a generic direction."""
    arrays, static = eqx.partition((model, masks), eqx.is_inexact_array)

    def total(arrays):
        out = network(*eqx.combine(arrays, static))
        along = jnp.cos(1.0 + jnp.arange(out.size, dtype=out.dtype))
        return jnp.sum(out * along.reshape(out.shape)), out

    run = jax.jit(jax.value_and_grad(total, has_aux=True), compiler_options=_FAST)
    (_, out), grads = run(arrays)
    return out, grads


def law(
    model: Any,
    axes: dict[str, dn.Axes],
    masks: dn.Masks,
    plans: Sequence[Mapping[str, int]],
    call: Callable[[Any], jax.Array],
    reference: Callable[[Any, dict[str, jax.Array]], jax.Array] | None = None,
    rtol: float | None = None,
):
    """Asserts contract 1: under each of `plans` the network has the outputs, and all
    gradients of weights and mask parameters, that it has at full capacity; and that
    `reference(model, values)` has if there is one: the masked network written by hand.
    """

    def under(plan):
        build = lambda *params: dn.materialize(
            params[0], axes, params[1], plan, check_coverage=False
        )
        return outcome(lambda *params: call(build(*params)), model, masks)

    def by_hand(model, masks):
        assert reference is not None
        with jax.numpy_rank_promotion("allow"):
            return reference(model, {axis: values(mask) for axis, mask in masks.items()})

    full = under({})
    if reference is not None:
        close(full, outcome(by_hand, model, masks), rtol, "full capacity and by hand")
    for plan in plans:
        assert set(plan) == set(masks)
        assert all(n < masks[axis].capacity for axis, n in plan.items()), plan
        close(under(plan), full, rtol, f"{plan} and full capacity")
