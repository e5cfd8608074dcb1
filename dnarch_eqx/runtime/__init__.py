"""When to compile: compiled steps, plans, policies, and what was planned, measured and decided.

A script needs [`dnarch_eqx.Learner`][] and [`dnarch_eqx.Planner`][], which are at the top. Here
is what they are made of: to choose a policy, save a run, replay it, or watch compilations.
"""

from ._accepted import AcceptedInfo as AcceptedInfo
from ._forecast import Forecast as Forecast
from ._grid import Grid as Grid
from ._guards import (
    forbid_compilation as forbid_compilation,
    persistent_cache as persistent_cache,
)
from ._learner import Learner as Learner
from ._memory import keep_memory as keep_memory
from ._nonfinite import NotFiniteError as NotFiniteError
from ._planner import Planner as Planner
from ._planner_state import PlannerState as PlannerState
from ._policy import AbstractPolicy as AbstractPolicy, Observation as Observation
from ._predict import predict as predict
from ._replay import (
    optimum as optimum,
    Outcome as Outcome,
    regret as regret,
    replay as replay,
)
from ._store import Compilation as Compilation
from ._timing import (
    calibrated as calibrated,
    host_cost as host_cost,
    Measured as Measured,
    Timing as Timing,
)
from ._trace import Trace as Trace
from ._velocity import Velocity as Velocity
from .policies import (
    BreakEven as BreakEven,
    Every as Every,
    EveryStep as EveryStep,
    Hysteresis as Hysteresis,
    Oracle as Oracle,
)
