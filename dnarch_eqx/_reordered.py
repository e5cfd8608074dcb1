from typing import Any, TypeVar

import numpy as np
import optax

from ._axes import AxisMap
from ._carried import carried, taken
from ._layout import layout
from ._masks import Masks
from ._order import free, Orders, orders_of
from ._regrown import Regrown
from ._state import State


_State = TypeVar("_State", bound=State | tuple[Any, Any])


def reordered(
    state: _State,
    axes: AxisMap,
    optim: optax.GradientTransformation | None = None,
    *,
    masks: Masks | None = None,
) -> _State:
    """The state with active positions before the others, of masks that keep any positions (see
    [`dnarch_eqx.HardConcrete`][]): weights, masks, the optimizer's state, running statistics.
    It is the same function, which a smaller plan then holds.

    Axes of blocks in a list, and those that lie on a [`dnarch_eqx.Gate`][] alone, stay as they
    are: their positions have an order of their own. Layers of a scanned stack stay in theirs.
    (An axis of inputs, which [`dnarch_eqx.check`][] refuses, would get another order than
    they.)

    On the host, not inside `jax.jit`.

    **Arguments:**

    - `state`: what training has come to; or a pair of a model and masks.
    - `axes`: what lies on which axis.
    - `optim`: the Optax transformation that the state was made with. None is needed for a
        state without an `opt_state`.
    - `masks`: by which to go; those of the state by default. Give an average of states the
        masks of the state that it is kept beside, as they were before.

    **Returns:**

    The same with other orders.

    Raises `ValueError` for a state that is not the optimizer's.
    """
    known = taken(state)[1]
    orders = orders_of(known if masks is None else masks)
    return in_orders(state, axes, optim, orders) if orders else state


def in_orders(
    state: Any, axes: AxisMap, optim: optax.GradientTransformation | None, orders: Orders
) -> Any:
    """The state with the positions of these axes in other orders, where they can change."""
    whole, known = taken(state)
    resolved = layout(whole, axes, known)
    can = free(whole, resolved)
    orders = {axis: order for axis, order in orders.items() if axis in can}
    places = {axis: (order, np.arange(len(order))) for axis, order in orders.items()}
    regrown = Regrown(resolved, resolved, places, {})
    new = regrown(whole, whole)
    masks = known | {axis: known[axis].permuted(order) for axis, order in orders.items()}
    return carried(state, new, masks, regrown.places, optim, orders)
