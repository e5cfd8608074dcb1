# How a mask was made: its static fields, kept beside its parameters.

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ._misc import as_float


def made(mask: Any) -> Float[Array, " numbers"]:
    """The static fields of a mask as numbers. A mask keeps them as an array too, a parameter
    that is not learned, so that they are in a file with the others: reading that file into a
    mask that was made otherwise is noticed when its positions are counted.
    """
    return as_float(np.array(list(numbers(mask).values())))


def numbers(mask: Any) -> dict[str, float]:
    """The static fields by their names."""
    learned = sum(2**i for i, name in enumerate(arrays(mask)) if name in mask.learn)
    return {
        "capacity": mask.capacity,
        "threshold": mask.threshold,
        "learn": learned,
    }


def arrays(mask: Any) -> list[str]:
    """The names of the fields that are not static."""
    return [f.name for f in dataclasses.fields(mask) if not f.metadata.get("static")]


def own(mask: Any) -> Bool[Array, ""]:
    """Whether the numbers of a mask are those of its static fields, up to rounding."""
    return jnp.all(near(mask), axis=-1)


def near(mask: Any) -> Bool[Array, "*batch numbers"]:
    """The same, number by number."""
    made = jnp.asarray(mask.made)
    wanted = jnp.broadcast_to(jnp.asarray(list(numbers(mask).values()), made.dtype), made.shape)
    return jnp.abs(made - wanted) <= max(1e-4, 4 * float(jnp.finfo(made.dtype).eps)) * wanted
