import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, PyTree

from ._axes import AxisMap, check, Gate, nodes
from ._custom_types import Loss
from ._masks import AbstractMask, Masks
from ._materialize import materialize
from ._plan import check_covers, Plan
from ._sizes import Budget, project
from ._stock import replace


_Model = TypeVar("_Model")


class State(eqx.Module):
    """All that training changes. Everything keeps its full shape whatever the plan."""

    model: PyTree
    masks: dict[str, AbstractMask]
    opt_state: PyTree
    step: Int[Array, ""]


class Aux(eqx.Module):
    """What a step reports, beside the new state.

    - `loss`: the task's loss, without the budget.
    - `relative`: the complexity over its target before the update, 1 without a budget.
    - `covered`: whether the plan covered the masks. Where not, the state did not change.
    - `metrics`: what the loss returned beside its value, if it did.
    """

    loss: Float[Array, ""]
    relative: Float[Array, ""]
    covered: Bool[Array, ""]
    metrics: PyTree


@dataclasses.dataclass(frozen=True)
class Compilation:
    """One compilation of the training step.

    - `call`: at which call of `Learner.step`, counted from 0.
    - `plan`: the plan compiled for.
    - `changes`: the axes that differ from the plan before, `{axis: (old, new)}`. Empty if
        something else changed: the first compilation, or the shape of a batch.
    - `seconds`: how long tracing and compiling took.
    """

    call: int
    plan: Plan
    changes: dict[str, tuple[int | None, int | None]]
    seconds: float


class Learner:
    """The training step: materialize, loss and budget, update, projection, under one jit
    whose only static argument is the plan.

    It has the compiled steps and the list of [`dnarch_eqx.Compilation`][]s, and no other
    state: what training changes is the [`dnarch_eqx.State`][] that goes in and comes out.
    """

    compilations: list[Compilation]

    def __init__(
        self,
        loss: Loss,
        optim: optax.GradientTransformation,
        axes: AxisMap,
        budget: Budget | None = None,
        *,
        has_aux: bool = False,
        strict: bool = True,
    ):
        """**Arguments:**

        - `loss`: `loss(net, batch, key)`, an ordinary loss of an ordinary module: `net` is
            materialized.
        - `optim`: an Optax transformation of the pair `(model, masks)`. See
            [`dnarch_eqx.adamw`][].
        - `axes`: what lies on which axis.
        - `budget`: added to the loss.
        - `has_aux`: whether the loss returns `(value, metrics)`.
        - `strict`: whether to look at the masks before every step and raise `ValueError`
            if the plan does not cover them, which waits for the step before. If not, such a
            step leaves the state as it was and says so in `aux.covered`.
        """
        self.axes = axes
        self.budget = budget
        self.strict = strict
        self.compilations = []
        self._loss: Any = loss if has_aux else lambda *args: (loss(*args), None)
        self._optim = optim
        self._calls = 0
        self._traces = 0
        self._plan: Plan | None = None
        self._compiled = eqx.filter_jit(self._step)

    def init(self, model: PyTree, masks: Masks) -> State:
        """The state to start from.

        Raises `ValueError` if model, axes and masks do not fit together, or a mask is
        multiplied in nowhere.
        """
        resolved = check(model, self.axes, masks)
        gates = {node.axis for _, node in nodes(model) if isinstance(node, Gate)}
        parts = [part for dims in resolved.values() for dim in dims for part in dim]
        entered = gates | {part.axis for part in parts if part.gated}
        if idle := sorted(set(masks) - entered):
            raise ValueError(
                f"Axis {idle[0]!r} has a mask, but it enters nowhere: put `gated({idle[0]!r})` "
                "in place of the name where the axis is consumed, or use a `Gate`."
            )
        opt_state = self._optim.init(eqx.filter((model, masks), eqx.is_inexact_array))
        return State(model, dict(masks), opt_state, jnp.zeros((), jnp.int32))

    def step(
        self,
        state: State,
        batch: PyTree,
        plan: Plan | Mapping[str, int],
        *,
        key: jax.Array | None = None,
    ) -> tuple[State, Aux]:
        """One update of weights and masks. Compiles if the plan is new.

        **Arguments:**

        - `state`: from [`dnarch_eqx.Learner.init`][] or the step before.
        - `batch`: what the loss takes.
        - `plan`: static. It has to cover the masks of `state`.
        - `key`: for the loss.

        **Returns:**

        The new state and an [`dnarch_eqx.Aux`][].
        """
        plan = plan if isinstance(plan, Plan) else Plan(plan)
        if self.strict:
            check_covers(plan, state.masks)
        traces, start = self._traces, time.perf_counter()
        out = self._compiled(state, batch, plan, key)
        if self._traces != traces:
            changes = {} if self._plan is None else plan.changes(self._plan)
            seconds = time.perf_counter() - start
            self.compilations.append(Compilation(self._calls, plan, changes, seconds))
        self._plan = plan
        self._calls += 1
        return out

    def lower(
        self, state: State, batch: PyTree, plan: Plan, *, key: jax.Array | None = None
    ) -> jax.stages.Lowered:
        """The step under a plan, traced but not run: for its memory, operations and text.
        Takes what [`dnarch_eqx.Learner.step`][] takes.
        """
        return self._compiled.lower(state, batch, plan, key).lowered  # pyright: ignore

    def network(self, state: State, plan: Plan) -> PyTree:
        """The network that trains under this plan, in inference mode: an ordinary module,
        to be evaluated as any other.
        """
        net = _network(state.model, state.masks, self.axes, plan)
        return eqx.nn.inference_mode(net)

    def _step(self, state: State, batch: PyTree, plan: Plan, key) -> tuple[State, Aux]:
        self._traces += 1  # a side effect of tracing: how compilations are counted

        def objective(params):
            model, masks = params
            net = materialize(model, self.axes, masks, plan, check_coverage=False)
            loss, metrics = self._loss(net, batch, key)
            if isinstance(loss, tuple):
                raise ValueError("`loss` returns a tuple: give `Learner(..., has_aux=True)`.")
            if self.budget is None:
                return loss, (loss, jnp.ones_like(loss), metrics)
            total = loss + self.budget(masks).astype(loss.dtype)
            return total, (loss, self.budget.relative(masks), metrics)

        params = (state.model, state.masks)
        (_, (loss, relative, metrics)), grads = eqx.filter_value_and_grad(
            objective, has_aux=True
        )(params)
        updates, opt_state = self._optim.update(
            grads, state.opt_state, eqx.filter(params, eqx.is_inexact_array)
        )
        model, masks = eqx.apply_updates(params, updates)
        new = State(model, project(masks), opt_state, state.step + 1)
        # A step that cropped an active position is not accepted: nothing changes.
        covered = plan.covers(state.masks)
        new = jtu.tree_map(
            lambda a, b: lax.select(covered, a, b) if eqx.is_array(a) else a, new, state
        )
        return new, Aux(loss, relative, covered, metrics)


