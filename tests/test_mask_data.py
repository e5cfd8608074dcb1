"""Masks as data that users edit, cast, save and load."""

from typing import Any

import equinox as eqx
import hypothesis as hp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import optax
import pytest
from helpers import entered, filled, moved, same

import dnarch_eqx as dn
from dnarch_eqx._made import own as is_own
from dnarch_eqx._masks import as_single
from dnarch_eqx._plan import check_covers, counts
from dnarch_eqx._stacks import stacked, with_learned


few = hp.settings(max_examples=20, deadline=None, derandomize=True, phases=[hp.Phase.generate])


def some_masks() -> Any:
    return {"h": dn.Sigmoid(32, size=12.0), "k": dn.Gaussian(31, size=9.0)}


def cast(tree, dtype):
    return jtu.tree_map(lambda x: x.astype(dtype), tree)


#
# What is not finite.
#


@pytest.mark.parametrize("value", (np.nan, np.inf, -np.inf))
@pytest.mark.parametrize("axis, name", (("h", "offset"), ("h", "temperature"), ("k", "sigma")))
def test_what_is_not_finite_is_said_and_never_counted(axis, name, value, getkey):
    masks = some_masks()
    masks[axis] = moved(masks[axis], name, value)
    model, axes = entered(filled(lambda k: eqx.nn.Linear(3, 2, key=k), getkey()), {}, masks)
    message = f"mask of axis '{axis}' is not finite: .*{name}={value}"
    if np.isnan(value):  # nor is it cropped where nobody can raise
        assert not dn.Plan({"h": 31, "k": 29}).covers(masks)
    for f in (
        lambda: counts(masks),
        lambda: dn.exact(masks),
        lambda: dn.plan(masks, dn.buckets(masks)),
        lambda: check_covers({}, masks),
        lambda: dn.check(model, axes, masks),
        lambda: dn.describe(model, axes, masks),
        lambda: dn.freeze(model, axes, masks),
        lambda: dn.materialize(model, axes, masks, {}),
    ):
        with pytest.raises(ValueError, match=message):
            f()


def test_a_number_in_place_of_an_array_is_seen_too():
    masks = some_masks()
    masks["h"] = eqx.tree_at(lambda m: m.offset, masks["h"], float("nan"))
    with pytest.raises(ValueError, match="mask of axis 'h' is not finite: offset=nan"):
        dn.exact(masks)


def test_counts_inside_jit_say_that_masks_are_traced():
    with pytest.raises(ValueError, match=r"`masks` are traced.* `plan.covers\(masks\)`"):
        jax.jit(lambda masks: dn.exact(masks)["h"])(some_masks())
    # Masks that are not traced may be counted there.
    masks = some_masks()
    assert jax.jit(lambda x: x + dn.exact(masks)["h"])(0) == 12


#
# Half precision.
#


@pytest.mark.parametrize("dtype", (jnp.bfloat16, jnp.float16))
def test_masks_are_brought_to_single_precision(dtype):
    masks = some_masks()
    half = cast(masks, dtype)
    single = as_single(half)
    assert all(x.dtype == jnp.float32 for x in jtu.tree_leaves(single))
    assert jtu.tree_structure(single) == jtu.tree_structure(masks)
    close = lambda a, b: np.allclose(a, b, rtol=1e-2)
    assert jtu.tree_all(jtu.tree_map(close, single, masks))
    assert counts(single), "rounding is no fault"
    with jax.numpy_dtype_promotion("standard"):
        assert counts(half)
    # An update of 1e-3 is not lost any more.
    mask: Any = single["h"]
    assert moved(mask, "offset", mask.offset - 1e-3).offset < mask.offset


def test_double_precision_is_kept(x64):
    masks = some_masks()
    assert same(as_single(masks), masks)
    assert all(x.dtype == jnp.float64 for x in jtu.tree_leaves(masks))


def test_a_weak_number_becomes_a_strong_array():
    masks = some_masks()
    masks["h"] = eqx.tree_at(lambda m: m.offset, masks["h"], -0.5)
    mask: Any = as_single(masks)["h"]
    offset = mask.offset
    assert offset.dtype == jnp.float32 and not offset.weak_type and offset == -0.5


