import collections
import dataclasses
import warnings

import jax.monitoring as monitoring

from .._plan import Plan
from ._guards import listen
from ._program import Program
from ._signature import Key


@dataclasses.dataclass(frozen=True)
class Compilation:
    """One compilation of the training step.

    - `call`: at which call of the step, counted from 0.
    - `plan`: the plan compiled for.
    - `changes`: the axes that differ from the plan before, `{axis: (old, new)}`. Empty if
        something else changed: the first compilation, or the shape of a batch.
    - `tracing`, `compiling`: how many seconds each took.
    - `overlapped`: for how many of those training went on.
    - `cached`: whether JAX's persistent cache had it.
    """

    call: int
    plan: Plan
    changes: dict[str, tuple[int | None, int | None]]
    tracing: float
    compiling: float
    overlapped: float = 0.0
    cached: bool = False

    @property
    def seconds(self) -> float:
        return self.tracing + self.compiling


class Store:
    """The compiled programs in use, and the only one that knows them: by plan and by all else
    that decides on a program. Bounded: the one not used for the longest time is dropped, with
    its memory.
    """

    compilations: list[Compilation]

    def __init__(self, keep: int, name: str | None = None):
        """**Arguments:**

        - `keep`: how many programs are kept.
        - `name`: what they are, as in "step", if it is to be said when programs are compiled in
            vain.
        """
        listen()
        self._name = name
        self.compilations = []
        self._keep = keep
        self._held: collections.OrderedDict[tuple[Plan, Key], Program] = (
            collections.OrderedDict()
        )
        # Hashes of what was dropped, to say so if it is wanted again.
        self._dropped: collections.OrderedDict[int, None] = collections.OrderedDict()
        self._warned: set[str] = set()
        self._last: Plan | None = None

    def __len__(self) -> int:
        return len(self._held)

    def get(self, plan: Plan, key: Key) -> Program | None:
        """The compiled program, if it is there."""
        held = self._held.get((plan, key))
        if held is not None:
            self._held.move_to_end((plan, key))
        return held

    def plans(self, key: Key) -> tuple[Plan, ...]:
        """The plans that are compiled for arguments like these, last used last."""
        return tuple(plan for plan, other in self._held if other == key)

    def put(
        self, plan: Plan, key: Key, program: Program, call: int, overlapped: float = 0.0
    ) -> None:
        """Takes a compiled program, if it is not there, and notes its compilation.

        - `call`: at which call of the step.
        - `overlapped`: for how many seconds training went on meanwhile.
        """
        if (plan, key) in self._held:
            return
        if self._name is not None:
            self._warn(plan, key)
        self._held[plan, key] = program
        while len(self._held) > self._keep:
            dropped, _ = self._held.popitem(last=False)
            self._dropped[hash(dropped)] = None
            if len(self._dropped) > 4096:
                self._dropped.popitem(last=False)
        changes = {} if self._last is None else plan.changes(self._last)
        compilation = Compilation(
            call, plan, changes, program.tracing, program.compiling, overlapped, program.cached
        )
        self._last = plan
        self.compilations.append(compilation)
        if self._name is None:
            return
        monitoring.record_event_duration_secs(
            "/dnarch_eqx/compile_duration",
            compilation.seconds,
            axes=",".join(changes),
            overlapped=f"{overlapped:.3f}",
            cached=str(program.cached),
        )

    def _warn(self, plan: Plan, key: Key) -> None:
        step = f"The {self._name} of {plan}"
        if hash((plan, key)) in self._dropped:
            self._say(
                "dropped",
                f"{step} was compiled before, and dropped, as only {self._keep} are kept. "
                "Where plans, shapes of batches and devices take turns, keep more: "
                f"`Learner(..., keep={2 * self._keep})`.",
            )
        changes = [key.changes(other) for other_plan, other in self._held if other_plan == plan]
        changes = list(filter(None, changes))
        for (new, old), *_ in changes[1:]:
            self._say(
                "static",
                f"{step} is compiled once more, since something that "
                f"is no array has changed from {old!r} to {new!r}. Make it an array.",
            )

    def _say(self, kind: str, message: str) -> None:
        """Once of each kind."""
        if kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(message)
