import dataclasses
import time
import warnings
from collections.abc import Hashable
from concurrent.futures import Future
from typing import Any

import jax
import numpy as np
from jaxtyping import Int, PyTree

from ._clock import Clock, everywhere, overlap
from ._learner import Learner, State
from ._plan import Plan
from ._programs import Program
from ._timing import Grid, Timing


_Sizes = Int[np.ndarray, " axes"]


@dataclasses.dataclass(frozen=True)
class _Pending:
    """A step that another thread compiles. `behind`: tracing it kept no device waiting."""

    known: Hashable
    sizes: _Sizes
    program: Program
    future: Future[Program]
    behind: bool


class Compiler:
    """Has the steps of plans compiled, at once or on another thread, one at a time; knows
    which are there, which failed, and what compiling costs.
    """

    def __init__(self, learner: Learner, grid: Grid, clock: Clock, background: bool | None):
        self._learner = learner
        self._grid = grid
        self._clock = clock
        self._background = background
        self._pending: _Pending | None = None
        self._known: dict[bytes, Hashable] = {}
        self._failed: set[Plan] = set()
        self._lasted = 0.0
        self._offer: tuple[tuple[int, int], Timing, Timing] | None = None

    @property
    def background(self) -> bool:
        """Whether training goes on during compilations."""
        if self._background is None:
            self._background = jax.process_count() == 1 and overlap() > 0.25
            if not self._background and jax.process_count() == 1:
                warnings.warn(
                    f"The backend {jax.default_backend()!r} runs steps at {overlap():.0%} of "
                    "their speed while another thread compiles: training will wait for "
                    "compilations. `background=True` makes it go on all the same."
                )
        return self._background

    @property
    def busy(self) -> bool:
        return self._pending is not None

    @property
    def seconds(self) -> float:
        """How long the last compilation lasted, tracing included."""
        return self._lasted

    def timing(self) -> Timing:
        """What plans cost now: nothing to switch to, if they are compiled."""
        programs, measured = self._learner._programs, self._clock.timing
        now = programs.changes, len(self._known)
        if self._offer is None or self._offer[0] != now or self._offer[1] is not measured:
            held = frozenset(key for key, known in self._known.items() if known in programs)
            self._offer = now, measured, measured.replace(held=held)
        return self._offer[2]

    def failed(self, sizes: _Sizes) -> bool:
        return self._grid.plan(sizes) in self._failed

    def ran(self, sizes: _Sizes, known: Hashable) -> None:
        """A step has run under these sizes: hence it is compiled."""
        self._known[sizes.tobytes()] = known

    def now(self, state: State, batch: PyTree, key, sizes: _Sizes) -> None:
        """Compiles while training waits. Raises what compiling raises."""
        plan = self._grid.plan(sizes)
        known = self._learner._signature(state, batch, plan, key)
        if known in self._learner._programs:  # by another planner, or `Learner.compile`
            self._known[sizes.tobytes()] = known
            return
        program = self._learner._trace(state, batch, plan, key=key).compile()
        self._take(known, sizes, program, hidden=0.0)
        self._clock.restart()

    def later(self, state: State, batch: PyTree, key, sizes: _Sizes, last_step) -> None:
        """Traces, on this thread, where it belongs, and compiles on another.

        - `last_step`: an array that the last step started gives.
        """
        plan = self._grid.plan(sizes)
        try:
            known = self._learner._signature(state, batch, plan, key)
            program = self._learner._trace(state, batch, plan, key=key)
        except Exception as error:
            self.fail(sizes, error)
            return
        behind = last_step is not None and not is_ready(last_step)
        future = self._learner._programs.submit(program)
        self._pending = _Pending(known, sizes, program, future, behind)

    def receive(self, wait: bool = False) -> _Sizes | None:
        """The sizes of the plan that was being compiled, once that is done. Where it failed
        there is a warning, and `None`.
        """
        pending = self._pending
        # Several processes switch at the same step, once all of them can.
        if pending is None or not (wait or everywhere(pending.future.done())):
            return None
        start = time.perf_counter()
        self._pending = None
        self._clock.restart()
        error = pending.future.exception()
        if not everywhere(error is None):
            self.fail(pending.sizes, error or RuntimeError("it did on another process"))
            return None
        hidden = max(pending.program.compiling - (time.perf_counter() - start), 0.0)
        hidden += pending.program.tracing if pending.behind else 0.0
        self._take(pending.known, pending.sizes, pending.program, hidden)
        return pending.sizes

    def fail(self, sizes: _Sizes, error: BaseException) -> None:
        """Notes, and says, that a plan cannot be had."""
        plan = self._grid.plan(sizes)
        self._failed.add(plan)
        warnings.warn(
            f"Compiling the step of {plan} failed, and training goes on without it: "
            f"{type(error).__name__}: {error}"
        )

    def _take(self, known: Hashable, sizes: _Sizes, program: Program, hidden: float) -> None:
        self._learner._add(known, self._grid.plan(sizes), program, hidden)
        self._known[sizes.tobytes()] = known
        self._lasted = program.tracing + program.compiling
        # Steps go on meanwhile, but slower.
        speed = overlap() if hidden > 0 else 0.0
        self._clock.compiled(self._lasted - speed * hidden)


def is_ready(x: Any) -> bool:
    """Whether an array is computed: does not wait for it."""
    return x.is_ready()
