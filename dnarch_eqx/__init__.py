"""Learns the architecture of a network along with its weights: see the README."""

from importlib.metadata import version as _version

from . import nn as nn
from ._axes import (
    Axes as Axes,
    AxisMap as AxisMap,
    capacities as capacities,
    check as check,
    declare as declare,
    Fused as Fused,
    fused as fused,
    Gate as Gate,
    Gated as Gated,
    gated as gated,
)
from ._cost import parameter_cost as parameter_cost
from ._custom_types import Cost as Cost, Loss as Loss, Sizes as Sizes
from ._gaussian import Gaussian as Gaussian
from ._learner import (
    Aux as Aux,
    Compilation as Compilation,
    Learner as Learner,
    State as State,
)
from ._masks import (
    AbstractMask as AbstractMask,
    Masks as Masks,
    product as product,
)
from ._materialize import (
    AbstractFreezable as AbstractFreezable,
    freeze as freeze,
    materialize as materialize,
)
from ._memory import keep_memory as keep_memory
from ._optim import adamw as adamw
from ._plan import (
    buckets as buckets,
    every as every,
    exact as exact,
    full as full,
    geometric as geometric,
    Ladder as Ladder,
    multiples as multiples,
    odd as odd,
    Plan as Plan,
    plan as plan,
    replan as replan,
    Rule as Rule,
    smooth as smooth,
)
from ._planner import Planner as Planner
from ._policy import (
    AbstractPolicy as AbstractPolicy,
    AtMost as AtMost,
    BreakEven as BreakEven,
    Every as Every,
    EveryStep as EveryStep,
    Hysteresis as Hysteresis,
    Observation as Observation,
    Oracle as Oracle,
)
from ._predict import predict as predict
from ._programs import (
    forbid_compilation as forbid_compilation,
    persistent_cache as persistent_cache,
)
from ._report import (
    describe as describe,
    operations as operations,
    parameters as parameters,
    report as report,
    table as table,
)
from ._sigmoid import Sigmoid as Sigmoid
from ._sizes import (
    active as active,
    Budget as Budget,
    present as present,
    project as project,
    sizes as sizes,
    stack as stack,
)
from ._timing import Grid as Grid, Timing as Timing
from ._trace import (
    optimum as optimum,
    Outcome as Outcome,
    regret as regret,
    replay as replay,
    Trace as Trace,
)
from ._velocity import Velocity as Velocity


__version__ = _version("dnarch_eqx")