#
# What is not learned.
#


class Free(dn.AbstractCurve):
    """A user's own: a value a position, and a scale that is not learned."""

    values: jax.Array
    scale: dict
    capacity: int = eqx.field(static=True)
    threshold: float = eqx.field(static=True)
    learn: tuple = eqx.field(static=True)

    def coordinates(self):
        return np.arange(self.capacity)

    def window(self, bucket):
        return slice(0, bucket)

    def smooth(self, x):
        del x
        return self.values * self.scale["by"]

    def smallest_bucket(self, active):
        return jnp.max(jnp.where(active, jnp.arange(1, self.capacity + 1), 0))

    def cutoff(self):
        return jnp.sum(self.values)

    def unclipped_size(self):
        return jnp.sum(self.values * self.scale["by"])

    def project(self):
        return self


def own():
    make: Any = Free
    return make(jnp.full(6, 0.5), {"by": jnp.array(1.5)}, 6, 0.1, ("values",))


def learned_of(before, after) -> dict[str, Any]:
    return with_learned(stacked(before), stacked(after)).apart(before)


@pytest.mark.parametrize(
    "mask, learned",
    (
        (dn.Sigmoid(8), {"offset"}),
        (dn.Sigmoid(8, learn=("offset", "temperature")), {"offset", "temperature"}),
        (dn.Sigmoid(8, learn=()), set()),
        (dn.Gaussian(9), {"sigma"}),
        (dn.Gaussian(9, learn=("mean",)), {"mean"}),
        (own(), {"values"}),
    ),
)
def test_what_is_not_learned_stays(mask, learned):
    after = jtu.tree_map(lambda x: 0.9 * x + 0.01, mask)
    kept = learned_of({"h": mask}, {"h": after})["h"]
    assert jtu.tree_structure(kept) == jtu.tree_structure(mask)
    for name in ("offset", "temperature", "sigma", "mean", "made", "values", "scale"):
        if hasattr(mask, name):
            source = after if name in learned else mask
            assert same(getattr(kept, name), getattr(source, name)), name


def test_masks_of_the_users_own_are_counted():
    assert counts({"own": own()}) == {"own": 6}
    assert float(own().smallest_size()) == 0, "nothing is known of it"


@pytest.mark.parametrize("size", (1.0, 4.5, 7.0))
def test_masks_of_the_users_own_are_resized(size):
    """In the one direction in which all values change the size."""
    mask = own()
    other: Any = mask.resized(size)  # of values that count 1.5 times, 6 of them
    assert np.allclose(other.values, size / 9, rtol=1e-6)
    assert same(eqx.tree_at(lambda m: m.values, other, mask.values), mask)


def test_an_optimizer_that_decays_everything():
    """What the training step does with the masks that an optimizer gives it."""
    masks = some_masks()
    optim = optax.adamw(0.1, weight_decay=0.5)
    state = optim.init(masks)
    grads = jtu.tree_map(jnp.ones_like, masks)
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = optim.update(grads, state, masks)
    new = eqx.apply_updates(masks, updates)
    assert new["h"].temperature < 24
    kept = learned_of(masks, new)
    assert kept["h"].temperature == 25 and kept["k"].mean == 0
    assert same(kept["h"].offset, new["h"].offset)
    assert counts(dn.project(kept))


#
# Files.
#


