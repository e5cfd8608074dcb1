from collections.abc import Callable, Mapping
from typing import TypeAlias

from jaxtyping import Array, Float, Int, PyTree


# Axis name -> continuous size. Plain floats are fine too: a cost may be asked of a
# wanted architecture, written by hand.
Sizes: TypeAlias = Mapping[str, Float[Array, ""] | Int[Array, ""] | float | int]

# Operations (or parameters, or bytes, ...) as a differentiable function of the sizes.
Cost: TypeAlias = Callable[[Sizes], Float[Array, ""]]

# An ordinary loss of an ordinary module: `loss(net, batch, key)`; of one with a state
# `loss(net, model_state, batch, key)`.
Loss: TypeAlias = Callable[..., Float[Array, ""] | tuple[Float[Array, ""], PyTree]]
