# What an optimizer keeps, when parameters get another shape. Not by `optax.tree_map_params`:
# that asks for the state of a placeholder, which optimizers that look at the parameters (those
# of `dn.partition`) do not give, and does not know what is kept factored. Here an array's path
# says which parameter it belongs to.

import itertools as it
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from ._regrown import Keys, Place


class Number(NamedTuple):
    """A number of a mask: what it was, what it is, and its derivative by what it was."""

    before: Array
    value: Array
    slope: Callable[[], float]


# By the path of a parameter: where its entries come from. One that is missing is new.
Places = Mapping[Keys, Place]
# Weights, learned numbers of masks, and the others.
_KINDS = ("weight", "mask", "fixed")
# The fields of `optax.FactoredState`, and the path of a parameter in them.
_FACTORED = ("v_row", "v_col", "v")


def moved(
    optim: optax.GradientTransformation,
    state: PyTree,
    old: PyTree,
    new: PyTree,
    places: Places,
    numbers: Mapping[Keys, Number],
) -> PyTree:
    """The optimizer's state for other parameters, the floating-point arrays of model and masks.
    Arrays that belong to a parameter have the old entries in their places, and those that the
    optimizer begins with elsewhere; all else is as it was. Where a weight was scaled its
    gradients are from now on divided by as much, and powers of gradients that are kept, too.

    Raises `ValueError` for a state that is not the optimizer's. Warns of what begins anew.
    """
    wanted, given = jax.eval_shape(optim.init, old), jtu.tree_leaves_with_path(state)
    shapes = lambda pairs: [(keys, jnp.shape(x)) for keys, x in pairs]
    if shapes(jtu.tree_leaves_with_path(wanted)) != shapes(given):
        raise ValueError(
            "`optim` is not the optimizer that `state.opt_state` is of: for this model and "
            f"these masks that would be\n{wanted}."
        )
    pairs, treedef = jtu.tree_flatten_with_path(optim.init(new))
    scaled = any(place.scale is not None for place in places.values())
    degrees = _degrees(optim, new) if scaled else {}
    moving = _Moving(dict(given), dict(pairs), old, new, places, numbers, degrees)
    return treedef.unflatten([moving(*pair) for pair in pairs])


