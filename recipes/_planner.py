"""What decides on the plans of a run: a planner until the architecture is decided, and one for
the rest.

By the policy "reproducible" nothing looks at the clock: steps and compilations are supposed to
take what the complexity says, and steps are looked at one by one. So plans follow from the
masks alone. What is measured differs from run to run; with it plans would, and with plans the
rounding, and on resolutions the network itself.
"""

from jax import Array

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
            dn.runtime.host_cost(_time(learner.budget.cost, settings.width), grid),
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


def _time(cost: dn.Cost, width: int) -> dn.Cost:
    """What a step takes, in units of the complexity: that does not count the stream, whose
    norms and sums are half of what a narrow network does.
    """

    def time(sizes: dn.Sizes) -> Array:
        of_stream = sizes["stream"] / width if "stream" in sizes else 1.0
        return cost(sizes) * (1 + of_stream) / 2

    return time


def buckets(settings: Settings, masks: dn.Masks) -> dict[str, dn.Ladder]:
    """The ladder of every axis, while the architecture is learned."""
    # Fine ones: the policy sees to it that there are few compilations. But coarse ones for
    # kernels, which are rendered once for all examples; and in narrow networks for the stream,
    # which no budget keeps from growing, and for resolutions: to bring features back costs
    # there what a grid smaller by a quarter saves.
    narrow = settings.width < 64
    ladders = dict(nn.buckets(masks, ratio=1.06, multiple=2 if narrow else 8))
    for axis, ladder in nn.buckets(masks, ratio=1.5).items():
        if ".kernel" in axis or (narrow and ".resolution" in axis):
            ladders[axis] = ladder
    if narrow and "stream" in masks:
        ladders["stream"] = dn.ladders.multiples(8)(masks["stream"].capacity)
    return ladders


def grids(masks: dn.Masks) -> dn.Plan:
    """The grids of the resolutions that were decided on: lengths that transforms like."""
    chosen = {axis: mask for axis, mask in masks.items() if ".resolution" in axis}
    return dn.plan(chosen, nn.buckets(chosen, ratio=1.0))
