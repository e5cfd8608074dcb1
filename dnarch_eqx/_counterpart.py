# Which module a layer becomes under a plan: open to users.

import functools
from typing import Any

import equinox as eqx

from ._fit import Fit


@functools.singledispatch
def counterpart(layer: Any, fit: Fit) -> Any:
    """The module that takes a layer's place under a plan: one whose static sizes agree with
    its sliced arrays, and that is exact in any bucket. By default the layer itself. Register
    what a class of your own becomes, say a norm that looks at active positions alone:

    !!! Example

        ```python
        class Counted(eqx.Module):
            weight: Array
            active: Array

            def __call__(self, x):
                mean = jnp.sum(x**2 * self.active) / jnp.sum(self.active)
                return x * jax.lax.rsqrt(mean + 1e-6) * self.weight

        @dn.counterpart.register
        def _(layer: RMSNorm, fit: dn.Fit):
            return Counted(layer.weight, fit.active("weight"))
        ```

    **Arguments:**

    - `layer`: its arrays are sliced already, and masks multiplied in.
    - `fit`: what lies on its arrays, and the masks there: see [`dnarch_eqx.Fit`][].

    A class that derives from a registered one, with a `__call__` of its own, is refused where
    it would lose that.
    """
    del fit
    return layer


def refit(layer: eqx.Module, fit: Fit) -> Any:
    """Its counterpart.

    Raises `ValueError` for one that would lose its own `__call__`.
    """
    new = counterpart(layer, fit)
    base = registered(type(layer))
    if base is None or isinstance(new, type(layer)) or type(layer).__call__ is base.__call__:
        return new
    raise fit.refuse(
        f"`{type(layer).__name__}` has a `__call__` of its own, which the counterpart of "
        f"`{base.__name__}`, exact in any bucket, does not know. Register one for it: "
        "`dn.counterpart.register`."
    )


def registered(cls: type) -> Any:
    """The class that says what another becomes: itself, or one that it derives from."""
    return next((c for c in cls.__mro__ if c in counterpart.registry and c is not object), None)