class _Moving:
    def __init__(
        self,
        old: dict[Keys, Any],
        new: dict[Keys, Any],
        before: PyTree,
        after: PyTree,
        places: Places,
        numbers: Mapping[Keys, Number],
        degrees: Mapping[Keys, int],
    ):
        self.degrees = degrees
        self.old, self.new = old, new
        self.before, self.after = (_by_kind(params) for params in (before, after))
        self.values = {keys: x for keys, (_, x) in self.after.items()}
        self.places, self.numbers = places, numbers
        self.copies = self._copies()
        self.stay = all(place.stays for place in places.values())

    def __call__(self, keys: Keys, new: Any) -> Any:
        start, stop = self._parameter(keys)
        if start == stop:
            old = self.old.get(keys, new)
            same = jnp.shape(old) == jnp.shape(new)
            if same and (self.stay or jnp.ndim(old) == 0):
                return old
            flat = self._flat(keys, new, old)
            if flat is None and same:
                return old
            return _anew(keys, new) if flat is None else flat
        parameter = keys[start:stop]
        place = self.places.get(parameter)
        if place is None:
            return new
        old = self.old.get((*keys[:start], *place.was, *keys[stop:]))
        if old is None:
            return new
        if keys[:start] in self.copies:
            number = self.numbers.get(parameter)
            if number is None:
                return place.put(new, old, scaled=True)
            slope = jnp.asarray(number.slope(), old.dtype)
            return number.value + slope * (old - number.before)
        place = self._of_gradients(keys, place)
        shape = self.values[parameter].shape
        same = jnp.shape(old) == jnp.shape(new)
        if same and place.shape == shape and place.stays and place.scale is None:
            return old
        factored = self._factored(keys, start, stop, place)
        if factored is not None:
            return factored
        if same and place.shape != shape:
            return old
        at = _matched(place, shape, jnp.shape(old), jnp.shape(new))
        return _anew(keys, new) if at is None else at.put(new, old, scaled=True)

    def _of_gradients(self, keys: Keys, place: Place) -> Place:
        """The place for a power of gradients: they are divided where weights are multiplied."""
        degree = self.degrees.get(keys, 0)
        if place.scale is None or degree == 0:
            return place._replace(scale=None)
        scale = np.where(place.scale == 0, 1.0, place.scale)
        return place._replace(scale=scale**-degree)

    def _factored(self, keys: Keys, start: int, stop: int, place: Place) -> Array | None:
        """A second moment that is kept as means over dimensions, if it is one."""
        field = getattr(keys[start - 1], "name", None) if start else None
        if field not in _FACTORED or stop < len(keys):
            return None
        among = [(*keys[: start - 1], jtu.GetAttrKey(name)) for name in _FACTORED]
        old = [self.old.get((*at, *place.was)) for at in among]
        if any(x is None for x in old):
            return None
        zeros = np.zeros(self.values[keys[start:stop]].shape)
        whole = place.put(zeros, unfactored(old, place.shape), scaled=True)
        new = [self.new[(*at, *keys[start:stop])] for at in among]
        return refactored(np.asarray(whole), field, new)

    def _parameter(self, keys: Keys) -> tuple[int, int]:
        """Where in a path that of a parameter lies: the longest, the last of these."""
        for length in range(len(keys), 0, -1):
            for start in range(len(keys) - length, -1, -1):
                if keys[start : start + length] in self.values:
                    return start, start + length
        return 0, 0

    def _copies(self) -> set[Keys]:
        """Where parameters are kept, such as averages, and not what became of gradients: an
        optimizer begins with the parameters themselves there.
        """
        found: dict[Keys, list[tuple[bool, bool]]] = {}
        for keys, x in self.new.items():
            start, stop = self._parameter(keys)
            if start < stop and eqx.is_inexact_array(x):
                x, value = np.asarray(x), np.asarray(self.values[keys[start:stop]])
                found.setdefault(keys[:start], []).append(
                    (np.array_equal(x, value), bool(np.any(x)))
                )
        return {
            keys
            for keys, each in found.items()
            if all(same for same, _ in each) and any(filled for _, filled in each)
        }

    def _flat(self, keys: Keys, new: Any, old: Any) -> Array | None:
        """Where all parameters, or all of some kinds, are kept as one vector."""
        for n in (3, 2, 1):
            for kinds in it.combinations(_KINDS, n):
                # In the order of the tree's leaves.
                after, before = (
                    {k: x for k, (kind, x) in params.items() if kind in kinds}
                    for params in (self.after, self.before)
                )
                starts, total = _starts(after)
                firsts, whole = _starts(before)
                if (jnp.shape(new), jnp.shape(old)) != ((total,), (whole,)):
                    continue
                found = np.array(new)
                for parameter, x in after.items():
                    place = self.places.get(parameter)
                    if place is not None:
                        to = np.arange(x.size).reshape(x.shape)
                        of = np.arange(math.prod(place.shape)).reshape(place.shape)
                        if place.new:
                            to, of = to[np.ix_(*place.new)], of[np.ix_(*place.old)]
                        kept = np.asarray(old)[firsts[place.was] + of]
                        by = self._of_gradients(keys, place).scale
                        kept = kept if by is None else kept * by
                        found[starts[parameter] + to.ravel()] = kept.ravel()
                return jnp.asarray(found)
        return None


def _degrees(optim: optax.GradientTransformation, params: PyTree) -> dict[Keys, int]:
    """Of all that an optimizer keeps, which power of the gradients it is: found by a step with
    gradients of one size, and with those of twice that.
    """
    optim = optax.with_extra_args_support(optim)

    @jax.jit
    @jax.numpy_dtype_promotion("standard")  # whatever the optimizer does
    def after(params: PyTree, size: Float[Array, ""]) -> PyTree:
        grads = jtu.tree_map(lambda x: jnp.full_like(x, size), params)
        return optim.update(grads, optim.init(params), params, value=jnp.ones(()))[1]

    def total(x: Any) -> float:
        return (
            float(np.sum(np.abs(np.asarray(x, np.complex128))))
            if eqx.is_inexact_array(x)
            else 0.0
        )

    # Small ones, that no clipping changes.
    first, second = (
        jtu.tree_leaves_with_path(after(params, jnp.float32(s))) for s in (1e-5, 2e-5)
    )
    found = {}
    for (keys, a), (_, b) in zip(first, second):
        if total(a) > 0 and total(b) > 0:
            power = math.log2(total(b) / total(a))
            found[keys] = round(power) if abs(power - round(power)) < 0.1 else 0
    return found


