import dataclasses
import weakref
from collections.abc import Hashable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.lax as lax
import jax.monitoring as monitoring
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from ._axes import AxisMap, check, Gate, nodes
from ._custom_types import Loss
from ._masks import AbstractMask, Masks
from ._materialize import materialize
from ._misc import at_least
from ._plan import check_covers, Plan
from ._programs import check_allowed, Program, Programs, Signature
from ._sizes import Budget, project


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
    - `active`: the active counts before the update, in the order of the axes' names.
    - `reach`: the same, continuous: what the counts are the integer parts of.
    - `metrics`: what the loss returned beside its value, if it did.
    """

    loss: Float[Array, ""]
    relative: Float[Array, ""]
    covered: Bool[Array, ""]
    active: Int[Array, " axes"]
    reach: Float[Array, " axes"]
    metrics: PyTree


@dataclasses.dataclass(frozen=True)
class Compilation:
    """One compilation of the training step.

    - `call`: at which call of `Learner.step`, counted from 0.
    - `plan`: the plan compiled for.
    - `changes`: the axes that differ from the plan before, `{axis: (old, new)}`. Empty if
        something else changed: the first compilation, or the shape of a batch.
    - `tracing`, `compiling`: how many seconds each took.
    - `hidden`: for how many of those training went on.
    - `cached`: whether JAX's persistent cache had it.
    """

    call: int
    plan: Plan
    changes: dict[str, tuple[int | None, int | None]]
    tracing: float
    compiling: float
    hidden: float = 0.0
    cached: bool = False

    @property
    def seconds(self) -> float:
        return self.tracing + self.compiling


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
        keep: int = 8,
        donate: bool = False,
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
        - `keep`: how many compiled steps are kept. Beyond, the one not used for the longest
            time is dropped, and its memory with it.
        - `donate`: whether a step may reuse the memory of the state that it is given, which
            is then gone.
        """
        at_least("keep", keep, 1)
        self.axes = axes
        self.budget = budget
        self.strict = strict
        self.keep = keep
        self.compilations = []
        self._loss: Any = loss if has_aux else lambda *args: (loss(*args), None)
        self._optim = optim
        self._donate = donate
        self._calls = 0
        self._plan: Plan | None = None
        self._programs = Programs(keep)
        # The last state given out, which need not be looked at again, and what its step and
        # its batch were known by.
        self._last: tuple[weakref.ref[State], Signature, Signature] | None = None

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
        key: PRNGKeyArray | None = None,
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
        _, new, aux = self._call(state, batch, plan, key)
        return new, aux

    def _call(self, state: State, batch: PyTree, plan: Plan, key) -> tuple[Any, State, Aux]:
        """Without a look at the masks; and what the step is known by."""
        known, program = self._program(state, batch, plan, key)
        new, aux = program((state, batch, key))
        self._last = weakref.ref(new), *known[:2]
        self._plan = plan
        self._calls += 1
        return known, new, aux

    def compile(
        self,
        state: State,
        batch: PyTree,
        plan: Plan | Mapping[str, int],
        *,
        key: PRNGKeyArray | jax.ShapeDtypeStruct | None = None,
    ) -> None:
        """Compiles the step of a plan ahead of time, or does nothing if it is there.

        **Arguments:**

        - `state`, `batch`, `plan`, `key`: as for [`dnarch_eqx.Learner.step`][]; instead of
            arrays also [`jax.ShapeDtypeStruct`][]s.
        """
        plan = plan if isinstance(plan, Plan) else Plan(plan)
        self._program(state, batch, plan, key)

    def lower(
        self, state: State, batch: PyTree, plan: Plan, *, key: PRNGKeyArray | None = None
    ) -> jax.stages.Lowered:
        """The step under a plan, traced but not run: for its memory, operations and text.
        Takes what [`dnarch_eqx.Learner.step`][] takes.
        """
        return self._trace(state, batch, plan, key=key).lowered

    def _program(self, state: State, batch: PyTree, plan: Plan, key) -> tuple[Any, Program]:
        """The compiled step, and what it is kept by; compiles if it is not there."""
        known = self._signature(state, batch, plan, key)
        program = self._programs.get(known)
        if program is None:
            program = self._trace(state, batch, plan, key=key).compile()
            self._add(known, plan, program)
        return program.known, program

    def _signature(
        self, state: State, batch: PyTree, plan: Plan, key
    ) -> tuple[Signature, Signature, Plan]:
        """What the compiled step of these arguments is known by."""
        inputs = Signature(batch, key)
        if self._last is None or self._last[0]() is not state:
            return Signature(state), inputs, plan
        # Equal ones as the same object, quicker to look up: they have hundreds of entries.
        _, known, last = self._last
        return known, last if inputs == last else inputs, plan

    def _trace(self, state: State, batch: PyTree, plan: Plan, *, key) -> Program:
        """The step under a plan, still to be compiled."""
        check_allowed(f"the step of {plan}")
        run = lambda args: self._step(args[0], args[1], plan, args[2])
        return Program(run, (state, batch, key), donate=self._donate)

    def _add(self, known: Hashable, plan: Plan, program: Program, hidden: float = 0.0) -> None:
        """Takes a compiled step into the store, and notes its compilation."""
        changes = {} if self._plan is None else plan.changes(self._plan)
        self._programs.put(known, program)
        compilation = Compilation(
            self._calls,
            plan,
            changes,
            program.tracing,
            program.compiling,
            hidden,
            program.cached,
        )
        self.compilations.append(compilation)
        monitoring.record_event_duration_secs(
            "/dnarch_eqx/compile_duration",
            compilation.seconds,
            axes=",".join(changes),
            hidden=f"{hidden:.3f}",
            cached=str(program.cached),
        )

    def network(self, state: State, plan: Plan) -> PyTree:
        """The network that trains under this plan, in inference mode: an ordinary module,
        to be evaluated as any other.
        """
        net = _network(state.model, state.masks, self.axes, plan)
        return eqx.nn.inference_mode(net)

    def _step(self, state: State, batch: PyTree, plan: Plan, key) -> tuple[State, Aux]:
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
        axes = sorted(state.masks)
        active = _stacked([state.masks[axis].active() for axis in axes], jnp.int32)
        reach = _stacked([state.masks[axis].reach() for axis in axes], jnp.float32)
        buckets = [plan.get(axis, state.masks[axis].capacity) for axis in axes]
        covered = jnp.all(active <= np.array(buckets, np.int32))
        new = jtu.tree_map(
            lambda a, b: lax.select(covered, a, b) if eqx.is_array(a) else a, new, state
        )
        return new, Aux(loss, relative, covered, active, reach, metrics)


def _stacked(values, dtype) -> Array:
    return jnp.stack(values).astype(dtype) if values else jnp.zeros(0, dtype)


@eqx.filter_jit
def _network(model, masks, axes, plan):
    return materialize(model, axes, masks, plan, check_coverage=False)
