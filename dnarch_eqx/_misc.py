import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float


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


def at_least(name: str, value: float, bound: float) -> None:
    """Refuses an argument below its bound, and NaN."""
    if not value >= bound:
        raise ValueError(f"`{name}` must be at least {bound}, got {value}.")
