"""What decides on the plans of a run: one planner for the whole of it.

By the policy "reproducible" nothing looks at the clock: steps and compilations are supposed to
take what the complexity says, and steps are looked at one by one. So plans follow from the
masks alone. What is measured differs from run to run; with it plans would, and with plans the
rounding, and on resolutions the network itself.
"""

import dnarch_eqx as dn
from dnarch_eqx import nn
from recipes._settings import Settings


def policy(settings: Settings) -> dn.runtime.AbstractPolicy:
    """When to compile for other sizes. It knows how long the whole run is."""
    return dn.runtime.BreakEven(steps=settings.steps)


def make(
    learner: dn.Learner,
    settings: Settings,
    masks: dn.Masks,
    state: dn.runtime.PlannerState | None,
) -> dn.Planner:
    """The planner of the whole run, from its start or from where it was."""
    buckets, known = _buckets(settings, masks), {}
    if settings.policy == "reproducible":
        assert isinstance(learner.budget, dn.Budget)
        grid = dn.runtime.Grid(masks, buckets)
        timing = dn.runtime.Timing(
            dn.runtime.host_cost(learner.budget.cost, grid),
            compile=settings.compile_steps * float(learner.budget.target),
        )
        known = {"timing": timing, "background": False, "in_flight": 1}
    return dn.Planner(
        learner,
        masks,
        buckets,
        policy(settings),
        headroom=settings.headroom,
        state=state,
        **known,
    )


def _buckets(settings: Settings, masks: dn.Masks) -> dict[str, dn.Ladder]:
    # Fine ones: the policy sees to it that there are few compilations. But coarse ones for
    # kernels, which are rendered once for all examples, and in narrow networks for resolutions:
    # to bring features back costs there what a grid smaller by a quarter saves.
    narrow = settings.width < 64
    fine = nn.buckets(masks, ratio=1.06, multiple=2 if narrow else 8)
    coarse = nn.buckets(masks, ratio=1.5)
    parts = (".kernel", ".resolution") if narrow else (".kernel",)
    return {axis: (coarse if any(p in axis for p in parts) else fine)[axis] for axis in masks}
