from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import jax.tree_util as jtu
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, ArrayLike

from ._masks import arrays
from ._misc import in_range, number, positive, replace


def adamw(
    learning_rate: ArrayLike | optax.Schedule,
    *,
    steps: int | None = None,
    warmup: int = 0,
    weight_decay: ArrayLike = 0.0,
    mask_rate: ArrayLike = 1.0,
    decays: Callable[[Array], bool] = lambda x: x.ndim > 1,
    clip: ArrayLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """AdamW as the paper trains (Appx. E.2): linear warm-up, then a cosine to zero over the
    whole run. Masks have no weight decay, which would drag every one of them to half its
    axis.

    **Arguments:**

    - `learning_rate`: the largest, at the end of the warm-up; or any schedule of Optax.
    - `steps`: of the whole run, warm-up included. By default the learning rate is as given.
    - `warmup`: how many steps of these.
    - `weight_decay`: decoupled.
    - `mask_rate`: the learning rate of the masks over that of the weights. The paper gives
        none; its predecessors have an option of 0.1.
    - `decays`: which arrays of the model decay. By default those with more than one
        dimension: no biases, no norms, no frequencies of a kernel generator.
    - `clip`: the largest global norm of the gradient; by default there is none.

    **Returns:**

    An Optax transformation of the pair `(model, masks)`. Numbers may be traced, as
    [`optax.inject_hyperparams`][] does it (with `static_args=("steps", "warmup", "decays",
    "clip")`).

    Raises `ValueError` for numbers out of their ranges.
    """
    if callable(learning_rate):
        if steps is not None or warmup != 0:
            raise ValueError("`learning_rate` is a schedule: give no `steps` and no `warmup`.")
    else:
        in_range("learning_rate", learning_rate, positive=True)
    in_range("mask_rate", mask_rate)
    in_range("weight_decay", weight_decay)
    if clip is not None:
        in_range("clip", clip, positive=True)
    rate = _schedule(learning_rate, steps, warmup)
    mask_schedule = lambda count: mask_rate * rate(count)
    both = partition(
        optax.adamw(
            rate,
            weight_decay=weight_decay,  # pyright: ignore
            mask=lambda model: jtu.tree_map(decays, model),
        ),
        _as_vector(optax.adam(mask_schedule)),
    )
    return both if clip is None else optax.chain(optax.clip_by_global_norm(clip), both)  # pyright: ignore


def partition(
    weights: optax.GradientTransformation, masks: optax.GradientTransformation
) -> optax.GradientTransformationExtraArgs:
    """One Optax transformation for the model and one for the masks.

    **Arguments:**

    - `weights`: of the arrays of the model.
    - `masks`: of the parameters of the masks that are learned. Give one without weight decay,
        which would drag every mask to half its axis. Those that are not learned stay.

    **Returns:**

    An Optax transformation of the pair `(model, masks)`.

    !!! Example

        ```python
        optim = dn.partition(optax.lion(1e-4, weight_decay=0.1), optax.adam(1e-3))
        ```
    """

    for name, optim in {"weights": weights, "masks": masks}.items():
        if not all(callable(getattr(optim, part, None)) for part in ("init", "update")):
            raise ValueError(
                f"`{name}` must be an Optax transformation, such as `optax.adam(1e-3)`, not "
                f"{optim!r}."
            )

    def labels(params: Any) -> Any:
        model, all_masks = params
        label = lambda mask: {f: "mask" if f in mask.learn else "fixed" for f in arrays(mask)}
        return (
            jtu.tree_map(lambda _: "weight", model),
            {axis: replace(mask, **label(mask)) for axis, mask in all_masks.items()},
        )

    fixed = optax.set_to_zero()
    return optax.partition({"weight": weights, "mask": masks, "fixed": fixed}, labels)


def _schedule(peak: Any, steps: int | None, warmup: int) -> optax.Schedule:
    if steps is None:
        if warmup != 0:
            raise ValueError(f"`warmup` of {warmup} needs `steps`: of the whole run.")
        schedule: Any = peak if callable(peak) else lambda _: jnp.asarray(peak)
        return schedule
    steps = positive("steps", steps)
    if not 0 <= number("warmup", warmup) < steps:
        raise ValueError(
            f"`warmup` must be at least 0 and below `steps` = {steps}, got {warmup}."
        )
    # Optax counts `decay_steps` from step 0, warm-up included. It looks at the peak, which
    # may be traced.
    shape = optax.warmup_cosine_decay_schedule(
        0.0 if warmup else 1.0, 1.0, warmup, decay_steps=steps
    )
    return lambda count: peak * shape(count)


def _as_vector(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """`inner` on all parameters as one vector: dozens of scalars would take as long to compile
    as a network. (`optax.flatten` does not take an empty tree: no masks.)
    """

    def init(params: Any) -> Any:
        return inner.init(ravel_pytree(params)[0])

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        flat, unravel = ravel_pytree(updates)
        flat_params = None if params is None else ravel_pytree(params)[0]
        new: Any
        new, state = inner.update(flat, state, flat_params)
        return unravel(new), state

    return optax.GradientTransformation(init, update)
