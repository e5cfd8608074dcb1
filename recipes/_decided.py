"""Where a run has decided on an architecture: it trains on as a network of these sizes does,
with arrays as large, no masks but those of kernels, and no budget to hold.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import numpy as np
import optax

import dnarch_eqx as dn
from dnarch_eqx.runtime import Trace
from recipes._network import Built


@dataclasses.dataclass(frozen=True, eq=False)
class Decided:
    """What was decided.

    - `masks`: as they were then; those that are no more.
    - `plan`: the buckets that were chosen for their axes.
    - `trace`: the active counts until then.
    """

    masks: dn.Masks
    plan: Mapping[str, int]
    trace: Trace

    def joined(self, masks: dn.Masks, trace: Trace) -> Trace:
        """The trace of the whole run, from that of the masks that are left."""
        counts = {**dn.exact(self.masks), **dict.fromkeys(masks, 0)}
        axes = tuple(sorted(counts))
        counted = np.array([counts[axis] for axis in axes], int)
        later = np.tile(counted, (len(trace.steps), 1))
        later[:, [axes.index(axis) for axis in trace.axes]] = trace.active
        return Trace(
            axes,
            np.concatenate([self.trace.steps, trace.steps + self.trace.length]),
            np.concatenate([self.trace.active, later]),
            self.trace.length + trace.length,
        )


def searched(masks: dn.Masks) -> list[str]:
    """The axes whose sizes are decided on. Those of kernels cost nothing once they are
    rendered, and are learned on.
    """
    return [axis for axis in masks if ".kernel" not in axis]


def smaller(
    state: dn.State,
    axes: dn.AxisMap,
    plan: Mapping[str, int],
    optim: optax.GradientTransformation,
) -> dn.State:
    """The state of the network that is trained on."""
    return dn.absorbed(state, axes, optim, names=searched(state.masks), plan=plan)[0]


def like(
    state: dn.State,
    masks: dn.Masks,
    axes: dn.AxisMap,
    plan: Mapping[str, int],
    optim: optax.GradientTransformation,
) -> dn.State:
    """A state of the same structure as [`smaller`][] gives, from that of the run's start and
    the masks that were decided on.
    """
    start = eqx.tree_at(lambda s: s.masks, state, {**state.masks, **masks})
    return smaller(start, axes, plan, optim)


def rest(built: Built, masks: dn.Masks, state: dn.State) -> Built:
    """What a learner needs to train on with.

    - `masks`: those that were decided on.
    """
    axes = dn.axes_in(built.axes, state.model)
    cost = _Rest(built.cost, tuple(sorted(dn.exact(masks).items())))
    return Built(state.model, state.masks, axes, cost, built.target)


@dataclasses.dataclass(frozen=True)
class _Rest:
    """The cost where some sizes are given."""

    cost: dn.Cost
    given: tuple[tuple[str, int], ...]

    def __call__(self, sizes: dn.Sizes) -> Any:
        return self.cost({**sizes, **dict(self.given)})
