"""Learns the architecture of a network along with its weights: see the README."""

from importlib.metadata import (
    PackageNotFoundError as _PackageNotFoundError,
    version as _version,
)

from . import ladders as ladders, nn as nn, runtime as runtime
from ._absorbed import absorbed as absorbed
from ._axes import (
    Axes as Axes,
    AxisMap as AxisMap,
    Concatenated as Concatenated,
    concatenated as concatenated,
    declare as declare,
    Fused as Fused,
    fused as fused,
    Gate as Gate,
    Gated as Gated,
    gated as gated,
)
from ._budget import Budget as Budget
from ._budgets import Budgets as Budgets, BudgetWarning as BudgetWarning
from ._carried import axes_in as axes_in
from ._cost import parameter_cost as parameter_cost
from ._costs import Costs as Costs, costs as costs
from ._count import Count as Count
from ._counterpart import counterpart as counterpart
from ._curve import AbstractCurve as AbstractCurve, AbstractPrefix as AbstractPrefix
from ._custom_types import Cost as Cost, Loss as Loss, Sizes as Sizes
from ._embed import embed as embed
from ._extended import extended as extended
from ._fit import Fit as Fit
from ._found import Found as Found, FoundAxis as FoundAxis
from ._freeze import AbstractFreezable as AbstractFreezable, freeze as freeze
from ._gates import HardConcrete as HardConcrete
from ._gaussian import Gaussian as Gaussian
from ._groups import find_axes as find_axes
from ._growth import compact as compact, grow as grow
from ._latency import Latency as Latency, latency as latency
from ._law import check as check, LawError as LawError
from ._layout import capacities as capacities
from ._masks import (
    AbstractMask as AbstractMask,
    Masks as Masks,
    product as product,
)
from ._materialize import materialize as materialize
from ._optim import adamw as adamw, partition as partition
from ._plan import exact as exact, Plan as Plan, plan as plan
from ._pressing import pressing as pressing, slack as slack
from ._pretrained import importance as importance, pretrained as pretrained
from ._pruned import pruned as pruned
from ._ramp import Ramp as Ramp
from ._reordered import reordered as reordered
from ._report import (
    describe as describe,
    operations as operations,
    parameters as parameters,
    report as report,
    table as table,
)
from ._settle import settled as settled
from ._sigmoid import Sigmoid as Sigmoid
from ._sizes import (
    active as active,
    present as present,
    project as project,
    sizes as sizes,
    stack as stack,
)
from ._state import checked as checked, State as State, StepInfo as StepInfo
from ._train import make_step as make_step, OnNonfinite as OnNonfinite, Step as Step
from ._verify import verify as verify
from .ladders import buckets as buckets, Ladder as Ladder, Rule as Rule
from .runtime import Learner as Learner, Planner as Planner, predict as predict


try:
    __version__ = _version("dnarch_eqx")
except _PackageNotFoundError:  # a bare checkout
    __version__ = "0"