@eqx.filter_jit
def _network(model, masks, axes, plan):
    return materialize(model, axes, masks, plan, check_coverage=False)


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


def predict(
    net: Callable,
    x: PyTree,
    *,
    batch_size: int,
    key: jax.Array,
) -> PyTree:
    """The outputs of a network that normalises by the statistics of its batch, which hence
    depend on the batch: the examples are mixed, and every batch has the training's size.

    **Arguments:**

    - `net`: from a batch of inputs to a batch of outputs.
    - `x`: a PyTree of arrays whose leading axis is the example.
    - `batch_size`: that of training. The last batch is filled up with other examples, whose
        outputs are dropped.
    - `key`: mixes the examples.

    **Returns:**

    The outputs, in the order of `x`.
    """
    sizes = {leaf.shape[0] for leaf in jtu.tree_leaves(x)}
    if len(sizes) != 1:
        raise ValueError(f"The arrays of `x` must agree in their leading axis, got {sizes}.")
    (n,) = sizes
    if not 0 < batch_size <= n:
        raise ValueError(
            f"`batch_size` must lie between 1 and the {n} examples, got {batch_size}."
        )
    order = jr.permutation(key, n)
    batches = -(-n // batch_size)
    filled = jnp.concatenate([order, order[: batches * batch_size - n]])
    outputs = [
        _call(net, jtu.tree_map(lambda leaf: leaf[index], x))
        for index in jnp.split(filled, batches)
    ]
    back = jnp.argsort(order)
    return jtu.tree_map(lambda *ys: jnp.concatenate(ys)[:n][back], *outputs)


@eqx.filter_jit
def _call(net, x):
    return net(x)
