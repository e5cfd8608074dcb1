import dataclasses
import json
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from .._plan import Plan
from ._forecast import Forecast
from ._grid import Grid
from ._policy import AbstractPolicy, Observation
from ._timing import Measured, Timing
from ._trace import Recording
from ._velocity import Velocity


# Of the plans that a run has taken, so many are remembered.
_SWITCHES = 4096


@dataclasses.dataclass(frozen=True, eq=False)
class PlannerState:
    """All that a planner decides by, beside the masks: immutable. With the training state it is
    what a run needs to go on as if it had never stopped.

    - `step`: how many steps were looked at.
    - `plan`: the present plan; `None` before the first step.
    - `policy`: the policy's own state.
    - `forecast`: where masks are, and how fast they move.
    - `measured`: what steps and compilations take.
    - `switches`: pairs of a step and the plan taken there.
    - `compiled`: the plans that the run has compiled and keeps.
    - `failed`: those that could not be compiled.
    - `recording`: the active counts of the steps.
    """

    step: int
    plan: Plan | None
    policy: Any
    forecast: Forecast
    measured: Measured = Measured()
    switches: tuple[tuple[int, Plan], ...] = ()
    compiled: tuple[Plan, ...] = ()
    failed: tuple[Plan, ...] = ()
    recording: Recording = Recording()

    @staticmethod
    def start(policy: AbstractPolicy, grid: Grid) -> "PlannerState":
        """Before the first step."""
        return PlannerState(0, None, policy.init(), Forecast.none(len(grid.axes)))

    def replace(self, **changes: Any) -> "PlannerState":
        """The same with some fields changed."""
        # Not `dataclasses.replace`, which takes as long as a forecast.
        new = object.__new__(PlannerState)
        new.__dict__.update(self.__dict__, **changes)
        return new

    def saw(
        self, active: Int[np.ndarray, " axes"], position: Float[np.ndarray, " axes"]
    ) -> "PlannerState":
        """With one more step that was accepted."""
        forecast = self.forecast.update(active, position)
        recording = self.recording.record(active)
        return self.replace(step=self.step + 1, forecast=forecast, recording=recording)

    def decide(
        self,
        policy: AbstractPolicy,
        grid: Grid,
        timing: Timing,
        active: Int[np.ndarray, " axes"],
        expected: Int[np.ndarray, " axes"],
        *,
        compiled: frozenset[Plan],
        ahead: int = 0,
    ) -> tuple["PlannerState", Plan]:
        """Asks the policy for the plan of a step: with its state, the plan that it wants.

        - `active`, `expected`: the counts that the plan has to hold, and those that it should.
        - `compiled`: the plans that are free.
        - `ahead`: how many steps are under way that were not looked at.

        Raises `ValueError` if the policy gives a plan that does not cover.
        """
        observation = Observation(
            self.step + ahead,
            active,
            np.maximum(active, np.minimum(expected, grid.capacity)),
            self.forecast.velocity,
            self.plan,
            grid,
            timing,
            compiled,
        )
        memory, plan = policy(self.policy, observation)
        if not (isinstance(plan, Plan) and len(plan) == len(grid.axes)):
            raise ValueError(f"{policy} must give a `Plan` of all axes, not {plan!r}.")
        if not observation.covered(plan):
            raise ValueError(
                f"{policy} gave {plan}, which does not cover the active counts "
                f"{dict(zip(grid.axes, active.tolist()))}."
            )
        return self.replace(policy=memory), plan

    def switched(self, plan: Plan) -> "PlannerState":
        """Under another plan from now on."""
        # The last one counts of those that were taken before the same step.
        before = self.switches
        while before and before[-1][0] == self.step:
            before = before[:-1]
        switches = (*before, (self.step, plan))[-_SWITCHES:]
        new = self.replace(plan=plan, switches=switches)
        return new.compiled_too(plan, len(self.compiled)) if plan in self.compiled else new

    def compiled_too(self, plan: Plan, keep: int) -> "PlannerState":
        """With one more plan compiled, of which the last are kept."""
        others = tuple(other for other in self.compiled if other != plan)
        return self.replace(compiled=(*others, plan)[-keep:])

    def to_json(self) -> str:
        """As text: plain data, exact to the last bit."""
        return json.dumps(_encoded(self))

    @staticmethod
    def from_json(text: str, policy: AbstractPolicy) -> "PlannerState":
        """From what [`dnarch_eqx.runtime.PlannerState.to_json`][] gave.

        - `policy`: that of the run.

        Raises `ValueError` for other text, or a state of another policy.
        """
        known = {kind.__name__: kind for kind in _KINDS}
        known |= {type(x).__name__: type(x) for x in _dataclasses(policy.init())}
        try:
            state = _decoded(json.loads(text), known)
        except (AttributeError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"This is no planner's state under {policy}: {error!r}.") from None
        if not isinstance(state, PlannerState):
            raise ValueError(f"This is no planner's state, but {type(state).__name__}.")
        if type(state.policy) is not type(policy.init()):
            raise ValueError(f"This is no planner's state under {policy}.")
        return state


_KINDS = (PlannerState, Forecast, Velocity, Measured, Recording)


def _dataclasses(x: Any) -> list[Any]:
    return [
        node
        for node in jax.tree_util.tree_leaves(x, is_leaf=dataclasses.is_dataclass)
        if dataclasses.is_dataclass(node)
    ]


def _encoded(x: Any) -> Any:
    if x is None or isinstance(x, (bool, int, float, str)):
        return x
    if isinstance(x, np.generic):
        return x.item()
    if isinstance(x, np.ndarray):
        return {"array": x.tolist(), "dtype": str(x.dtype), "shape": x.shape}
    if isinstance(x, Plan):
        return {"plan": dict(x)}
    if isinstance(x, tuple):
        return [_encoded(item) for item in x]
    if dataclasses.is_dataclass(x) and not isinstance(x, type):
        fields = {f.name: _encoded(getattr(x, f.name)) for f in dataclasses.fields(x)}
        return {"type": type(x).__name__, "fields": fields}
    raise TypeError(f"A planner's state cannot hold {x!r}: see `AbstractPolicy`.")


def _decoded(x: Any, known: dict[str, Any]) -> Any:
    if isinstance(x, list):
        return tuple(_decoded(item, known) for item in x)
    if not isinstance(x, dict):
        return x
    if "array" in x:
        return np.array(x["array"], x["dtype"]).reshape(x["shape"])
    if "plan" in x:
        return Plan(x["plan"])
    return known[x["type"]](**{k: _decoded(v, known) for k, v in x["fields"].items()})
