"""What decides on the plans of a run: a planner until the architecture is decided, and one for
the rest.

By the policy "reproducible" nothing looks at the clock: steps and compilations are supposed to
take what the complexity says, and steps are looked at one by one. So plans follow from the
masks alone. What is measured differs from run to run; with it plans would, and with plans the
rounding, and on resolutions the network itself.
"""

import dnarch_eqx as dn
from dnarch_eqx import nn
from recipes._settings import Settings


def policy(settings: Settings, decided: int = 0) -> dn.runtime.AbstractPolicy:
    """When to compile for other sizes. It knows how long the run goes on.

    - `decided`: the step after which the architecture is decided, if it is.
    """
    return dn.runtime.BreakEven(steps=settings.steps - decided)


def make(
    learner: dn.Learner,
    settings: Settings,
    masks: dn.Masks,
    state: dn.runtime.PlannerState | None,
    decided: int = 0,
) -> dn.Planner:
    """The planner of a run until the architecture is decided, or from then on: from its start,
    or from where it was.
    """
    ladders, known = buckets(settings, masks), {}
    if settings.policy == "reproducible":
        assert isinstance(learner.budget, dn.Budget)
        grid = dn.runtime.Grid(masks, ladders)
        timing = dn.runtime.Timing(
            dn.runtime.host_cost(learner.budget.cost, grid),
            compile=settings.compile_steps * float(learner.budget.target),
        )
        known = {"timing": timing, "background": False, "in_flight": 1}
    return dn.Planner(
        learner,
        masks,
        ladders,
        policy(settings, decided),
        headroom=settings.headroom,
        state=state,
        **known,
    )


def buckets(settings: Settings, masks: dn.Masks) -> dict[str, dn.Ladder]:
    """The ladder of every axis."""
    # Fine ones: the policy sees to it that there are few compilations. But coarse ones for
    # kernels, which are rendered once for all examples, and in narrow networks for resolutions:
    # to bring features back costs there what a grid smaller by a quarter saves.
    narrow = settings.width < 64
    fine = nn.buckets(masks, ratio=1.06, multiple=2 if narrow else 8)
    coarse = nn.buckets(masks, ratio=1.5)
    parts = (".kernel", ".resolution") if narrow else (".kernel",)
    return {axis: (coarse if any(p in axis for p in parts) else fine)[axis] for axis in masks}
