import dataclasses
from collections.abc import Callable
from typing import Any

import jax.tree_util as jtu
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from ._masks import AbstractMask
from ._stock import replace


def adamw(
    learning_rate: float,
    *,
    steps: int,
    warmup: int = 0,
    weight_decay: float = 0.0,
    mask_rate: float = 1.0,
    decays: Callable[[Array], bool] = lambda x: x.ndim > 1,
    clip: float | None = None,
) -> optax.GradientTransformation:
    """AdamW as the paper trains (Appx. E.2): linear warm-up, then a cosine to zero over the
    whole run. Masks have no weight decay, which would drag every one of them to half its
    axis.

    **Arguments:**

    - `learning_rate`: the largest, at the end of the warm-up.
    - `steps`: of the whole run, warm-up included.
    - `warmup`: how many steps of these.
    - `weight_decay`: decoupled.
    - `mask_rate`: the learning rate of the masks over that of the weights. The paper gives
        none; its predecessors have an option of 0.1.
    - `decays`: which arrays of the model decay. By default those with more than one
        dimension: no biases, no norms, no frequencies of a kernel generator.
    - `clip`: the largest global norm of the gradient; by default there is none.

    **Returns:**

    An Optax transformation of the pair `(model, masks)`.
    """
    if steps < 1:
        raise ValueError(f"`steps` must be at least 1, got {steps}.")
    if not 0 <= warmup < steps:
        raise ValueError(
            f"`warmup` must be at least 0 and below `steps` = {steps}, got {warmup}."
        )
    if not (learning_rate > 0 and mask_rate >= 0 and weight_decay >= 0):
        raise ValueError(
            "`learning_rate` must be positive, `mask_rate` and `weight_decay` at least 0; got "
            f"{learning_rate}, {mask_rate} and {weight_decay}."
        )

    def schedule(peak: float) -> optax.Schedule:
        # Optax counts `decay_steps` from step 0, warm-up included.
        return optax.warmup_cosine_decay_schedule(
            0.0 if warmup else peak, peak, warmup, decay_steps=steps
        )

    def labels(params: Any) -> Any:
        model, masks = params
        return (
            jtu.tree_map(lambda x: "decay" if decays(x) else "plain", model),
            {
                axis: replace(
                    mask, **{f: "mask" if f in mask.learn else "fixed" for f in _arrays(mask)}
                )
                for axis, mask in masks.items()
            },
        )

    partition = optax.partition(
        {
            "decay": optax.adamw(schedule(learning_rate), weight_decay=weight_decay),
            "plain": optax.adam(schedule(learning_rate)),
            "mask": _as_vector(optax.adam(schedule(learning_rate * mask_rate))),
            "fixed": optax.set_to_zero(),
        },
        labels,
    )
    return (
        partition if clip is None else optax.chain(optax.clip_by_global_norm(clip), partition)
    )


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


def _arrays(mask: AbstractMask) -> list[str]:
    return [f.name for f in dataclasses.fields(mask) if not f.metadata.get("static")]
