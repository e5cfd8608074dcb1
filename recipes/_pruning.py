"""Other ways to a network of the base's complexity, trained in the same loop to compare:

- `magnitude`: twice as many channels, of which those with the smallest weights are cut, in
  steps over the middle of the run (Han et al. 2015, on channels).
- `l0`: twice as many channels, each with a random gate (Louizos et al. 2018).
- `diffstride`: a quarter more channels, and resolutions that are learned by DiffStride's mask
  (Riad et al. 2022) until they pay for them.

FlexConv (Romero et al. 2021), kernels alone, is the variant `k`.
"""

import dataclasses
from typing import Any

import jax
import optax

import dnarch_eqx as dn
from dnarch_eqx import nn
from recipes import _network
from recipes._network import Built, Network


NAMES = ("magnitude", "l0", "diffstride")
# How often channels are cut, or put in order, in a run; and from and to what share of it.
_TIMES, _FROM, _UNTIL = 20, 0.1, 0.6


def build(name: str, network: Network, base: nn.Base, **settings: Any) -> Built:
    """A network of more than the base's complexity, and masks to bring it down to that."""
    if network.towers:
        raise ValueError(f"`variant` {name} is for networks of one tower.")
    if name == "diffstride":
        wide = nn.Base(base.depth, round(1.25 * base.width))
        built = _network.build(network, wide, "R", **settings)
        masks = {axis: dn.Ramp(m.capacity, ramp=_ramp(m)) for axis, m in built.masks.items()}
        return dataclasses.replace(built, masks=masks, target=_base(built, base))
    built = _network.build(network, base, "W", **settings | {"start": 2.0, "stream": True})
    make = _gates if name == "l0" else _hard
    masks = {
        axis: make(mask.capacity)
        for axis, mask in built.masks.items()
        if axis == "stream" or axis.endswith(".mid")
    }
    axes = {path: _tied(spec) for path, spec in built.axes.items()}
    target = _base(built, base) | {"stream": float(base.width)}
    return Built(built.model, masks, axes, _Tied(built.cost, base.depth), target)


def _gates(capacity: int) -> dn.HardConcrete:
    return dn.HardConcrete(capacity, probability=0.99)


def _hard(capacity: int) -> dn.Sigmoid:
    """A mask of ones and zeros."""
    return dn.Sigmoid(capacity, temperature=1e6)


def _ramp(mask: dn.AbstractMask) -> float:
    """DiffStride's, but never more than a quarter of the axis."""
    return min(4.0, mask.capacity / 4)


def _base(built: Built, base: nn.Base) -> dict[str, float]:
    return nn.base_sizes(built.model, base)


def _tied(spec: dn.Axes) -> dn.Axes:
    """All channels that a block reads or writes are the stream's, so that any can be cut. Its
    mask enters where it is read.
    """

    def dim(of: Any) -> Any:
        axis = of.axis if isinstance(of, dn.Gated) else of
        ends = isinstance(axis, str) and axis.endswith((".in", ".out"))
        return "stream" if ends else of

    return dn.Axes(*map(dim, spec.dims))


@dataclasses.dataclass(frozen=True)
class _Tied:
    """The cost of blocks that read and write the whole stream."""

    cost: dn.Cost
    depth: int

    def __call__(self, sizes: dn.Sizes) -> jax.Array:
        stream = {
            f"blocks.{i}.{part}": sizes["stream"]
            for i in range(self.depth)
            for part in ("in", "out")
        }
        return self.cost({**sizes, **stream})


def due(variant: str, step: int, steps: int) -> bool:
    """Whether channels are cut, or put in order, before this step."""
    first, every = _times(steps)
    since = step - first
    return (
        variant in ("magnitude", "l0") and 0 <= since <= _TIMES * every and since % every == 0
    )


def _times(steps: int) -> tuple[int, int]:
    """The first time, and the steps from one to the next."""
    return int(_FROM * steps), max(int((_UNTIL - _FROM) * steps / _TIMES), 1)


def pruned(
    variant: str,
    state: dn.State,
    built: Built,
    optim: optax.GradientTransformation,
    steps: int,
) -> dn.State:
    """The state without the least of its channels, or with the open ones first."""
    if variant == "l0":
        return dn.reordered(state, built.axes, optim)
    whole = {axis: float(mask.capacity) for axis, mask in state.masks.items()}
    full, least = float(built.cost(whole)), float(built.cost(built.target))
    first, every = _times(steps)
    target = optax.linear_schedule(full, least, _TIMES * every, first)
    budget = dn.Budget(built.cost, target, hold="bound")
    importance = dn.importance(state.model, built.axes, state.masks)
    return dn.pruned(state, built.axes, importance, budget, optim)
