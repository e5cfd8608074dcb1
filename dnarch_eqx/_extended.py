# Masks over another capacity: open to users.

import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ._gates import HardConcrete
from ._gaussian import Gaussian
from ._made import made
from ._masks import AbstractMask, Masks
from ._misc import replace
from ._ramp import Ramp
from ._sigmoid import Sigmoid


_Mask = TypeVar("_Mask", bound=AbstractMask)


@functools.singledispatch
def extended(mask: Any, capacity: int, size: float | None = None) -> Any:
    """The mask over another capacity, with the same values at the positions that both have.
    Register how a class of your own is extended: all fields that say something of the capacity
    change, and none else.

    !!! Example

        ```python
        @dn.extended.register
        def _(mask: Hinge, capacity: int, size: float | None = None):
            return Hinge(capacity, size=mask.size() if size is None else size)
        ```

    **Arguments:**

    - `mask`: the mask.
    - `capacity`: how many positions it is to have; more, or fewer, but all that are active.
    - `size`: if given it is to have this size instead, in positions, and as nearly the same
        shape as it can: see [`dnarch_eqx.grow`][].

    Raises `ValueError` for a class that is not registered, and a capacity that it cannot have.
    """
    del capacity, size
    raise ValueError(
        f"how a {type(mask).__name__} is extended is not known: register it with "
        "`dn.extended.register`."
    )


@extended.register
def _(mask: Sigmoid, capacity: int, size: float | None = None) -> Sigmoid:
    temperature = float(mask.temperature) * capacity / mask.capacity
    if temperature < 1:
        raise ValueError(
            f"a temperature of {float(mask.temperature):.4g} over {mask.capacity} positions "
            f"is one of {temperature:.4g} over {capacity}, below 1, where no offset is "
            "admissible."
        )
    if size is None:
        offset = (float(mask.offset) + 1) * mask.capacity / capacity - 1
    else:
        tail = math.log(1 / mask.threshold - 1) / temperature
        offset = 2 * size / capacity - 1 - tail
    return _remade(mask, capacity, offset=offset, temperature=temperature)


@extended.register
def _(mask: Gaussian, capacity: int, size: float | None = None) -> Gaussian:
    if capacity < 3 or capacity % 2 == 0:
        raise ValueError(
            f"the capacity of a Gaussian mask must be odd and at least 3, not {capacity}."
        )
    scale = (mask.capacity - 1) / (capacity - 1)
    if size is None:
        sigma, mean = float(mask.sigma) * scale, float(mask.mean) * scale
    else:
        cutoff_sigmas = math.sqrt(-2 * math.log(mask.threshold))
        sigma, mean = size / (capacity - 1) / cutoff_sigmas, 0.0
    return _remade(mask, capacity, sigma=sigma, mean=mean)


@extended.register
def _(mask: Ramp, capacity: int, size: float | None = None) -> Ramp:
    ramp = float(mask.ramp)
    if capacity < max(ramp, 2):
        raise ValueError(f"a ramp of {ramp:g} positions does not fit into {capacity}.")
    if size is None:
        offset = (float(mask.offset) + 1) * mask.capacity / capacity - 1
    else:
        offset = 2 * (size + mask.threshold * ramp) / capacity - 1
    return _remade(mask, capacity, offset=offset)


@extended.register
def _(mask: HardConcrete, capacity: int, size: float | None = None) -> HardConcrete:
    del size  # a gate does not reach beyond its position
    more = HardConcrete(max(capacity, 2), size=1, threshold=mask.threshold).log_alpha[-1]
    new = jnp.full(max(capacity - mask.capacity, 0), more, mask.log_alpha.dtype)
    log_alpha = jnp.concatenate([mask.log_alpha[:capacity], new])
    new: Any = replace(mask, capacity=capacity, log_alpha=log_alpha)
    return replace(new, made=made(new).astype(new.made.dtype))


def _remade(mask: _Mask, capacity: int, **values: float) -> _Mask:
    fields = {name: jnp.asarray(x, getattr(mask, name).dtype) for name, x in values.items()}
    new: Any = replace(mask, capacity=capacity, **fields)
    return replace(new, made=made(new).astype(new.made.dtype))


def at_capacities(
    masks: Masks, sizes: Mapping[str, int]
) -> tuple[dict[str, Any], dict[str, Float[np.ndarray, " _"]]]:
    """The masks over other capacities, with the same positions active, and what the values of
    some have to be multiplied by to be what they were.

    A mask at the end of its axis reaches beyond it, and would have more positions active on a
    longer one. It is made to end where the axis did: these are the ones.

    Raises `ValueError` where that cannot be done.
    """
    wanted, now = {}, _looked_at({axis: masks[axis] for axis in sizes})
    found = {axis: _extended(axis, masks[axis], size) for axis, size in sizes.items()}
    for axis, mask in found.items():
        here, there = windows(masks[axis], mask)
        wanted[axis] = np.zeros(mask.capacity)
        wanted[axis][there] = now[axis].values[here]
    looks = _looked_at(found)
    left = {a for a, x in looks.items() if not np.array_equal(x.values > 0, wanted[a] > 0)}
    factors = {}
    # Half a position less, where rounding decides on the last one.
    for less in (0.0, 0.5):
        ended = {
            a: _extended(a, masks[a], sizes[a], now[a].active - less)
            for a in left - set(factors)
        }
        for axis, look in _looked_at(ended).items():
            values = look.values
            if look.active == now[axis].active and np.all((values > 0) | (wanted[axis] == 0)):
                found[axis] = ended[axis]
                divisor = np.where(values > 0, values, 1.0)
                factors[axis] = np.where(values > 0, wanted[axis] / divisor, 1.0)
    if failed := sorted(left - set(factors)):
        raise ValueError(
            f"The mask of axis {failed[0]!r} cannot have capacity {sizes[failed[0]]} with the "
            f"same {now[failed[0]].active} positions active."
        )
    return found, factors


class _Look(NamedTuple):
    values: Float[np.ndarray, " capacity"]
    active: int


def _looked_at(masks: Masks) -> dict[str, _Look]:
    looks = _values(dict(masks)) if masks else {}
    return {axis: _Look(np.asarray(x, float), int(n)) for axis, (x, n) in looks.items()}


@jax.jit
def _values(masks: Any) -> Any:
    return {axis: (mask(), mask.active()) for axis, mask in masks.items()}


def _extended(axis: str, mask: Any, capacity: int, size: float | None = None) -> Any:
    try:
        new = extended(mask, capacity, size)
        if new.capacity == capacity:
            return new
        raise ValueError(f"`extended` gave one of {new.capacity}.")
    except ValueError as error:
        raise ValueError(
            f"The mask of axis {axis!r} cannot have capacity {capacity}: {error}"
        ) from error


def stand_ins(masks: Masks, sizes: Mapping[str, int]) -> dict[str, Any]:
    """Masks of these capacities, whatever their values."""
    return {axis: _extended(axis, masks[axis], size) for axis, size in sizes.items()}


def windows(old: AbstractMask, new: AbstractMask) -> tuple[slice, slice]:
    """Where the positions that both have lie in each."""
    common = min(old.capacity, new.capacity)
    return old.window(common), new.window(common)


def slope(mask: Any, name: str, capacity: int) -> float:
    """What a number of a mask is multiplied by when it gets another capacity."""
    if name not in mask.learn or jnp.ndim(getattr(mask, name)) > 0:
        return 1.0
    moved = extended(replace(mask, **{name: getattr(mask, name) + 1}), capacity)
    return float(getattr(moved, name) - getattr(extended(mask, capacity), name))
