import time
import warnings

import jax
import numpy as np

from .._plan import Plan
from ._background import in_background
from ._learner import Learner
from ._overlap import overlap
from ._processes import alone, everywhere, largest
from ._program import Program
from ._run import Given, Pending, Run
from ._signature import is_ready, Key


# On several processes: after so many steps all ask one another whether they have compiled.
_POLL = 8


class Compiler:
    """Has the steps of plans compiled, at once or on another thread, one at a time. On several
    processes what fails on one fails on all.
    """

    background: bool

    def __init__(self, learner: Learner, background: bool | None, measures: bool):
        """**Arguments:**

        - `learner`: has the steps, and the store of those that are compiled.
        - `background`: whether training goes on during compilations. If `None`, in a single
            process whose backend can.
        - `measures`: whether decisions go by what compilations take.
        """
        self._learner = learner
        self._measures = measures
        ask = background is None and alone()
        self._speed = overlap() if background or ask else 0.0
        self.background = self._speed > 0.25 if ask else bool(background)
        if ask and not self.background:
            warnings.warn(
                f"The backend {jax.default_backend()!r} runs steps at {self._speed:.0%} of "
                "their speed while another thread compiles: training waits for compilations. "
                "`background=True` makes it go on all the same."
            )

    def now(self, run: Run, given: Given, key: Key, plan: Plan) -> Program:
        """Compiles while training waits. Raises what compiling raises."""
        assert run.actual is not None
        program, error = None, None
        try:
            program = self._learner.trace(run.actual, given.rest, plan).compile()
        except Exception as failure:
            error = failure
        if not everywhere(error is None) or program is None:
            raise error or RuntimeError(
                f"Compiling the step of {plan} failed on another process."
            )
        self._take(run, plan, key, program, 0.0)
        return program

    def later(self, run: Run, given: Given, key: Key, plan: Plan) -> None:
        """Traces, on this thread, where it belongs, and compiles on another."""
        assert run.actual is not None
        busy = bool(run.flight) and not is_ready(run.flight[-1].info.signals)
        program, error = None, None
        try:
            program = self._learner.trace(run.actual, given.rest, plan)
        except Exception as failure:
            error = failure
        if not everywhere(error is None) or program is None:
            return self.fail(run, plan, error)
        run.pending = Pending(plan, key, program, in_background(program.compile), busy)

    def receive(self, run: Run, wait: bool) -> Plan | None:
        """The plan that was being compiled, once that is done. Where it failed there is a
        warning, and `None`.
        """
        pending = run.pending
        if pending is None or not (wait or self._is_done(run, pending)):
            return None
        start = time.perf_counter()
        error = pending.future.exception()
        waited = time.perf_counter() - start
        run.pending, run.lap = None, None
        if not everywhere(error is None):
            self.fail(run, pending.plan, error)
            return None
        overlapped = max(pending.program.compiling - waited, 0.0)
        overlapped += pending.program.tracing if pending.traced_while_busy else 0.0
        self._take(run, pending.plan, pending.key, pending.program, overlapped)
        return pending.plan

    def fail(self, run: Run, plan: Plan, error: BaseException | None) -> None:
        """Notes, and says, that a plan cannot be had."""
        run.planner = run.planner.replace(failed=(*run.planner.failed[-63:], plan))
        why = "on another process" if error is None else f"{type(error).__name__}: {error}"
        warnings.warn(
            f"Compiling the step of {plan} failed, and training goes on without it: {why}"
        )

    def _is_done(self, run: Run, pending: Pending) -> bool:
        if alone():
            return pending.future.done()
        # All processes switch at the same step, once all of them can.
        step = run.planner.step + len(run.flight)
        return step % _POLL == 0 and everywhere(pending.future.done())

    def _take(
        self, run: Run, plan: Plan, key: Key, program: Program, overlapped: float
    ) -> None:
        self._learner.note(plan, key, program, overlapped)
        run.lap = None
        run.planner = run.planner.compiled_too(plan, self._learner.keep)
        if not self._measures:
            return
        seconds = program.tracing + program.compiling
        # Steps go on meanwhile, but slower.
        price = seconds - self._speed * overlapped
        agreed = largest(np.array([price, seconds], np.float32)).tolist()
        run.planner = run.planner.replace(measured=run.planner.measured.compiled(*agreed))
