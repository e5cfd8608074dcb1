import abc
import functools as ft
import itertools as it
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PRNGKeyArray

from ._made import arrays, made, near, numbers, own
from ._misc import as_float, number, replace, straight_through


_Mask = TypeVar("_Mask", bound="AbstractMask")


# The admissible range (Appx. E.1): at the lowest offset the first position has value
# 0.95, at the largest one the last position has value 0.85.
LOWEST, HIGHEST = 0.95, 0.85


class AbstractMask(eqx.Module):
    """A differentiable mask over the positions of one axis (Section 2, Appx. A).

    A mask is data: a few scalars beside the weights. Everything that the library asks of
    it is a pure function of those.
    """

    capacity: eqx.AbstractVar[int]
    threshold: eqx.AbstractVar[float]
    learn: eqx.AbstractVar[tuple[str, ...]]

    @abc.abstractmethod
    def window(self, bucket: int) -> slice:
        """The positions that a bucket of this size keeps."""

    @abc.abstractmethod
    def __call__(self, bucket: int | None = None) -> Float[Array, " bucket"]:
        """The mask at the positions that `bucket` keeps; by default at all of them."""

    @abc.abstractmethod
    def smallest_bucket(self, active: Bool[Array, " capacity"]) -> Int[Array, ""]:
        """The smallest bucket whose window holds all positions marked `active`."""

    @abc.abstractmethod
    def unclipped_size(self) -> Float[Array, ""]:
        """The continuous size, not limited to the capacity (Eq. 10, 11)."""

    def position(self) -> Float[Array, ""]:
        """The active count, continuous: it says how far the next one is. A step of a plan
        is foreseen by it; without one, from the counts alone.
        """
        return as_float(self.active())

    @abc.abstractmethod
    def project(self) -> "AbstractMask":
        """The same mask with its parameters in the admissible range (Appx. E.1)."""

    def resized(self, size: Float[ArrayLike, ""]) -> "AbstractMask":
        """The mask with this (not clipped) size, or as near to it as is admissible. Only what
        is learned changes: by one step along its derivative, exact where that is constant.
        """

        def total(learned: dict[str, Any]) -> Float[Array, ""]:
            return replace(self, **learned).unclipped_size()

        now = {name: getattr(self, name) for name in self.learn}
        value, slope = jax.value_and_grad(total)(now)
        norm = sum(jnp.sum(x**2) for x in jtu.tree_leaves(slope))
        step = (size - value) / jnp.where(norm > 0, norm, 1.0)
        return replace(self, **jtu.tree_map(lambda x, s: x + step * s, now, slope)).project()

    def smallest_size(self) -> Float[Array, ""]:
        """The smallest admissible size that what is learned can reach. By default 0, which
        says nothing.
        """
        return as_float(0.0)

    def learned(self, *names: str) -> tuple[Float[Array, "..."], ...]:
        """Parameters by their names, without a gradient where they are not learned. NaN if
        they are those of a mask that was made otherwise. (Where masks are traced that is not
        looked at: they were counted before, and it would take half as long again to trace.)
        """
        values = {name: getattr(self, name) for name in names}
        if not isinstance(getattr(self, "made", None), Tracer | None):
            doubt = jnp.where(own(self), 0.0, jnp.nan)
            values = {name: x + doubt for name, x in values.items()}
        return tuple(
            value if name in self.learn else lax.stop_gradient(value)
            for name, value in values.items()
        )

    def size(self) -> Float[Array, ""]:
        """The continuous size: at most the capacity, by a clip whose gradient passes
        straight through, so that a mask that has reached it can shrink again (Appx. E.1).
        """
        size = self.unclipped_size()
        return straight_through(jnp.minimum(size, self.capacity), size)

    def active(self) -> Int[Array, ""]:
        """How many positions a slice must hold so that no active one is lost: exactly
        the count of positions whose mask is at or above the threshold (of a Gaussian
        whose mean was moved: those of the smallest centred window that holds them). Where
        the mask is no number its positions count: nothing is cropped unseen.
        """
        return self.smallest_bucket(jnp.logical_not(self() <= 0))

    def count(self) -> Int[Array, ""]:
        """How many positions are active, wherever they lie."""
        return self.active()

    def between(self) -> tuple[int, int]:
        """The fewest and the most positions that can be active. On the host."""
        ends = (0.0, 2.0 * self.capacity)
        fewest, most = (int(self.resized(size).count()) for size in ends)
        return fewest, most

    def with_count(self, count: int) -> "AbstractMask":
        """The mask with so many positions active, changed as little as that takes: itself if it
        has, or cannot have so many. On the host.
        """
        # As it is, if it can be; a whole size may be a matter of rounding.
        sizes = (count - below for below in (0.0, 0.1, 0.3, 0.5))
        near = it.chain([self], (self.resized(size) for size in sizes))
        return next((new for new in near if int(new.active()) == count), self)

    def drawn(self, key: PRNGKeyArray | None, still: Bool[ArrayLike, ""]) -> "AbstractMask":
        """The mask that a step of training uses: of one that is random with this key, unless it
        is to be `still`. By default the mask itself.
        """
        del key, still
        return self

    def order(self) -> Int[np.ndarray, " capacity"] | None:
        """An order of the positions in which the active ones come first; `None` where they do.
        On the host.
        """
        return None

    def permuted(self, order: Int[np.ndarray, " capacity"]) -> "AbstractMask":
        """The mask over positions in another order. By default itself: its values go by the
        place.
        """
        del order
        return self