def _by_kind(params: Any) -> dict[Keys, tuple[str, Array]]:
    """Every parameter and its kind, in the order of the tree's leaves."""
    found: dict[Keys, tuple[str, Array]] = {}
    for keys, x in jtu.tree_leaves_with_path(params):
        kind = "weight"
        if keys[0].idx == 1:
            learned = keys[2].name in params[1][keys[1].key].learn
            kind = "mask" if learned else "fixed"
        found[keys] = kind, x
    return found


def _starts(params: Mapping[Keys, Array]) -> tuple[dict[Keys, int], int]:
    """Where each begins in a vector of all, in the order of a tree's leaves."""
    ends = np.cumsum([0, *(x.size for x in params.values())]).tolist()
    return dict(zip(params, ends)), ends[-1]


def _matched(
    place: Place, shape: tuple[int, ...], old: tuple[int, ...], new: tuple[int, ...]
) -> Place | None:
    """The place in an array that has some of a parameter's dimensions, or more before them;
    `None` where it cannot be told which.
    """
    n = len(place.old)
    lead = len(old) - n
    if n and lead >= 0 and (old[lead:], new[lead:]) == (place.shape, shape):
        more = tuple(np.arange(size) for size in old[:lead])
        return place._replace(old=(*more, *place.old), new=(*more, *place.new))
    found = [
        place._replace(
            old=tuple(place.old[i] for i in some),
            new=tuple(place.new[i] for i in some),
            scale=place.scale if len(some) == n else None,
        )
        for some in it.combinations(range(n), len(old))
        if [place.shape[i] for i in some] == list(old) and [shape[i] for i in some] == list(new)
    ]
    alike = all(
        np.array_equal(a, b)
        for other in found[1:]
        for a, b in zip((*found[0].old, *found[0].new), (*other.old, *other.new))
    )
    return found[0] if found and alike else None


def _anew(keys: Keys, new: Any) -> Any:
    warnings.warn(
        f"`opt_state{jtu.keystr(keys)}` begins anew: which of its entries belong to which "
        "position cannot be told.",
        stacklevel=4,
    )
    return new


#
# Second moments that are kept as means over dimensions, as Adafactor does.
#


def unfactored(factors: list[Any], shape: tuple[int, ...]) -> Float[np.ndarray, "..."]:
    """What the factors stand for."""
    row, column, whole = factors
    if jnp.shape(whole) == shape:
        return np.asarray(whole, float)
    r, c = _reduced(shape)
    rows = np.expand_dims(np.asarray(row, float), c)
    columns = np.expand_dims(np.asarray(column, float), r)
    mean = rows.mean(r, keepdims=True)
    return rows * columns / np.where(mean > 0, mean, 1)


def refactored(whole: Float[np.ndarray, "..."], field: str, new: list[Any]) -> Array:
    """One of the three, of the shapes that the optimizer begins with."""
    r, c = _reduced(whole.shape) if whole.ndim > 1 else (0, 0)
    kept = new[_FACTORED.index(field)]
    is_whole = new[2].shape == whole.shape
    if is_whole != (field == "v"):
        return kept
    mean = whole if is_whole else whole.mean(c if field == "v_row" else r)
    return jnp.asarray(mean, kept.dtype)


def _reduced(shape: tuple[int, ...]) -> tuple[int, int]:
    """The dimensions of rows and columns: the two largest, in the order that Optax sorts."""
    order = np.argsort(shape)
    return int(order[-2]), int(order[-1])
