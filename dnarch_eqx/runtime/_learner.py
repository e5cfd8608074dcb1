import collections
import weakref
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import optax
from jaxtyping import PRNGKeyArray, PyTree

from .._axes import AxisMap
from .._budgets import Budgets, listed, missed, resolve, warn_of
from .._custom_types import Loss
from .._law import LawError
from .._masks import Masks
from .._materialize import materialize
from .._misc import at_least, replace
from .._plan import as_plan, check_covers, Plan
from .._settle import settled
from .._state import init, State, StepInfo
from .._train import make_step, OnNonfinite
from .._verify import check_loss
from ._nonfinite import NotFiniteError, raised
from ._processes import check_global
from ._program import debugging, placed, Program
from ._signature import arguments, is_ready, Key, Signature, signature_of
from ._store import Compilation, Store


# Steps of a learner without a planner that may be under way and not looked at.
_AHEAD = 16


class Learner:
    """The training step and its compiled programs, one a plan. What training changes is the
    [`dnarch_eqx.State`][] that goes in and comes out, not the learner.
    """

    budget: Budgets

    def __init__(
        self,
        loss: Loss,
        optim: optax.GradientTransformation,
        axes: AxisMap,
        budget: Budgets = None,
        *,
        has_aux: bool = False,
        on_nonfinite: OnNonfinite = "raise",
        strict: bool = True,
        verify: bool = True,
        keep: int = 8,
        donate: bool = False,
    ):
        """**Arguments:**

        - `loss`, `optim`, `axes`, `has_aux`, `on_nonfinite`: as for
            [`dnarch_eqx.make_step`][].
        - `budget`: what is held, or several of these. It can be assigned anew: targets and
            weights are no reason to compile.
        - `strict`: whether to look at the masks before every step and raise `ValueError`
            if the plan does not cover them, which waits for the step before. If not, such a
            step leaves the state as it was and says so in `info.covered`.
        - `verify`: whether to check, when the first step is traced, that the loss is the same
            under every plan that covers: see [`dnarch_eqx.check`][]; and, where axes enter by
            a [`dnarch_eqx.Gate`][], of which the program does not tell, that its value is under
            the exact plan and frozen: see [`dnarch_eqx.verify`][].
        - `keep`: how many compiled steps are kept. Beyond, the one not used for the longest
            time is dropped, and its memory with it.
        - `donate`: whether a step may reuse the memory of the state that it is given, which
            is then gone. An interrupt (Ctrl-C) in the middle of a step may then lose it.

        Raises `ValueError` for arguments out of range.
        """
        at_least("keep", keep, 1)
        if not isinstance(axes, Mapping):
            raise ValueError(f"`axes` must be a dictionary from `dn.declare`, not {axes!r}.")
        listed(budget)
        self.axes = axes
        self.budget = budget
        self.strict = strict
        self.keep = keep
        self.on_nonfinite: OnNonfinite = on_nonfinite
        self.store = Store(keep, "step")
        self._networks = Store(keep)
        self._loss = loss
        self._verify = verify
        self._optim = optim
        self._step = make_step(loss, optim, axes, has_aux=has_aux, on_nonfinite=on_nonfinite)
        self._donate = donate
        self._calls = 0
        # The signature of the last state given out, which need not be looked at again.
        self._last: tuple[weakref.ref[State], Signature] | None = None
        self._key: Any = None
        self._budget: tuple[Budgets, Signature] | None = None
        self._asked = self._resolved = budget
        self._unseen: collections.deque[StepInfo] = collections.deque()

    @property
    def compilations(self) -> list[Compilation]:
        """Every compilation of the step."""
        return self.store.compilations

    def init(
        self,
        model: PyTree,
        masks: Masks,
        model_state: eqx.nn.State | None = None,
        *,
        batch: PyTree = None,
        key: PRNGKeyArray | None = None,
    ) -> State:
        """The state to start from.

        - `model_state`: of a model from [`equinox.nn.make_with_state`][]: its state. The loss
            is given the one of the plan's size.
        - `batch`, `key`: what the loss takes. With them the loss is checked now, and not when
            the first step is traced: see [`dnarch_eqx.check`][].

        Raises `ValueError` if model, axes and masks do not fit together, a mask enters nowhere,
        weights are not finite or in float16, or the budget's target is out of reach; with a
        batch [`dnarch_eqx.LawError`][], where the loss is another under another plan.
        """
        state = init(model, masks, self.axes, self._optim, model_state)
        # Shares are of the masks given here, also when it starts again.
        asked = self._asked if self.budget is self._resolved else self.budget
        self.budget = self._resolved = resolve(asked, state.masks)
        self._asked = asked
        if batch is not None:
            self._check(state, batch, key)
        # Or the user's own model and masks would be gone with the first step.
        own = lambda x: jnp.copy(x) if self._donate and eqx.is_array(x) else x
        return jtu.tree_map(own, state)

    def settle(self, state: State) -> State:
        """The state with masks at whole sizes near theirs, at which the budgets are met as the
        network is deployed; they stay there, weights go on. For the last part of a run: what
        changes with a position more or less has to be learned.

        Warns ([`dnarch_eqx.BudgetWarning`][]) of a budget that no sizes meet.
        """
        masks = settled(state.masks, self.budget, int(state.step))
        warn_of(missed(self.budget, masks, int(state.step)))
        return replace(state, masks=masks, settled=jnp.ones_like(state.settled))

    def step(
        self,
        state: State,
        batch: PyTree,
        plan: Plan | Mapping[str, int],
        *,
        key: PRNGKeyArray | None = None,
    ) -> tuple[State, StepInfo]:
        """One update of weights and masks. Compiles if the plan is new.

        **Arguments:**

        - `state`: from [`dnarch_eqx.Learner.init`][] or the step before.
        - `batch`: what the loss takes.
        - `plan`: static. It has to cover the masks of `state`.
        - `key`: for the loss.

        **Returns:**

        The new state and a [`dnarch_eqx.StepInfo`][].

        Raises `NotFiniteError` at the next call after a step that was not finite, if
        `on_nonfinite` is `"raise"`; that step left the state as it was, and the call can be
        made again.
        """
        plan = as_plan(plan)
        signature = self.signature(state)
        if self.strict:
            check_covers(plan, state.masks)
        self._look_at_steps(state)
        rest = arguments(batch, key, self.budget)
        program = self.compiled(state, rest, plan, self.key(signature, rest))
        new, info, _ = self.run(program, state, signature, rest)
        self._unseen.append(info)
        return new, info

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
        plan, signature = as_plan(plan), self.signature(state)
        rest = arguments(batch, key, self.budget)
        self.compiled(state, rest, plan, self.key(signature, rest))

    def lower(
        self,
        state: State,
        batch: PyTree,
        plan: Plan | Mapping[str, int],
        *,
        key: PRNGKeyArray | None = None,
    ) -> jax.stages.Lowered:
        """The step under a plan, traced but not run: for its memory, operations and text."""
        rest = arguments(batch, key, self.budget)
        return self.trace(state, rest, as_plan(plan)).lowered

    def network(self, state: State, plan: Plan | Mapping[str, int]) -> PyTree:
        """The network that trains under this plan, in inference mode: an ordinary module,
        to be evaluated as any other. With its state, if it has one.

        Raises `ValueError` if the plan does not cover the masks of `state`, as those of an
        average of states may not be covered.
        """
        plan, key = as_plan(plan), Key(self.signature(state))
        check_covers(plan, state.masks)
        program = self._networks.get(plan, key)
        if program is None:
            build = lambda model, masks, model_state: materialize(
                model, self.axes, masks, plan, model_state=model_state, check_coverage=False
            )
            args = (state.model, state.masks, state.model_state)
            program = Program(build, args, name=f"the network of {plan}").compile()
            self._networks.put(plan, key, program, self._calls)
        return eqx.nn.inference_mode(program(state.model, state.masks, state.model_state))

    def signature(self, state: State) -> Signature:
        """What the program of a step depends on of a state.

        Raises `ValueError` for one that cannot be trained, or not alike on all processes.
        """
        if self._last is not None and self._last[0]() is state:
            return self._last[1]
        signature = signature_of(state)
        check_global("state", state)
        return signature

    def key(self, signature: Signature, rest: tuple[Any, ...]) -> Key:
        """What the program of a step depends on but the plan.

        - `signature`: of the state.
        - `rest`: from `arguments`.
        """
        batch, random, budget = rest
        if self._budget is None or self._budget[0] is not budget:
            self._budget = budget, Signature("budget", budget)
        inputs = Signature("batch", batch), Signature("key", random), self._budget[1]
        key = Key(signature, *inputs)
        # As in `run`.
        if key != self._key:
            self._key = key
        return self._key

    def trace(self, state: State, rest: tuple[Any, ...], plan: Plan) -> Program:
        """The step under a plan, still to be compiled. Checks the loss, the first time."""
        self._check(state, *rest[:2])
        shardings = [getattr(x, "sharding", None) for x in jtu.tree_leaves(state)]

        def step(state, batch, key, budget):
            new, info = self._step(state, batch, key, budget, plan)
            leaves, treedef = jtu.tree_flatten(new)
            # What is spread over devices stays where it was.
            leaves = [placed(x, sharding) for x, sharding in zip(leaves, shardings)]
            return treedef.unflatten(leaves), info

        return Program(step, (state, *rest), name=f"the step of {plan}", donate=self._donate)

    def compiled(self, state: State, rest: tuple[Any, ...], plan: Plan, key: Key) -> Program:
        """The program of a step; compiles if it must."""
        program = self.store.get(plan, key)
        if program is None:
            program = self.trace(state, rest, plan).compile()
            self.store.put(plan, key, program, self._calls)
        return program

    def note(self, plan: Plan, key: Key, program: Program, overlapped: float) -> None:
        """Takes a compiled program into the store.

        - `overlapped`: for how many seconds of its compilation training went on.
        """
        self.store.put(plan, key, program, self._calls, overlapped)

    def run(
        self, program: Program, state: State, signature: Signature, rest: tuple[Any, ...]
    ) -> tuple[State, StepInfo, Signature]:
        """A step, without a look at masks. Gives the signature of the new state, too."""
        new, info = program(state, *rest)
        if program.after is None:
            after = Signature("state", new)
            # Equal ones as the same object, quicker to compare: they have hundreds of entries.
            program.after = signature if after == signature else after
        self._calls += 1
        self._last = weakref.ref(new), program.after
        return new, info, program.after

    def _check(self, state: State, batch: PyTree, key: Any) -> None:
        """Of the loss, once, whether it keeps the law."""
        if not self._verify or debugging():
            return
        held = () if state.model_state is None else (state.model_state,)
        try:
            check_loss(self._loss, state, self.axes, *held, batch, key)
        except LawError as error:
            raise LawError(f"{error} (`verify=False` leaves this out.)") from None
        self._verify = False

    def _look_at_steps(self, state: State) -> None:
        """Notices steps, once they are done, that were not finite."""
        while self._unseen:
            info = self._unseen[0]
            if not (self.strict or len(self._unseen) > _AHEAD or is_ready(info.signals)):
                return
            self._unseen.popleft()
            if self.on_nonfinite == "raise" and info.covered and not info.finite:
                taken = sum(bool(i.covered and i.finite) for i in self._unseen)
                step = int(state.step) - taken  # the state went on without it
                raise NotFiniteError(raised(state, np.asarray(info.flags), step))