OTHERS = {
    "twice the capacity": ("h", lambda: dn.Sigmoid(64, size=12.0), "`capacity` 32 in .* of 64"),
    "a threshold": (
        "h",
        lambda: dn.Sigmoid(32, size=12.0, threshold=0.2),
        "`threshold` 0.1 in",
    ),
    "a kernel of another capacity": (
        "k",
        lambda: dn.Gaussian(33, size=9.0),
        "`capacity` 31 in .* of 33",
    ),
    "more learned": (
        "h",
        lambda: dn.Sigmoid(32, size=12.0, learn=("offset", "temperature")),
        "`learn` 1 in a mask of 3",
    ),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_masks_read_into_masks_made_otherwise(kind, tmp_path):
    """Equinox reads the arrays; what is static is the reader's, and does not fit."""
    masks = some_masks()
    eqx.tree_serialise_leaves(tmp_path / "masks.eqx", masks)
    axis, make, message = OTHERS[kind]
    read = eqx.tree_deserialise_leaves(tmp_path / "masks.eqx", masks | {axis: make()})
    assert np.isnan(read[axis].size()) and np.all(np.isnan(read[axis]()))
    message = (
        f"mask of axis '{axis}' holds the parameters of one that was made otherwise: {message}"
    )
    for f in (counts, dn.exact, lambda m: dn.plan(m, dn.buckets(m))):
        with pytest.raises(ValueError, match=message):
            f(read)


def test_masks_read_into_masks_made_alike(tmp_path):
    masks = some_masks()
    trained = masks | {"h": moved(masks["h"], "offset", 0.3)}
    eqx.tree_serialise_leaves(tmp_path / "masks.eqx", trained)
    for like in (
        masks,
        {"h": dn.Sigmoid(32), "k": dn.Gaussian(31, sigma=1.2)},
        masks | {"h": dn.Sigmoid(32, size=20.0, temperature=8.0)},
    ):
        read = eqx.tree_deserialise_leaves(tmp_path / "masks.eqx", like)
        assert same(read, trained), "start and temperature are in the file"
        assert counts(read) == counts(trained)


@few
@hp.given(
    capacity=st.sampled_from([9, 31]),
    size=st.floats(0.75, 1),
    temperature=st.floats(8, 200),
    threshold=st.sampled_from([0.01, 0.1, 0.5, 0.8]),
)
def test_no_mask_is_taken_for_foreign(capacity, size, temperature, threshold):
    masks: dict[str, dn.AbstractMask] = {
        "h": dn.Sigmoid(capacity, temperature=temperature, threshold=threshold),
        "k": dn.Gaussian(capacity, threshold=threshold),
    }
    masks["s"] = dn.Sigmoid(
        capacity, size=size * capacity, temperature=temperature, threshold=threshold
    )
    average = jtu.tree_map(lambda a, b: 0.1 * a + 0.9 * b, masks, masks)
    half = [cast(masks, dtype) for dtype in (jnp.bfloat16, jnp.float16)]
    for each in (masks, average, *half, *map(as_single, half)):
        assert all(bool(is_own(mask)) for mask in each.values())


def test_nothing_of_it_is_trained():
    """The static numbers that a mask keeps for this have no gradient."""
    masks = some_masks()
    total = lambda masks: sum(m.size() + jnp.sum(m()) for m in masks.values())
    grads = jax.grad(total)(masks)
    assert all(np.all(grad.made == 0) for grad in grads.values())
    stacked = dn.stack([masks, masks])
    assert jax.vmap(dn.sizes)(stacked)["h"].tolist() == [12, 12]


#
# The smallest size.
#


@pytest.mark.parametrize(
    "mask",
    (
        dn.Sigmoid(280, size=140.0),
        dn.Sigmoid(8, temperature=8.0),
        dn.Sigmoid(8, learn=("temperature",)),
        dn.Sigmoid(8, size=5.0, learn=("offset", "temperature")),
        dn.Gaussian(33, size=11.0),
        dn.Gaussian(33, learn=("mean",)),
    ),
)
def test_the_smallest_size_is_reached_and_not_passed(mask):
    smallest = float(mask.smallest_size())
    extremes = []
    for by in (-1e6, -1.0, -0.1, 0.1, 1.0, 1e6):
        for name in mask.learn:
            extremes.append(moved(mask, name, getattr(mask, name) + by).project())
    sizes = [float(m.size()) for m in extremes]
    assert smallest <= min(sizes) * (1 + 1e-5)
    if len(mask.learn) == 1 and mask.learn != ("temperature",):
        assert smallest == pytest.approx(min(sizes), rel=1e-5)
