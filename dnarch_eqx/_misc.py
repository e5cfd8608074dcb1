from typing import Any, TypeVar

import equinox as eqx
import jax.lax as lax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float, UInt


_Module = TypeVar("_Module", bound=eqx.Module)


def as_float(x: ArrayLike) -> Float[Array, "..."]:
    """`x` in JAX's default floating dtype. The dtype is explicit because a weakly typed
    scalar becomes a strongly typed one after its first update: an extra trace.
    """
    return jnp.asarray(x, dtype=jnp.result_type(float))


def straight_through(
    forward: Float[Array, "*shape"], backward: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """Exactly the value of `forward`, with the gradient of `backward`."""
    return lax.stop_gradient(forward) + (backward - lax.stop_gradient(backward))


def number(name: str, value: Any) -> float:
    """`value` as a float. Raises `ValueError` if it is no number; NaN and infinities are."""
    real = not isinstance(value, (str, bool)) and np.ndim(value) == 0
    try:
        if real:
            return float(value)
    except TypeError:
        pass
    raise ValueError(f"`{name}` must be a number, got {value!r}.")


def known(name: str, value: Any) -> float | None:
    """As [`number`][], but `None` where the value is traced."""
    traced = isinstance(value, Tracer) and value.ndim == 0
    return None if traced else number(name, value)


def at_least(name: str, value: Any, bound: float) -> None:
    """Refuses an argument below its bound, NaN, and what is no number."""
    if not number(name, value) >= bound:
        raise ValueError(f"`{name}` must be at least {bound}, got {value}.")


def in_range(name: str, value: Any, *, positive: bool = False) -> None:
    """Refuses a number that is negative, or zero if it has to be `positive`, or not finite.
    What is traced is not looked at.
    """
    x = known(name, value)
    if x is not None and not (x < float("inf") and (x > 0 or (x == 0 and not positive))):
        kind = "positive, finite number" if positive else "finite number of at least 0"
        raise ValueError(f"`{name}` must be a {kind}, got {value}.")


def positive(name: str, value: Any) -> int:
    """`value` as a Python integer. Raises `ValueError` if it is none of at least 1."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ValueError(f"`{name}` must be a positive integer, got {value!r}.")
    return int(value)


def replace(module: _Module, **fields: Any) -> _Module:
    """The same module with other values in (also static) fields. Not
    `dataclasses.replace`, which would call an `__init__` of another signature.
    """
    return recast(type(module), module, **fields)


def recast(cls: type[_Module], module: eqx.Module, **fields: Any) -> _Module:
    """As [`replace`][], of another class with the same fields, or more."""
    new = object.__new__(cls)
    for name in cls.__dataclass_fields__:
        if name in fields or hasattr(module, name):
            object.__setattr__(new, name, fields.get(name, getattr(module, name, None)))
    return new


class Constant(eqx.Module):
    """An array that is no parameter: no optimizer finds it, and no count of parameters. It is
    kept as its bits, which are integers.
    """

    bits: UInt[Array, "*shape"]
    dtype: DTypeLike = eqx.field(static=True)

    def __init__(self, x: Float[Array, "*shape"]):
        self.dtype = x.dtype
        self.bits = lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}")

    def __call__(self) -> Float[Array, "*shape"]:
        return lax.bitcast_convert_type(self.bits, self.dtype)


def constant(x: Float[Array, "*shape"] | Constant) -> Constant:
    """What [`value`][] is to give, kept out of reach of optimizers."""
    return x if isinstance(x, Constant) else Constant(x)


def value(x: Float[Array, "*shape"] | Constant) -> Float[Array, "*shape"]:
    """The array that `x` is or keeps."""
    return x() if isinstance(x, Constant) else x


def computed_once(x: Float[Array, ""]) -> Float[Array, ""]:
    """The same number, for very many readers. XLA copies all that a scalar is computed from
    into each of them, and compiles for minutes where there are hundreds: not through a sum
    like this one (nor is there another way to tell it: an optimization barrier does not help).
    """
    return jnp.cumsum(jnp.stack([x / 2, x / 2]))[1]