# An immutable view: a dictionary, wherever masks are made.
Masks: TypeAlias = Mapping[str, AbstractMask]


def product(*values: Float[Array, " _"]) -> Float[Array, "..."]:
    """The values of an N-dimensional mask, from those of its N axes (Appx. A.2).

    **Arguments:**

    - `values`: the values on each axis, of shapes `(n1,)`, `(n2,)`, ...

    **Returns:**

    Their outer product, of shape `(n1, n2, ...)`.
    """
    if not values:
        raise ValueError("`product` needs the values of at least one axis.")
    return ft.reduce(jnp.multiply.outer, values)


#
# Masks as data: what is not learned stays as it is.
#


def finite(mask: AbstractMask) -> Bool[Array, ""]:
    """Whether all parameters are."""
    each = [jnp.all(jnp.isfinite(x)) for x in jtu.tree_leaves(mask)]
    return ft.reduce(jnp.logical_and, each, jnp.array(True))


NOT_FINITE, FOREIGN = -1, -2


def count_or_fault(mask: AbstractMask) -> Int[Array, ""]:
    """The active count, or why there is none: a negative number. Works inside jit."""
    count = mask.active()
    if hasattr(mask, "made"):
        count = jnp.where(own(mask), count, FOREIGN)
    return jnp.where(finite(mask), count, NOT_FINITE)


def fault(axis: str, mask: Any, code: int) -> ValueError:
    """What a negative [`count_or_fault`][] says."""
    if code == NOT_FINITE:
        values = {name: getattr(mask, name) for name in arrays(mask) if name != "made"}
        listed = ", ".join(f"{name}={np.asarray(x).tolist()}" for name, x in values.items())
        return ValueError(f"The mask of axis {axis!r} is not finite: {listed}.")
    listed = ", ".join(
        f"`{name}` {float(given):g} in a mask of {wanted:g}"
        for (name, wanted), given, same in zip(numbers(mask).items(), mask.made, near(mask))
        if not same
    )
    return ValueError(
        f"The mask of axis {axis!r} holds the parameters of one that was made otherwise: "
        f"{listed}. Read a file into masks that were made with the same arguments."
    )


def as_single(masks: Masks) -> dict[str, AbstractMask]:
    """The masks with parameters in float32 at least: in half precision an update is smaller
    than what rounds away.
    """
    check_masks(masks)

    def cast(x: Any) -> Array:
        if not eqx.is_array(x):
            return as_float(x)
        enough = not jnp.issubdtype(x.dtype, jnp.floating) or jnp.finfo(x.dtype).bits >= 32
        return jnp.asarray(x, x.dtype if enough else jnp.float32)

    single = {axis: jtu.tree_map(cast, mask) for axis, mask in masks.items()}
    for axis, mask in masks.items():
        if hasattr(mask, "made"):
            # Not what it was rounded to, unless it is another's.
            kept: Any = single[axis]
            exact = jnp.where(own(mask), made(mask).astype(kept.made.dtype), kept.made)
            single[axis] = replace(kept, made=exact)
    return single


def check_masks(masks: Any) -> None:
    """Raises `ValueError` if `masks` is no dictionary from names of axes to masks."""
    if not isinstance(masks, Mapping):
        raise ValueError(
            f"`masks` must be a dictionary from axis to mask, got {type(masks).__name__}."
        )
    for axis, mask in masks.items():
        axis_name("masks", axis)
        if not isinstance(mask, AbstractMask):
            raise ValueError(
                f"`masks` has {type(mask).__name__} for axis {axis!r}: give a mask, such as "
                "`dn.Sigmoid(capacity)`."
            )


#
# Arguments.
#


def axis_name(name: str, given: Any) -> str:
    if not isinstance(given, str) or not given.strip():
        raise ValueError(f"`{name}`: an axis is named by a string, not empty; got {given!r}.")
    return given


def threshold_in_range(value: Any) -> float:
    # Above, the end of a mask at its largest offset would not be active.
    if not 0 < number("threshold", value) < HIGHEST:
        raise ValueError(f"`threshold` must lie in (0, {HIGHEST}), got {value}.")
    return float(value)


def names(name: str, given: Sequence[str], allowed: tuple[str, ...]) -> tuple[str, ...]:
    listed = isinstance(given, Sequence) and not isinstance(given, str)
    if not (listed and all(name in allowed for name in given)):
        raise ValueError(
            f"`{name}` must be a sequence of names among {allowed}, got {given!r}."
        )
    return tuple(given)


def bucket_in_range(bucket: int, capacity: int) -> int:
    if not 0 < bucket <= capacity:
        raise ValueError(f"A bucket must lie between 1 and {capacity}, got {bucket}.")
    return bucket
